"""Which channels trade places when an image is mirrored: pairs such as `left_eye` and `right_eye`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

_MIRRORED_WORDS = {"left": "right", "l": "r"}
_MIRRORED_WORDS |= {right: left for left, right in _MIRRORED_WORDS.items()}
# Words of a name: runs of capitals, capitalised or small words, digits, and single other characters.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^A-Za-z\d]")


def _mirrored_word(word: str) -> str | None:
    """The word for the other side in the same case, or None where a word does not tell a side."""
    mirrored = _MIRRORED_WORDS.get(word.lower())
    if mirrored is not None:
        return mirrored.upper() if word.isupper() else mirrored.capitalize() if word[0].isupper() else mirrored
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


def guess_flip_pairs(channel_names: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Guesses from the names which channels trade places when an image is mirrored.

    Two channels are a pair if their names differ in `left` and `right`, `l` and `r` as a word of its own, or two
    capitals of which the first is L or R. Names that then stay without a partner may also differ in their numbers
    (`paw1LH` and `paw4RH`), where that leaves just one partner.

    Args:
        channel_names: names of all channels.

    Returns:
        Pairs of names in the order of the channels, and the names that tell a side and found no partner.
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
    order = {name: position for position, name in enumerate(channel_names)}
    return sorted(pairs, key=lambda pair: order[pair[0]]), unpaired


def parse_flip_pairs(flip_pairs: str, channel_names: Sequence[str]) -> list[tuple[str, str]]:
    """Reads `"left_eye=right_eye a=b"`.

    Raises:
        InputError: if an entry is not `name=name`, names an unknown channel, or a channel occurs twice.
    """
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for entry in flip_pairs.split():
        names = entry.split("=")
        if len(names) != 2 or names[0] == names[1]:
            raise InputError(f"flip_pairs: expected two channels as name=name, got {entry!r}")
        for name in names:
            if name not in channel_names:
                raise InputError(f"flip_pairs: {entry!r} names {name!r}, expected one of {', '.join(channel_names)}")
            if name in seen:
                raise InputError(f"flip_pairs: {name!r} is in two pairs, expected each channel once")
            seen.add(name)
        pairs.append((names[0], names[1]))
    return pairs


def mirror_permutation(channel_names: Sequence[str], flip_pairs: str, report: bool = False) -> tuple[int, ...] | None:
    """Which channel each channel takes its keypoints from when the image is mirrored.

    Args:
        channel_names: names of all channels.
        flip_pairs: `"a=b c=d"`, `"auto"` to guess from the names, or `"none"` when no channel has a side.
        report: whether to log the pairs.

    Returns:
        One position per channel, or None if the names tell sides and not all of them find a partner: then images
        must not be mirrored.

    Raises:
        InputError: if `flip_pairs` does not fit the channels.
    """
    if flip_pairs == "none":
        pairs = []
    elif flip_pairs == "auto":
        pairs, unpaired = guess_flip_pairs(channel_names)
        if unpaired:
            logger.warning(
                "Images are not mirrored: %s tell left from right by name, but have no partner. "
                "Name the pairs (--flip_pairs 'a=b c=d'), or state that there are none (--flip_pairs none).",
                ", ".join(unpaired),
            )
            return None
    else:
        pairs = parse_flip_pairs(flip_pairs, channel_names)
    if pairs and report:
        logger.info(
            "A mirrored image swaps the channels %s; take --horizontal_flip 0 where left and right do not look alike.",
            " ".join(f"{a}={b}" for a, b in pairs),
        )
    partner = dict(pairs) | {b: a for a, b in pairs}
    return tuple(list(channel_names).index(partner.get(name, name)) for name in channel_names)
