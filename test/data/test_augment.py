import numpy as np
import pytest
import torch
from blobs import blob_image, peak
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keypoint_detection import heatmaps
from keypoint_detection.data import photometric
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
    height, width = size = (91, 121)  # whose centre lies in the middle of a pixel
    centre = (width / 2, height / 2)
    rotation = only(rotation=30).geometry(random(seed), size).homography
    np.testing.assert_allclose(mapped(rotation, *centre), centre, atol=1e-9)
    np.testing.assert_allclose(rotation[:2, :2] @ rotation[:2, :2].T, np.eye(2), atol=1e-12)
    scale = only(scale=0.25).geometry(random(seed), size).homography
    assert scale[0, 0] == scale[1, 1]
    np.testing.assert_allclose(mapped(scale, *centre), centre, atol=1e-9)
    shift = only(translation=0.1).geometry(random(seed), size).homography
    np.testing.assert_array_equal(shift[:2, :2], np.eye(2))
    assert (shift[:2, 2] != 0).all()
    shear = only(shear=20).geometry(random(seed), size).homography
    assert np.abs([shear[0, 1], shear[1, 0]]).max() <= np.tan(np.radians(20))
    np.testing.assert_allclose(np.diag(shear), 1)
    tilt = only(perspective=0.5).geometry(random(seed), size).homography
    np.testing.assert_allclose(mapped(tilt, *centre), centre, atol=1e-9)
    np.testing.assert_allclose((tilt @ [*centre, 1])[:2], centre, atol=1e-9)  # its scale there is 1


def homographies(count=300, **changes):
    """Those of many draws, `(count, 3, 3)`."""
    return np.array([only(**changes).geometry(random(seed), SIZE).homography for seed in range(count)])


def test_rotation_and_scale_reach_as_far_as_they_are_told_and_no_further():
    rotation, scale = homographies(rotation=30), homographies(scale=0.25)[:, 0, 0]
    angles = np.degrees(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    assert -30 <= angles.min() < -29
    assert 29 < angles.max() <= 30
    assert 0.8 <= scale.min() < 0.805
    assert 1.245 < scale.max() <= 1.25


@pytest.mark.parametrize("others", [{}, {"rotation": 180}], ids=["alone", "with a rotation"])
def test_translation_moves_the_centre_by_a_share_of_each_side(others):
    centres = np.array([mapped(h, 60, 45) for h in homographies(translation=0.1, **others)])
    farthest = np.abs(centres - (60, 45)).max(axis=0)
    assert 11.5 < farthest[0] <= 12
    assert 8.5 < farthest[1] <= 9


def test_perspective_changes_the_scale_along_each_axis_by_its_share():
    def scales(homography, axis, sides):
        """Pixels of the changed image per pixel of the unchanged one, at two sides of it, along the axis."""
        places = [np.where(np.arange(2) == axis, side, (60, 45)) for side in sides]
        step = np.eye(2)[axis] / 100
        return [(mapped(homography, *(p + step)) - mapped(homography, *(p - step)))[axis] * 50 for p in places]

    drawn = homographies(perspective=0.5)
    assert max(abs(np.subtract(*scales(h, 0, (0, 120)))) for h in drawn) == pytest.approx(0.5, rel=0.05)
    assert max(abs(np.subtract(*scales(h, 1, (0, 90)))) for h in drawn) == pytest.approx(0.5, rel=0.05)


def test_a_crop_may_lie_anywhere():
    inverses = np.linalg.inv(homographies(500, crop=1))
    before, after = inverses[:, :2, 2], (120, 90) - (inverses @ [120, 90, 1])[:, :2]  # left and top, right and bottom
    places = before / (before + after)
    assert (places.min(axis=0) < 0.02).all()
    assert (places.max(axis=0) > 0.98).all()
    assert places.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.05)


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


@pytest.mark.parametrize(
    ("flag", "function"),
    [
        *[("saturation", "adjust_colour"), ("grayscale", "adjust_colour"), ("blur", "blur"), ("noise", "add_noise")],
        *[("jpeg", "compress"), ("erasing", "erase")],
    ],
)
def test_a_flag_makes_its_own_change_only(flag, function, monkeypatch):
    calls = []
    for name in ("adjust_colour", "blur", "add_noise", "compress", "erase"):
        monkeypatch.setattr(photometric, name, lambda image, *_, name=name: calls.append(name) or image)
    only(**{flag: 1}).photometric(torch.rand(3, 8, 8), random(1))
    assert calls == [function]


def test_strengths_reach_as_far_as_they_are_told_and_no_further(monkeypatch):
    drawn = {"adjust_colour": [], "blur": [], "add_noise": [], "compress": []}
    for name, values in drawn.items():
        monkeypatch.setattr(photometric, name, lambda image, *given, v=values: v.append(given) or image)
    changes = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "hue": 0.4, "blur": 1, "noise": 0.5, "jpeg": 1}
    for seed in range(500):
        only(**changes).photometric(torch.zeros(3, 1, 1), random(seed))
    colours = np.array(drawn["adjust_colour"]) - (1, 1, 1, 0)
    assert (colours.max(axis=0) <= (0.1, 0.2, 0.3, 0.4)).all()
    assert (colours.min(axis=0) >= (-0.1, -0.2, -0.3, -0.4)).all()
    assert colours.max(axis=0) == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.02)
    assert -colours.min(axis=0) == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.02)
    assert 1.98 < max(sigma for (sigma,) in drawn["blur"]) <= 2
    assert 0.49 < max(deviation for deviation, _ in drawn["add_noise"]) <= 0.5
    assert {min(drawn["compress"]), max(drawn["compress"])} == {(25,), (95,)}


def test_colours_change_as_the_flag_says():
    stripes = torch.full((3, 8, 8), 0.5)
    stripes[:, :, 1::2] = 0.7
    reddish = torch.tensor([0.8, 0.2, 0.2])[:, None, None].expand(3, 8, 8).contiguous()

    def changed(image, **change):
        return (only(**change).photometric(image.clone(), random(1)) - image).abs().max()

    assert changed(stripes, saturation=0.3) < 1e-5, "grey has no saturation"
    assert changed(stripes, contrast=0.3) > 1e-3
    assert changed(stripes, hue=0.3) < 1e-5, "nor a hue"
    assert changed(reddish, hue=0.3) > 1e-2
    assert changed(reddish, saturation=0.3) > 1e-2
    grey = only(grayscale=1).photometric(reddish.clone(), random(1))
    torch.testing.assert_close(grey, torch.full_like(grey, 0.299 * 0.8 + 0.701 * 0.2))
    assert only(noise=0.1).photometric(torch.full((3, 8, 8), 0.5), random(1)).std() > 0.005


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
@settings(max_examples=50)
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


@pytest.mark.parametrize("changes", [{}, {"scale": 0.5}, {"shear": 30}, {"crop": 1.0}, {"scale": 0.5, "shear": 30}])
def test_the_largest_zoom_is_reached_and_not_exceeded(changes):
    augmentation = Augmentation(rotation=90, horizontal_flip=0.5, vertical_flip=0.5, **{"scale": 0, **changes})
    random = np.random.default_rng(0)
    linear = [augmentation.geometry(random, (60, 80)).homography[:2, :2] for _ in range(500)]
    largest = np.linalg.svd(linear, compute_uv=False).max()
    assert 0.9 * augmentation.largest_zoom < largest <= augmentation.largest_zoom + 1e-9
