"""Images that a detector was trained on, told from others by their files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keypoint_detection.data import trained_images
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.trained_images import TrainedImages

SEEDS = range(40)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Reads images of noise, one for each seed; those of the first ten seeds are bitmaps of one length."""
    folder = tmp_path_factory.mktemp("noise")
    for seed in SEEDS:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.bmp")
        if seed >= 10:
            (folder / f"{seed}.bmp").write_bytes((folder / f"{seed}.bmp").read_bytes() + bytes(seed))

    def read(seeds):
        entries = [{"image_path": f"{seed}.bmp", "a": [[0.5, 0.5]]} for seed in seeds]
        (folder / "labels.json").write_text(json.dumps({"dataset": entries}))
        return read_annotations(folder / "labels.json", folder)

    return read


def test_copies_of_other_names_are_recognised_and_others_told_apart(noise, tmp_path):
    record = TrainedImages.of(noise([1, 2, 3, 20, 21]))
    assert record.is_complete
    assert len(record.digests) == 5
    seeds = [4, 3, 20, 22, 1]
    for place, seed in enumerate(seeds):
        (tmp_path / f"{place}.png").write_bytes((noise([seed]).image_root / f"{seed}.bmp").read_bytes())
    (tmp_path / "5.png").write_bytes(b"")
    entries = [{"image_path": f"{place}.png", "b": []} for place in range(7)]  # the last file is missing
    (tmp_path / "labels.json").write_text(json.dumps({"dataset": entries}))
    trained, new = record.recognise(read_annotations(tmp_path / "labels.json", tmp_path))
    assert trained.tolist() == [False, True, True, False, True, False, False]
    assert new.tolist() == [True, False, False, True, False, False, False]


@settings(max_examples=30)
@given(
    st.sets(st.sampled_from(SEEDS)).filter(bool), st.sets(st.sampled_from(SEEDS)).filter(bool),
    st.integers(1, 12), st.integers(0, 12_000),
)  # fmt: skip
def test_what_is_said_of_an_image_is_true_however_little_is_recorded(noise, first, second, most, most_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_images, "MOST_DIGESTS", most)
        own, other = (TrainedImages.of(noise(sorted(seeds)), most_bytes) for seeds in (first, second))
        whole = own.joined(other)
        for record, seen in ((own, first), (other, second), (whole, first | second)):
            assert len(record.digests) <= most
            assert list(record.digests) == sorted(set(record.digests))
            trained, new = record.recognise(noise(SEEDS))
            assert set(np.flatnonzero(trained)) <= seen
            assert not set(np.flatnonzero(new)) & seen
            assert trained.sum() == len(record.digests)
            if record.is_complete:
                assert (trained ^ new).all()


def test_a_sample_of_many_images_knows_as_large_a_share_of_new_ones(noise, monkeypatch):
    monkeypatch.setattr(trained_images, "MOST_DIGESTS", 10)
    found = []
    for trial in range(20):
        seeds = np.random.default_rng(trial).permutation(SEEDS)
        trained, new = TrainedImages.of(noise(seeds[:20])).recognise(noise(seeds[20:]))
        assert not trained.any()
        found.append(new.sum())
    assert 6 < np.mean(found) < 14  # half of 20


def test_few_files_are_read(noise, monkeypatch):
    read, digest = [], trained_images.content_digest
    monkeypatch.setattr(trained_images, "content_digest", lambda images, index: read.append(1) or digest(images, index))
    record = TrainedImages.of(noise(range(5, 15)), most_bytes=7 * 310)
    assert 0 < len(read) <= 7
    read.clear()
    record.recognise(noise(range(15, 40)))
    assert len(read) <= 1  # of another length, whose hash of 16 bits may be the same by chance
    monkeypatch.setattr(trained_images, "MOST_LENGTHS", 9)
    read.clear()
    record = TrainedImages.of(noise(range(10)))
    assert not read
    assert [values.any() for values in record.recognise(noise(range(10)))] == [False, False]


def test_files_beyond_the_limit_are_not_known(noise):
    length = (noise([0]).image_root / "0.bmp").stat().st_size
    images = noise(range(10))
    record = TrainedImages.of(noise(range(5)))
    for count in range(11):
        trained, new = record.recognise(images, most_bytes=count * length)
        assert (trained | new).sum() == count
        assert trained.sum() == min(count, 5)


def test_a_record_is_plain_values(noise, tmp_path):
    record = TrainedImages.of(noise(SEEDS))
    torch.save(record.record(), tmp_path / "record.ckpt")
    for stored in (json.loads(json.dumps(record.record())), torch.load(tmp_path / "record.ckpt", weights_only=True)):
        assert TrainedImages.from_record(stored) == record
    assert TrainedImages.from_record(None) is None
