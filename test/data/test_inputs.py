"""Images as users hand them over, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from keypoint_detection.data.inputs import to_rgb
from keypoint_detection.errors import InputError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    "image",
    [RAMP, RAMP.astype(np.uint16) * 257, RAMP / 255, (RAMP / 255).astype(np.float32), RAMP[..., None]],
    ids=["uint8", "uint16", "float64", "float32", "one channel"],
)
def test_all_kinds_of_numbers_are_the_same_grey(image):
    expected = np.repeat(RAMP[..., None], 3, axis=2)
    assert np.array_equal(to_rgb(image), expected)
    tensor = torch.from_numpy(image)
    assert np.array_equal(to_rgb(tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor), expected)


def test_values_between_two_steps_are_rounded():
    assert to_rgb(np.array([[257 * 100 + 128, 257 * 100 + 129]], np.uint16))[0, :, 0].tolist() == [100, 101]
    assert to_rgb(np.array([[100.4, 100.6]]) / 255)[0, :, 0].tolist() == [100, 101]
    # 129.492 and 188.511 of 255, which numbers of 16 bits round to halves
    assert to_rgb(np.array([[0.5078125, 0.7392578125]], np.float16))[0, :, 0].tolist() == [129, 189]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_white_stays_white_when_resizing_it_gave_a_little_more_than_1(mode):
    white = torch.nn.functional.interpolate(torch.ones(1, 3, 480, 640), (101, 131), mode=mode, antialias=True)[0]
    assert white.max() > 1
    assert (to_rgb(white) == 255).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_errors_of_rounding_beyond_0_and_1_are_cut_off_and_all_else_is_refused(kind):
    assert to_rgb(np.array([[-0.0009, 0.5, 1.0009]], kind))[0, :, 0].tolist() == [0, 128, 255]
    # the opacity of the second pixel as well
    pixels = np.array([[[1, 1, 1, 0.6], [1, 1, 1, 1.0009]]], kind)
    assert to_rgb(pixels)[0, :, 0].tolist() == [153, 255]
    for low, high in ((-0.002, 1), (0, 1.002), (0, 255), (np.nan, 1), (0, np.inf)):
        with pytest.raises(InputError, match="expected them within 0 and 1"):
            to_rgb(np.array([[low, high]], kind))
    with pytest.raises(InputError, match=r"pixels from -0\.002\d* to 1\.00[12]\d*, expected them within 0 and 1"):
        to_rgb(np.array([[-0.002, 1.0015]], kind))


def test_whole_numbers_have_no_errors_of_rounding():
    for outside in (-1, 65536):
        with pytest.raises(InputError, match=f"{outside}.*, expected them within 0 and 65535"):
            to_rgb(Image.fromarray(np.array([[1, outside]], np.int32)))


@pytest.mark.parametrize("kind", [">u2", "<u2", ">f4", ">f8"])
def test_the_order_of_bytes_does_not_matter(kind):
    image = (RAMP.astype(np.uint16) * 257 if "u" in kind else RAMP / 255).astype(kind)
    assert np.array_equal(to_rgb(image), np.repeat(RAMP[..., None], 3, axis=2))


def test_opacity_is_laid_over_black():
    pixels = np.full((1, 3, 4), 200, dtype=np.uint8)
    pixels[0, :, 3] = 51, 52, 0  # a fifth of 200 is 40, and 200 * 52 / 255 is 40.8
    expected = [[[40] * 3, [41] * 3, [0] * 3]]
    assert to_rgb(pixels).tolist() == expected
    assert to_rgb(torch.from_numpy(pixels).permute(2, 0, 1)).tolist() == expected


def test_a_pil_image_is_turned_upright():
    image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    image.getexif()[0x0112] = 6  # to be turned clockwise
    assert to_rgb(image)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]
