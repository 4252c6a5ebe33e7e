import math

import numpy as np
import pytest
import torch
from data_sets import write_data_set
from torch.utils.data import DataLoader

from keypoint_detection.batch import Batch
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.cutmix import cutmix
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.sampler import BLANK, Key
from keypoint_detection.errors import InputError


def sample(value, height=40, width=60, points=50, labelled=(True, True)):
    """An image of one value, with keypoints all over it in the first of two channels."""
    generator = torch.Generator().manual_seed(value)
    keypoints = torch.full((2, points, 2), math.nan)
    keypoints[0] = torch.rand(points, 2, generator=generator) * torch.tensor([width, height])
    return Batch(
        images=torch.full((3, height, width), float(value)), keypoints=keypoints, heatmaps=None,
        sizes=torch.tensor([height, width]), labelled=torch.tensor(labelled),
        transforms=torch.eye(3, dtype=torch.float64), indices=torch.tensor(value),
    )  # fmt: skip


def randoms(count, seed=0):
    return [np.random.default_rng((seed, index)) for index in range(count)]


def points_of(mixed):
    return mixed.keypoints[~mixed.keypoints.isnan().any(-1)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [(40, 60), (70, 30)])
def test_every_keypoint_is_one_of_the_image_that_is_seen_there(seed, size):
    own, other = sample(1), sample(2, *size)
    mixed = cutmix([own, other], 1.0, randoms(2, seed))[0]
    shown = mixed.images[0]
    assert mixed.images.shape == own.images.shape
    assert (mixed.images == shown).all()
    rows, columns = (shown == 2).any(1).nonzero().flatten(), (shown == 2).any(0).nonzero().flatten()
    height, width = len(rows), len(columns)
    assert (shown == 2).sum() == height * width, "one rectangle"
    common = min(size[0], 40) * min(size[1], 60)
    assert 0.12 * common < height * width <= 0.5 * common
    expected = [
        point.tolist()
        for source, value in ((own, 1), (other, 2))
        for point in points_of(source)
        if point[0] < 60 and point[1] < 40 and shown[int(point[1]), int(point[0])] == value
    ]
    assert points_of(mixed).tolist() == expected
    assert mixed.keypoints[1].isnan().all()
    assert torch.equal(own.images, torch.ones(3, 40, 60)), "the sample itself is as it was"


def test_probability():
    samples = [sample(value) for value in range(1, 401)]
    mixed = cutmix(samples, 0.3, randoms(400))
    assert 80 < sum(a is not b for a, b in zip(samples, mixed, strict=True)) < 160
    assert all(a is b for a, b in zip(samples, cutmix(samples, 0.0, randoms(400)), strict=True))
    assert cutmix(samples[:1], 1.0, randoms(1))[0] is samples[0]


def test_what_is_not_labelled_in_one_of_them_is_not_labelled():
    mixed = cutmix([sample(1), sample(2, labelled=(True, False))], 1.0, randoms(2))
    assert [m.labelled.tolist() for m in mixed] == [[True, False], [True, False]]


def test_blanks_are_neither_changed_nor_pasted():
    samples = [sample(1), sample(2, labelled=(False, False)), sample(3)]
    mixed = cutmix(samples, 1.0, randoms(3))
    assert mixed[0] is samples[0]
    assert mixed[1] is samples[1]
    assert set(mixed[2].images.unique().tolist()) == {1, 3}


@pytest.fixture
def dataset(tmp_path):
    write_data_set(tmp_path, [(40, 30)] * 6, [{"a": [[10 + index, 5.5]]} for index in range(6)])
    annotations = read_annotations(tmp_path / "dataset.json", tmp_path)

    def make(probability):
        augmentation = Augmentation(rotation=10, horizontal_flip=0, vertical_flip=0, cutmix=probability)
        return KeypointsDataset(annotations, heatmap_sigma=2, heatmap_stride=2, augmentation=augmentation, seed=3)

    return make


def same(a, b):
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if y is not None]
    return all(torch.equal(x.nan_to_num(nan=-9), y.nan_to_num(nan=-9)) for x, y in pairs)


def test_batches_of_a_data_set_are_mixed_while_images_are_changed(dataset):
    keys = [Key(index, 2) for index in range(6)]
    mixed, plain = dataset(1.0).__getitems__(keys), dataset(0.0).__getitems__(keys)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(mixed, plain, strict=True))
    single = [dataset(1.0)[key]._replace(heatmaps=None) for key in keys]
    assert all(same(a, b) for a, b in zip(plain, single, strict=True)), "all other changes are the same"
    keys = [key._replace(augmented=False) for key in keys]
    mixed, plain = dataset(1.0).__getitems__(keys), dataset(0.0).__getitems__(keys)
    assert all(same(a, b) for a, b in zip(mixed, plain, strict=True))


def test_a_batch_with_a_blank_can_be_mixed(dataset):
    mixed = dataset(1.0).__getitems__([Key(0, 0), Key(1, BLANK), Key(2, 0)])
    assert [bool(m.labelled.any()) for m in mixed] == [True, False, True]


def test_the_number_of_workers_does_not_matter(dataset):
    batches = [[Key(0, 4), Key(3, 4), Key(2, 4)], [Key(1, 4), Key(5, 4), Key(4, 4)]]
    data = dataset(0.7)
    loaders = [DataLoader(data, batch_sampler=batches, collate_fn=data.collate, num_workers=n) for n in (0, 2)]
    assert all(same(a, b) for a, b in zip(*loaders, strict=True))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_probability_is_between_0_and_1(value):
    with pytest.raises(InputError, match=rf"^cutmix: expected a number from 0 to 1, got {value}$"):
        Augmentation(rotation=0, horizontal_flip=0, vertical_flip=0, cutmix=value)
