"""The predictor: images of every kind in, keypoints in their own pixels out."""

import itertools
import re

import numpy as np
import pytest
import torch
from colour_detector import colour_checkpoint, dots
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from keypoint_detection import predict
from keypoint_detection.allocator import PREDICTION
from keypoint_detection.errors import InputError
from keypoint_detection.predict import KeypointPredictor, Keypoints, TorchNetwork
from keypoint_detection.tiles import merge_tiles, split_into_tiles


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with colour_checkpoint(tmp_path_factory.mktemp("checkpoint")) as path:
        yield path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return KeypointPredictor(checkpoint, device="cpu")


def found(keypoints: Keypoints) -> list[list[float]]:
    return sorted(keypoints.xy.round(0).tolist())


def test_keypoints_come_in_pixels_of_the_image_by_channel(predictor):
    prediction = predictor(dots((40, 60), [(10.5, 20.5), (45.5, 8.5)]))
    assert set(prediction) == {"red", "green"}
    assert np.allclose(sorted(prediction["red"].xy.tolist()), [[10.5, 20.5], [45.5, 8.5]], atol=0.3)
    assert prediction["green"].xy.shape == (0, 2)
    assert (prediction["red"].scores > 0.5).all()


def test_a_program_that_computes_in_float64_finds_the_same(checkpoint, predictor):
    image = dots((40, 60), [(10.5, 20.5), (45.5, 8.5)])
    torch.set_default_dtype(torch.float64)
    try:
        prediction = KeypointPredictor(checkpoint, device="cpu")(image)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, (xy, scores) in predictor(image).items():
        assert np.array_equal(prediction[name].xy, xy)
        assert np.array_equal(prediction[name].scores, scores)


def test_every_kind_of_image_gives_the_same_keypoints(predictor, tmp_path):
    image = dots((32, 48), [(20.3, 12.6), (8.8, 25.1)])
    image[9:13, 23:26, 0] = 150  # no dot is round
    covered, opacity = image.copy(), np.full((32, 48), 255, np.uint8)
    covered[:, 40:], opacity[:, 40:] = 255, 0
    Image.fromarray(image).save(tmp_path / "image.png")
    chw = torch.from_numpy(image).permute(2, 0, 1)
    kinds = [
        str(tmp_path / "image.png"), tmp_path / "image.png", Image.fromarray(image), image, image / 255.0,
        (image / 255.0).astype(np.float32), image.astype(np.uint16) * 257, chw, chw / 255, (chw / 255).double(),
        np.dstack([covered, opacity]), Image.fromarray(np.dstack([covered, opacity])), image[::-1][::-1],
    ]  # fmt: skip
    expected = predictor(image)["red"]
    assert expected.xy.shape == (2, 2)
    for kind in kinds:
        prediction = predictor(kind)["red"]
        assert np.array_equal(prediction.xy, expected.xy)
        assert np.array_equal(prediction.scores, expected.scores)


def test_gray_images_are_read_as_gray_rgb(predictor):
    gray = dots((32, 32), [(12.5, 16.5)])[..., 0]
    assert found(predictor(gray)["green"]) == found(predictor(gray[..., None])["red"]) == [[12.0, 16.0]]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_are_filled_across_images_of_any_size_and_change_nothing(predictor, checkpoint, batch_size):
    places = [(10.5, 12.5), (30.5, 9.5), (16.5, 40.5)]
    images = [dots((50 - 3 * (i // 2), 40 + 7 * i), [place]) for i, place in enumerate(places)]
    predictor = KeypointPredictor(checkpoint, device="cpu", batch_size=batch_size)
    together = predictor(iter(images))
    assert len(together) == 3
    for image, prediction in zip(images, together, strict=True):
        assert np.array_equal(prediction["red"].xy, predictor(image)["red"].xy)
        assert len(prediction["red"].xy) == 1


@pytest.mark.parametrize(("above", "count"), [(0, 1), (3e-6, 1), (1e-4, 0)])
def test_the_detection_that_gave_the_threshold_counts_whatever_rounding_does(above, count, checkpoint, tmp_path):
    image = dots((40, 40), [(20.5, 20.5)]) // 2  # a peak of about sigmoid(0) = 0.5
    score = KeypointPredictor(checkpoint, device="cpu", score_threshold=0.1)(image)["red"].scores[0]
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["score_thresholds"] = torch.tensor([score * (1 + above), float("nan")])
    torch.save(content, tmp_path / "copy.ckpt")
    assert len(KeypointPredictor(tmp_path / "copy.ckpt", device="cpu")(image)["red"].xy) == count


def test_freed_memory_is_kept_where_a_cpu_predicts(checkpoint, monkeypatch):
    calls = []
    monkeypatch.setattr(predict, "keep_freed_memory", lambda *limits: calls.append(limits))
    TorchNetwork(checkpoint, "cpu")
    assert calls == [PREDICTION]


def test_a_file_that_is_no_checkpoint_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "keep_freed_memory", lambda *limits: pytest.fail("was called"))
    (tmp_path / "no.ckpt").write_bytes(b"no")
    with pytest.raises(InputError):
        TorchNetwork(tmp_path / "no.ckpt", "cpu")


def test_thresholds_are_the_checkpoints_unless_given(predictor, checkpoint):
    assert predictor.score_thresholds == pytest.approx({"red": 0.5, "green": 0.6}, rel=2e-5)
    image = dots((40, 40), [(20.5, 20.5)])
    image[..., 0] = image[..., 0] * 0.5  # a peak of about sigmoid(0) = 0.5
    score = KeypointPredictor(checkpoint, device="cpu", score_threshold=0.1)(image)["red"].scores[0]
    assert len(KeypointPredictor(checkpoint, device="cpu", score_threshold=float(score))(image)["red"].xy) == 1
    assert len(KeypointPredictor(checkpoint, device="cpu", score_threshold=float(score) + 0.01)(image)["red"].xy) == 0
    assert len(KeypointPredictor(checkpoint, device="cpu", score_threshold={"red": 0.01})(image)["red"].xy) == 1


def test_a_channel_whose_threshold_nobody_knows_has_a_low_one(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["score_thresholds"] = torch.tensor([0.5, float("nan")])
    torch.save(content, tmp_path / "unknown.ckpt")
    thresholds = KeypointPredictor(tmp_path / "unknown.ckpt", device="cpu").score_thresholds
    assert thresholds == pytest.approx({"red": 0.5, "green": 0.1}, rel=2e-5)


def test_a_larger_image_in_the_batch_changes_no_bit(checkpoint):
    small, large = dots((33, 41), [(10.5, 30.5), (38.5, 4.5)]), dots((70, 90), [(60.5, 50.5)])
    predictor = KeypointPredictor(checkpoint, device="cpu", score_threshold=0.02)
    alone = predictor(small)
    for batch in ([small, large], [large, small]):
        together = predictor(batch)[0 if batch[0] is small else 1]
        for name, keypoints in alone.items():
            assert np.array_equal(keypoints.xy, together[name].xy)
            assert np.array_equal(keypoints.scores, together[name].scores)


def test_more_keypoints_than_in_training_are_found_where_they_are_asked_for(checkpoint):
    places = [(10.5 + 20 * column, 10.5 + 20 * row) for column in range(6) for row in range(5)]
    image = dots((110, 130), places)
    assert len(KeypointPredictor(checkpoint, device="cpu")(image)["red"].xy) == 20
    assert len(KeypointPredictor(checkpoint, device="cpu", max_keypoints=50)(image)["red"].xy) == 30


@pytest.mark.parametrize(
    ("caps", "asked", "count"),
    [([3, -1], None, 3), ([3, -1], 2, 2), ([3, -1], 50, 3), ([-1, 3], None, 20), ([-1, 3], 50, 30), ([-1, 3], 2, 2)],
)
def test_a_channel_with_a_number_of_its_own_keeps_it_where_more_are_asked_for(checkpoint, tmp_path, caps, asked, count):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["keypoint_channel_max_keypoints"] = caps
    torch.save(content, tmp_path / "capped.ckpt")
    image = dots((110, 130), [(10.5 + 20 * column, 10.5 + 20 * row) for column in range(6) for row in range(5)])
    predictor = KeypointPredictor(tmp_path / "capped.ckpt", device="cpu", max_keypoints=asked)
    assert len(predictor(image)["red"].xy) == count


def test_the_cap_keeps_the_best(checkpoint):
    image = dots((40, 60), [(10.5, 20.5), (45.5, 8.5)])
    image[:30, 30:] = (image[:30, 30:] * 0.8).astype(np.uint8)
    kept = KeypointPredictor(checkpoint, device="cpu", max_keypoints=1)(image)["red"]
    assert found(kept) == [[10.0, 20.0]]


def test_tiles_find_what_the_whole_image_shows_and_seams_do_not_double(checkpoint):
    places = [(x + 0.5, y + 0.5) for x in range(8, 196, 17) for y in range(9, 145, 19)][:90]
    image = dots((150, 200), places)
    tiled = KeypointPredictor(checkpoint, device="cpu", tile=48, max_keypoints=200)(image)["red"].xy
    assert len(tiled) == len(places)
    assert np.allclose(sorted(map(tuple, tiled.round(1))), sorted(places), atol=0.5)


@given(height=st.integers(1, 300), width=st.integers(1, 300), side=st.integers(32, 200))
def test_tiles_cover_the_image_and_their_cores_do_so_once(height, width, side):
    covered, cored = np.zeros((height, width), int), np.zeros((height, width), int)
    for tile in split_into_tiles((height, width), side):
        covered[tile.rows, tile.columns] += 1
        x0, y0, x1, y1 = tile.core
        cored[int(np.ceil(y0 - 0.5)) : int(np.ceil(y1 - 0.5)), int(np.ceil(x0 - 0.5)) : int(np.ceil(x1 - 0.5))] += 1
        assert tile.rows.stop - tile.rows.start == min(side, height)
    assert covered.min() >= 1
    assert (cored == 1).all()


@given(length=st.integers(65, 400), side=st.integers(32, 64))
def test_neighbouring_tiles_share_a_quarter_of_their_side(length, side):
    columns = [tile.columns for tile in split_into_tiles((side, length), side)]
    shared = [left.stop - right.start for left, right in itertools.pairwise(columns)]
    assert min(shared) >= side / 4 - 1  # whole pixels


def test_close_keypoints_of_one_tile_are_not_merged():
    tiles = split_into_tiles((40, 40), 64)
    xy, scores = np.array([[[10.0, 10.0], [11.5, 10.0]]]), np.array([[0.9, 0.8]])
    assert len(tiles) == 1
    assert np.array_equal(merge_tiles(tiles, [(xy, scores)])[0], xy)


@pytest.mark.parametrize("towards", [-1, 1])
def test_keypoints_at_a_seam_are_found_once_where_tiles_are_shrunk(towards):
    """The network sees each pixel of its input as 8 pixels of a tile, and is 4 pixels of the tile off."""
    tiles = split_into_tiles((1024, 1792), 1024)
    (seam,) = {tile.core[2] for tile in tiles if tile.columns.start == 0}
    found = []
    for tile in tiles:
        middle = (tile.columns.start + tile.columns.stop) / 2
        x = seam + towards * 4 * np.sign(middle - seam) - tile.columns.start
        found.append((np.array([[[x, 500.0]]]), np.array([[0.9]])))
    assert np.isfinite(merge_tiles(tiles, found, scale=8.0)[0]).all(-1).sum() == 1
    assert np.isfinite(merge_tiles(tiles, found)[0]).all(-1).sum() != 1


def test_a_predictor_knows_how_much_its_tiles_are_shrunk(predictor, monkeypatch):
    scales = []
    monkeypatch.setattr(predictor.network, "image_size", [64, 96], raising=False)
    monkeypatch.setattr(predictor, "tile", 256)
    monkeypatch.setattr(
        "keypoint_detection.predict.merge_tiles", lambda tiles, found, scale: scales.append(scale) or found[0]
    )
    predictor(np.zeros((300, 300, 3), np.uint8))
    assert scales == [4.0]


@pytest.mark.parametrize("threshold", ["high", {"red": "high"}, {"red": None}, [0.1, 0.2], True, {"red": 2.0}])
def test_a_threshold_that_is_no_number_is_one_clear_line(checkpoint, threshold):
    with pytest.raises(InputError, match=re.escape(f"score_threshold {threshold!r}: expected a number in [0, 1]")):
        KeypointPredictor(checkpoint, device="cpu", score_threshold=threshold)


@pytest.mark.parametrize("threshold", [0, 1, np.float64(1)])
def test_the_ends_of_the_range_are_thresholds(checkpoint, threshold):
    found = KeypointPredictor(checkpoint, device="cpu", score_threshold=threshold)
    assert found.score_thresholds == {"red": threshold, "green": threshold}


def test_no_images_have_no_keypoints(checkpoint):
    assert TorchNetwork(checkpoint, "cpu").detect([]) == []


def test_the_loss_of_a_training_need_not_be_known_to_use_what_it_trained(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= {"loss": "mine", "loss_arguments": {"mine_delta": 3}}
    torch.save(content, tmp_path / "mine.ckpt")
    image = dots((30, 40), [(10.5, 15.5)])
    found, expected = (KeypointPredictor(path, device="cpu")(image) for path in (tmp_path / "mine.ckpt", checkpoint))
    assert len(found["red"].xy) == 1
    np.testing.assert_array_equal(found["red"].xy, expected["red"].xy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"invented_later": 3}, "does not know the hyperparameter 'invented_later'; an unknown version wrote the file"),
        ({"weight_decay": None}, "its hyperparameters do not fit this version's detector"),
    ],
)
def test_hyperparameters_of_another_version_are_one_clear_line(checkpoint, tmp_path, changes, message):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= changes
    torch.save(content, tmp_path / "later.ckpt")
    with pytest.raises(InputError, match=rf"later\.ckpt: .*{message}"):
        KeypointPredictor(tmp_path / "later.ckpt", device="cpu")


@pytest.mark.parametrize("kind", ["array", "tensor", "float tensor"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_four_dimensions_are_that_many_images(checkpoint, kind, count):
    places = [(10.5, 12.5), (30.5, 9.5), (16.5, 20.5)][:count]
    images = np.array([dots((32, 40), [place]) for place in places], np.uint8).reshape(count, 32, 40, 3)
    if kind != "array":
        images = torch.from_numpy(images).permute(0, 3, 1, 2) / (255 if "float" in kind else 1)
        images = images if "float" in kind else images.byte()
    predictions = KeypointPredictor(checkpoint, device="cpu", batch_size=2)(images)
    assert isinstance(predictions, list)
    assert len(predictions) == count
    for prediction, place in zip(predictions, places, strict=True):
        assert set(prediction) == {"red", "green"}
        assert np.allclose(prediction["red"].xy, [place], atol=0.3)
        assert prediction["green"].xy.shape == (0, 2)


def test_an_image_of_several_that_is_none_says_what_it_is(predictor):
    with pytest.raises(InputError, match=r"^tensor of shape \(40, 50, 3\), expected \(H, W\), or \(C, H, W\)"):
        predictor(torch.zeros(2, 40, 50, 3))
    with pytest.raises(InputError, match=r"^array of shape \(3, 40, 50\), expected \(H, W\), or \(H, W, C\)"):
        predictor(np.zeros((2, 3, 40, 50)))


def result_or_one_clear_line(predictor, image):
    """Whether there was a result; anything but a result or a `ValueError` that explains fails."""
    try:
        prediction, message = predictor(image), None
    except ValueError as error:
        prediction, message = None, str(error)
    if prediction is None:
        assert any(word in message for word in ("expected", "cannot"))
        assert "\n" not in message
        return False
    for one in prediction if isinstance(prediction, list) else [prediction]:
        assert set(one) == {"red", "green"}
    return True


SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9) | st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 5])
)


@settings(max_examples=150)
@given(
    image=hnp.arrays(dtype=hnp.scalar_dtypes() | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes(), shape=SHAPES),
    flipped=st.booleans(),
)
def test_any_array_of_any_values_is_a_result_or_one_clear_line(predictor, image, flipped):
    usable = image.ndim in (2, 3, 4) and image.size and (image.ndim == 2 or image.shape[-1] in (1, 3, 4))
    native = image.dtype.newbyteorder("=")
    usable = usable and (native in (np.uint8, np.uint16, bool) or native.kind == "f")
    if usable and image.dtype.kind == "f":
        values = image.astype(float)
        usable = bool((values >= -0.001).all() and (values <= 1.001).all())  # a rounding is cut off
    usable = usable or (image.ndim == 4 and len(image) == 0)  # no image, which nothing is wrong with
    assert result_or_one_clear_line(predictor, image[::-1] if flipped and image.ndim else image) == bool(usable)


DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


@settings(max_examples=100)
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)
    | st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    value=st.sampled_from([0, 1, 0.5, -1, 2, 1e9, float("nan"), float("inf")]),
    layout=st.sampled_from(["strided", "sparse", "meta", "gradient"]),
)
def test_any_tensor_is_a_result_or_one_clear_line(predictor, shape, dtype, value, layout):
    tensor = torch.tensor(np.full(shape, value, dtype=np.float64)).to(dtype)
    if layout == "sparse":
        tensor = tensor.to_sparse() if tensor.ndim and dtype == torch.float32 else tensor
    elif layout == "meta":
        tensor = tensor.to("meta")
    elif layout == "gradient" and dtype.is_floating_point:
        tensor = tensor.requires_grad_()
    result_or_one_clear_line(predictor, tensor)


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16"]),
    width=st.integers(0, 30),
    height=st.integers(0, 30),
    value=st.integers(0, 255),
)
def test_any_pil_image_is_a_result_or_one_clear_line(predictor, mode, width, height, value):
    image = Image.new(mode, (width, height))
    if width and height:
        image.putpixel((0, 0), value if len(image.getbands()) == 1 else (value,) * len(image.getbands()))
    result_or_one_clear_line(predictor, image)


@pytest.mark.parametrize("image", [None, 3, {"a": 1}, "missing.png", [3], b"bytes"])
def test_what_is_no_image_is_a_value_error(predictor, image):
    with pytest.raises(ValueError, match=r"expected|missing"):
        predictor(image)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.ckpt") as error:
        KeypointPredictor(path)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # no advice to run what is in the file


def test_a_program_is_no_checkpoint_and_says_what_runs_it(tmp_path):
    with pytest.raises(InputError, match=r"model\.pt2: .*torch\.export\.load"):
        KeypointPredictor(tmp_path / "model.pt2")


def test_a_checkpoint_of_a_backbone_that_is_not_registered_says_so(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["backbone_type"] = "Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    with pytest.raises(InputError, match=r"mine\.ckpt needs the backbone Mine, .* registry before loading"):
        KeypointPredictor(tmp_path / "mine.ckpt")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": Evil(), "hyper_parameters": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"evil\.ckpt"):
        KeypointPredictor(tmp_path / "evil.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"score_threshold": {"blue": 0.5}}, "blue"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments_are_one_clear_line(checkpoint, arguments, named):
    with pytest.raises(InputError, match=named):
        KeypointPredictor(checkpoint, **arguments)


@pytest.mark.parametrize(("name", "value", "least"), [("batch_size", 0, 1), ("max_keypoints", -1, 1), ("tile", 31, 32)])
def test_a_number_that_is_too_small_is_named(checkpoint, name, value, least):
    with pytest.raises(InputError, match=f"^{name} {value}: expected at least {least}$"):
        KeypointPredictor(checkpoint, device="cpu", **{name: value})


@pytest.mark.parametrize("value", [64.5, 64.0, "64", True])
@pytest.mark.parametrize("name", ["batch_size", "max_keypoints", "tile"])
def test_a_number_that_is_not_whole_is_named(checkpoint, name, value):
    with pytest.raises(InputError, match=f"^{name} {value!r}: expected a whole number$"):
        KeypointPredictor(checkpoint, device="cpu", **{name: value})


def test_no_batch_size_is_no_number(checkpoint):  # where None is a choice for the others
    KeypointPredictor(checkpoint, device="cpu", max_keypoints=None, tile=None)
    with pytest.raises(InputError, match=r"^batch_size None: expected a whole number$"):
        KeypointPredictor(checkpoint, device="cpu", batch_size=None)


def test_whole_numbers_of_numpy_are_numbers(checkpoint):
    predictor = KeypointPredictor(checkpoint, device="cpu", batch_size=np.int64(2), max_keypoints=np.uint8(3))
    assert (predictor.batch_size, predictor.max_keypoints) == (2, 3)


def test_a_folder_in_the_place_of_an_exported_file_is_named(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InputError, match=r"model\.onnx is a folder, expected a file$"):
        KeypointPredictor(tmp_path / "model.onnx")
