import contextlib
import logging
import math
import pickle
import re
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from blobs import blob_image, peak
from data_sets import pixels_of, write_data_set
from PIL import Image
from torch.utils.data import DataLoader

from keypoint_detection import heatmaps
from keypoint_detection.data import dataset as dataset_module
from keypoint_detection.data import image_cache
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.dataset import KeypointsDataset, collate
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.geometry import letterbox
from keypoint_detection.data.image_cache import ImageCache
from keypoint_detection.data.images import load_reduced, scan_sizes
from keypoint_detection.data.sampler import BLANK, Key
from keypoint_detection.data.validation import leave_out_outside
from keypoint_detection.errors import InputError

TURNED = {"rotation": 180, "horizontal_flip": 0.5, "vertical_flip": 0.0, "cutmix": 0.5}
STRONG = Augmentation(
    rotation=40,
    horizontal_flip=0.5,
    vertical_flip=0.0,
    cutmix=0.5,
    scale=0.3,
    shear=5,
    translation=0.2,
    perspective=0.1,
    crop=0.3,
    blur=0.5,
    noise=0.1,
    jpeg=0.5,
    erasing=0.5,
)


@pytest.fixture
def folder(tmp_path):
    write_data_set(
        tmp_path,
        [(40, 30), (30, 50), (64, 64)],
        [
            {"left_eye": [[10, 5.5]], "right_eye": [[20, 6], [21, 7]], "nose": []},
            {"left_eye": [], "right_eye": [], "nose": [[3.25, 49]]},
            {"left_eye": [], "right_eye": [], "nose": []},
        ],
    )
    return tmp_path


@pytest.fixture
def annotations(folder):
    return read_annotations(folder / "dataset.json", folder)


def make(annotations, **arguments):
    usual = {"seed": 0, "empty_channels": "absent", "corrupt_images": "raise"}
    return KeypointsDataset(annotations, **{"heatmap_sigma": 2.0, "heatmap_stride": 2, **usual, **arguments})


def same(a, b):
    return all(torch.equal(torch.nan_to_num(x, nan=-9), torch.nan_to_num(y, nan=-9)) for x, y in zip(a, b, strict=True))


def test_a_plain_sample_is_the_file(annotations, folder):
    sample = make(annotations)[0]
    assert torch.equal(sample.images, torch.from_numpy(pixels_of(folder, 0)).permute(2, 0, 1).float() / 255)
    nan = math.nan
    expected = torch.tensor([[[10, 5.5], [nan, nan]], [[20, 6], [21, 7]], [[nan, nan], [nan, nan]]])
    torch.testing.assert_close(sample.keypoints, expected, rtol=0, atol=0, equal_nan=True)
    assert sample.sizes.tolist() == [30, 40]
    assert sample.labelled.tolist() == [True, True, True]
    assert torch.equal(sample.transforms, torch.eye(3, dtype=torch.float64))
    assert sample.indices == 0
    assert sample.heatmaps.shape == (3, 15, 20)
    torch.testing.assert_close(sample.heatmaps, heatmaps.render(expected, (30, 40), 2.0, 2))


def test_batch_pads_to_its_largest_image_and_channel(annotations, folder):
    dataset = make(annotations)
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch.images.shape == (2, 3, 50, 40)
    assert batch.keypoints.shape == (2, 3, 2, 2)
    assert batch.heatmaps.shape == (2, 3, 25, 20)
    assert batch.sizes.tolist() == [[30, 40], [50, 30]]
    assert torch.equal(batch.images[0, :, :30], dataset[0].images)
    assert not batch.images[0, :, 30:].any()
    assert not batch.images[1, :, :, 30:].any()
    assert batch.keypoints[1, 2, 0].tolist() == [3.25, 49]
    assert batch.keypoints.isnan().any(-1).sum() == 12 - 4
    assert batch.indices.tolist() == [0, 1]
    assert collate([dataset[0]]).heatmaps is None
    assert make(annotations, render=False).collate([dataset[0]]).heatmaps is None
    assert make(annotations, render=False)[0].heatmaps is None


def test_letterboxed_sample_maps_back_to_the_file(annotations):
    sample = make(annotations, image_size="25 64")[1]
    assert sample.sizes.tolist() == [25, 15]
    back = heatmaps.transform_points(sample.keypoints.double(), sample.transforms)
    torch.testing.assert_close(back[2, 0], torch.tensor([3.25, 49], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(sample.keypoints[2, 0], torch.tensor([1.625, 24.5]))


def test_validation_and_prediction_see_the_same_bits(annotations, folder):
    sample = make(annotations, image_size=28)[1]
    image, homography = letterbox(pixels_of(folder, 1), (28, 28))
    assert torch.equal(sample.images, image)
    assert torch.equal(sample.transforms, torch.from_numpy(homography))


PHOTOMETRIC = ("brightness", "contrast", "saturation", "hue", "noise", "grayscale", "blur", "erasing")


class OneBlob:
    """A cache of one image with a blob at a place."""

    image_size = None

    def __init__(self, centre, size, sigma):
        self.image = blob_image(centre, size, sigma)

    def file_size(self, index):
        return self.image.shape[:2]

    def load(self, index):
        return self.image


@pytest.mark.parametrize("image_size", [None, 48])
def test_augmented_keypoints_are_where_the_image_shows_them(annotations, image_size):
    write_data_set(annotations.image_root, [(80, 60)], [{"left_eye": [[33.3, 21.7]], "right_eye": []}], "blob.json")
    blob = read_annotations(annotations.image_root / "blob.json", annotations.image_root)
    augmentation = Augmentation(**TURNED, shear=10, perspective=0.1, fill="zeros", **dict.fromkeys(PHOTOMETRIC, 0.0))
    dataset = make(blob, augmentation=augmentation, image_size=image_size, cache=OneBlob((33.3, 21.7), (60, 80), 3))
    channels = set()
    for epoch in range(40):
        sample = dataset[0, epoch]
        found = (~sample.keypoints[:, 0, 0].isnan()).nonzero().flatten().tolist()
        if not found:
            continue
        point = sample.keypoints[found[0], 0].double()
        if ((point > 10) & (point < sample.sizes.flip(0) - 10)).all():
            channels.add(found[0])
            np.testing.assert_allclose(peak(sample.images), point, atol=0.05)
            back = heatmaps.transform_points(point, sample.transforms)
            np.testing.assert_allclose(back, [33.3, 21.7], atol=1e-4)
    assert channels == {0, 1}, "a mirrored left eye is a right eye"


@pytest.mark.parametrize("augmentation", [None, Augmentation(**TURNED, **dict.fromkeys(PHOTOMETRIC, 0.0))])
def test_keypoints_stay_on_what_they_mark_in_smaller_training_images(annotations, augmentation):
    write_data_set(annotations.image_root, [(300, 260)], [{"spot": [[150.3, 99.1]]}], "blob.json")
    blob = read_annotations(annotations.image_root / "blob.json", annotations.image_root)
    dataset = make(blob, augmentation=augmentation, cache=OneBlob((150.3, 99.1), (260, 300), 8))
    for epoch in range(4):
        sample = dataset[Key(0, epoch, 0.6)]
        assert sample.images.shape == (3, 156, 180)
        assert sample.sizes.tolist() == [156, 180]
        point = sample.keypoints[0, 0].double()
        np.testing.assert_allclose(peak(sample.images), point, atol=0.05)
        back = heatmaps.transform_points(point, sample.transforms)
        np.testing.assert_allclose(back, [150.3, 99.1], atol=1e-4)
    assert dataset[Key(0, 0, 0.1)].images.shape == (3, 128, 148), "no side gets smaller than 128 pixels"


def test_keypoints_stay_on_what_they_mark_in_photographs_that_are_decoded_smaller(annotations, monkeypatch):
    centre, size = (333.3, 217.7), (480, 640)
    write_data_set(annotations.image_root, [size[::-1]], [{"spot": [list(centre)]}], "blob.json")
    blob = read_annotations(annotations.image_root / "blob.json", annotations.image_root)
    Image.fromarray(blob_image(centre, size, 20)).save(blob.path(0), "JPEG", quality=95)
    loaded = []

    def spied(path, needed):
        loaded.append(load_reduced(path, needed))
        return loaded[-1]

    monkeypatch.setattr(dataset_module, "load_reduced", spied)
    augmentation = Augmentation(**TURNED, scale=0.1, fill="zeros", **dict.fromkeys(PHOTOMETRIC, 0.0))
    dataset = make(blob, augmentation=augmentation, image_size=140)
    for epoch in range(4):
        sample = dataset[0, epoch]
        # A quarter would be 160 wide: enough for 140 and 10 % of zoom, so that half is not needed.
        assert loaded[-1][0].shape == (120, 160, 3)
        assert sample.images.shape == (3, 105, 140)
        point = sample.keypoints[0, 0].double()
        np.testing.assert_allclose(peak(sample.images), point, atol=0.05)
        back = heatmaps.transform_points(point, sample.transforms)
        np.testing.assert_allclose(back, centre, atol=1e-3)
    zoomed = Augmentation(**TURNED, scale=0.1, crop=0.5)
    make(blob, augmentation=zoomed, image_size=140)[0]
    assert loaded[-1][0].shape == (240, 320, 3), "a part may be twice as large: 308 of the whole's pixels are wanted"
    whole = make(blob, image_size=140)[0]
    assert torch.equal(dataset[Key(0, 5, 1.0, False)].images, whole.images)
    assert len(loaded) == 5, "an image that is not changed is read whole"


@pytest.mark.parametrize("augmented", [True, False])
def test_photographs_that_are_decoded_smaller_are_not_made_smaller_twice(annotations, monkeypatch, augmented):
    write_data_set(annotations.image_root, [(640, 480)], [{"spot": [[333.3, 217.7]]}], "blob.json")
    blob = read_annotations(annotations.image_root / "blob.json", annotations.image_root)
    Image.fromarray(blob_image((333.3, 217.7), (480, 640), 20)).save(blob.path(0), "JPEG", quality=95)
    augmentation = Augmentation(**{**TURNED, "rotation": 0}, scale=0, **dict.fromkeys(PHOTOMETRIC, 0.0))
    loaded = []
    monkeypatch.setattr(dataset_module, "load_reduced", lambda *_: loaded.append(load_reduced(*_)) or loaded[-1])
    sample = make(blob, augmentation=augmentation)[Key(0, 0, 0.5, augmented)]
    assert [image.shape for image, _ in loaded] == [(240, 320, 3)] * augmented
    assert sample.images.shape == (3, 240, 320), "half of the file, as its scale says"
    point = sample.keypoints[0, 0].double()
    np.testing.assert_allclose(peak(sample.images), point, atol=0.05)
    back = heatmaps.transform_points(point, sample.transforms)
    np.testing.assert_allclose(back, (333.3, 217.7), atol=1e-3)


def test_a_training_image_can_be_read_as_it_is(annotations):
    dataset, as_it_is = make(annotations, augmentation=STRONG), make(annotations)[1]
    for epoch in range(3):
        assert not torch.equal(dataset[Key(1, epoch)].images, as_it_is.images)
        sample = dataset[Key(1, epoch, augmented=False)]
        for name in ("images", "keypoints", "heatmaps", "labelled", "transforms"):
            torch.testing.assert_close(getattr(sample, name), getattr(as_it_is, name), rtol=0, atol=0, equal_nan=True)


def test_keypoints_that_leave_the_image_are_dropped(annotations):
    dataset = make(annotations, augmentation=Augmentation(**TURNED, translation=1.0), render=False)
    dropped = 0
    for epoch in range(50):
        sample = dataset[0, epoch]
        points = sample.keypoints[~sample.keypoints.isnan().any(-1)]
        assert ((points >= 0) & (points <= torch.tensor([40.0, 30.0]))).all()
        assert sample.labelled.all(), "a keypoint that has left is truly absent"
        dropped += 3 - len(points)
    assert dropped > 20


@pytest.mark.parametrize("empty_channels", ["absent", "ignore"])
@pytest.mark.parametrize("augmentation", [None, STRONG, Augmentation(**TURNED, translation=1.0)])
@pytest.mark.parametrize("sizes", [{}, {"image_size": 23}, {"image_size": 37, "crop_size": 20}])
def test_keypoints_outside_are_left_out_of_images_whose_headers_were_not_read_too(
    tmp_path, empty_channels, augmentation, sizes
):
    labels = {
        "a": [[40, 30], [40.25, 3], [0, 0], [-1, 4], [400, 2e6], [12, 7]],
        "b": [[20, 30.5]],
        "c": [[0, 30.00001]],
    }
    write_data_set(tmp_path, [(40, 30)], [labels])
    unknown = read_annotations(tmp_path / "dataset.json", tmp_path)
    judged = leave_out_outside(unknown, scan_sizes(unknown))
    assert judged.counts().tolist() == [[3, 0, 1]]
    arguments = {"augmentation": augmentation, "empty_channels": empty_channels, "render": False, **sizes}
    found, expected = make(unknown, **arguments), make(judged, **arguments)
    for key in [Key(0, epoch, augmented=epoch > 0) for epoch in range(20)]:
        a, b = found[key], expected[key]
        for name in ("images", "labelled", "transforms"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
        for one, other in zip(a.keypoints, b.keypoints, strict=True):
            assert one[~one.isnan().any(-1)].tolist() == other[~other.isnan().any(-1)].tolist()


@pytest.mark.parametrize("image_size", [None, 17, 23, 37])
def test_a_keypoint_on_the_border_of_an_image_is_in_it(tmp_path, image_size):
    for coordinates, corner in (("pixel", [40, 30]), ("normalized", [1, 1]), ("blender", [1, 0])):
        labels = [{"a": [corner, [0, 0] if coordinates != "blender" else [0, 1]]}]
        path = write_data_set(tmp_path, [(40, 30)], labels, coordinates=coordinates)
        sample = make(read_annotations(path, tmp_path), image_size=image_size)[0]
        assert sample.keypoints.tolist() == [[[*sample.sizes.flip(0).tolist()], [0, 0]]]


@pytest.mark.parametrize(("width", "side"), [(15, 31), (11, 200), (800, 448)])
def test_a_keypoint_on_the_right_border_is_on_the_left_border_of_the_mirrored_image(tmp_path, width, side):
    # In 64 bits, side - width * (side / width) is below 0 for these.
    path = write_data_set(tmp_path, [(width, 4)], [{"corner": [[width, 1], [0, 2], [width + 1, 2]]}])
    fixed = {"rotation": 0, "vertical_flip": 0, "scale": 0, "translation": 0, "cutmix": 0}
    mirrored = Augmentation(horizontal_flip=1, **fixed)
    sample = make(read_annotations(path, tmp_path), image_size=side, augmentation=mirrored)[0]
    height = sample.images.shape[1]
    expected = torch.tensor([[[0, height / 4], [side, height / 2], [math.nan, math.nan]]])
    torch.testing.assert_close(sample.keypoints, expected, equal_nan=True)


def test_channels_without_keypoints_can_be_ignored(annotations):
    dataset = make(annotations, empty_channels="ignore")
    assert dataset[0].labelled.tolist() == [True, True, False]
    assert dataset[2].labelled.tolist() == [False, False, False]
    only_left = [{"left_eye": [[10, 5]], "right_eye": []}]
    write_data_set(annotations.image_root, [(40, 30)], only_left, "left.json")
    left = read_annotations(annotations.image_root / "left.json", annotations.image_root)
    mirrored = make(
        left,
        empty_channels="ignore",
        augmentation=Augmentation(rotation=30, horizontal_flip=1, vertical_flip=0, cutmix=0),
    )
    assert mirrored[0].labelled.tolist() == [False, True]


def test_samples_are_a_function_of_seed_epoch_and_index(annotations):
    dataset = make(annotations, augmentation=STRONG, seed=1)
    first = dataset[1, 4]
    torch.rand(3)
    np.random.default_rng().random()
    dataset[0, 4], dataset[1, 5]
    assert same(dataset[1, 4], first)
    assert torch.equal(dataset[-2, 4].images, first.images)
    assert same(make(annotations, augmentation=STRONG, seed=1)[1, 4], first)
    assert not torch.equal(dataset[1, 5].images, first.images)
    assert not torch.equal(make(annotations, augmentation=STRONG, seed=2)[1, 4].images, first.images)
    assert torch.equal(dataset[1].images, dataset[1, 0].images)


def test_workers_give_the_same_bits(annotations):
    dataset = make(annotations, augmentation=STRONG, seed=1)
    keys = [(2, 0), (0, 0), (1, 0), (1, 1)]
    loader, with_workers = (
        DataLoader(dataset, batch_size=2, sampler=keys, collate_fn=dataset.collate, num_workers=workers)
        for workers in (0, 2)
    )
    for a, b in zip(loader, with_workers, strict=True):
        assert same(a, b)


def test_spawned_workers_can_receive_it(annotations):
    dataset = make(annotations, augmentation=STRONG, seed=1, corrupt_images="skip")
    received = pickle.loads(ForkingPickler.dumps(dataset))
    assert same(received[1, 3], dataset[1, 3])


def test_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    path = write_data_set(tmp_path, [(500, 400)], [{"a": [[100, 100]]}])
    annotations = read_annotations(path, tmp_path)
    threads = torch.get_num_threads()
    samples = []
    for number in (1, 2):
        torch.set_num_threads(number)
        dataset = make(annotations, augmentation=STRONG, image_size=300)
        samples.append([dataset[0, epoch] for epoch in range(4)])
    torch.set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(*samples, strict=True))


def test_cached_images_are_those_of_the_files(annotations):
    cached = make(annotations, augmentation=STRONG, cache=ImageCache(annotations, scan_sizes(annotations)))
    plain = make(annotations, augmentation=STRONG)
    for epoch in range(3):  # the cache must survive what is done to the images
        assert same(cached[1, epoch], plain[1, epoch])
    assert same(make(annotations, cache=cached.cache)[1], make(annotations)[1])


@pytest.mark.parametrize("image_size", [None, (90, 30), (40, 400), (7, 9)])
def test_images_that_are_cached_as_they_fit_are_those_of_the_files(annotations, image_size):
    cache = ImageCache(annotations, scan_sizes(annotations), image_size=image_size)
    cached, plain = (make(annotations, image_size=image_size, cache=c) for c in (cache, None))
    for index in range(len(annotations)):
        for _ in range(2):
            assert same(cached[index], plain[index])


def test_images_that_are_cached_as_they_fit_take_no_more_memory_than_that(annotations, monkeypatch):
    needed = 3 * (12 * 16 + 16 * 10 + 16 * 16)  # of 40 x 30, 30 x 50 and 64 x 64 pixels
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(image_cache, "free_memory", lambda free=free: math.ceil(free / 0.8))
        for sizes in (scan_sizes(annotations), np.zeros((3, 2), np.int64)):
            with contextlib.nullcontext() if fits else pytest.raises(InputError, match="caching 3 decoded images"):
                ImageCache(annotations, sizes, image_size=(16, 16))


def test_images_that_are_cached_as_they_fit_are_not_for_random_changes(annotations):
    cache = ImageCache(annotations, scan_sizes(annotations), image_size=(20, 20))
    with pytest.raises(ValueError, match="full size"):
        make(annotations, image_size=(20, 20), augmentation=STRONG, cache=cache)
    with pytest.raises(ValueError, match=r"resizes to \(20, 20\)"):
        make(annotations, image_size=(40, 20), cache=cache)


def test_a_corrupt_image_raises_or_is_skipped_and_reported_once(annotations, folder, caplog):
    (folder / "001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r'\.json: entry 1 \("001\.png"\): .*001\.png: '):
        make(annotations)[1]
    dataset = make(annotations, corrupt_images="skip", augmentation=STRONG)
    with caplog.at_level(logging.WARNING):
        batch = dataset.collate([dataset[0], dataset[1, 0], dataset[1, 1]])
    assert sum("001.png" in record.message for record in caplog.records) == 1
    assert batch.indices.tolist() == [0, 1, 1]
    assert batch.labelled.tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert not batch.images[1].any()
    assert batch.keypoints[1].isnan().all()


def test_an_error_of_a_worker_is_one_line(annotations, folder):
    (folder / "001.png").write_bytes(b"no image")
    dataset = make(annotations)
    loader = DataLoader(dataset, batch_size=2, sampler=[(0, 0), (1, 0)], collate_fn=dataset.collate, num_workers=1)
    with pytest.raises(InputError) as raised:
        list(loader)
    assert re.fullmatch(r'.*\.json: entry 1 \("001\.png"\): .*001\.png: [^\n]+', str(raised.value))


def test_a_sample_without_keypoints_has_room_for_one(annotations):
    assert tuple(make(annotations)[2].keypoints.shape) == (3, 1, 2)


def test_blank_samples_count_nowhere(annotations):
    blank = make(annotations)[1, BLANK]
    assert blank.images.shape == (3, 50, 30)
    assert not blank.images.any()
    assert not blank.labelled.any()
    assert blank.indices == -1
    assert blank.keypoints.isnan().all()


def test_images_of_any_kind_and_negative_index(tmp_path):
    path = write_data_set(tmp_path, [(20, 10), (20, 10)], [{"a": [[1, 2]]}, {"a": [[3, 4]]}])
    Image.fromarray(np.full((10, 20), 51, np.uint8)).save(tmp_path / "000.png")
    dataset = make(read_annotations(path, tmp_path))
    torch.testing.assert_close(dataset[0].images, torch.full((3, 10, 20), 0.2))
    assert dataset[-1].keypoints.tolist() == [[[3, 4]]]
    with pytest.raises(IndexError):
        dataset[2]
    assert [int(sample.indices) for sample in dataset] == [0, 1]


@pytest.mark.parametrize("arguments", [{"empty_channels": "x"}, {"corrupt_images": "x"}, {"image_size": "x"}])
def test_wrong_arguments_are_named(annotations, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        make(annotations, **arguments)
