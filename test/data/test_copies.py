"""Images that stand in a data set twice: measured on, they promise what new images do not keep."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from keypoint_detection.data.copies import find_copies_of_training_images, tell_of_copies
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import read_annotations

BYTES = 54 + 10 * 8 * 3 + 8 * 2  # of a bitmap of 10 x 8 pixels: header, pixels, and rows filled up to four bytes


def bitmaps(folder, values):
    """Writes a data set with one image of noise for each seed: of as many bytes each."""
    folder.mkdir(exist_ok=True)
    for index, seed in enumerate(values):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.bmp")
        assert (folder / f"{index}.bmp").stat().st_size == BYTES
    entries = [{"image_path": f"{index}.bmp", "a": [[0.5, 0.5]]} for index in range(len(values))]
    (folder / "labels.json").write_text(json.dumps({"dataset": entries}))
    return read_annotations(folder / "labels.json", folder)


@pytest.fixture
def two_files(tmp_path):
    return bitmaps(tmp_path / "train", [1, 2, 3, 2]), bitmaps(tmp_path / "other", [7, 2, 8, 3, 2])


def test_copies_are_found_with_the_first_image_that_they_are_of(two_files):
    train, other = two_files
    assert find_copies_of_training_images(train, other) == [(1, 1), (3, 2), (4, 1)]


def test_files_that_are_gone_or_empty_are_no_copies(two_files):
    train, other = two_files
    for folder in (train.image_root, other.image_root):
        (folder / "1.bmp").unlink()
        (folder / "2.bmp").write_bytes(b"")
    (other.image_root / "4.bmp").unlink()
    assert find_copies_of_training_images(train, other) == []


@pytest.mark.parametrize(
    ("most_images", "most_bytes", "found"),
    [
        (9, 9 * BYTES, 3),  # all 4 and 5 images, each read once
        (8, 9 * BYTES, 0),
        (9, 8 * BYTES, 2),
        (9, 5 * BYTES, 0),  # those to train on, and the first of the others
        (9, 5 * BYTES - 1, 0),
        (9, 6 * BYTES, 1),
    ],
)
def test_no_more_is_read_than_allowed(two_files, most_images, most_bytes, found):
    assert len(find_copies_of_training_images(*two_files, most_images, most_bytes)) == found


def test_a_single_copy_is_told_from_its_original(tmp_path):
    said = tell_of_copies(bitmaps(tmp_path / "two", [1, 1]), range(2))
    assert said.startswith("1 image is a copy of another, such as 1.bmp of 0.bmp; ")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_training_says_that_it_measures_on_copies(two_files, tmp_path, caplog, part):
    train, other = two_files
    new = bitmaps(tmp_path / "new", range(20, 25))
    files = {"validation": new, "test": new, part: other}
    KeypointsDataModule(
        train.source, **{f"json_{name}_dataset_path": file.source for name, file in files.items()}
    ).setup()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message == (
        f"3 images of {part} are copies of some in train (first: {other.path(1)} is {train.path(1)}), so its metrics "
        "are too optimistic for new images"
    )


def test_a_copy_within_one_file_is_told_where_the_split_parts_it_from_its_original(tmp_path, caplog):
    train = bitmaps(tmp_path / "one", [*range(5), *range(5)])
    KeypointsDataModule(train.source, validation_split_ratio=0.1).setup()
    (said,) = [record.message for record in caplog.records if " in train " in record.message]
    assert said.startswith("1 image of validation is a copy of one in train (first: ")
