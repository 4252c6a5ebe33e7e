"""Images of every kind against pixels that were worked out by hand."""

import errno
import itertools
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from keypoint_detection.data import image_cache, images
from keypoint_detection.data.annotations import Annotations, PackedStrings
from keypoint_detection.data.image_cache import ImageCache, create_cache
from keypoint_detection.data.images import load_image, load_reduced, read_header, scan_sizes
from keypoint_detection.data.validation import check_dataset
from keypoint_detection.errors import InputError

RED, HALF = (255, 0, 0), (200, 100, 50)


def annotate(folder, names):
    return Annotations(
        source=folder / "labels.json",
        image_root=folder,
        channel_names=("corner",),
        coordinates="pixel",
        names=PackedStrings.pack(names),
        entries=torch.arange(len(names)),
        xy=torch.zeros(0, 2),
        offsets=torch.zeros(len(names) + 1, dtype=torch.int64),
    )


def pixels(mode, value, size=(3, 2)):
    return Image.new(mode, size, value)


def palette():
    image = pixels("P", 1)
    image.putpalette([0, 0, 0, *HALF])
    return image


KINDS = {
    "RGB": (pixels("RGB", HALF), "png", HALF),
    "RGBA opaque": (pixels("RGBA", (*HALF, 255)), "png", HALF),
    "RGBA half": (pixels("RGBA", (200, 100, 50, 51)), "png", (40, 20, 10)),  # 51 / 255 = 1 / 5 over black
    "RGBA invisible": (pixels("RGBA", (*HALF, 0)), "png", (0, 0, 0)),
    "L": (pixels("L", 77), "png", (77, 77, 77)),
    "LA": (pixels("LA", (100, 51)), "png", (20, 20, 20)),
    "1": (pixels("1", 1), "png", (255, 255, 255)),
    "P": (palette(), "png", HALF),
    "CMYK": (pixels("CMYK", (255, 0, 0, 0)), "tiff", (0, 255, 255)),
    "16 bits": (Image.fromarray(np.full((2, 3), 257 * 100, np.uint16)), "png", (100, 100, 100)),
    "16 bits full": (Image.fromarray(np.full((2, 3), 65535, np.uint16)), "tiff", (255, 255, 255)),
    "16 bits big endian": (Image.fromarray(np.full((2, 3), 257 * 9, ">u2")), "tiff", (9, 9, 9)),
    "32 bits": (Image.fromarray(np.full((2, 3), 257 * 5, np.int32)), "tiff", (5, 5, 5)),
    "float": (Image.fromarray(np.full((2, 3), 0.2, np.float32)), "tiff", (51, 51, 51)),
}


@pytest.mark.parametrize(("image", "suffix", "expected"), KINDS.values(), ids=KINDS.keys())
def test_every_kind_becomes_rgb(tmp_path, image, suffix, expected):
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    loaded = load_image(path)
    assert loaded.dtype == np.uint8
    assert loaded.flags.writeable
    assert np.array_equal(loaded, np.full((2, 3, 3), expected, np.uint8))
    assert read_header(path)[:2] == (3, 2)


def test_transparent_colour_of_a_palette_is_black(tmp_path):
    image = palette()
    image.save(tmp_path / "image.png", transparency=1)
    assert not load_image(tmp_path / "image.png").any()
    assert read_header(tmp_path / "image.png").transparent


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_float_pixels_outside_their_range_are_refused(tmp_path, value):
    Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(InputError, match=r"image\.tiff: pixels from .*, expected values from 0 to 1"):
        load_image(tmp_path / "image.tiff")


# Where the top left pixel (0, 0) of the stored image of 6 x 4 shows after each EXIF orientation, as column and row, by
# the standard: 1 stays, 2 mirrors, 3 turns by 180 degrees, 4 flips, 5 transposes, 6 turns by 90 degrees clockwise,
# 7 mirrors over the other diagonal, 8 turns by 90 degrees to the left.
ORIENTATIONS = {1: (0, 0), 2: (5, 0), 3: (5, 3), 4: (0, 3), 5: (0, 0), 6: (3, 0), 7: (3, 5), 8: (0, 5)}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_exif_rotation(tmp_path, orientation, suffix):
    scale = 16  # Blocks, so that JPEG keeps them apart.
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[0, 0] = 255
    stored[0, 1] = 128  # tells a turn from a mirror image
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored.repeat(scale, 0).repeat(scale, 1)).save(path, exif=exif, **options)
    loaded = load_image(path)
    width, height = (6, 4) if orientation < 5 else (4, 6)
    assert read_header(path)[:2] == (width * scale, height * scale) == loaded.shape[1::-1]
    assert read_header(path).rotated == (orientation != 1)
    small = loaded[scale // 2 :: scale, scale // 2 :: scale, 0].astype(int)
    column, row = ORIENTATIONS[orientation]
    assert np.argwhere(small > 200).tolist() == [[row, column]]
    along = {1: (1, 0), 2: (-1, 0), 3: (-1, 0), 4: (1, 0), 5: (0, 1), 6: (0, 1), 7: (0, -1), 8: (0, -1)}[orientation]
    assert np.argwhere((small > 100) & (small < 200)).tolist() == [[row + along[1], column + along[0]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_images_of_all_kinds_are_turned(tmp_path, mode, compression):
    stored = np.array([[10, 20, 30], [40, 50, 60]])
    grey = Image.fromarray((stored * 257).astype(np.uint16) if mode == "I;16" else stored.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (grey if mode == "I;16" else grey.convert(mode)).save(tmp_path / "a.tiff", exif=exif, compression=compression)
    assert load_image(tmp_path / "a.tiff")[..., 0].tolist() == [[40, 10], [50, 20], [60, 30]]


def test_the_transparent_value_of_a_16_bit_image_turns_black(tmp_path):
    Image.fromarray(np.array([[257, 514, 40000, 51400]], np.uint16)).save(tmp_path / "a.png", transparency=40000)
    assert read_header(tmp_path / "a.png").transparent
    assert load_image(tmp_path / "a.png").tolist() == [[[1] * 3, [2] * 3, [0] * 3, [200] * 3]]


def test_a_damaged_exif_block_does_not_hide_the_pixels(tmp_path):
    pixels("RGB", HALF).save(tmp_path / "image.png", exif=b"Exif\0\0II*\0garbage")
    assert np.array_equal(load_image(tmp_path / "image.png")[0, 0], HALF)


@pytest.mark.parametrize("step", ["_open", "load"])
def test_a_decoder_may_raise_runtime_errors(tmp_path, monkeypatch, step):
    def fail(self):
        raise RuntimeError("Decoding of color planes failed\n")  # as Pillow's AVIF decoder says

    path = tmp_path / "image.png"
    pixels("RGB", RED, (16, 16)).save(path)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, step, fail)
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert str(caught.value) == f"{path}: damaged or not an image (Decoding of color planes failed)"


def test_bad_images_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for suffix in ("png", "jpg", "tiff", "webp", "bmp", "gif"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-300])
    flipped = bytearray((tmp_path / "cut.png").read_bytes())
    flipped[60] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError) as caught:
            load_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"none\.png: no such image file"):
        load_image(tmp_path / "none.png")


class FailingOpen:
    """Opens images, after it has failed a number of times."""

    def __init__(self, failures, number):
        self.failures, self.number, self.open = failures, number, Image.open

    def __call__(self, path):
        if self.failures:
            self.failures -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.open(path)


def test_transient_errors_are_tried_again_with_growing_waits(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    pixels("RGB", RED).save(path)
    waits = []
    monkeypatch.setattr(images.time, "sleep", waits.append)
    monkeypatch.setattr(images.Image, "open", FailingOpen(3, errno.ESTALE))
    assert load_image(path).shape == (2, 3, 3)
    assert len(waits) == 3
    assert all(later > earlier > 0 for earlier, later in itertools.pairwise(waits))
    waits.clear()
    monkeypatch.setattr(images.Image, "open", FailingOpen(100, errno.EIO))
    with pytest.raises(InputError, match=rf"image\.png: cannot be read after {len(images.RETRY_WAITS) + 1} attempts"):
        read_header(path)
    assert tuple(waits) == images.RETRY_WAITS
    waits.clear()
    monkeypatch.setattr(images.Image, "open", FailingOpen(100, errno.EACCES))
    with pytest.raises(InputError, match=r"image\.png: cannot be read \(Permission denied\)"):
        load_image(path)
    assert not waits


def test_scan_reads_sizes_and_says_what_will_be_converted(tmp_path, caplog):
    caplog.set_level("INFO")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels("RGB", RED, (5, 4)).save(tmp_path / "0.png")
    pixels("L", 3, (6, 2)).save(tmp_path / "1.png")
    pixels("RGBA", (1, 2, 3, 4), (3, 9)).save(tmp_path / "2.png", exif=exif)
    pixels("L", 3, (1, 1)).save(tmp_path / "3.png")
    pixels("RGBA", (1, 2, 3, 255), (2, 2)).save(tmp_path / "4.png")  # opaque, as most that Blender renders
    annotations = annotate(tmp_path, [f"{number}.png" for number in range(5)])
    assert scan_sizes(annotations).tolist() == [[5, 4], [6, 2], [9, 3], [1, 1], [2, 2]]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert sum("2 of 5 images: grayscale" in message for message in messages) == 1
    assert sum("2 of 5 images: transparent, composited onto black" in message for message in messages) == 1
    assert sum("1 of 5 images: turned upright" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("highest", "kind", "suffix", "factor"),
    [
        ([1023, 800], np.uint16, "png", 64),
        ([4095, 4000], np.uint16, "tiff", 16),
        ([100, 16383], ">u2", "tiff", 4),
        ([4095, 3000], np.int32, "tiff", 16),
        ([4095, 16384], np.uint16, "png", None),  # one of them is bright
        ([65535, 65535], np.uint16, "png", None),
        ([0, 0], np.uint16, "png", None),
        ([60, 60], np.uint8, "png", None),
    ],
)
def test_images_of_12_bits_in_files_of_16_are_said_to_be_dark(tmp_path, caplog, highest, kind, suffix, factor):
    for number, value in enumerate(highest):
        Image.fromarray(np.array([[0, value], [value // 2, 0]] + [[0, 0]] * number, kind)).save(
            tmp_path / f"{number}.{suffix}"
        )
    pixels("RGB", (255, 255, 255)).save(tmp_path / "bright.png")
    annotations = annotate(tmp_path, ["bright.png", *(f"{number}.{suffix}" for number in range(2))])
    scan_sizes(annotations)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    text = f"16-bit images are nearly black: the brightest pixel is {max(highest)} of 65535 (2 checked); save them "
    text += f"{factor} times as bright"
    assert messages == ([] if factor is None else [f"{tmp_path / 'labels.json'}: {text}"])
    entries = [{"image_path": annotations.name(index), "corner": [[1, 1]]} for index in range(3)]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    warnings = check_dataset(tmp_path / "labels.json", tmp_path).warnings
    assert warnings == ([] if factor is None else [text])


def test_few_images_of_16_bits_are_looked_at_whatever_is_damaged_behind_the_header(tmp_path, caplog, monkeypatch):
    for number in range(11):
        Image.fromarray(np.full((9, 9), 40, np.uint16)).save(tmp_path / f"{number}.tiff")
    path = tmp_path / "0.tiff"
    path.write_bytes(path.read_bytes()[:-40])  # the end of its pixels, behind all that says what they are
    opened = []
    read = images.read_highest
    monkeypatch.setattr(images, "read_highest", lambda path: opened.append(path.name) or read(path))
    scan_sizes(annotate(tmp_path, [f"{number}.tiff" for number in range(11)]))
    assert opened == ["0.tiff", "2.tiff", "5.tiff", "7.tiff", "10.tiff"]
    assert "the brightest pixel is 40 of 65535 (4 checked); save them 1024 times as bright" in caplog.text


def test_scan_of_a_sample_is_spread_evenly(tmp_path):
    pixels("RGB", RED).save(tmp_path / "0.png")
    for number in range(1, 11):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "0.png")
    sizes = scan_sizes(annotate(tmp_path, [f"{number}.png" for number in range(11)]), limit=3)
    assert np.nonzero(sizes.any(1))[0].tolist() == [0, 5, 10]


def test_scan_names_the_first_bad_entry(tmp_path):
    pixels("RGB", RED).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r'labels\.json: entry 1 \("1\.png"\): .*1\.png: no such image file$'):
        scan_sizes(annotate(tmp_path, ["0.png", "1.png", "2.png"]))


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("a/0.png", {}, "; --image_dataset_path names the folder that image paths are relative to"),
        ("a/0.png", {"folder_flag": "--there"}, "; --there names the folder that image paths are relative to"),
        ("a\\0.png", {}, ', expected "/" between folders'),
    ],
)
def test_scan_says_where_images_are_looked_for_if_the_first_is_not_there(tmp_path, name, flag, said):
    with pytest.raises(InputError) as error:
        scan_sizes(annotate(tmp_path, [name, "1.png"]), **flag)
    assert str(error.value).endswith(f"{tmp_path / name}: no such image file{said}")


def test_scan_says_nothing_of_folders_if_the_first_image_is_damaged(tmp_path):
    (tmp_path / "0.png").write_bytes(b"nothing")
    with pytest.raises(InputError) as error:
        scan_sizes(annotate(tmp_path, ["0.png"]))
    assert "folder" not in str(error.value)


@pytest.fixture
def cached(tmp_path):
    for number in range(3):
        pixels("RGB", (number + 1, 0, 0), (4 + number, 3)).save(tmp_path / f"{number}.png")
    return annotate(tmp_path, [f"{number}.png" for number in range(3)])


def test_cache_reads_each_file_once(cached, tmp_path):
    cache = ImageCache(cached, np.array([[4, 3], [0, 0], [6, 3]]))
    first = [cache.load(index).copy() for index in range(3)]
    for number in range(3):
        assert np.array_equal(first[number], np.full((3, 4 + number, 3), (number + 1, 0, 0)))
        (tmp_path / f"{number}.png").unlink()
    assert all(np.array_equal(cache.load(index), first[index]) for index in range(3))


def _load(cache, index, connection):
    connection.send(cache.load(index).tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_decodes_all_processes_have(cached, tmp_path, method):
    cache = ImageCache(cached, scan_sizes(cached))
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_load, args=(cache, 1, sender))
    worker.start()
    assert receiver.recv() == [[[2, 0, 0]] * 5] * 3
    worker.join()
    (tmp_path / "1.png").unlink()
    assert np.array_equal(cache.load(1), np.full((3, 5, 3), (2, 0, 0)))


@pytest.mark.parametrize(
    ("limit", "statistics", "free"),
    [
        ("1000000", "anon 200000\nfile 790000\nshmem 90000\ninactive_file 400000\nactive_file 300000\n", 710000),
        ("1000000", "anon 990000\ninactive_file 0\nactive_file 0\n", 10000),
        ("1000000", None, 10000),
        ("900000", "anon 990000\n", 0),
        ("max", "inactive_file 400000\n", None),
    ],
)
def test_files_that_a_container_has_read_leave_their_memory_to_others(tmp_path, monkeypatch, limit, statistics, free):
    monkeypatch.setattr(image_cache, "CONTROL_GROUP_FOLDER", tmp_path / "none")
    whole = image_cache.free_memory()
    monkeypatch.setattr(image_cache, "CONTROL_GROUP_FOLDER", tmp_path)
    for name, text in (("max", limit), ("current", "990000"), ("stat", statistics)):
        if text is not None:
            (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    if free is None:
        assert image_cache.free_memory() > whole // 2 > 1000000
    else:
        assert image_cache.free_memory() == free


def test_cache_that_does_not_fit_is_refused_before_memory_is_taken(cached, monkeypatch):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 100)
    with pytest.raises(
        InputError, match=r"labels\.json: caching 3 decoded images needs 1\.35e-07 GB, expected at most 8e-08 GB"
    ):
        ImageCache(cached, scan_sizes(cached))


def test_automatic_cache_does_without_where_memory_is_short(cached, monkeypatch):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 100)
    assert create_cache(cached, scan_sizes(cached), "auto") is None
    with pytest.raises(InputError, match="--cache_images false"):
        create_cache(cached, scan_sizes(cached), True)


def test_cache_refuses_an_image_that_changed_its_size(cached, tmp_path):
    cache = ImageCache(cached, scan_sizes(cached))
    pixels("RGB", RED, (9, 9)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0\.png: 9 x 9 pixels, expected 4 x 3"):
        cache.load(0)


def test_cache_of_fitted_images_keeps_these_alone(cached, tmp_path):
    cache = ImageCache(cached, scan_sizes(cached), (2, 3))
    for index in range(3):
        cache.load(index)
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    assert np.array_equal(cache.load(0), np.full((2, 3, 3), (1, 0, 0)))  # 4 x 3 pixels
    assert np.array_equal(cache.load(1), np.full((2, 3, 3), (2, 0, 0)))  # 5 x 3
    assert [cache.file_size(index) for index in range(3)] == [(3, 4), (3, 5), (3, 6)]


def test_automatic_cache_counts_images_as_they_are_kept(cached, monkeypatch):
    monkeypatch.setattr(image_cache, "_AUTOMATIC_BYTES", 3 * (2 * 3 + 2 * 3 + 2 * 3))
    sizes = scan_sizes(cached)
    assert create_cache(cached, sizes, "auto") is None
    assert create_cache(cached, sizes, "auto", (2, 3)) is not None
    assert create_cache(cached, sizes, "auto", (3, 3)) is not None
    assert create_cache(cached, sizes, "auto", (4, 4)) is None
    sizes[1:] = 0  # not known, e.g. of most images of a large set, which may take any memory
    assert create_cache(cached, sizes, "auto") is None


@pytest.mark.parametrize(
    ("size", "needed", "expected"),
    [
        ((160, 96), (96, 160), (96, 160)),
        ((160, 96), (49, 80), (96, 160)),
        ((160, 96), (48, 80), (48, 80)),
        ((160, 96), (24, 30), (24, 40)),
        ((160, 96), (1, 1), (12, 20)),
        ((160, 97), (1, 1), (97, 160)),  # half of it would show a line that is not there
        ((162, 98), (1, 1), (49, 81)),
    ],
)
def test_a_jpeg_that_is_larger_than_needed_is_decoded_smaller(tmp_path, size, needed, expected):
    path = tmp_path / "image.jpg"
    Image.new("RGB", size, HALF).save(path)
    sizes = []
    found, whole = load_reduced(path, lambda size: sizes.append(size) or needed)
    assert found.shape == (*expected, 3)
    assert whole == (size[1], size[0])
    assert set(sizes) == {whole}
    assert (abs(found - np.array(HALF)) <= 3).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright(tmp_path, orientation):
    path = tmp_path / "image.jpg"
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:16, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, quality=95, exif=exif)
    full = load_image(path)
    reduced, whole = load_reduced(path, lambda size: (size[0] // 4, size[1] // 4))
    assert whole == full.shape[:2]
    assert reduced.shape[:2] == (whole[0] // 4, whole[1] // 4)
    means = full.reshape(reduced.shape[0], 4, reduced.shape[1], 4, 3).mean((1, 3))
    np.testing.assert_allclose(reduced, means, atol=12)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("L", 90, (90, 90, 90)), ("CMYK", (55, 155, 205, 0), HALF), ("RGB", HALF, HALF)]
)
def test_jpegs_of_other_kinds_are_decoded_smaller_too(tmp_path, mode, colour, expected):
    picture = Image.new(mode, (64, 48), colour)
    picture.save(tmp_path / "image.jpg", "JPEG", progressive=True)
    found = [load_reduced(tmp_path / "image.jpg", lambda size: (12, 16))]
    if mode == "RGB":  # several pictures in one file, as some phones write them
        picture.save(tmp_path / "image.mpo", "MPO", save_all=True, append_images=[picture])
        found.append(load_reduced(tmp_path / "image.mpo", lambda size: (12, 16)))
    for pixels, whole in found:
        assert pixels.shape == (12, 16, 3)
        assert whole == (48, 64)
        assert (abs(pixels - np.array(expected)) <= 3).all()


def test_other_images_are_read_whole(tmp_path):
    Image.new("RGB", (64, 64), HALF).save(tmp_path / "image.png")
    found, whole = load_reduced(tmp_path / "image.png", lambda size: (1, 1))
    assert found.shape == (64, 64, 3)
    assert whole == (64, 64)


@pytest.mark.parametrize("read", [read_header, load_image])
@pytest.mark.parametrize("name", ["large.png", "large.jpg"])
def test_an_image_with_more_pixels_than_pillow_opens_is_named_with_the_limit(tmp_path, read, name, monkeypatch):
    Image.new("L", (50, 45)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)  # of which Pillow opens twice as many
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: more pixels than Pillow opens, expected at most 2,200"
