"""Which channels of a file are wanted, and what they are made of."""

import pytest

from keypoint_detection.data.channels import ChannelGroup, channel_members, parse_channels
from keypoint_detection.errors import InputError


@pytest.mark.parametrize(
    ("spec", "names", "members"),
    [
        (None, ["a", "b"], {"a": ["a"], "b": ["b"]}),
        ("a=b=c d", ["a", "d"], {"a": ["a", "b", "c"], "d": ["d"]}),
        ("n=a m=b=c", ["n", "m"], {"n": ["n", "a"], "m": ["m", "b", "c"]}),  # whether or not the file has n and m
        (["a=b", "c"], ["a=b", "c"], {"a=b": ["a=b"], "c": ["c"]}),  # a name with such a sign
    ],
)
def test_members_of_channels(spec, names, members):
    assert channel_members(spec, names) == members


def test_what_is_merged_into_a_name_that_the_file_has_not_is_a_new_channel():
    spec = "paws=left=right x=y muzzle=nose"
    groups = [
        ChannelGroup("paws", ("left", "right")),
        ChannelGroup("x", ("x", "y")),  # which the file has
        ChannelGroup("muzzle", ("nose",)),
    ]
    assert parse_channels(spec, ["nose", "y", "x", "left", "right"], "file") == groups


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("x=a", 'no channel "a" in the file, which has x, y'),
        ("b=a", 'no channel "a" in the file, which has x, y'),
        ("b=", 'no channel "" in the file, which has x, y'),
        ("b", 'no channel "b" in the file, which has x, y'),
        ("=x", "keypoint_channels has =x, expected a name before the ="),
        ("b=x b=y", 'keypoint_channels asks for channel "b" twice'),
        ("b=x c=x", 'keypoint_channels asks for channel "x" twice'),
    ],
)
def test_channels_that_cannot_be_are_named(spec, line):
    with pytest.raises(InputError) as raised:
        parse_channels(spec, ["x", "y"], "file")
    assert str(raised.value) == f"file: {line}"


def test_a_group_takes_the_members_that_there_are():
    groups = parse_channels([ChannelGroup("a", ("a", "b", "c")), "d"], ["b", "c", "d"], "file")
    assert groups == [ChannelGroup("a", ("b", "c")), ChannelGroup("d", ("d",))]
    with pytest.raises(InputError, match=r'^file: no channel "a", which the detector finds; the file has x, y$'):
        parse_channels([ChannelGroup("a", ("a",))], ["x", "y"], "file")
