"""The columns of a data set against plain Python lists."""

import io
import multiprocessing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keypoint_detection.data.annotations import Annotations, PackedStrings
from keypoint_detection.errors import InputError

point = st.tuples(st.integers(0, 64).map(lambda n: n / 64), st.integers(0, 64).map(lambda n: n / 64))


@st.composite
def tables(draw):
    """Labels as nested lists: an image has a list of points for each channel."""
    channels = draw(st.integers(1, 4))
    image = st.lists(st.lists(point, max_size=3), min_size=channels, max_size=channels)
    return draw(st.lists(image, min_size=1, max_size=6))


def build(table, coordinates="normalized"):
    names = [f"bild {number} ü.png" for number in range(len(table))]
    lists = [points for image in table for points in image]
    flat = [xy for points in lists for xy in points]
    return Annotations(
        source=Path("labels.json"),
        image_root=Path("root"),
        channel_names=tuple("abcd"[: len(table[0])]),
        coordinates=coordinates,
        names=PackedStrings.pack(names),
        entries=torch.arange(len(table)),
        xy=torch.tensor(flat, dtype=torch.float32).reshape(-1, 2),
        offsets=torch.tensor([0, *np.cumsum([len(points) for points in lists])]),
        depth=torch.arange(len(flat), dtype=torch.float32),
        declared_sizes=torch.arange(2 * len(table)).view(-1, 2),
    )


def as_table(annotations, width=1, height=1):
    return [
        [[tuple(xy) for xy in points.tolist()] for points in annotations.keypoints(index, width, height)]
        for index in range(len(annotations))
    ]


@settings(max_examples=30)
@given(tables())
def test_keypoints_come_out_as_they_went_in(table):
    annotations = build(table)
    assert as_table(annotations) == table
    assert as_table(annotations, 128, 64) == [[[(x * 128, y * 64) for x, y in p] for p in image] for image in table]
    assert as_table(build(table, "pixel"), 128, 64) == table
    assert annotations.counts().tolist() == [[len(points) for points in image] for image in table]
    expected = [number for number, image in enumerate(table) for points in image for _ in points]
    assert annotations.images_of_keypoints().tolist() == expected
    # Depths were numbered, so they tell whether points and depths stay together.
    assert np.concatenate([d for i in range(len(table)) for d in annotations.depths(i)]).tolist() == list(
        range(len(expected))
    )


@settings(max_examples=30)
@given(tables(), st.data())
def test_subset_takes_images_in_the_given_order(table, data):
    indices = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=8))
    part = build(table).subset(indices)
    assert as_table(part) == [table[index] for index in indices]
    assert [part.name(n) for n in range(len(part))] == [f"bild {index} ü.png" for index in indices]
    assert part.entries.tolist() == indices
    assert part.declared_sizes.tolist() == [[2 * index, 2 * index + 1] for index in indices]
    again = build(table)
    depths = [[d.tolist() for d in again.depths(index)] for index in indices]
    assert [[d.tolist() for d in part.depths(n)] for n in range(len(part))] == depths


@settings(max_examples=30)
@given(tables(), st.data())
def test_select_channels_reorders_and_merges(table, data):
    names = "abcd"[: len(table[0])]
    order = data.draw(st.permutations(names))
    cuts = data.draw(st.lists(st.booleans(), min_size=len(order) - 1, max_size=len(order) - 1))
    spec = order[0] + "".join((" " if cut else "=") + name for name, cut in zip(order[1:], cuts, strict=True))
    chosen = build(table).select_channels(spec)
    groups = [group.split("=") for group in spec.split()]
    assert chosen.channel_names == tuple(group[0] for group in groups)
    expected = [[[xy for name in group for xy in image[names.index(name)]] for group in groups] for image in table]
    assert as_table(chosen) == expected


def test_channels_that_are_chosen_again_are_still_made_of_those_of_the_file():
    annotations = build([[[(0, 0)], [(1, 1)], [(2, 2)], []]])
    merged = annotations.select_channels("a=b c d")
    assert [group.members for group in merged.select_channels("a c").groups] == [("a", "b"), ("c",)]
    assert merged.select_channels(None).groups == merged.groups
    again = merged.select_channels("e=c=a d")
    assert [tuple(group) for group in again.groups] == [("e", ("c", "a", "b")), ("d", ("d",))]
    assert as_table(again) == [[[(2, 2), (0, 0), (1, 1)], []]]


@settings(max_examples=30)
@given(tables(), st.data())
def test_keep_drops_keypoints_and_no_image(table, data):
    annotations = build(table)
    mask = data.draw(st.lists(st.booleans(), min_size=len(annotations.xy), max_size=len(annotations.xy)))
    wanted = iter(mask)
    expected = [[[xy for xy in points if next(wanted)] for points in image] for image in table]
    kept = annotations.keep(torch.tensor(mask, dtype=torch.bool))
    assert as_table(kept) == expected
    assert kept.depth.tolist() == [number for number, wanted in enumerate(mask) if wanted]


def test_names_with_an_equals_sign_can_be_chosen():
    annotations = build([[[(0, 0)], [(1, 1)]]])
    named = Annotations(**{**vars(annotations), "channel_names": ("a=b", "a")})
    assert named.select_channels(["a=b"]).channel_names == ("a=b",)
    with pytest.raises(InputError, match='no channel "b"'):
        named.select_channels("a=b a=b=a")


def test_fingerprint_changes_with_the_content_alone():
    table = [[[(0.5, 0.25)], []], [[], [(0.125, 1)]]]
    print_ = build(table).fingerprint()
    assert len(print_) == 64
    assert build(table).fingerprint() == print_
    assert Annotations(**{**vars(build(table)), "source": Path("moved.json")}).fingerprint() == print_
    others = [
        build([[[(0.5, 0.25)], []], [[(0.125, 1)], []]]),
        build([[[(0.5, 0.5)], []], [[], [(0.125, 1)]]]),
        build(table, "pixel"),
        build(table).subset([1, 0]),
        build(table).select_channels("b a"),
        Annotations(**{**vars(build(table)), "names": PackedStrings.pack(["a", "ab"])}),
        Annotations(**{**vars(build(table)), "names": PackedStrings.pack(["aa", "b"])}),
    ]
    assert len({print_, *(other.fingerprint() for other in others)}) == len(others) + 1
    assert len(build([[[]]]).fingerprint()) == 64


@settings(max_examples=30)
@given(st.lists(st.text(max_size=8)), st.data())
def test_packed_strings(strings, data):
    packed = PackedStrings.pack(strings)
    assert len(packed) == len(strings)
    assert list(packed) == strings
    assert [packed[index] for index in range(len(packed))] == strings
    indices = data.draw(st.lists(st.integers(0, len(strings) - 1)) if strings else st.just([]))
    assert list(packed.take(torch.tensor(indices, dtype=torch.int64))) == [strings[index] for index in indices]


def test_a_name_that_is_no_unicode_survives():
    assert list(PackedStrings.pack(["a\udcff.png"])) == ["a\udcff.png"]


def _send_address(connection, annotations):
    annotations.xy[0, 0] = 7
    connection.send([annotations.name(1), annotations.counts().tolist()])


def test_a_spawned_worker_shares_the_columns():
    """What a worker writes into the columns is seen here: they are not copied. Forked workers share them anyway."""
    annotations = build([[[(0.5, 0.25)]], [[(1, 1), (0, 0)]]])
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_send_address, args=(sender, annotations))
    worker.start()
    assert receiver.recv() == ["bild 1 ü.png", [[1], [2]]]
    worker.join()
    assert worker.exitcode == 0
    assert annotations.xy[0, 0] == 7


def test_what_is_sent_to_a_spawned_worker_does_not_grow_with_the_data():
    def sent(count):
        buffer = io.BytesIO()
        ForkingPickler(buffer).dump(build([[[(0.5, 0.5)] * 3]] * count))
        return buffer.tell()

    assert sent(3000) < sent(3) + 100
