import math

import numpy as np
import pytest
import torch
from blobs import blob_image, peak
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from keypoint_detection.data import geometry
from keypoint_detection.data.geometry import (
    fit_size,
    fit_sizes,
    letterbox,
    parse_image_size,
    scaling,
    shrink_factor,
    translation,
    warp,
)
from keypoint_detection.errors import InputError


def noise_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (256, (256, 256)), ("256", (256, 256)), ("256 320", (256, 320)), ([64, 32], (64, 32))],
)
def test_image_size_is_read(value, expected):
    assert parse_image_size(value) == expected


@pytest.mark.parametrize("value", ["", "a", "1 2 3", 0, "256 -1", [], [1.5, "x"], 256.7, "256.7", [256, 319.5]])
def test_wrong_image_size_is_named(value):
    with pytest.raises(InputError, match="image_size: expected one or two positive"):
        parse_image_size(value)


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [
        ((480, 640), (256, 256), (192, 256)),
        ((640, 480), (256, 256), (256, 192)),
        ((64, 64), (256, 320), (256, 256)),
        ((100, 1000), (50, 50), (5, 50)),
        ((1, 1000), (50, 50), (1, 50)),
        ((37, 53), None, (37, 53)),
    ],
)
def test_fit_size_keeps_the_aspect(size, image_size, expected):
    assert fit_size(size, image_size) == expected


def test_letterbox_passes_an_image_of_the_right_size_through():
    image = noise_image(48, 64)
    for image_size in (None, (48, 64), (48, 200)):
        tensor, homography = letterbox(image, image_size)
        assert torch.equal(tensor, torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(homography, np.eye(3))


def test_letterbox_does_not_change_the_image_that_it_is_given():
    image = noise_image(3, 1)
    before = image.copy()
    letterbox(image)[0].zero_()
    np.testing.assert_array_equal(image, before)


@given(st.integers(20, 200), st.integers(20, 200), st.integers(16, 150), st.integers(16, 150))
@settings(max_examples=30)
def test_letterbox_homography_maps_corners_to_corners(height, width, box_height, box_width):
    tensor, homography = letterbox(noise_image(height, width), (box_height, box_width))
    new_height, new_width = tensor.shape[1:]
    assert new_height <= box_height
    assert new_width <= box_width
    assert new_height == box_height or new_width == box_width
    np.testing.assert_allclose(homography @ [new_width, new_height, 1], [width, height, 1], atol=1e-9)


# Sides that differ less than twofold: of a blob in a flat image, the border cuts off so much that its peak moves.
@given(st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.integers(128, 250), st.integers(128, 250), st.integers(64, 128))
@settings(max_examples=30)
def test_letterboxed_peak_is_where_the_homography_says(u, v, height, width, side):
    point = (u * width, v * height)
    factor = side / max(height, width)
    tensor, homography = letterbox(blob_image(point, (height, width), 4 / min(1, factor)), (side, side))
    expected = np.linalg.inv(homography) @ [*point, 1]
    np.testing.assert_allclose(peak(tensor), expected[:2], atol=0.05)


def test_letterbox_averages_where_it_shrinks():
    # A chequered board of single pixels is grey from afar; point sampling would make it black or white.
    board = np.indices((256, 256)).sum(0) % 2 * 255
    tensor, _ = letterbox(np.repeat(board[..., None].astype(np.uint8), 3, axis=2), (32, 32))
    assert (tensor - 0.5).abs().max() < 0.02


def test_warp_averages_where_it_shrinks():
    board = np.repeat((np.indices((512, 512)).sum(0) % 2 * 255)[..., None].astype(np.uint8), 3, axis=2)
    angle = math.radians(20)
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    result = warp(board, rotation @ scaling((512, 512), (64, 64)), (32, 16))
    assert (result - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("shrink", [2.0, 3.3, 8.0])
def test_no_pixel_is_skipped_where_a_warp_shrinks(shrink):
    homography = np.diag([1 / shrink, 1 / shrink, 1.0])
    seen = []
    for row, column in np.ndindex(9, 9):
        image = np.zeros((80, 80, 3), np.uint8)
        image[30 + row, 30 + column] = 255
        seen.append(float(warp(image, homography, (40, 40), "zeros").mean()) * 40**2 * shrink**2)
    # Each counts about as much as any other: one of them is 1 / shrink**2 of the output.
    assert min(seen) > 0.7
    assert max(seen) < 1.45


@pytest.mark.parametrize("fill", ["mean", "zeros", "border", "reflection"])
def test_warp_by_whole_pixels_moves_pixels_exactly(fill):
    image = noise_image(20, 30)
    result = warp(image, translation(4, -3), (20, 30), fill)
    expected = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(result[:, :17, 4:], expected[:, 3:, :26], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("fill", "expected"), [("zeros", 0.0), ("border", 1.0), ("reflection", 1.0), ("mean", 0.5)])
def test_fill(fill, expected):
    image = np.zeros((10, 10, 3), np.uint8)
    image[:5] = 255  # the upper half is white, so the mean is one half
    result = warp(image, translation(0, 3), (10, 10), fill)
    torch.testing.assert_close(result[:, :2], torch.full((3, 2, 10), expected), atol=1e-5, rtol=0)


def test_mirroring_by_warp_is_a_flip():
    image = noise_image(12, 17)
    result = warp(image, np.array([[-1.0, 0, 17], [0, 1, 0], [0, 0, 1]]), (12, 17))
    expected = torch.from_numpy(image).permute(2, 0, 1).flip(2).float() / 255
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_shrink_factor_of_the_direction_that_shrinks_least():
    assert shrink_factor(np.diag([0.25, 0.5, 1.0]), (10, 10)) == pytest.approx(2)
    assert shrink_factor(np.diag([3.0, 2.0, 1.0]), (10, 10)) == pytest.approx(1 / 3)
    # What lies at (15, 0) is divided by 1 + 15 / 30 and moved to the middle, (10, 5): there 1.5 source pixels are
    # a pixel down, and 1.5 ** 2 a pixel to the right. A multiple of a homography is the same one.
    tilted = translation(0, 5) @ np.array([[1.0, 0, 0], [0, 1, 0], [1 / 30, 0, 1]])
    for multiple in (1, 4):
        assert shrink_factor(multiple * tilted, (10, 20)) == pytest.approx(1.5)


def test_sizes_that_fit_are_of_width_and_height_and_unknown_ones_stay_unknown():
    sizes = np.array([[40, 20], [0, 0], [20, 40]])
    assert fit_sizes(sizes, (12, 10)).tolist() == [[10, 5], [0, 0], [6, 12]]
    assert fit_sizes(sizes, None) is sizes


def test_warp_resembles_a_supersampled_reference():
    # Pillow's own antialiased resize of a smooth picture, against a warp that does the same.
    picture = Image.fromarray(noise_image(8, 8, 1)).resize((400, 300), Image.Resampling.BICUBIC)
    result = warp(np.asarray(picture), scaling((300, 400), (75, 100)), (75, 100))
    reference = np.asarray(picture.resize((100, 75), Image.Resampling.BOX)).transpose(2, 0, 1) / 255
    assert np.abs(result.numpy() - reference)[:, 2:-2, 2:-2].max() < 0.03


@pytest.mark.parametrize("fill", ["mean", "zeros", "border", "reflection"])
@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("corner", [(-10, -12), (40, 25), (150, 90)])
def test_a_small_part_of_a_large_image_is_what_a_warp_of_all_of_it_shows_there(fill, scale, corner, monkeypatch):
    point, size = np.array([317.3, 226.6]), (96, 96)
    image = blob_image(point, (480, 640), 6)
    angle = np.radians(20)
    turned = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    homography = np.eye(3)
    homography[:2, :2] = turned
    homography[:2, 2] = np.array([50.0, 44.0]) - turned @ point
    part = warp(image, homography, size, fill)
    np.testing.assert_allclose(peak(part), [50, 44], atol=0.05)
    # Anywhere else, also where the part reaches beyond the image: against sampling all of the image.
    moved = translation(-corner[0] * scale, -corner[1] * scale) @ np.diag([scale, scale, 1.0])
    noise = functional.gaussian_blur(torch.rand(3, 200, 260, generator=torch.Generator().manual_seed(1)), [9, 9], 2.0)
    pixels = (noise * 255).byte().permute(1, 2, 0).numpy()
    part = warp(pixels, moved, (40, 40), fill)
    monkeypatch.setattr(geometry, "_sampled", lambda *_, **__: (slice(0, 200), slice(0, 260)))
    whole = warp(pixels, moved, (40, 40), fill)
    if fill == "mean":  # a colour of their own beyond the image
        inverse = np.linalg.inv(moved)
        y, x = np.mgrid[:40, :40] + 0.5
        source_x, source_y = inverse[0, 0] * x + inverse[0, 2], inverse[1, 1] * y + inverse[1, 2]
        inside = torch.from_numpy((source_x > 3) & (source_y > 3) & (source_x < 257) & (source_y < 197))
        part, whole = part[:, inside], whole[:, inside]
        assert part.shape[1] > 100
    torch.testing.assert_close(part, whole, atol=0.03, rtol=0)


@given(st.integers(0, 2**32))
@settings(max_examples=150)
def test_what_lies_outside_of_the_part_that_is_sampled_is_not_seen(seed):
    """Whatever the homography: also from beyond the image, and where the output reaches the horizon."""
    random = np.random.default_rng(seed)
    source, size = random.integers(20, 240, 2), tuple(random.integers(1, 90, 2).tolist())
    noise = torch.rand(3, *source.tolist(), generator=torch.Generator().manual_seed(seed))
    smooth = functional.gaussian_blur(noise, [19, 19], [4.0, 4.0])
    pixels = (255 * (0.7 + 3 * (smooth - 0.5)).clamp(0, 1)).byte().permute(1, 2, 0).contiguous().numpy()
    angle, scale = random.uniform(0, 2 * np.pi), np.exp(random.uniform(np.log(0.1), np.log(3)))
    turned = np.diag([scale, scale * random.uniform(0.6, 1), 1.0])
    turned[:2, :2] @= [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilted = np.eye(3)
    tilted[2, :2] = random.choice([0, 0.3, 1]) * random.uniform(-1, 1, 2) / source[::-1]
    middle = random.uniform(-0.3, 1.3, 2) * source[::-1]
    homography = translation(size[1] / 2, size[0] / 2) @ turned @ tilted @ translation(*-middle)
    for fill in ("zeros", "border", "reflection"):
        part = warp(pixels, homography, size, fill)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(geometry, "_sampled", lambda *_, **__: (slice(0, source[0]), slice(0, source[1])))
            whole = warp(pixels, homography, size, fill)
        torch.testing.assert_close(part, whole, atol=0.1, rtol=0)
