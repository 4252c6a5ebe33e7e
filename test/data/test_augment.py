import numpy as np
import pytest
import torch
from blobs import blob_image, peak
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keypoint_detection import heatmaps
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.geometry import scaling, warp
from keypoint_detection.errors import InputError

GEOMETRIC = ("rotation", "scale", "shear", "translation", "perspective", "crop", "horizontal_flip", "vertical_flip")
PHOTOMETRIC = ("brightness", "contrast", "saturation", "hue", "grayscale", "blur", "noise", "jpeg", "erasing")
OFF = dict.fromkeys((*GEOMETRIC, *PHOTOMETRIC, "cutmix"), 0.0)
SIZE = (90, 120)


def only(**arguments):
    return Augmentation(**{**OFF, **arguments})


def random(seed=0):
    return np.random.default_rng(seed)


def mapped(homography, x, y):
    result = homography @ [x, y, 1]
    return result[:2] / result[2]


def test_everything_off_changes_nothing():
    geometry = only().geometry(random(), SIZE)
    np.testing.assert_array_equal(geometry.homography, np.eye(3))
    assert not geometry.mirrored
    image = torch.rand(3, 10, 10)
    assert torch.equal(only().photometric(image.clone(), random()), image)


@pytest.mark.parametrize("seed", range(20))
def test_each_geometric_change_does_what_its_name_says(seed):
    height, width = SIZE
    centre = (width / 2, height / 2)
    rotation = only(rotation=30).geometry(random(seed), SIZE).homography
    np.testing.assert_allclose(mapped(rotation, *centre), centre, atol=1e-9)
    np.testing.assert_allclose(rotation[:2, :2] @ rotation[:2, :2].T, np.eye(2), atol=1e-12)
    assert rotation[0, 0] >= np.cos(np.pi / 6) - 1e-12
    scale = only(scale=0.25).geometry(random(seed), SIZE).homography
    assert scale[0, 0] == scale[1, 1]
    assert 0.8 <= scale[0, 0] <= 1.25
    np.testing.assert_allclose(mapped(scale, *centre), centre, atol=1e-9)
    shift = only(translation=0.1).geometry(random(seed), SIZE).homography
    np.testing.assert_array_equal(shift[:2, :2], np.eye(2))
    assert abs(shift[0, 2]) <= 12
    assert abs(shift[1, 2]) <= 9
    shear = only(shear=20).geometry(random(seed), SIZE).homography
    assert np.abs([shear[0, 1], shear[1, 0]]).max() <= np.tan(np.radians(20))
    np.testing.assert_allclose(np.diag(shear), 1)
    tilt = only(perspective=0.5).geometry(random(seed), SIZE).homography
    np.testing.assert_allclose(mapped(tilt, *centre), centre, atol=1e-9)
    assert tilt[2, 0] != 0


@pytest.mark.parametrize("seed", range(20))
def test_crop_shows_a_part_that_lies_inside_the_image(seed):
    homography = only(crop=1).geometry(random(seed), SIZE).homography
    corners = np.array([mapped(np.linalg.inv(homography), x, y) for x, y in ((0, 0), (120, 90))])
    assert corners.min() >= -1e-9
    assert (corners <= np.array([120, 90]) + 1e-9).all()
    shares = (corners[1] - corners[0]) / (120, 90)
    assert shares[0] == pytest.approx(shares[1])
    assert 0.5 <= shares[0] <= 1


def test_flips():
    height, width = SIZE
    horizontal = only(horizontal_flip=1).geometry(random(), SIZE)
    assert tuple(mapped(horizontal.homography, 10, 20)) == (width - 10, 20)
    assert horizontal.mirrored
    vertical = only(vertical_flip=1).geometry(random(), SIZE)
    assert tuple(mapped(vertical.homography, 10, 20)) == (10, height - 20)
    assert vertical.mirrored
    both = only(horizontal_flip=1, vertical_flip=1).geometry(random(), SIZE)
    assert tuple(mapped(both.homography, 10, 20)) == (width - 10, height - 20)
    assert not both.mirrored, "two flips are a turn by 180 degrees"
    neither = only(horizontal_flip=1, vertical_flip=1).geometry(random(), SIZE, may_mirror=False)
    np.testing.assert_array_equal(neither.homography, np.eye(3))


def test_flip_probability():
    flips = [only(horizontal_flip=0.3).geometry(random(seed), SIZE).mirrored for seed in range(1000)]
    assert 240 < sum(flips) < 360


def test_the_same_generator_gives_the_same_change():
    augmentation = Augmentation(
        rotation=30,
        horizontal_flip=0.5,
        vertical_flip=0.1,
        cutmix=0.5,
        blur=0.5,
        jpeg=0.5,
        erasing=0.5,
        noise=0.05,
        perspective=0.2,
        crop=0.5,
        shear=5,
    )
    image = torch.rand(3, 40, 50)
    first, again, other = (random(7), random(7), random(8))
    a, b, c = (augmentation.geometry(generator, SIZE).homography for generator in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    x, y, z = (augmentation.photometric(image.clone(), generator) for generator in (first, again, other))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)


@given(
    seed=st.integers(0, 2**32),
    rotation=st.floats(0, 180),
    scale=st.floats(0, 0.4),
    shear=st.floats(0, 15),
    translation=st.floats(0, 0.2),
    perspective=st.floats(0, 0.2),
    crop=st.sampled_from([0, 1]),
    horizontal_flip=st.sampled_from([0, 1]),
    vertical_flip=st.sampled_from([0, 1]),
    letterbox_factor=st.floats(0.4, 1.6),
    u=st.floats(0.2, 0.8),
    v=st.floats(0.2, 0.8),
)
@settings(max_examples=50, deadline=None)
def test_warped_keypoint_is_the_peak_of_the_warped_image(seed, letterbox_factor, u, v, **changes):
    """A Gaussian in the image and the keypoint at its centre go the same way, to 0.05 pixels."""
    file_size = (110, 150)
    size = (round(110 * letterbox_factor), round(150 * letterbox_factor))
    point = (u * file_size[1], v * file_size[0])
    from_file = only(**changes).geometry(random(seed), size).homography @ scaling(file_size, size)
    expected = heatmaps.transform_points(torch.tensor(point, dtype=torch.float64), torch.from_numpy(from_file)).numpy()
    np.testing.assert_allclose(expected, mapped(from_file, *point))
    assume((expected > 12).all() and (expected < np.array(size[::-1]) - 12).all())
    warped = warp(blob_image(point, file_size, 4), from_file, size, "zeros")
    np.testing.assert_allclose(peak(warped), expected, atol=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("rotation", -1), ("rotation", 181), ("scale", -0.1), ("hue", 0.6), ("blur", 1.1), ("perspective", 1.0)],
        *[("brightness", float("nan")), ("fill", "grey")],
    ],
)
def test_wrong_value_is_named(name, value):
    with pytest.raises(InputError, match=name):
        only(**{name: value})


def test_shear_reaches_its_angle_along_either_axis():
    changes = [only(shear=20).geometry(random(seed), SIZE).homography for seed in range(300)]
    for row, column in ((0, 1), (1, 0)):
        largest = np.degrees(np.arctan(max(abs(change[row, column]) for change in changes)))
        assert 19.5 < largest <= 20
    with pytest.raises(InputError, match="shear: expected a number from 0 to 44, got 45"):
        only(shear=45)
