"""Which channels of a file are wanted, and what they are made of."""

import pytest

from keypoint_detection.data.channels import ChannelGroup, channel_members, parse_channels
from keypoint_detection.errors import InputError


@pytest.mark.parametrize(
    ("spec", "names", "members"),
    [
        (None, ["a", "b"], {"a": ["a"], "b": ["b"]}),
        ("a=b=c d", ["a", "d"], {"a": ["a", "b", "c"], "d": ["d"]}),
        (["a=b", "c"], ["a=b", "c"], {"a=b": ["a=b"], "c": ["c"]}),  # a name with such a sign
    ],
)
def test_members_of_channels(spec, names, members):
    assert channel_members(spec, names) == members


def test_a_name_that_channels_are_merged_into_has_to_be_one_of_the_file():
    for word, line in (
        ("a=x", 'no channel "a" of keypoint_channels in the file, expected some of: x, y; a=x merges into it'),
        ("x=a", 'no channel "a" of keypoint_channels in the file, expected some of: x, y'),
        ("a", 'no channel "a" of keypoint_channels in the file, expected some of: x, y'),
    ):
        with pytest.raises(InputError) as raised:
            parse_channels([word], ["x", "y"], "file")
        assert str(raised.value) == f"file: {line}"


def test_a_group_takes_the_members_that_there_are():
    groups = parse_channels([ChannelGroup("a", ("a", "b", "c")), "d"], ["b", "c", "d"], "file")
    assert groups == [ChannelGroup("a", ("b", "c")), ChannelGroup("d", ("d",))]
    with pytest.raises(InputError, match=r'^file: no channel "a", which the detector finds, but x, y$'):
        parse_channels([ChannelGroup("a", ("a",))], ["x", "y"], "file")
