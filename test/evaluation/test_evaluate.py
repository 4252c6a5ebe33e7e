"""Evaluating a checkpoint: numbers worked out by hand, files, flags, and thresholds with a promise."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_detector import colour_checkpoint, dots
from PIL import Image

from keypoint_detection import checkpoint, files
from keypoint_detection.cli import main
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation import command
from keypoint_detection.evaluation.command import evaluate
from keypoint_detection.export.command import export
from keypoint_detection.metrics import METRICS, KeypointMetric
from keypoint_detection.predict import KeypointPredictor
from keypoint_detection.processes import Processes
from keypoint_detection.report.measured import worst_images

# What the detector of these tests sees: (image, channel of the dot, place, brightness), best scores first.
DOTS = [
    (0, 0, (10.5, 20.5), 1.0),  # found
    (1, 0, (23.5, 20.5), 0.9),  # 3 px off: true within 4 px, not within 2 px
    (0, 0, (30.5, 30.5), 0.8),  # background
    (1, 0, (10.5, 40.5), 0.7),  # in the wrong channel
]
SIZES = [(40, 60), (50, 40)]
TRUTHS = [
    {"red": [[10.5, 20.5], [45.5, 8.5]], "green": []},
    {"red": [[20.5, 20.5]], "green": [[10.5, 40.5]]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, their labels, and a checkpoint whose heatmaps are the red and the green of an image."""
    folder = tmp_path_factory.mktemp("evaluate")
    for index, size in enumerate(SIZES):
        image = np.zeros((*size, 3), dtype=np.uint8)
        for where, channel, place, brightness in DOTS:
            if where == index:
                image = np.maximum(image, (dots(size, [place], channel) * brightness).astype(np.uint8))
        Image.fromarray(image).save(folder / f"{index}.png")
    entries = [{"image_path": f"{i}.png", **truths} for i, truths in enumerate(TRUTHS)]
    (folder / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    with colour_checkpoint(folder):
        yield folder


@pytest.fixture(scope="module")
def evaluation(folder):
    return evaluate(folder / "best.ckpt", folder / "labels.json", device="cpu")


def test_average_precision_is_that_worked_out_by_hand(evaluation):
    assert evaluation.metrics["AP/red/d=4"] == pytest.approx(2 / 3)
    assert evaluation.metrics["AP/red/d=2"] == pytest.approx(1 / 3)
    assert evaluation.metrics["AP/green/d=4"] == 0
    assert evaluation.metrics["meanAP"] == pytest.approx(1 / 4)
    assert evaluation.channels["red"]["average_precision"] == pytest.approx([1 / 3, 2 / 3])


def test_images_are_in_the_order_of_the_file_where_their_sizes_alternate(folder, tmp_path):
    for index, size in enumerate([(30, 20), (20, 30), (30, 20)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    entries = [{"image_path": f"{index}.png", "red": [[0.5, 0.5]], "green": []} for index in range(3)]
    (tmp_path / "labels.json").write_text(json.dumps({"dataset": entries}))
    found = evaluate(folder / "best.ckpt", tmp_path / "labels.json", device="cpu")
    assert [image.name for image in found.images.values()] == ["0.png", "1.png", "2.png"]


def test_localisation_and_the_numbers_at_thresholds_are_those_worked_out_by_hand(evaluation):
    red, green = evaluation.channels["red"], evaluation.channels["green"]
    assert [red[key] for key in ("median", "mean", "p90")] == pytest.approx([1.5, 1.5, 2.7], abs=0.05)
    assert (red["threshold"], green["threshold"]) == pytest.approx((0.5, 0.6), rel=2e-5)
    assert evaluation.report_data("title").score_thresholds == pytest.approx([0.5, 0.6], rel=2e-5)
    assert [red[key] for key in ("recall", "precision", "f1")] == pytest.approx([2 / 3, 2 / 4, 4 / 7])
    assert [red[key] for key in ("best_recall", "best_precision", "best_f1")] == pytest.approx([2 / 3, 1, 0.8])
    lowest_that_counts, next_lower = (1 / (1 + np.exp(10 - 20 * brightness)) for brightness in (0.9, 0.8))
    assert red["best_threshold"] == pytest.approx((lowest_that_counts + next_lower) / 2, abs=5e-4)
    assert green["recall"] == 0
    assert np.isnan(green["precision"])


def test_errors_by_kind_are_those_worked_out_by_hand(evaluation):
    errors = evaluation.to_dict()["errors"]
    assert {kind: row["count"] for kind, row in errors.items()} == {
        "miss": 1, "duplicate": 0, "imprecise": 0, "wrong_channel": 1, "background": 1
    }  # fmt: skip
    # Without the missed keypoint all of red is found; with the one in the wrong channel all of green is.
    assert errors["miss"]["channels"]["red"]["average_precision_won_back"] == pytest.approx(1 / 3)
    assert errors["wrong_channel"]["average_precision_won_back"] == pytest.approx(1 / 2)
    assert errors["background"]["average_precision_won_back"] == 0


def test_a_given_threshold_and_distance_are_used(folder):
    # On the device that there is.
    found = evaluate(folder / "best.ckpt", folder / "labels.json", distance=2, score_threshold=0.999)
    red = found.channels["red"]
    assert red["threshold"] == pytest.approx(0.999)
    assert (red["recall"], red["precision"]) == pytest.approx((1 / 3, 1 / 2))
    counts = {kind: row["count"] for kind, row in found.to_dict()["errors"].items()}
    # 3 px off is imprecise within 2 px; the dot in the wrong channel scores too low to count, so green is missed.
    assert counts == {"miss": 2, "duplicate": 0, "imprecise": 1, "wrong_channel": 0, "background": 0}
    assert found.report_data("title").distance == found.to_dict()["distance"] == 2
    assert found.report_data("title").run_info["labels"] == str(folder / "labels.json")


def test_errors_are_counted_at_the_threshold_and_their_gains_are_over_all_scores(folder):
    # Where no detection counts, all three red keypoints and the green one are missed; what is in the wrong channel is
    # no error that counts, and yet what green's AP is lost by.
    found = evaluate(folder / "best.ckpt", folder / "labels.json", score_threshold=1.0, device="cpu")
    title, _, _, *rows = found.table().split("\n\n")[2].splitlines()
    assert title == "Errors within 4 px: count at the score threshold, AP gained by fixing those at all scores"
    assert rows[0].split()[:2] == ["miss", "4"]
    assert rows[3].split() == ["wrong", "channel", "0", "0.500"]


def test_columns_of_the_tables_stand_where_a_terminal_shows_them_whatever_the_letters(evaluation):
    channels = dict(zip(("頭x", "green"), evaluation.channels.values(), strict=True))
    assert replace(evaluation, channels=channels).table().replace("頭x", "red") == evaluation.table()


def test_a_channel_with_a_hyphen_in_its_name_is_not_taken_for_an_undefined_number(evaluation):
    assert "undefined" not in replace(evaluation, channels={"red-one": evaluation.channels["red"]}).table()


def test_the_command_prints_tables_and_writes_json_and_report(folder, tmp_path, capsys):
    flags = ["--checkpoint", folder / "best.ckpt", "--json_dataset_path", folder / "labels.json", "--device", "cpu"]
    flags += ["--output", tmp_path / "new" / "metrics.json", "--report", tmp_path / "report.html"]
    assert main(["evaluate", *map(str, flags)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("red ")).split()[:4] == ["red", "3", "0.333", "0.667"]
    assert ["wrong", "channel", "1", "0.500"] in [line.split() for line in lines]
    assert ["mean", "0.167", "0.333"] in [line.split()[:3] for line in lines]
    assert lines[0].startswith("2 images with 4 true keypoints: ")
    at_thresholds = [line.split() for line in lines if line.startswith("red ")][1]
    assert at_thresholds[1:5] == ["0.500", "0.667", "0.500", "0.571"]  # recall, precision and F1
    assert at_thresholds[6:] == ["0.667", "1.000", "0.800"]
    # Nothing of green is found: it has neither a localisation error nor a precision.
    tables = "\n".join(lines).split("\n\n")
    assert [table.endswith("-: undefined, and left out of the mean") for table in tables[:3]] == [True, True, False]
    content = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert content["channels"]["red"]["average_precision"] == pytest.approx({"2": 1 / 3, "4": 2 / 3})
    assert content["channels"]["green"]["precision"] is None
    assert (content["images"], content["distance"], content["calibration"]) == (2, 4, None)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("data:image/png;base64,") == 2  # heatmaps
    assert "best.ckpt on labels.json" in page


def test_a_metric_of_ones_own_may_give_tensors(folder, tmp_path, monkeypatch):
    class Count(KeypointMetric):
        """How many detections there are, as torchmetrics' own give numbers."""

        def compute(self):
            return {"count": torch.tensor(len(self.matches().scores)), "undefined": torch.tensor(torch.nan)}

    monkeypatch.setitem(METRICS, "count", Count)
    flags = ["--checkpoint", folder / "best.ckpt", "--json_dataset_path", folder / "labels.json", "--device", "cpu"]
    assert main(["evaluate", *map(str, flags), "--output", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert (metrics["count"], metrics["undefined"]) == (len(DOTS), None)


def test_images_of_the_report_have_the_files_size_and_the_errors_order(evaluation):
    images = [evaluation.images[0], evaluation.images[1]]
    assert [(image.height, image.width) for image in images] == SIZES
    # A miss and a false positive each; where nothing else differs, the less precise image comes first.
    assert worst_images(evaluation.report_data("title")) == [1, 0]


def test_channels_of_the_file_are_merged_and_ordered_as_the_checkpoint_has_them(folder, evaluation, tmp_path):
    entries = [
        {"image_path": f"{i}.png", "other": [], "green": truths["green"], "red": truths["red"][:1],
         "crimson": truths["red"][1:]}
        for i, truths in enumerate(TRUTHS)
    ]  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    found = evaluate(
        folder / "best.ckpt", tmp_path / "labels.json", folder, keypoint_channels="red=crimson green", device="cpu"
    )
    assert found.metrics == pytest.approx(evaluation.metrics, nan_ok=True)


@pytest.fixture(scope="module")
def other_names(folder):
    """The labels of the folder, in a file that has other names for the channels."""
    entries = [{"image_path": f"{i}.png", "r": t["red"][:1], "s": t["red"][1:], "g": t["green"], "more": []}
               for i, t in enumerate(TRUTHS)]  # fmt: skip
    (folder / "other_names.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return folder / "other_names.json"


@pytest.fixture(scope="module", params=["best.ckpt", "model.onnx"])
def model(folder, request):
    """The checkpoint, and what was exported of it."""
    if request.param == "model.onnx":
        export(str(folder / "best.ckpt"), str(folder / "model.onnx"))
    return folder / request.param


def test_a_file_that_names_channels_otherwise_is_evaluated(model, other_names, evaluation):
    found = evaluate(model, other_names, keypoint_channels="red=r=s green=g", device="cpu")
    assert found.metrics == pytest.approx(evaluation.metrics, rel=1e-3, nan_ok=True)
    assert found.channels["red"]["truths"] == 3


def test_only_channels_that_are_chosen_are_evaluated(folder, model, other_names, evaluation, tmp_path):
    for labels, spec in ((folder / "labels.json", "green"), (other_names, "green=g")):
        found = evaluate(model, labels, keypoint_channels=spec, device="cpu", report=tmp_path / "report.html")
        assert list(found.channels) == list(found.to_dict()["channels"]) == ["green"]
        assert found.channels["green"]["truths"] == found.mean["truths"] == 1
        assert found.metrics["meanAP"] == found.metrics["AP/green/d=4"] == 0  # that of all channels is 1/4
        assert "red " not in found.table()
        # What is true where a red dot is found is no longer in the wrong channel.
        assert {kind: row["count"] for kind, row in found.to_dict()["errors"].items() if row["count"]} == {"miss": 1}
        assert all(len(image.xy) == len(image.truths) == 1 for image in found.images.values())
    both = evaluate(model, folder / "labels.json", keypoint_channels="green red", device="cpu")
    assert list(both.channels) == ["green", "red"]
    assert both.channels["red"]["average_precision"] == evaluation.channels["red"]["average_precision"]
    assert both.score_thresholds == pytest.approx(evaluation.score_thresholds[::-1], rel=1e-3)


def test_heatmaps_of_the_report_are_those_of_the_channels_that_are_chosen(folder, tmp_path):
    found = evaluate(folder / "best.ckpt", folder / "labels.json", keypoint_channels="green", device="cpu",
                     report=tmp_path / "report.html")  # fmt: skip
    # Of a picture with nothing green: the detector finds 1 / (1 + e^10) everywhere.
    assert found.images[0].heatmaps.shape == (1, *SIZES[0])
    assert found.images[0].heatmaps.max() < 1e-4


def test_heatmaps_of_the_report_are_those_of_the_worst_images(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "HEATMAPS_IN_REPORT", 1)
    found = evaluate(folder / "best.ckpt", folder / "labels.json", report=tmp_path / "report.html", device="cpu")
    assert worst_images(found.report_data("title")) == [1, 0]
    assert [image.heatmaps is not None for image in found.images.values()] == [False, True]


def test_a_channel_without_a_promise_is_warned_of_where_another_has_one(folder, tmp_path, caplog):
    path = tmp_path / "copy.ckpt"
    shutil.copy(folder / "best.ckpt", path)
    found = evaluate(path, folder / "labels.json", recall=0.3, device="cpu").calibration.channels
    assert [name for name, channel in found.items() if channel.threshold is None] == ["green"]
    said = "--recall 0.3: no score threshold promises it for green, so the checkpoint keeps its thresholds for these"
    assert said in caplog.messages


def test_a_promise_for_one_channel_leaves_the_threshold_of_another(folder, tmp_path):
    path = tmp_path / "copy.ckpt"
    shutil.copy(folder / "best.ckpt", path)
    found = evaluate(path, folder / "labels.json", keypoint_channels="red", recall=0.3, device="cpu")
    promised = found.calibration.channels["red"].threshold
    assert torch.load(path, weights_only=True)["state_dict"]["score_thresholds"].tolist() == pytest.approx(
        [promised, 0.6]
    )


def test_the_validation_images_of_a_split_are_evaluated(folder, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["0.png"], "validation": ["1.png"]}))
    found = evaluate(folder / "best.ckpt", folder / "labels.json", split=tmp_path / "split.json", device="cpu")
    assert [image.name for image in found.images.values()] == ["1.png"]
    # In image 1 alone: red at 3 px is true and comes first, so the later one in the wrong channel costs nothing.
    assert found.metrics["AP/red/d=4"] == 1
    assert found.metrics["AP/red/d=2"] == 0


def test_a_promised_threshold_is_stored_and_all_else_stays(folder, evaluation, tmp_path):
    path = tmp_path / "copy.ckpt"
    shutil.copy(folder / "best.ckpt", path)
    found = evaluate(path, folder / "labels.json", recall=0.3, device="cpu")
    # Red is in two images. At the second score the losses are 1/2 and 0: (1/2 + 1) / 3 <= 0.7; at the first 5/6.
    second = float(evaluation.images[1].scores[0].max())
    assert found.calibration.channels["red"].threshold == pytest.approx(second)
    assert "out of reach" in found.calibration.channels["green"].problem
    before, after = (torch.load(file, weights_only=True) for file in (folder / "best.ckpt", path))
    assert after["state_dict"]["score_thresholds"].tolist() == pytest.approx([second, 0.6])
    assert before.keys() | {"score_threshold_calibration"} == after.keys()
    for name, value in before["state_dict"].items():
        assert name == "score_thresholds" or torch.equal(value, after["state_dict"][name])
    record = after["score_threshold_calibration"]
    assert (record["recall"], record["distance"]) == (0.3, 4.0)
    assert record["method"] == "conformal risk control over images"
    assert record["data"]["labels"] == str(folder / "labels.json")
    assert len(record["data"]["fingerprint"]) == 64
    assert record["channels"]["red"]["images"] == 2
    assert record["channels"]["green"]["images"] == 1  # image 0 has no green one
    assert KeypointPredictor(path, device="cpu").score_thresholds == pytest.approx(
        {"red": second, "green": 0.6}, rel=2e-5
    )
    assert [file.name for file in tmp_path.iterdir()] == ["copy.ckpt"]


def cannot_write(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["store_calibration", "write_report"])
def test_what_was_found_is_told_where_the_checkpoint_or_the_report_cannot_be_written(
    folder, tmp_path, capsys, monkeypatch, failing
):
    path = tmp_path / "copy.ckpt"
    shutil.copy(folder / "best.ckpt", path)
    before = path.read_bytes()
    what = {"store_calibration": f"checkpoint {path}", "write_report": f"--report {tmp_path / 'report.html'}"}[failing]
    where = {"store_calibration": checkpoint, "write_report": command}[failing]
    monkeypatch.setattr(where, "write_atomic" if failing == "store_calibration" else failing, cannot_write)
    flags = ["--checkpoint", path, "--json_dataset_path", folder / "labels.json", "--device", "cpu", "--recall", 0.3]
    flags += ["--output", tmp_path / "metrics.json", "--report", tmp_path / "report.html"]
    assert main(["evaluate", *map(str, flags)]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"error: {what}: cannot be written (No space left on device)"
    assert "2 images with 4 true keypoints" in told.out
    assert "stored these thresholds in" not in told.out
    assert json.loads((tmp_path / "metrics.json").read_text())["calibration"]["recall"] == 0.3
    assert (tmp_path / "report.html").exists() is (failing == "store_calibration")
    assert path.read_bytes() == before


def test_a_promise_from_images_of_the_training_is_refused(folder, tmp_path, monkeypatch):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(folder / "best.ckpt", checkpoints)
    monkeypatch.chdir(checkpoints)
    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    split = {"fingerprints": {"train": labels.fingerprint()}, "train": [labels.name(0)], "validation": [labels.name(1)]}
    (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    before = Path("best.ckpt").read_bytes()
    with pytest.raises(InputError) as error:
        evaluate("best.ckpt", folder / "labels.json", recall=0.3, device="cpu")
    assert str(error.value) == (
        f"{folder / 'labels.json'}: the detector was trained on most of these images: expected held-out images to "
        f"promise a recall on new ones; --split {tmp_path / 'run' / 'split.json'} selects those that were held out"
    )
    assert Path("best.ckpt").read_bytes() == before
    (tmp_path / "run" / "split.json").write_text(json.dumps(split | {"fingerprints": {"train": "of others"}}))
    evaluate("best.ckpt", folder / "labels.json", recall=0.3, device="cpu")
    assert Path("best.ckpt").read_bytes() != before


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "onnx"])
def test_images_of_the_training_are_warned_of_wherever_the_checkpoint_is(folder, tmp_path, caplog, kind):
    def told(**given):
        caplog.clear()
        evaluate(tmp_path / f"a.{kind}", folder / "labels.json", device="cpu", **given)
        return [record.getMessage() for record in caplog.records if "was trained on" in record.getMessage()]

    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    cases = [
        ({"train": labels.fingerprint()}, "most of these", True),
        ({"train": labels.fingerprint(), "validation": "others"}, "these", False),
        ({"train": "others", "validation": labels.fingerprint()}, None, False),
        (None, None, False),  # of an older version
    ]
    for fingerprints, seen, split in cases if kind == "ckpt" else cases[:1]:
        known = {} if fingerprints is None else {"fingerprints": fingerprints}
        checkpoint_of(folder, tmp_path / "a.ckpt", **known)
        if kind == "onnx":
            export(str(tmp_path / "a.ckpt"), str(tmp_path / "a.onnx"))
        if kind == "safetensors":
            checkpoint.export_weights(str(tmp_path / "a.ckpt"), str(tmp_path / "a.safetensors"))
        text = f"{folder / 'labels.json'}: the detector was trained on {seen} images, so it may be worse on new ones"
        advice = "; --split with the split.json of its run selects those that were held out" if split else ""
        assert told() == ([text + advice] if seen else [])
    checkpoint_of(folder, tmp_path / "a.ckpt", fingerprints={"train": labels.fingerprint()})
    (tmp_path / "split.json").write_text(json.dumps({"train": ["0.png"], "validation": ["1.png"]}))
    assert not told(split=tmp_path / "split.json")
    if kind == "ckpt":
        with pytest.raises(InputError, match="expected held-out images to promise a recall"):
            told(recall=0.3)


def test_a_checkpoint_in_the_folder_of_another_run_still_knows_its_own_images(folder, tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    known = {"train": labels.fingerprint()}
    path = checkpoint_of(folder, tmp_path / "checkpoints" / "a.ckpt", fingerprints=known)
    (tmp_path / "split.json").write_text(json.dumps({"fingerprints": {"train": "of others"}}))
    evaluate(path, folder / "labels.json", device="cpu")
    assert "worse on new ones; --split with the split.json of its run selects those that were held out" in caplog.text


def trained_on(folder, index):
    """The record of a detector that was trained on one image of the folder."""
    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    return {"fingerprints": {"train": "of others"}, "trained_images": TrainedImages.of(labels.subset([index])).record()}


@pytest.fixture
def renamed(folder, tmp_path):
    """Images of the training under other names, in a file of rounded labels with one channel."""
    (tmp_path / "renamed").mkdir()
    for index in range(2):
        shutil.copy(folder / f"{index}.png", tmp_path / "renamed" / f"copy{index}.png")
    entries = [{"image_path": f"copy{index}.png", "red": [[10, 20]]} for index in range(2)]
    (tmp_path / "renamed" / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return tmp_path / "renamed" / "labels.json"


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "onnx"])
def test_images_of_the_training_are_recognised_under_other_names_and_labels(folder, renamed, tmp_path, caplog, kind):
    path = checkpoint_of(folder, tmp_path / "a.ckpt", **trained_on(folder, 1))
    if kind == "onnx":
        export(str(path), str(tmp_path / "a.onnx"))
    if kind == "safetensors":
        checkpoint.export_weights(str(path), str(tmp_path / "a.safetensors"))
    caplog.clear()
    evaluate(tmp_path / f"a.{kind}", renamed, keypoint_channels="red", device="cpu")
    assert [record.getMessage() for record in caplog.records] == [
        f"{renamed}: the detector was trained on 1 of 2 images (first: copy1.png), so it may be worse on new "
        "ones; leave those images out"
    ]
    caplog.clear()
    renamed.with_name("split.json").write_text(json.dumps({"train": ["copy1.png"], "validation": ["copy0.png"]}))
    split = renamed.with_name("split.json")
    evaluate(tmp_path / f"a.{kind}", renamed, keypoint_channels="red", device="cpu", split=split)
    assert not caplog.records


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("is_complete", [True, False])
def test_a_promise_from_images_of_the_training_is_refused_under_other_names_too(
    folder, renamed, tmp_path, capsys, monkeypatch, split, is_complete
):
    trained = trained_on(folder, 1)
    if not is_complete:
        trained["trained_images"]["below"] = ""
    path = checkpoint_of(folder, tmp_path / "a.ckpt", **trained)
    before = path.read_bytes()
    flags = ["--checkpoint", path, "--json_dataset_path", renamed, "--keypoint_channels", "red", "--recall", 0.3]
    if split:
        renamed.with_name("split.json").write_text(json.dumps({"train": ["copy0.png"], "validation": ["copy1.png"]}))
        flags += ["--split", renamed.with_name("split.json")]
    monkeypatch.setattr(command, "run_network", None)  # refused before the work
    assert main(["evaluate", *map(str, flags)]) == 2
    least = "" if is_complete else "at least "
    assert capsys.readouterr().err.splitlines() == [
        f"error: {renamed}: the detector was trained on {least}1 of {'1 image' if split else '2 images'} (first: "
        "copy1.png): expected held-out images to promise a recall on new ones; leave those images out"
    ]
    assert path.read_bytes() == before


@pytest.mark.parametrize("channels", ["green", "green red", ["red"], "red=green"])
def test_images_of_the_training_are_warned_of_with_a_choice_of_its_channels(folder, tmp_path, caplog, channels):
    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    path = checkpoint_of(folder, tmp_path / "a.ckpt", fingerprints={"train": labels.fingerprint()})
    evaluate(path, folder / "labels.json", keypoint_channels=channels, device="cpu")
    assert caplog.text.count("the detector was trained on most of these images") == 1
    content = json.loads((folder / "labels.json").read_text())
    for entry in content["dataset"]:
        del entry["red_keypoints" if "red_keypoints" in entry else "red"]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    caplog.clear()
    green = "red=green" if channels == "red=green" else "green"
    evaluate(path, tmp_path / "labels.json", folder, keypoint_channels=green, device="cpu")
    assert "the training saw" not in caplog.text


def test_a_file_with_a_keypoint_outside_is_known_as_the_training_read_it_whichever_channels(folder, tmp_path, caplog):
    trained = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    path = checkpoint_of(folder, tmp_path / "a.ckpt", fingerprints={"train": trained.fingerprint()})
    entries = [{"image_path": f"{i}.png", **truths} for i, truths in enumerate(TRUTHS)]
    entries[0] |= {"red": [*TRUTHS[0]["red"], [500, 5]]}
    (tmp_path / "labels.json").write_text(json.dumps({"dataset": entries}))
    given = {"keypoint_channels": "green red", "keypoint_coordinates": "pixel", "device": "cpu"}
    evaluate(path, tmp_path / "labels.json", folder, **given)
    outside, known = (record.getMessage() for record in caplog.records)
    assert "1 of 5 keypoints" in outside
    assert "the detector was trained on most of these images" in known


@pytest.mark.parametrize("channels", [None, "green", "green red", "red=green"])
def test_a_split_knows_its_labels_whichever_channels_are_evaluated(folder, tmp_path, caplog, channels):
    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    record = {"train": ["0.png"], "validation": ["1.png"]}
    for fingerprint, changed in ((labels.fingerprint(), False), ("of others", True), (None, False)):
        known = {"fingerprints": {"train": fingerprint}} if fingerprint else {}
        (tmp_path / "split.json").write_text(json.dumps(record | known))
        caplog.clear()
        evaluate(
            folder / "best.ckpt", folder / "labels.json", split=tmp_path / "split.json", keypoint_channels=channels,
            device="cpu",
        )  # fmt: skip
        assert ("the labels have changed since the split was made" in caplog.text) is changed


def test_of_a_file_without_all_channels_of_the_training_it_is_not_known_whether_the_labels_have_changed(
    folder, tmp_path, caplog
):
    entries = [{"image_path": f"{i}.png", "green": truths["green"]} for i, truths in enumerate(TRUTHS)]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    record = {"train": ["0.png"], "validation": ["1.png"], "fingerprints": {"train": "of others"}}
    (tmp_path / "split.json").write_text(json.dumps(record))
    given = {"split": tmp_path / "split.json", "keypoint_channels": "green", "device": "cpu"}
    evaluate(folder / "best.ckpt", tmp_path / "labels.json", folder, **given)
    assert not caplog.records


@pytest.mark.parametrize("text", ["[1, 2]", "1.png", '{"fingerprints": ["a"]}'])
def test_a_split_of_another_kind_beside_the_folder_of_a_checkpoint_is_nobodys_training(folder, tmp_path, caplog, text):
    (tmp_path / "models").mkdir()
    shutil.copy(folder / "best.ckpt", tmp_path / "models")
    (tmp_path / "split.json").write_text(text)
    found = evaluate(tmp_path / "models" / "best.ckpt", folder / "labels.json", recall=0.3, device="cpu")
    assert found.calibration is not None
    assert "the training saw" not in caplog.text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1]", "expected the split.json of a training"),
        ('"x"', "expected the split.json of a training"),
        ('{"train": [["0.png"]], "validation": [["1.png"]]}', "expected a list of image names under 'train'"),
        ('{"dataset": []}', "expected a list of image names under 'train'"),
        ('{"train": ["0.png"], "validation": ["2.png"]}', "'validation' lists '2.png', which is not in "),
        ('{"train": ["0.png"], "validation": ["0.png"]}', "lists an image twice, "),
    ],
)
def test_what_is_no_split_is_refused_by_its_name(folder, tmp_path, text, line):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(f'--split {tmp_path}/other.json: {line}')}"):
        evaluate(folder / "best.ckpt", folder / "labels.json", split=tmp_path / "other.json", device="cpu")


def test_a_checkpoint_may_be_named_from_within_its_folder(folder, tmp_path, caplog, monkeypatch):
    shutil.copy(folder / "best.ckpt", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert evaluate("best.ckpt", folder / "labels.json", recall=0.3, device="cpu").calibration is not None
    assert "the training saw" not in caplog.text


@pytest.mark.parametrize("flag", ["--output", "--report"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(folder, tmp_path, capsys, flag):
    flags = ["--checkpoint", str(folder / "best.ckpt"), "--json_dataset_path", str(folder / "labels.json")]
    assert main(["evaluate", *flags, "--device", "cpu", flag, str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {flag} {tmp_path}: is a folder, expected a file"]


@pytest.mark.parametrize("image_size", [None, [48, 48]])
def test_an_exported_file_is_evaluated_like_its_checkpoint(folder, tmp_path, image_size):
    content = torch.load(folder / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["image_size"] = image_size
    content["evaluation"] = {
        "channel_members": {"red": ["red"], "green": ["green"]},
        "empty_channels": "ignore",
        "distances": [3.5],
        "threshold_unit": "pixel",
    }
    torch.save(content, tmp_path / "best.ckpt")
    assert main(["export", "--checkpoint", str(tmp_path / "best.ckpt"), "--output", str(tmp_path / "model.onnx")]) == 0
    expected, found = (
        evaluate(tmp_path / name, folder / "labels.json", device="cpu", report=tmp_path / f"{name}.html")
        for name in ("best.ckpt", "model.onnx")
    )
    assert found.threshold_distances == [3.5]
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4, nan_ok=True)
    assert found.score_thresholds == pytest.approx(expected.score_thresholds)
    assert list(found.images) == [0, 1]
    for image, other in zip(found.images.values(), expected.images.values(), strict=True):
        assert image.labelled.tolist() == other.labelled.tolist()  # channels without keypoints are left out
        for xy, other_xy in zip(image.xy, other.xy, strict=True):
            assert np.allclose(xy, other_xy, atol=0.01)
    assert "data:image" in (tmp_path / "model.onnx.html").read_text()


def test_of_several_processes_the_first_one_alone_writes_and_warns(folder, tmp_path, caplog):
    class Second(Processes):
        def gather(self, value):
            return [value]

    labels = read_annotations(folder / "labels.json", folder, keypoint_channels="red green")
    path = checkpoint_of(folder, tmp_path / "a.ckpt", fingerprints={"train": labels.fingerprint()})
    before = path.read_bytes()
    files = {"output": tmp_path / "numbers.json", "report": tmp_path / "report.html"}
    found = evaluate(path, folder / "labels.json", recall=0.3, **files, processes=Second("cpu", 1, 2))
    assert [image.name for image in found.images.values()] == ["1.png"]
    assert found.calibration is not None
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.read_bytes() == before
    assert not caplog.records


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_one_alone_prints(evaluation, monkeypatch, capsys, rank):
    answers = {command.start_processes: Processes("cpu", rank, world=2), evaluate: evaluation}
    monkeypatch.setattr(command, "call", lambda function, *_, **__: answers[function])
    assert command.main(["--checkpoint", "a.ckpt", "--json_dataset_path", "a.json"]) == 0
    assert capsys.readouterr().out == (f"{evaluation.table()}\n\n" if rank == 0 else "")


def test_numbers_and_report_may_both_go_to_a_device(folder):
    assert evaluate(folder / "best.ckpt", folder / "labels.json", output="/dev/null", report="/dev/null", device="cpu")


def test_numbers_and_report_are_two_files(folder, tmp_path, capsys):
    written = tmp_path / "both"
    (tmp_path / "link").symlink_to(written)
    words = ["--checkpoint", folder / "best.ckpt", "--json_dataset_path", folder / "labels.json", "--device", "cpu"]
    assert main(["evaluate", *map(str, words), "--output", str(written), "--report", str(tmp_path / "link")]) == 2
    expected = f"error: --report {tmp_path / 'link'}: is also the file of --output, expected another name\n"
    assert capsys.readouterr().err == expected
    assert not written.exists()


@pytest.mark.parametrize("flag", ["--output", "--report"])
@pytest.mark.parametrize("name", ["best.ckpt", "labels.json", "split.json", "link.json", "0.png"])
def test_nothing_that_is_read_is_overwritten(folder, tmp_path, capsys, flag, name):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["0.png"], "validation": ["1.png"]}))
    (tmp_path / "link.json").symlink_to(tmp_path / "labels.json")
    before = (tmp_path / name).read_bytes()
    flags = ["--checkpoint", "best.ckpt", "--json_dataset_path", "labels.json", "--split", "split.json", flag, name]
    words = [str(tmp_path / word) if "." in word else word for word in flags]
    assert main(["evaluate", *words, "--device", "cpu"]) == 2
    assert f"{name}: would overwrite an input file, expected another name" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before


def test_thresholds_that_could_not_be_stored_are_refused_before_the_work(folder, monkeypatch, capsys):
    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(command, "run_network", pytest.fail)
    flags = ["--checkpoint", folder / "best.ckpt", "--json_dataset_path", folder / "labels.json", "--recall", 0.3]
    assert main(["evaluate", *map(str, flags), "--device", "cpu"]) == 2
    where = f"--recall 0.3 stores thresholds in {folder / 'best.ckpt'}"
    assert capsys.readouterr().err == f"error: {where}: cannot be written there (Read-only file system)\n"


def test_too_little_data_for_a_promise_is_said_and_keeps_the_thresholds(folder, tmp_path, capsys, caplog):
    path = tmp_path / "copy.ckpt"
    shutil.copy(folder / "best.ckpt", path)
    before = path.read_bytes()
    flags = ["--checkpoint", path, "--json_dataset_path", folder / "labels.json", "--recall", 0.95, "--distance", 4]
    assert main(["evaluate", *map(str, flags), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "too little data: 2 images with this channel, at least 19 needed" in printed
    assert f"no thresholds to store in {path}" in printed
    # Seen even if the table goes to a file.
    kept = "so the checkpoint keeps its thresholds for these"
    said = f"--recall 0.95: no score threshold promises it for red, green, {kept}"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]
    assert path.read_bytes() == before
    assert KeypointPredictor(path, device="cpu").score_thresholds == pytest.approx({"red": 0.5, "green": 0.6}, rel=2e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint": "missing.ckpt"}, "missing.ckpt"),
        ({"checkpoint": "model.onnx"}, "model.onnx does not exist"),
        ({"checkpoint": "model.pt2"}, "model.pt2"),
        ({"json_dataset_path": "missing.json"}, "missing.json"),
        ({"distance": 3}, "--distance 3"),
        ({"maximal_gt_keypoint_pixel_distances": "-1"}, "maximal_gt_keypoint_pixel_distances"),
        ({"recall": 1}, "--recall 1: expected a number above 0 and below 1"),
        ({"recall": 0}, "--recall 0: expected a number above 0 and below 1"),
        ({"score_threshold": 7}, "score_threshold"),
        ({"device": "warp9"}, "device"),
        ({"keypoint_channels": "purple=red"}, "purple"),
        ({"keypoint_channels": "red=crimson"}, "crimson"),
        ({"keypoint_channels": ""}, "--keypoint_channels: is empty, expected some of: red, green"),
        ({"split": "missing-split.json"}, "missing-split.json"),
        ({"batch_size": 0}, "--batch_size 0: expected at least 1"),
        ({"num_workers": -1}, "--num_workers -1: expected at least 0"),
        ({"empty_channels": "maybe"}, "empty_channels"),
        ({"no_such_flag": 1}, "no_such_flag"),
        ({"output": "/dev/null/numbers.json"}, "--output /dev/null/numbers.json: cannot be written"),
        ({"report": "/dev/null/report.html"}, "--report /dev/null/report.html: cannot be written"),
        ({"recall": 0.9, "checkpoint": "weights.safetensors"}, "--recall 0.9: expected a checkpoint"),
        ({"recall": 0.9, "checkpoint": "model.onnx"}, "--recall 0.9: expected a checkpoint"),
        ({"accelerator": "nonsense", "device": "auto"}, "--accelerator nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, changes, named, capsys):
    flags = {"checkpoint": folder / "best.ckpt", "json_dataset_path": folder / "labels.json", "device": "cpu"}
    assert main(["evaluate", *(f"--{name}={value}" for name, value in (flags | changes).items())]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error


def test_a_file_without_a_channel_of_the_checkpoint_is_refused(folder, tmp_path, capsys):
    content = {"coordinates": "pixel", "dataset": [{"image_path": "0.png", "red": []}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    flags = ["--checkpoint", folder / "best.ckpt", "--json_dataset_path", tmp_path / "labels.json"]
    assert main(["evaluate", *map(str, flags), "--image_dataset_path", str(folder)]) == 2
    assert "green" in capsys.readouterr().err.splitlines()[-1]


def test_a_channel_of_the_file_whose_name_has_an_equals_sign_is_not_taken_for_one_of_the_checkpoint(folder, tmp_path):
    content = {"coordinates": "pixel", "dataset": [{"image_path": "0.png", "red=green": []}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match='no channel "red" in the file, which has red=green'):
        evaluate(folder / "best.ckpt", tmp_path / "labels.json", folder, keypoint_channels="red=green", device="cpu")


def test_help_fits_a_screen_and_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "-h"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 60
    for name in ("--checkpoint", "--output", "--report", "--recall", "--score_threshold"):
        assert f"  {name} " in text


# Evaluating as the training did.
MEMBERS = {"red": ["red", "pink", "rose"], "green": ["green"]}


def checkpoint_of(folder, path, **trained):
    """The checkpoint of the folder, as a training would have written it that evaluated in this way."""
    content = torch.load(folder / "best.ckpt", weights_only=True)
    content["evaluation"] = {"channel_members": MEMBERS, "distances": [4.0], "threshold_unit": "pixel"} | trained
    torch.save(content, path)
    return path


@pytest.fixture
def labels(folder, tmp_path):
    """The labels of the folder with some of the red ones in a channel of their own; there is no rose one."""
    entries = [
        {"image_path": "0.png", "red": TRUTHS[0]["red"][:1], "pink": TRUTHS[0]["red"][1:], "green": []},
        {"image_path": "1.png", "red": [], "pink": TRUTHS[1]["red"], "green": TRUTHS[1]["green"]},
    ]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return tmp_path / "labels.json"


def test_channels_are_merged_as_in_the_training(folder, labels, evaluation, tmp_path):
    found = evaluate(checkpoint_of(folder, tmp_path / "a.ckpt"), labels, folder, device="cpu")
    assert found.threshold_distances == [4.0]
    assert found.metrics["AP/red/d=4"] == evaluation.metrics["AP/red/d=4"]
    assert found.channels["red"]["truths"] == 3
    chosen = evaluate(tmp_path / "a.ckpt", labels, folder, device="cpu", keypoint_channels="red")
    assert {name: row["truths"] for name, row in chosen.channels.items()} == {"red": 3}
    # What is given goes before it.
    given = evaluate(tmp_path / "a.ckpt", labels, folder, device="cpu", keypoint_channels="red green=pink")
    assert (given.channels["red"]["truths"], given.channels["green"]["truths"]) == (1, 3)


def test_empty_channels_mean_what_they_meant_in_the_training(folder, evaluation, tmp_path, capsys):
    path = checkpoint_of(folder, tmp_path / "a.ckpt", empty_channels="ignore")
    labels = folder / "labels.json"
    ignored = evaluate(path, labels, device="cpu")
    # Only the first image has no green ones.
    assert [image.labelled.tolist() for image in ignored.images.values()] == [[True, False], [True, True]]
    assert ignored.metrics["AP/red/d=4"] == evaluation.metrics["AP/red/d=4"]
    given = evaluate(path, labels, device="cpu", empty_channels="absent")
    unknown = evaluate(checkpoint_of(folder, tmp_path / "b.ckpt"), labels, device="cpu")
    assert all(image.labelled.all() for found in (given, unknown) for image in found.images.values())
    assert main(["checkpoint", "info", str(path)]) == 0
    assert "within 4 px, empty channels ignored" in capsys.readouterr().out


def test_a_channel_that_is_nowhere_is_named(folder, labels, tmp_path):
    path = checkpoint_of(folder, tmp_path / "a.ckpt", channel_members={"red": ["rose"], "green": ["green"]})
    with pytest.raises(InputError, match=r'no channel "red", which the detector finds'):
        evaluate(path, labels, folder, device="cpu")


def test_distances_in_fractions_of_each_image(folder, labels, evaluation, tmp_path):
    # The second red one is 3 px off in an image of 50 x 40, whose diagonal is 64.0 px: 0.0469 of it.
    path = checkpoint_of(folder, tmp_path / "a.ckpt", distances=[0.045, 0.05], threshold_unit="image")
    found = evaluate(path, labels, folder, device="cpu", distance=0.05)
    assert found.channels["red"]["average_precision"] == pytest.approx([1 / 3, 2 / 3])
    assert found.channels["red"]["median"] == pytest.approx(3 / 64.0312 / 2, abs=1e-4)  # of 0 and of this
    assert found.errors.counts.tolist() == evaluation.errors.counts.tolist()
    assert "within 0.05 of the image's diagonal" in found.table()
    assert "AP and localisation error in diagonals within 0.05" in found.table()
    assert "0.0234" in found.table().splitlines()[3].split()  # the median, to as many digits as there is use for
    assert found.to_dict()["unit"] == "image"
    for name, value in (("report", tmp_path / "r.html"), ("recall", 0.5)):
        with pytest.raises(InputError, match=rf"^--{name}: expected .* --threshold_unit pixel$"):
            evaluate(path, labels, folder, device="cpu", **{name: value})
    assert evaluate(path, labels, folder, device="cpu", threshold_unit="image").threshold_distances == [0.045, 0.05]
    pixels = evaluate(path, labels, folder, device="cpu", maximal_gt_keypoint_pixel_distances="2 4")
    assert pixels.metrics["AP/red/d=4"] == evaluation.metrics["AP/red/d=4"]
    with pytest.raises(InputError, match="expected fractions of the image's diagonal"):
        evaluate(path, labels, folder, maximal_gt_keypoint_pixel_distances="2 4", threshold_unit="image")


def test_exported_weights_know_it_too(folder, labels, tmp_path):
    checkpoint_of(folder, tmp_path / "a.ckpt")
    assert main(["checkpoint", "export-weights", str(tmp_path / "a.ckpt"), str(tmp_path / "a.safetensors")]) == 0
    found = evaluate(tmp_path / "a.safetensors", labels, folder, device="cpu")
    assert (found.threshold_distances, found.channels["red"]["truths"]) == ([4.0], 3)


def test_flags_that_leave_a_channel_or_a_distance_out_are_named(folder, labels, tmp_path, caplog):
    path = checkpoint_of(folder, tmp_path / "a.ckpt")
    with pytest.raises(
        InputError, match=r"^--keypoint_channels red=green: leaves nothing for the checkpoint's channel 'green'$"
    ):
        evaluate(path, labels, folder, device="cpu", keypoint_channels="red=green green")
    with pytest.raises(InputError, match=r"^--keypoint_channels red=green red=pink: expected each channel once$"):
        evaluate(path, labels, folder, device="cpu", keypoint_channels="red=green red=pink")
    with pytest.raises(InputError, match=r"^--threshold_unit image: expected --maximal_gt_keypoint_pixel_distances"):
        evaluate(path, labels, folder, device="cpu", threshold_unit="image")
    evaluate(path, labels, folder, device="cpu", maximal_gt_keypoint_pixel_distances="0.05")
    assert "0.05 is much less than a pixel; --threshold_unit image takes fractions" in caplog.text


def test_a_member_that_only_later_entries_have_is_refused(folder, labels, tmp_path):
    content = json.loads(labels.read_text())
    del content["dataset"][0]["pink"]
    labels.write_text(json.dumps(content))
    with pytest.raises(InputError, match='entry 1 has the channel "pink", but entry 0 does not'):
        evaluate(checkpoint_of(folder, tmp_path / "a.ckpt"), labels, folder, device="cpu")
