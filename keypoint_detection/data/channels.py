"""Chooses the channels of a file, and which of them are merged or renamed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from keypoint_detection.errors import InputError
from keypoint_detection.wording import counted, did_you_mean

logger = logging.getLogger(__name__)


class ChannelGroup(NamedTuple):
    """One channel of the detector and the channels of the file that it consists of.

    Attributes:
        name: its name in the detector.
        members: the channels of the file whose keypoints it holds, at least one; `name` need not be one of them.
    """

    name: str
    members: tuple[str, ...]


ChannelSpec = Sequence[str | ChannelGroup] | str | None


def parse_channels(spec: ChannelSpec, available: Sequence[str], source: str) -> list[ChannelGroup]:
    """Reads a choice of channels.

    Args:
        spec: channels in one string with spaces between them, or one by one; `a=b` merges b into a, or renames b to a
            if the file has no a. None takes all. A group takes those of its members that the file has.
        available: the channels of the file.
        source: the name of the file, for messages.

    Raises:
        InputError: if the choice is empty, or a channel is unknown or asked for twice.
    """
    if spec is None:
        return [ChannelGroup(name, (name,)) for name in available]
    words = spec.split() if isinstance(spec, str) else list(spec)
    if not words:
        raise InputError(f"{source}: keypoint_channels is empty, expected some of: {', '.join(available)}")
    groups = [
        _present(word, available, source) if isinstance(word, ChannelGroup) else _parse_group(word, available, source)
        for word in words
    ]
    for asked in ([member for group in groups for member in group.members], [group.name for group in groups]):
        for place, name in enumerate(asked):
            if name in asked[:place]:
                raise InputError(f'{source}: keypoint_channels asks for channel "{name}" twice')
    return groups


def tell_left_out(groups: Iterable[ChannelGroup], available: Sequence[str], source: str) -> None:
    """Logs which channels of a file were not asked for, since their keypoints are ignored.

    Args:
        groups: what was asked for.
        available: the channels of the file.
        source: the name of the file.
    """
    wanted = {member for group in groups for member in group.members}
    left_out = [name for name in available if name not in wanted]
    if left_out:
        logger.info("%s: %s left out: %s", source, counted(len(left_out), "channel"), ", ".join(left_out))


def split_word(word: str, names: Sequence[str]) -> tuple[str, ...]:
    """The channels that a word such as `a=b` joins, unless the word itself is one of the `names`."""
    return (word,) if word in names else tuple(word.split("="))


def _parse_group(word: str, available: Sequence[str], source: str) -> ChannelGroup:
    name, *others = split_word(word, available)
    is_new = bool(others) and name not in available
    if is_new and not name:
        raise InputError(f"{source}: keypoint_channels has {word}, expected a name before the =")
    members = tuple(others) if is_new else (name, *others)
    for member in members:
        if member not in available:
            hint = did_you_mean(member, available, '"{}"') or ", which has " + ", ".join(available)
            hint += "; separate channels by spaces" if "," in member else ""
            raise InputError(f'{source}: no channel "{member}" in the file{hint}')
    return ChannelGroup(name, members)


def _present(group: ChannelGroup, available: Sequence[str], source: str) -> ChannelGroup:
    members = tuple(name for name in group.members if name in available)
    if not members:
        hint = did_you_mean(group.name, available, '"{}"') or "; the file has " + ", ".join(available)
        raise InputError(f'{source}: no channel "{group.name}", which the detector finds{hint}')
    return ChannelGroup(group.name, members)


def channel_members(spec: Sequence[str] | str | None, names: Sequence[str]) -> dict[str, list[str]]:
    """The names under which a file may hold the keypoints of each channel that was read.

    Args:
        spec: what was asked for, see `parse_channels`.
        names: the channels that were read.

    Returns:
        The channels to look for in a file, the channel's own name first, by the name of the channel that holds them.
    """
    words = (spec.split() if isinstance(spec, str) else spec) or names
    return {members[0]: list(members) for members in (split_word(word, names) for word in words)}


def of_all_channels(numbers: Sequence[int], num_channels: int) -> list[int]:
    """One number per channel; a single number is repeated for all."""
    return list(numbers) * (num_channels if len(numbers) == 1 else 1)


def parse_numbers(numbers: str | int | Sequence[int] | None) -> list[int] | None:
    """Reads the maximum number of keypoints of each channel: `"-1 4"`, `[-1, 4]` or a single number.

    Raises:
        InputError: if they are not whole numbers.
    """
    if numbers is None:
        return None
    try:
        return [int(number) for number in (str(numbers).split() if isinstance(numbers, (str, int)) else numbers)]
    except ValueError:
        raise InputError(f"keypoint_channel_max_keypoints: expected whole numbers, got {numbers!r}") from None
