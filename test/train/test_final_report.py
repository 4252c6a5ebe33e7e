"""What a training leaves for evaluating: thresholds and metrics in its checkpoints, and its report."""

import csv
import json
import math
import re
import shutil

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET
from PIL import Image
from report_data import payload_of

from keypoint_detection import fit
from keypoint_detection.evaluation.command import evaluate
from keypoint_detection.train import final_report
from keypoint_detection.version import library_version

CHANNELS = ["corner_keypoints", "flap_corner_keypoints"]
# Far enough that a detector of a few steps finds something.
DISTANCES = "8 30"


def train(folder, **changes):
    changes |= {"wandb_mode": "disabled", "max_pictures": 0, "validation_split_ratio": 0.5}
    return fit(**DEFAULT_HYPERPARAMETERS | changes, run_dir=str(folder), enable_progress_bar=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    # Fast enough, and averaged over few enough steps, that it finds something whatever the defaults are.
    fast = {"max_epochs": 20, "learning_rate": 0.02, "learning_rate_schedule": "constant", "ema_decay": 0.5}
    fast |= {"augment_train": False, "loss": "bce", "ap_epoch_freq": 5, "check_val_every_n_epoch": 5}
    fast["json_test_dataset_path"] = DEFAULT_HYPERPARAMETERS["json_dataset_path"]
    return train(tmp_path_factory.mktemp("run"), maximal_gt_keypoint_pixel_distances=DISTANCES, **fast)


def logged(result, name):
    with (result.run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_report_is_written_and_named(result):
    page = (result.run_dir / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("data:image/png;base64,") == 2
    assert all(name in page for name in [*CHANNELS, "Validation loss per channel"])
    assert str(result.run_dir / "report.html") in result.where_to_look()


def test_checkpoints_hold_the_thresholds_and_metrics_of_their_validation(result):
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(result.run_dir / "checkpoints" / name, weights_only=True)
        metrics = checkpoint["validation_metrics"]
        expected = [metrics[f"best_threshold/{channel}"] for channel in CHANNELS]
        assert checkpoint["state_dict"]["score_thresholds"].tolist() == pytest.approx(expected, nan_ok=True)
        assert not all(math.isnan(value) for value in expected)
        assert any(metrics["meanAP"] == pytest.approx(value, abs=1e-6) for value in logged(result, "validation/meanAP"))
        assert checkpoint["keypoint_detection_version"] == library_version()
        # The weights are the averaged ones, next to which the last checkpoint keeps the current ones.
        assert ("current_model_state" in checkpoint) is (name == "last.ckpt")
        assert ("optimizer_states" in checkpoint) is (name == "last.ckpt")
    assert not result.detector.score_thresholds.isnan().all()
    assert metrics["meanAP"] == pytest.approx(logged(result, "validation/meanAP")[-1], abs=1e-6)


def test_evaluate_gives_what_training_logged_for_the_checkpoint(result):
    found = evaluate(
        result.best_checkpoint,
        DEFAULT_HYPERPARAMETERS["json_dataset_path"],
        split=result.run_dir / "split.json",
        maximal_gt_keypoint_pixel_distances=DISTANCES,
        batch_size=DEFAULT_HYPERPARAMETERS["batch_size"],
        device="cpu",
    )
    trained = {name.removeprefix("best/"): value for name, value in result.metrics.items() if name.startswith("best/")}
    expected = {name: value for name, value in trained.items() if "loss" not in name}
    assert expected.keys() == found.metrics.keys()
    assert found.metrics == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert 0 < found.metrics["meanAP"] < 1
    assert max(logged(result, "validation/meanAP")) == pytest.approx(found.metrics["meanAP"], abs=1e-6)
    # At the stored thresholds recall is that of the best F1, and the report shows the same numbers.
    for channel, numbers in found.channels.items():
        assert numbers["recall"] == pytest.approx(trained[f"recall/{channel}"], abs=1e-6, nan_ok=True)
    assert json.dumps(found.to_dict())


def test_the_test_set_of_the_report_has_the_precision_and_recall_of_evaluate(result):
    found = evaluate(
        result.best_checkpoint,
        DEFAULT_HYPERPARAMETERS["json_dataset_path"],
        maximal_gt_keypoint_pixel_distances=DISTANCES,
        device="cpu",
    )
    table = payload_of((result.run_dir / "report.html").read_text())["test"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    for channel, numbers in found.channels.items():
        for name in ("threshold", "precision", "recall", "f1"):
            shown = math.nan if rows[channel][name.title()] is None else rows[channel][name.title()]
            assert shown == pytest.approx(numbers[name], abs=1e-6, nan_ok=True)
    assert table["title"] == f"Test set: mean AP {result.metrics['test/meanAP']:.3f}"


def test_distances_in_fractions_of_the_diagonal_become_pixels_in_the_report(tmp_path):
    distances = {"maximal_gt_keypoint_pixel_distances": "0.1 0.3", "threshold_unit": "image"}
    result = train(tmp_path / "run", max_epochs=1, **distances)
    page = (result.run_dir / "report.html").read_text()
    (picture, *_) = sorted(TEST_DATASET.rglob("*.png"))
    diagonal = math.hypot(*Image.open(picture).size)  # of all four images
    # Not rounded to one decimal: that is up to 2 % of 2.5 px, and moves AP.
    assert f'"distances":[{0.1 * diagonal:.5g},{0.3 * diagonal:.5g}]' in page
    for distance in (0.1, 0.3):
        assert f"AP within {distance * diagonal:.5g} px, per channel" in page
    assert "metrics.csv" not in page  # whose numbers are the same


def test_a_curve_of_another_distance_than_the_evaluations_keeps_it():
    distances = {0.1: 40.0, 0.3: 120.0}  # as after a training that was resumed with others
    names = [
        "validation/AP/a/d=0.1",
        "validation/AP/a/d=0.2",
        "validation/meanAP",
        "validation/loss/d=0.1",
        "learning_rate",
    ]
    shown = [final_report._in_pixels(name, distances) for name in names]
    assert shown == ["validation/AP/a/d=40", *names[1:]]


def test_channels_that_are_called_like_a_distance_or_nothing_are_in_the_table_and_the_report(tmp_path):
    entries = json.loads((TEST_DATASET / "annotations.json").read_text())
    for entry in entries["dataset"]:
        entry["d=0.1"], entry[""] = (entry.pop(name) for name in CHANNELS)
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    changes = {"json_dataset_path": str(tmp_path / "labels.json"), "keypoint_channels": ["d=0.1", ""]}
    changes |= {"maximal_gt_keypoint_pixel_distances": "0.1 0.3", "threshold_unit": "image", "max_epochs": 1}
    result = train(tmp_path / "run", **changes)
    charts = {
        chart["title"]: chart["series"] for chart in payload_of((result.run_dir / "report.html").read_text())["curves"]
    }
    assert [series["name"] for series in charts["Validation loss per channel"]] == ["d=0.1", ""]
    rows = result.table().split("\n")[3:]
    assert [row[:7] for row in rows if "---" not in row] == ["d=0.1  ", "       ", "mean   "]


def test_curves_in_fractions_of_differing_diagonals_stay_in_fractions(tmp_path):
    shutil.copytree(TEST_DATASET, tmp_path / "data")
    path = sorted((tmp_path / "data").rglob("*.png"))[0]
    with Image.open(path) as image:
        image.resize((96, 96)).save(path)
    data = {"json_dataset_path": str(tmp_path / "data" / "annotations.json"), "image_dataset_path": None}
    validation = {"json_validation_dataset_path": data["json_dataset_path"]}
    distances = {"maximal_gt_keypoint_pixel_distances": "0.1 0.3", "threshold_unit": "image"}
    result = train(tmp_path / "run", max_epochs=1, **data, **validation, **distances)
    page = (result.run_dir / "report.html").read_text()
    for distance in ("0.1", "0.3"):
        assert f"AP within {distance} of the image's diagonal, per channel" in page
    assert "px, per channel" not in page
    note = payload_of(page)["table"]["note"]
    assert "measured within 0.1 and 0.3 of each image's diagonal" in note
    assert "metrics.csv" in note


def test_the_report_says_where_a_test_set_of_another_size_was_measured_within_other_distances(tmp_path):
    shutil.copytree(TEST_DATASET, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((96, 96)).save(path)
    test = {"json_test_dataset_path": str(tmp_path / "data" / "annotations.json")}
    test["image_test_dataset_path"] = str(tmp_path / "data")
    distances = {"maximal_gt_keypoint_pixel_distances": "0.1", "threshold_unit": "image"}
    result = train(tmp_path / "run", max_epochs=1, **test, **distances)
    note = payload_of((result.run_dir / "report.html").read_text())["table"]["note"]
    assert "measured within 0.1 of each image's diagonal" in note


def test_the_smallest_distances_in_fractions_of_the_diagonal_are_not_0(tmp_path):
    distances = {"maximal_gt_keypoint_pixel_distances": "0.0002", "threshold_unit": "image"}
    result = train(tmp_path / "run", max_epochs=1, **distances)
    (shown,) = re.findall(r'"distances":\[([^]]*)\]', (result.run_dir / "report.html").read_text())
    assert float(shown) == pytest.approx(0.0002 * math.hypot(128, 128), abs=0.001)


def test_a_training_without_validation_ends_without_a_report(tmp_path):
    result = train(tmp_path, max_epochs=1, limit_val_batches=0)
    assert result.best_checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert not (tmp_path / "report.html").exists()
    assert "report.html" not in result.where_to_look()
    assert not any(module.training for module in result.detector.modules())  # as after one with a report
    assert (tmp_path / "curves.png").exists()
