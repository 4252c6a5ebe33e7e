"""Images as users hand them over, bit for bit."""

import struct

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
        with pytest.raises(InputError, match="expected values from 0 to 1"):
            to_rgb(np.array([[low, high]], kind))
    with pytest.raises(InputError, match=r"pixels from -0\.002\d* to 1\.00[12]\d*, expected values from 0 to 1"):
        to_rgb(np.array([[-0.002, 1.0015]], kind))


def test_whole_numbers_have_no_errors_of_rounding():
    for outside in (-1, 65536):
        with pytest.raises(InputError, match=f"{outside}.*, expected values from 0 to 65535"):
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


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_an_image_without_a_pixel_is_refused(size):
    width, height = size
    with pytest.raises(InputError, match=f"^PIL image of {width}x{height} pixels: expected at least one$"):
        to_rgb(Image.new("RGB", size))
    for empty in (np.zeros((height, width, 3), np.uint8), torch.zeros(3, height, width), np.zeros((height, width))):
        with pytest.raises(InputError, match=r"of at least one pixel$"):
            to_rgb(empty)


def test_a_pil_image_is_turned_upright():
    image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    image.getexif()[0x0112] = 6  # to be turned clockwise
    assert to_rgb(image)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]


def entries(*fields):
    """An EXIF block of one directory, each field its tag, type, number of values and four bytes."""
    directory = b"".join(struct.pack(">HHI", *field[:3]) + field[3] for field in fields)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(fields)) + directory + struct.pack(">I", 0)


CLOCKWISE = (0x0112, 3, 1, b"\0\6\0\0")


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (entries(CLOCKWISE), True),
        (entries((0x0100, 2, 4, b"abc\0"), CLOCKWISE, (0x011A, 2, 3, b"72\0\0")), True),  # texts for numbers
        (entries(CLOCKWISE, (0x8769, 2, 4, b"abc\0")), True),  # a text for the place of more fields
        (entries(CLOCKWISE, (0x8825, 4, 1, struct.pack(">I", 9999))), True),  # which lie behind the end
        (entries((0x0112, 2, 2, b"6\0\0\0")), False),
        (b"Exif\0\0MM\0*" + bytes(3), False),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_pil_image_is_what_its_file_is_however_malformed_its_exif(tmp_path, exif, turned, extension, loaded):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(np.repeat(RAMP[:8], 2, axis=1)).convert("RGB").save(path, exif=exif)
    with Image.open(path) as image:
        if loaded:
            image.load()
        rgb = to_rgb(image)
        assert np.array_equal(rgb, to_rgb(image))
    assert rgb.shape == ((32, 8, 3) if turned else (8, 32, 3))
    assert np.array_equal(rgb, to_rgb(path))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_pil_image_of_a_tiff_file_is_turned_once(tmp_path, loaded):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)).convert("RGB").save(tmp_path / "image.tiff", exif=exif)
    with Image.open(tmp_path / "image.tiff") as image:
        if loaded:
            image.load()
        assert to_rgb(image)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]
        assert to_rgb(image)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]
