"""Finds which channels swap when an image is mirrored: pairs such as `left_eye` and `right_eye`."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Sequence

from keypoint_detection.data.channels import ChannelGroup
from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

_MIRRORED_WORDS = {"left": "right", "l": "r"}
_MIRRORED_WORDS |= {right: left for left, right in _MIRRORED_WORDS.items()}
# Words of a name: runs of letters with some outside the English alphabet, runs of capitals, capitalised or lower-case
# words, digits, and other single characters.
_WORD = re.compile(r"[A-Za-z]*(?:[^\W\d_A-Za-z]+[A-Za-z]*)+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^A-Za-z\d]")
_LETTERS = re.compile(r"[^\W\d_]+")
_SIDE = re.compile(r"left|right", re.IGNORECASE)


def _in_case_of(word: str, like: str) -> str:
    """A word in the letter case of another one."""
    return word.upper() if like.isupper() else word.capitalize() if like[0].isupper() else word


def _mirrored_word(word: str) -> str | None:
    """The word for the other side in the same letter case, or None if the word does not name a side."""
    mirrored = _MIRRORED_WORDS.get(word.lower())
    if mirrored is not None:
        return _in_case_of(mirrored, word)
    if len(word) == 2 and word.isupper() and word[0] in "LR":  # LF, RH: left front, right hind
        return {"L": "R", "R": "L"}[word[0]] + word[1]
    for side in ("left", "right"):  # leftEye is split by its capital, lefteye is not
        if word.lower().startswith(side) and word.islower():
            return _MIRRORED_WORDS[side] + word[len(side) :]
    return None


def mirrored_name(name: str) -> str | None:
    """The name that a channel has in a mirrored image, or None if the name does not tell left from right."""
    words = _WORD.findall(name)
    mirrored = [_mirrored_word(word) for word in words]
    if all(word is None for word in mirrored):
        return None
    return "".join(new or old for new, old in zip(mirrored, words, strict=True))


def _names_with_another_side(name: str) -> set[str]:
    """The names that result from swapping `left` and `right` within a word."""
    return {
        name[: side.start()] + _in_case_of(_MIRRORED_WORDS[side[0].lower()], side[0]) + name[side.end() :]
        for side in _SIDE.finditer(name)
    }


def _names_with_another_letter(name: str) -> set[str]:
    """The names that result from swapping `l` and `r` at one end of a word."""
    places = {place for run in _LETTERS.finditer(name) for place in (run.start(), run.end() - 1)}
    return {
        name[:place] + _in_case_of(_MIRRORED_WORDS[name[place].lower()], name[place]) + name[place + 1 :]
        for place in places
        if name[place].lower() in ("l", "r")
    }


def _pairs_within_words(
    names: Sequence[str], others: Callable[[str], set[str]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of names that are each other's only partner.

    Args:
        names: names that have no partner so far.
        others: gives the names that the other side of a name may have.

    Returns:
        The pairs, and the names that have possible partners but no certain one.
    """
    place = {name: position for position, name in enumerate(names)}
    found = {name: sorted(others(name) & place.keys(), key=place.__getitem__) for name in names}
    pairs = [
        (name, partners[0])
        for name, partners in found.items()
        if len(partners) == 1 and found[partners[0]] == [name] and place[name] < place[partners[0]]
    ]
    paired = set(itertools.chain.from_iterable(pairs))
    return pairs, [name for name, partners in found.items() if partners and name not in paired]


def guess_flip_pairs(channel_names: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Guesses from the names which channels swap when an image is mirrored.

    Two channels are a pair if their names differ in `left` and `right`, in `l` and `r` as separate words, or in words
    of two capitals, the first of which is L or R. Names that are still without a partner may also differ in their
    numbers (`paw1LH` and `paw4RH`), if that leaves just one partner; in `left` and `right` within a word (`topleft`);
    or in an l and r at one end of a word (`lwrist`, `TL`). A single pair of the last kind may be chance (`lake` and
    `rake`): it does not become a pair, but its names count as naming a side.

    Args:
        channel_names: names of all channels.

    Returns:
        Pairs of names in the order of the channels, and the names that name a side but have no partner.
    """
    sided = {name: mirrored_name(name) for name in channel_names}
    unpaired = [name for name, mirrored in sided.items() if mirrored is not None]
    pairs: list[tuple[str, str]] = []
    for without_digits in (False, True):

        def key(name: str, strip: bool = without_digits) -> str:
            return re.sub(r"\d+", "", name) if strip else name

        for name in list(unpaired):
            if name not in unpaired:
                continue
            same = [other for other in unpaired if key(other) == key(name)]
            partners = [other for other in unpaired if other != name and key(other) == key(sided[name] or "")]
            if len(same) == 1 and len(partners) == 1:
                pairs.append((name, partners[0]))
                unpaired = [other for other in unpaired if other not in (name, partners[0])]
    for others, fewest in ((_names_with_another_side, 1), (_names_with_another_letter, 2)):
        paired = set(itertools.chain.from_iterable(pairs))
        more, uncertain = _pairs_within_words([name for name in channel_names if name not in paired], others)
        of_more = list(itertools.chain.from_iterable(more))
        if len(more) >= fewest:
            pairs += more
            unpaired = [name for name in unpaired if name not in of_more]
        else:
            uncertain += of_more
        unpaired += [name for name in uncertain if name not in unpaired]
    order = {name: position for position, name in enumerate(channel_names)}
    return sorted(pairs, key=lambda pair: order[pair[0]]), unpaired


def parse_flip_pairs(flip_pairs: str | Sequence[str], channel_names: Sequence[str]) -> list[tuple[str, str]]:
    """Reads `"left_eye=right_eye a=b"`, or `["left eye=right eye", "a=b"]`.

    Raises:
        InputError: if an entry is not `name=name`, names an unknown channel, or a channel occurs twice.
    """
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for entry in flip_pairs.split() if isinstance(flip_pairs, str) else flip_pairs:
        names = entry.split("=")
        if len(names) != 2 or names[0] == names[1]:
            raise InputError(f"flip_pairs: expected two different channels as name=name, got {entry!r}")
        for name in names:
            if name not in channel_names:
                raise InputError(f"flip_pairs: {entry!r} names {name!r}, expected one of {', '.join(channel_names)}")
            if name in seen:
                raise InputError(f"flip_pairs: {name!r} is in two pairs, expected each channel once")
            seen.add(name)
        pairs.append((names[0], names[1]))
    return pairs


def _possible_partners(name: str, names: Sequence[str]) -> set[str]:
    """Those of `names` that may be the other side of `name`, however uncertain that is."""
    mirrored = mirrored_name(name)
    others = _names_with_another_side(name) | _names_with_another_letter(name)
    if mirrored is not None:
        others |= {other for other in names if re.sub(r"\d+", "", other) == re.sub(r"\d+", "", mirrored)}
    return others.intersection(names) - {name}


def _guess_pairs_of_groups(groups: Sequence[ChannelGroup]) -> tuple[list[tuple[str, str]], list[str]]:
    """`guess_flip_pairs` for channels that may each hold several channels of the file.

    A channel that holds both sides of something has no side; two channels that each hold one side of the same things
    are a pair. The name of a merged channel only counts if its names in the file do not name a side.
    """
    pairs, unpaired = guess_flip_pairs([member for group in groups for member in group.members])
    sided = {*unpaired, *itertools.chain.from_iterable(pairs)}
    groups = [group if sided.intersection(group.members) else group._replace(members=(group.name,)) for group in groups]
    members = [member for group in groups for member in group.members]
    pairs, unpaired = guess_flip_pairs(members)
    for group in groups:
        closed = [name for name in group.members if set() < _possible_partners(name, members) <= set(group.members)]
        unpaired = [name for name in unpaired if name not in closed]
    partner = dict(pairs) | {b: a for a, b in pairs}
    names = {frozenset(group.members): group.name for group in groups}
    mirrored = {
        group.name: names.get(frozenset(partner.get(member, member) for member in group.members)) for group in groups
    }
    without = [
        group.name for group in groups if mirrored[group.name] is None or not set(group.members).isdisjoint(unpaired)
    ]
    place = {group.name: position for position, group in enumerate(groups)}
    certain = [(name, other) for name, other in mirrored.items() if other is not None and name not in without]
    return [(name, other) for name, other in certain if place[name] < place[other]], without


def sides_without_partner(groups: Sequence[ChannelGroup], flip_pairs: str | Sequence[str]) -> list[str]:
    """Channels whose names name a side but that have no certain partner; none unless pairs are guessed.

    Args:
        groups: all channels, and what they consist of.
        flip_pairs: as for `mirror_permutation`.
    """
    return _guess_pairs_of_groups(groups)[1] if flip_pairs == "auto" else []


def mirror_permutation(
    groups: Sequence[ChannelGroup], flip_pairs: str | Sequence[str], report: bool = False
) -> tuple[int, ...] | None:
    """Which channel each channel takes its keypoints from when the image is mirrored.

    Args:
        groups: all channels, and what they consist of.
        flip_pairs: `"a=b c=d"` or a list of pairs, `"auto"` to guess from the names, or `"none"` if there are none.
        report: whether to log the pairs, or why images are not mirrored.

    Returns:
        One position per channel, or None if some names name a side but have no partner: images must then not be
        mirrored.

    Raises:
        InputError: if `flip_pairs` does not fit the channels.
    """
    channel_names = [group.name for group in groups]
    without: list[str] = []
    if flip_pairs == "auto":
        pairs, without = _guess_pairs_of_groups(groups)
    else:
        pairs = [] if flip_pairs == "none" else parse_flip_pairs(flip_pairs, channel_names)
    if without:
        if report:
            logger.warning(
                "Images are not mirrored: channels named as left or right have no certain partner: %s. "
                "Name the pairs (--flip_pairs 'a=b c=d'), or state that there are none (--flip_pairs none).",
                ", ".join(without),
            )
        return None
    if report:
        logger.info(
            "A mirrored image swaps %s (--flip_pairs); use --horizontal_flip 0 if left and right do not look alike.",
            "the channels " + " ".join(f"{a}={b}" for a, b in pairs) if pairs else "no channels",
        )
    partner = dict(pairs) | {b: a for a, b in pairs}
    return tuple(channel_names.index(partner.get(name, name)) for name in channel_names)
