"""Exported detectors: the ONNX file finds what the checkpoint finds."""

import concurrent.futures
import json
import multiprocessing
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from colour_detector import RedAndGreen, colour_checkpoint, dots
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keypoint_detection import heatmaps
from keypoint_detection.cli import main
from keypoint_detection.data.geometry import letterbox
from keypoint_detection.errors import InputError
from keypoint_detection.export import export
from keypoint_detection.export.agreement import FULL, ExportAgreement, check_images, check_network
from keypoint_detection.export.onnx_decoding import DecodingOptions, decode
from keypoint_detection.export.onnx_nodes import Nodes, integers
from keypoint_detection.export.onnx_preprocessing import ImageSizes, preprocess
from keypoint_detection.export.program import ImageToKeypoints
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.onnx_network import METADATA_KEY, OnnxNetwork
from keypoint_detection.predict import KeypointPredictor, TorchNetwork

README = Path(__file__).parents[2] / "README.md"
NEWEST_OPSET = onnx.defs.onnx_opset_version()


def value(name, kind, *shape):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def session(nodes, inputs, output):
    graph = onnx.helper.make_graph(nodes.nodes, "stage", inputs, [output], nodes.constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.fixture(scope="module", params=[None, (40, 56)])
def preprocessing(request):
    nodes = Nodes("before/")
    fill = np.full((1, 3, 1, 1), 20.0)
    preprocess(nodes, "image", request.param, fill, 8, "images")
    image = value("image", onnx.TensorProto.UINT8, 1, None, None, 3)
    return request.param, session(nodes, [image], value("images", onnx.TensorProto.FLOAT, 1, 3, None, None))


@settings(max_examples=40)
@given(height=st.integers(1, 120), width=st.integers(1, 120), seed=st.integers(0, 1000))
def test_images_are_letterboxed_bit_for_bit_and_padded(preprocessing, height, width, seed):
    image_size, graph = preprocessing
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (found,) = graph.run(None, {"image": image[None]})
    expected = (letterbox(image, image_size)[0] * 255).round().numpy()
    h, w = expected.shape[1:]
    assert found.shape == (1, 3, -(-h // 8) * 8, -(-w // 8) * 8)
    assert np.array_equal(found[0, :, :h, :w] + 20, expected)
    assert not found[0, :, h:].any()
    assert not found[0, :, :, w:].any()


CASES = [(1, 1.0, [7, 3]), (2, 9.0, [5, 20]), (4, 1.0, [20, 20])]


def decoding_graph(stride, distance, caps):
    nodes = Nodes("after/")
    size = nodes("Mul", nodes("Slice", nodes("Shape", "maps"), integers(2), integers(4)), integers(stride))
    sizes = ImageSizes(size, size)
    decode(nodes, "maps", "thresholds", sizes, DecodingOptions(caps, distance, stride), "keypoints")
    maps = value("maps", onnx.TensorProto.FLOAT, 1, len(caps), None, None)
    thresholds = value("thresholds", onnx.TensorProto.FLOAT, len(caps))
    output = value("keypoints", onnx.TensorProto.FLOAT, None, 4)
    return session(nodes, [maps, thresholds], output)


@pytest.fixture(scope="module", params=CASES, ids=str)
def decoding(request):
    return *request.param, decoding_graph(*request.param)


# Few levels make plateaus, shoulders and peaks of equal height.
@settings(max_examples=60)
@given(
    maps=hnp.arrays(
        np.float32,
        st.tuples(st.just(1), st.just(2), st.integers(1, 24), st.integers(1, 24)),
        elements=st.sampled_from(np.float32([0.0, 0.005, 0.2, 0.5, 0.9]).tolist()) | st.floats(0, 1, width=32),
    )
)
def test_heatmaps_are_decoded_as_the_library_does(decoding, maps):
    stride, distance, caps, graph = decoding
    (found,) = graph.run(None, {"maps": maps, "thresholds": np.zeros(2, np.float32)})
    assert (np.diff(found[:, 0]) >= 0).all()
    xy, scores = heatmaps.decode(torch.from_numpy(maps), max(caps), distance, stride=stride)
    for channel, cap in enumerate(caps):
        kept = scores[0, channel, :cap].numpy()
        points = xy[0, channel, :cap].numpy()[kept > 0]
        kept = kept[kept > 0]
        own = found[found[:, 0] == channel]
        assert np.allclose(own[:, 3], kept, atol=1e-6)
        # Which of several equal ones fits into a full list is open.
        last = kept[-1] if len(kept) == cap else -1
        wanted = sorted(zip(kept[kept > last], *points[kept > last].T, strict=True))
        shown = sorted(zip(own[own[:, 3] > last, 3], *own[own[:, 3] > last, 1:3].T, strict=True))
        assert np.allclose(wanted, shown, atol=0.01)


@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_cells_beyond_the_whole_numbers_of_a_float_are_found_where_they_are(distance):
    maps = np.zeros((1, 1, 3, 6_000_000), np.float32)  # 2 ** 24 is in the last row
    maps[0, 0, 2, [5_999_001, 5_999_994, 5_999_995]] = 0.75, 0.5, 0.5
    (found,) = decoding_graph(1, distance, [5]).run(None, {"maps": maps, "thresholds": np.zeros(1, np.float32)})
    assert found.tolist() == [[0, 5_999_001.5, 2.5, 0.75], [0, 5_999_995, 2.5, 0.5]]


@pytest.mark.parametrize("maps", [np.zeros((1, 2, 4, 5)), np.full((1, 2, 512, 300), 0.5)], ids=["nothing", "flat"])
def test_a_map_of_equal_cells_is_a_plateau_or_nothing(decoding, maps):
    stride, *_, graph = decoding
    (found,) = graph.run(None, {"maps": maps.astype(np.float32), "thresholds": np.full(2, -1, np.float32)})
    assert found.tolist() == [[channel, 150 * stride, 256 * stride, 0.5] for channel in (0, 1) if maps.any()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with colour_checkpoint(tmp_path_factory.mktemp("checkpoint")) as path:
        yield path


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"score_threshold": 0.95}, {"score_threshold": {"green": 0.02}}, {"max_keypoints": 1}, {"tile": 32}],
    ids=str,
)
@pytest.mark.parametrize("size", [(40, 60), (33, 71), (1, 1)], ids=str)
def test_the_predictor_gives_the_same_with_the_file(checkpoint, model, options, size):
    # Different heights, so that the order is certain, and none where a sigmoid has hardly any bits left.
    red = np.maximum(dots(size, [(10.3, 20.8)]) // 4 * 3, dots(size, [(45.5, 8.5)]) // 3 * 2)
    image = np.maximum(red, dots(size, [(30.2, 20.4)], channel=1) // 4 * 3)
    expected = KeypointPredictor(checkpoint, device="cpu", **options)
    found = KeypointPredictor(model, **options)
    assert found.channel_names == expected.channel_names
    assert found.score_thresholds == pytest.approx(expected.score_thresholds)
    for name, keypoints in expected(image).items():
        own = found(image)[name]
        assert np.allclose(own.xy, keypoints.xy, atol=0.01)
        assert np.allclose(own.scores, keypoints.scores, atol=1e-4)


def test_a_predictor_of_the_file_goes_to_another_process_and_reads_it_there(model):
    predictor = KeypointPredictor(model, score_threshold=0.3)
    image = dots((40, 60), [(10.3, 20.8)])
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(predictor, image).result()
    assert np.array_equal(found["red"].xy, predictor(image)["red"].xy)
    assert len(found["red"].xy) == 1
    assert pickle.loads(pickle.dumps(predictor)).score_thresholds == predictor.score_thresholds


def test_the_file_alone_turns_bytes_into_keypoints(model):
    image = dots((40, 61), [(10.5, 20.5)]) | dots((40, 61), [(45.5, 8.5)], channel=1)
    runtime = onnxruntime.InferenceSession(model)
    (rows,) = runtime.run(None, {"image": image[None]})
    assert rows.dtype == np.float32
    assert np.allclose(rows[:, :3], [[0, 10.5, 20.5], [1, 45.5, 8.5]], atol=0.1)
    assert (rows[:, 3] > 0.9).all()
    (rows,) = runtime.run(None, {"image": image[None], "score_thresholds": np.float32([1.0, 0.5])})
    assert rows[:, 0].tolist() == [1]
    (rows,) = runtime.run(None, {"image": np.zeros_like(image)[None]})
    assert rows.shape == (0, 4)


def test_metadata(model):
    metadata = json.loads(onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert metadata["channel_names"] == ["red", "green"]
    assert metadata["score_thresholds"] == pytest.approx([0.5, 0.6])
    assert metadata["image_size"] is None
    assert metadata["heatmap_stride"] == 1
    assert metadata["max_keypoints"] == [20, 20]
    assert metadata["version"]


def unet_checkpoint(folder, **arguments):
    """A tiny U-Net with weights that let it find something in every image."""
    torch.manual_seed(1)
    backbone = {"n_channels": 32, "n_downsampling_layers": 2, "n_resnet_blocks": 1}
    heatmaps = {"heatmap_sigma": 6.0, "heatmap_stride": 4, **arguments}
    detector = KeypointDetector(["a", "b"], backbone=backbone, learning_rate=1.0, **heatmaps)
    with torch.no_grad():
        detector.head.weight.normal_(std=0.7)
        detector.head.bias.fill_(-2)
    detector.score_thresholds.copy_(torch.tensor([0.3, float("nan")]))
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, folder / "unet.ckpt")
    return folder / "unet.ckpt"


@pytest.mark.parametrize("score", [0.04, 0.3])
def test_the_check_compares_all_but_peaks_so_low_that_rounding_moves_them(score):
    def network(x):
        found = (np.array([[[x, 5.0], [np.nan, np.nan]]]), np.array([[score, 0.0]]))
        return SimpleNamespace(channel_names=["a"], score_thresholds=[0.011], detect=lambda images: [found])

    if score < 0.05:
        assert check_network(network(7.0), network(7.4).detect, [2], FULL, lowest=0.05).keypoints == 0
    else:
        with pytest.raises(InputError, match=r"0\.4 px away"):
            check_network(network(7.0), network(7.4).detect, [2], FULL, lowest=0.05)


def test_a_check_that_compared_nothing_says_so():
    assert str(ExportAgreement(10, 0, 0.0, 0.0)).endswith("but neither found a keypoint, so this says little")
    assert str(ExportAgreement(10, 2, 0.01, 0.001)).endswith("2 keypoints, at most 0.01 px and 0.001 of score apart")


@pytest.mark.parametrize(
    ("count", "moved", "by", "highest", "message"),
    [
        (20, 2, 0.04, 0.9, None),
        (
            20,
            3,
            0.04,
            0.9,
            r"^36 of 240 keypoints are more than 0\.01 px away; .* at \(\d+\.00, 5\.00\) .* 0\.04 px away",
        ),
        (20, 1, 0.2, 0.9, r"the nearest is 0\.2 px away .* expected at most 0\.1 and 0\.001"),
        (20, 20, 0.04, 0.9999, None),
        (20, 20, 0.2, 0.9999, r"0\.2 px away"),
    ],
)
def test_rounding_may_move_flat_peaks(count, moved, by, highest, message):
    def network(shifts):
        xy = np.stack([10.0 * np.arange(count + 1) + shifts, np.full(count + 1, 5.0)], axis=-1)
        scores = np.linspace(highest, 0.9995 if highest > 0.999 else 0.5, count)
        found = (xy[None], np.append(scores, 0.1)[None])  # the last one is below the threshold
        return SimpleNamespace(channel_names=["a"], score_thresholds=[0.3], detect=lambda images: [found])

    shifts = np.where(np.arange(count + 1) < moved, by, 0.0)
    if message is None:
        assert check_network(network(0.0), network(shifts).detect, [count + 1], FULL).pixels == pytest.approx(by)
    else:
        with pytest.raises(InputError, match=message):
            check_network(network(0.0), network(shifts).detect, [count + 1], FULL)


@pytest.mark.parametrize("moved", [1, 2])
def test_one_of_few_peaks_may_be_flat(moved):
    """Of all images together: only the first one has keypoints."""

    def network(shift):
        calls = iter(range(1000))

        def detect(images):
            shifts = shift * (np.arange(4) < moved) if next(calls) == 0 else np.full(4, np.nan)
            xy = np.stack([10.0 * np.arange(4) + shifts, np.full(4, 5.0)], axis=-1)
            return [(xy[None], np.where(np.isnan(xy[:, 0]), 0.0, [0.9, 0.8, 0.7, 0.1])[None])]

        return SimpleNamespace(channel_names=["a"], score_thresholds=[0.3], detect=detect)

    if moved == 1:
        assert check_network(network(0.0), network(0.04).detect, [4], FULL).keypoints == 3
    else:
        with pytest.raises(InputError, match="2 of 3 keypoints"):
            check_network(network(0.0), network(0.04).detect, [4], FULL)


@pytest.mark.parametrize(("wanted", "found", "what"), [(2, 1, "missing"), (1, 2, "unexpected")])
def test_a_keypoint_that_only_one_of_both_finds_is_named(wanted, found, what):
    def network(count):
        xy = np.where(np.arange(3)[:, None] < count, [[10.0, 5.0], [30.0, 5.0], [0.0, 0.0]], np.nan)
        scores = np.where(np.arange(3) < count, [0.9, 0.8, 0.0], 0.0)
        return SimpleNamespace(
            channel_names=["a"], score_thresholds=[0.3], detect=lambda images: [(xy[None], scores[None])]
        )

    with pytest.raises(InputError, match=rf"{what}: the keypoint at \(30\.00, 5\.00\)"):
        check_network(network(wanted), network(found).detect, [3], FULL)


def test_a_network_that_resizes_exports_with_half_precision(tmp_path):
    path = unet_checkpoint(tmp_path, image_size=[64, 80], keypoint_channel_max_keypoints=[3, -1])
    network, sizes = TorchNetwork(path, device="cpu"), {}
    for half in (False, True):
        output = export(str(path), str(tmp_path / f"{half}.onnx"), half=half)
        sizes[half] = output.stat().st_size
    report = check_network(network, OnnxNetwork(tmp_path / "False.onnx").detect, [3, 20], FULL)
    assert report.keypoints > 20
    weights = sum(parameter.numel() for parameter in network.detector.parameters())
    assert sizes[False] - sizes[True] > 1.8 * weights


def test_what_a_program_records_gives_what_the_checkpoint_gives(tmp_path):
    path = unet_checkpoint(tmp_path, image_size=[64, 80], keypoint_channel_max_keypoints=[3, -1])
    predictor = KeypointPredictor(path, device="cpu")
    module = ImageToKeypoints(predictor.network.detector).eval()
    for image in check_images()[:4]:
        rows = module(torch.from_numpy(image)[None]).numpy()
        for channel, keypoints in enumerate(predictor(image).values()):
            own = rows[rows[:, 0] == channel]
            assert len(own) == len(keypoints.scores) > 0
            assert np.allclose(own[:, 1:3], keypoints.xy, atol=0.01)
            assert np.allclose(own[:, 3], keypoints.scores, atol=1e-5)


def test_a_program_needs_torch_alone_and_merges_plateaus(checkpoint, tmp_path):
    path = tmp_path / "model.pt2"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(path)]) == 0
    limits = re.search(r"least (\w+) cells\s+of the heatmap and at most (\d+) pixels", README.read_text())
    program = torch.export.load(path).module()
    assert limits.groups() == ("three", "8192")
    for size in ((2, 9), (9, 2), (3, 8193), (8193, 3)):
        with pytest.raises(AssertionError, match=r"size\(\)"):
            program(torch.zeros(1, *size, 3, dtype=torch.uint8))
    for size in ((3, 8192), (8192, 3)):
        assert program(torch.zeros(1, *size, 3, dtype=torch.uint8)).shape == (0, 4)
    image = dots((40, 61), [(10.5, 20.5), (45.5, 8.5)])
    image[25:30, 40:47, 0] = 255  # 35 equal cells
    expected = KeypointPredictor(checkpoint, device="cpu")(image)["red"]
    rows = program(torch.from_numpy(image)[None]).numpy()
    assert np.allclose(sorted(rows[:, 1:3].tolist()), sorted(expected.xy.tolist()), atol=0.01)
    assert [43.5, 27.5] in rows[:, 1:3].round(2).tolist()


def test_a_file_that_finds_something_else_is_removed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxNetwork, "_detect", moved(OnnxNetwork._detect))
    with pytest.raises(InputError, match=r"not written: image of .* px away"):
        export(str(checkpoint), str(tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "module"), [("model.onnx", "export.onnx_file"), ("model.pt2", "export.program")])
def test_an_earlier_file_stays_where_a_new_one_finds_something_else(checkpoint, tmp_path, monkeypatch, name, module):
    (tmp_path / name).write_text("the earlier one")

    def wrong(*arguments, **options):
        raise InputError("it differs")

    monkeypatch.setattr(f"keypoint_detection.{module}.check_network", wrong)
    with pytest.raises(InputError, match=f"{name} was not written: it differs"):
        export(str(checkpoint), str(tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "the earlier one")]


def moved(detect):
    def wrong(self, image):
        xy, scores = detect(self, image)
        return xy + 0.2, scores

    return wrong


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_file_that_is_no_export_gets_one_line(content, tmp_path):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model.onnx") as error:
        KeypointPredictor(path)
    assert "\n" not in str(error.value)


GPU = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "offered", "chosen", "warned"),
    [
        ("auto", GPU, [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"], False),
        ("cuda:1", GPU, [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"], False),
        ("cpu", GPU, ["CPUExecutionProvider"], False),
        ("auto", GPU[1:], ["CPUExecutionProvider"], False),
        ("cuda", GPU[1:], ["CPUExecutionProvider"], True),
    ],
)
def test_an_exported_detector_runs_where_it_is_told_to(device, offered, chosen, warned, monkeypatch, tmp_path, caplog):
    asked = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *others, providers: asked.append(providers))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="not an ONNX file"):  # of what stands in for the session
        OnnxNetwork(tmp_path / "model.onnx", device)
    assert asked == [chosen]
    assert ("onnxruntime offers no cuda here" in caplog.text) is warned


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_a_device_that_onnxruntime_does_not_know_is_refused(device, tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=f"^--device {device}: expected cpu, cuda or auto"):
        OnnxNetwork(tmp_path / "model.onnx", device)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"half": True, "output": "model.pt2"}, "half"),
        ({"opset": 11}, "18"),
        # Before the checkpoint is read.
        ({"opset": 99, "checkpoint": "none.ckpt"}, f"^--opset 99: expected at most {NEWEST_OPSET}, .* onnx "),
        ({"output": "model.bin"}, r"\.onnx or \.pt2"),
        ({"output": "file/model.onnx"}, "cannot be written"),
    ],
)
def test_bad_arguments_are_named(checkpoint, arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=text):
        export(**{"checkpoint": str(checkpoint), "output": "model.onnx", **arguments})


def test_a_program_that_computes_in_float64_exports_the_same(checkpoint, model, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        export(str(checkpoint), str(tmp_path / "model.onnx"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert onnx.load(tmp_path / "model.onnx") == onnx.load(model)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_why_a_backbone_cannot_be_exported_is_said(checkpoint, tmp_path, monkeypatch, name):
    def fail(self, images):
        raise RuntimeError("no way\nand more of it")

    monkeypatch.setattr(RedAndGreen, "forward", fail)
    with pytest.raises(InputError, match=rf"^torch {re.escape(torch.__version__)} cannot export .*: no way$"):
        export(str(checkpoint), str(tmp_path / name))


def test_a_version_of_the_operators_that_the_exporter_does_not_reach_is_named(checkpoint, tmp_path, monkeypatch):
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "none", [], []),
        opset_imports=[onnx.helper.make_opsetid("own", 1), onnx.helper.make_opsetid("", 18)],
    )
    # A converter that fails leaves the version that it began with.
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=model))
    text = "^--opset 20: expected a version that the exporter can write, such as 18$"
    with pytest.raises(InputError, match=text):
        export(str(checkpoint), str(tmp_path / "model.onnx"), opset=20)
    assert not list(tmp_path.iterdir())
