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
from keypoint_detection.data.sampler import BLANK, Key, TrainingSampler
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


def random(seed=0):
    return np.random.default_rng(seed)


def points_of(mixed):
    return mixed.keypoints[~mixed.keypoints.isnan().any(-1)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [(40, 60), (70, 30)])
def test_every_keypoint_is_one_of_the_image_that_is_seen_there(seed, size):
    own, other = sample(1), sample(2, *size)
    mixed = cutmix(own, other, random(seed))
    shown = mixed.images[0]
    assert mixed.images.shape == own.images.shape
    assert (mixed.images == shown).all()
    rows, columns = (shown == 2).any(1).nonzero().flatten(), (shown == 2).any(0).nonzero().flatten()
    height, width = len(rows), len(columns)
    assert (shown == 2).sum() == height * width, "one rectangle"
    common = min(size[0], 40) * min(size[1], 60)
    assert 0.12 * common < height * width <= 0.5 * common  # whole pixels are less
    expected = [
        point.tolist()
        for source, value in ((own, 1), (other, 2))
        for point in points_of(source)
        if point[0] < 60 and point[1] < 40 and shown[int(point[1]), int(point[0])] == value
    ]
    assert points_of(mixed).tolist() == expected
    assert mixed.keypoints[1].isnan().all()
    assert torch.equal(own.images, torch.ones(3, 40, 60)), "the sample itself is as it was"


def test_rectangles_are_of_all_shapes_up_to_1_65_times_as_wide_as_high_or_as_high_as_wide():
    own, other = sample(1, 200, 300), sample(2, 200, 300)
    ratios = []
    for seed in range(200):
        shown = cutmix(own, other, random(seed)).images[0] == 2
        ratios.append((int(shown.any(1).sum()) / 200) / (int(shown.any(0).sum()) / 300))
    # Their logarithms are spread evenly from -0.5 to 0.5.
    counts = np.histogram(np.log(ratios), bins=4, range=(-0.52, 0.52))[0]
    assert counts.sum() == 200
    assert counts.min() > 30


def test_keypoints_on_the_far_borders_belong_to_the_last_pixels():
    corner = torch.tensor([60.0, 40.0])
    own, other = (sample(value, points=1) for value in (1, 2))
    own.keypoints[0, 0] = other.keypoints[0, 0] = corner
    pasted = 0
    for seed in range(300):
        mixed = cutmix(own, other, random(seed))
        covered = bool(mixed.images[0, -1, -1] == 2)
        assert mixed.keypoints[0].isnan().any(-1).tolist() == [covered, not covered]
        pasted += covered
    assert 0 < pasted < 300


def test_what_is_not_labelled_stays_so_and_hides_nothing_that_is():
    everything, part, rest = (sample(1, labelled=labels) for labels in ((True, True), (True, False), (False, True)))
    mixed = cutmix(part, everything, random())
    assert mixed is not part
    assert mixed.labelled.tolist() == [True, False]
    assert cutmix(everything, part, random()) is everything
    assert cutmix(part, rest, random()) is part


def test_blanks_are_neither_changed_nor_pasted():
    blank = sample(1, labelled=(False, False))
    assert cutmix(blank, sample(2), random()) is blank
    whole = sample(2)
    assert cutmix(whole, blank, random()) is whole


@pytest.fixture
def dataset(tmp_path):
    write_data_set(tmp_path, [(40, 30)] * 6, [{"a": [[10 + index, 5.5]]} for index in range(6)])
    annotations = read_annotations(tmp_path / "dataset.json", tmp_path)

    def make(probability):
        augmentation = Augmentation(rotation=10, horizontal_flip=0, vertical_flip=0, cutmix=probability)
        return KeypointsDataset(
            annotations, heatmap_sigma=2, heatmap_stride=2, augmentation=augmentation, seed=3,
            empty_channels="absent", corrupt_images="raise",
        )  # fmt: skip

    return make


def same(a, b):
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if y is not None]
    return all(torch.equal(x.nan_to_num(nan=-9), y.nan_to_num(nan=-9)) for x, y in pairs)


def test_keys_with_a_partner_are_mixed_while_images_are_changed(dataset):
    keys = [Key(index, 2, partner=(index + 1) % 6) for index in range(6)]
    mixed, plain = dataset(1.0).__getitems__(keys), dataset(0.0).__getitems__(keys)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(mixed, plain, strict=True))
    alone = dataset(1.0).__getitems__([key._replace(partner=None) for key in keys])
    assert all(same(a, b) for a, b in zip(alone, plain, strict=True)), "all other changes are the same"
    itself = dataset(1.0).__getitems__([key._replace(partner=key.index) for key in keys])
    assert all(same(a, b) for a, b in zip(itself, plain, strict=True))
    keys = [key._replace(augmented=False) for key in keys]
    mixed, plain = dataset(1.0).__getitems__(keys), dataset(0.0).__getitems__(keys)
    assert all(same(a, b) for a, b in zip(mixed, plain, strict=True))


def test_a_sample_depends_on_its_key_alone(dataset):
    data = dataset(1.0)
    keys = [Key(index, 2, partner=(index + 1) % 6) for index in range(6)]
    together = data.__getitems__(keys)
    assert all(same(a, data[key]._replace(heatmaps=None)) for a, key in zip(together, keys, strict=True))
    assert not same(together[0], data.__getitems__([keys[0]._replace(partner=3)])[0])
    assert not same(together[0], data.__getitems__([keys[0]._replace(epoch=3)])[0])
    assert data.__getitems__([]) == []


def test_some_samples_are_mixed(dataset):
    keys = [Key(index % 6, index // 6, partner=(index + 1) % 6) for index in range(600)]
    pairs = zip(dataset(0.3).__getitems__(keys), dataset(0.0).__getitems__(keys), strict=True)
    assert 120 < sum(not torch.equal(a.images, b.images) for a, b in pairs) < 240


def test_rectangles_differ_between_samples(dataset):
    keys = [Key(0, epoch, partner=1) for epoch in range(20)]
    pairs = zip(dataset(1.0).__getitems__(keys), dataset(0.0).__getitems__(keys), strict=True)
    assert len({tuple((a.images != b.images).any(0).nonzero()[0].tolist()) for a, b in pairs}) > 10


def test_a_blank_is_no_partner(dataset):
    mixed = dataset(1.0).__getitems__([Key(0, BLANK, partner=1), Key(1, 0, partner=2)])
    assert [bool(m.labelled.any()) for m in mixed] == [False, True]
    assert not mixed[0].images.any()


@pytest.mark.parametrize(("batch_size", "world"), [(4, 1), (2, 2), (1, 4), (1, 1), (3, 3), (16, 1)])
def test_partners_are_those_of_one_process(batch_size, world):
    def partners(rank, batch_size, world):
        sampler = TrainingSampler(10, seed=1, batch_size=batch_size, rank=rank, world=world, epoch=5)
        return [(key.index, key.partner) for key in sampler]

    shares = [partners(rank, batch_size, world) for rank in range(world)]
    joined = [pair for pairs in zip(*shares, strict=True) for pair in pairs]
    whole = 10 - 10 % max(2, batch_size * world) if 10 % world else 10  # where images come twice to fill the last batch
    assert joined[:whole] == partners(0, batch_size * world, 1)[:whole]
    order = [index for index, _ in joined]
    size = max(2, batch_size * world)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        assert joined[start : start + size] == list(zip(batch, [*batch[1:], batch[0]], strict=True))


def test_a_resumed_epoch_has_the_same_partners():
    whole = list(TrainingSampler(10, seed=1, batch_size=4))
    assert list(TrainingSampler(10, seed=1, batch_size=4, batches_done=1)) == whole[4:]


def test_the_number_of_workers_does_not_matter(dataset):
    data = dataset(0.7)
    sampler = list(TrainingSampler(6, seed=1, batch_size=3))
    loaders = [DataLoader(data, sampler=sampler, batch_size=3, collate_fn=data.collate, num_workers=n) for n in (0, 2)]
    batches = list(zip(*loaders, strict=True))
    assert all(same(a, b) for a, b in batches)
    assert any(batch.keypoints.shape[2] > 1 for batch, _ in batches), "something was mixed"


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_probability_is_between_0_and_1(value):
    with pytest.raises(InputError, match=rf"^cutmix: expected a number from 0 to 1, got {value}$"):
        Augmentation(rotation=0, horizontal_flip=0, vertical_flip=0, cutmix=value)
