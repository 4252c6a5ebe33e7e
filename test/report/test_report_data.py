import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_data import image_of, payload_of, random_images, random_report

from keypoint_detection.metrics import AveragePrecision, Localization, Matches
from keypoint_detection.report import (
    ReportData,
    build_report,
    run_information,
    worst_images,
    write_report,
)
from keypoint_detection.report.measured import measure
from keypoint_detection.report.statistics import (
    Points,
    calibration_bins,
    channel_numbers,
    curve_points,
    histogram,
    image_errors,
    match_points,
)
from keypoint_detection.score_thresholds import usable_thresholds
from keypoint_detection.train.run_folder import provenance


def test_numbers_are_those_of_the_metrics():
    data = random_report(seed=3, images=20)
    measured = measure(data)
    average_precision = AveragePrecision(data.channel_names, data.threshold_distances)
    localization = Localization(data.channel_names, data.threshold_distances)
    for metric in (average_precision, localization):
        metric.update(*measured.points, torch.arange(20))
    expected, where = average_precision.compute(), localization.compute()
    table = payload_of(build_report(data))["table"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    for name in data.channel_names:
        assert rows[name]["AP 2 px"] == pytest.approx(expected[f"AP/{name}/d=2"], abs=1e-12)
        assert rows[name]["AP 4 px"] == pytest.approx(expected[f"AP/{name}/d=4"], abs=1e-12)
        assert rows[name]["Median px"] == pytest.approx(where[f"median_distance/{name}"], abs=1e-12)
        # Without given thresholds, the best ones are the thresholds.
        assert rows[name]["F1"] == pytest.approx(where[f"best_f1/{name}"], abs=1e-12)
        assert rows[name]["Precision"] == pytest.approx(where[f"precision/{name}"], abs=1e-12)
    assert rows["mean"]["AP 4 px"] == pytest.approx(expected["meanAP/d=4"], abs=1e-12)


def test_a_channel_without_a_best_threshold_is_drawn_from_the_score_that_counts_in_use():
    # A false detection alone, and a true one: the middle between its score and 0.
    image = image_of([[(10, 10)], [(50, 50)]], [[(90, 70, 0.9)], [(50, 50, 0.8)]])
    measured = measure(ReportData("t", ["lost", "found"], [4], [image]))
    assert measured.thresholds == pytest.approx([0.1, 0.4])
    assert measured.thresholds[0] == pytest.approx(usable_thresholds([math.nan])[0])


def test_more_matches_than_quantiles_of_older_torch_take(monkeypatch):
    def limited(*_):
        raise RuntimeError("quantile() input tensor is too large")  # of 2 ** 24 numbers, up to the summer of 2026

    monkeypatch.setattr(torch.Tensor, "quantile", limited)
    near = torch.linspace(0, 1, 11, dtype=torch.float64)
    whole = torch.zeros(11, dtype=torch.int64)
    numbers = channel_numbers(Matches(whole, whole, near, near[:, None], torch.tensor([11])), 0, 0, 0.5)
    assert [numbers[key] for key in ("median", "mean", "p90")] == pytest.approx([0.5, 0.5, 0.9])


def test_numbers_worked_out_by_hand():
    # Within 4 px: hits at 0 and 3 px with the first and the last score, a false positive between, one truth unfound.
    image = image_of([[(10, 10), (30, 10), (60, 60)]], [[(10, 10, 0.9375), (90, 70, 0.8125), (33, 10, 0.625)]])
    payload = payload_of(build_report(ReportData("t", ["c"], [2, 4], [image], score_thresholds=[0.7])))
    row = dict(zip(payload["table"]["columns"], payload["table"]["rows"][1], strict=True))
    assert row["True"] == 3
    assert row["AP 2 px"] == pytest.approx(1 / 3)
    assert row["AP 4 px"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert [row["Median px"], row["Mean px"], row["90 % px"]] == pytest.approx([1.5, 1.5, 2.7])
    assert [row["Precision"], row["Recall"], row["F1"]] == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert [row["Best F1"], row["Best threshold"]] == pytest.approx([2 / 3, 0.625 / 2])
    assert payload["distance"] == 4
    assert payload["histogram"]["counts"] == [[1, *[0] * 14, 1, *[0] * 4]]
    bins = payload["quality"][1]["bins"][0]
    assert bins["count"] == [0, 0, 0, 0, 0, 0, 1, 0, 1, 1]
    assert bins["true"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]


def test_a_distance_belongs_to_the_bin_that_it_lies_in():
    near = torch.tensor([0.0, 0.9, 1.0, 18.6, 20.0, math.nan], dtype=torch.float64)  # of 20 bins of a pixel each
    images, scores = torch.arange(6), torch.full((6,), 0.5, dtype=torch.float64)
    matches = Matches(torch.zeros(6, dtype=torch.int64), images, scores, near[:, None], torch.tensor([6]))
    (counts,) = histogram(matches, [20.0], 0)["counts"]
    assert {place: count for place, count in enumerate(counts) if count} == {0: 2, 1: 1, 18: 1, 19: 1}


def test_logged_metrics_come_before_measured_ones():
    data = random_report()
    data.metrics = {"meanAP": 0.123, "AP/paws/d=2": 0.456}
    payload = payload_of(build_report(data))
    assert payload["figures"][0][1] == "0.123"
    assert payload["table"]["rows"][2][:3] == ["paws", payload["table"]["rows"][2][1], 0.456]


def test_of_images_with_as_many_errors_the_one_with_the_larger_mean_distance_is_worse():
    near = image_of([[(10, 10), (50, 50)]], [[(11, 10, 0.9), (51, 50, 0.8)]])  # 1 px off on average
    far = image_of([[(10, 10)]], [[(11.5, 10, 0.9)]])
    assert worst_images(ReportData("t", ["c"], [4], [near, far], score_thresholds=[0.5])) == [1, 0]


def test_worst_images_first_and_the_rest_counted():
    perfect = image_of([[(10, 10)]], [[(10, 10, 0.9)]], name="perfect")
    precise = image_of([[(10, 10)]], [[(11, 10, 0.9)]], name="a pixel off")
    missed = image_of([[(10, 10)]], [[]], name="missed")
    worst = image_of([[(10, 10)]], [[(90, 70, 0.9)]], name="missed and false")
    data = ReportData("t", ["c"], [4], [perfect, precise, missed, worst], score_thresholds=[0.5], max_images=3)
    assert worst_images(data) == [3, 2, 1]
    payload = payload_of(build_report(data))
    assert [image["name"] for image in payload["images"]] == ["missed and false", "missed", "a pixel off"]
    assert [image["name"] for image in payload["others"]] == ["perfect"]
    assert "The 3 worst of 4 images are shown; 1 left out, but counted." in payload["gallery_note"]


def test_points_keep_their_float32_values_and_detections_descend():
    data = random_report(seed=5)
    payload = payload_of(build_report(data))
    by_name = {image.name: image for image in data.images}
    for entry in payload["images"]:
        image = by_name[entry["name"]]
        for channel, flat in enumerate(entry["detections"]):
            if not image.labelled[channel]:
                assert flat is None
                continue
            rows = np.array(flat).reshape(-1, 3).astype(np.float32)
            assert (np.diff(rows[:, 2]) <= 0).all()
            expected = np.concatenate([image.xy[channel], image.scores[channel][:, None]], 1)
            assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))


def test_nothing_in_a_name_becomes_markup():
    evil = "</script><script>alert(1)</script><!--"
    data = random_report(names=(evil, "@TITLE@", "'\"&"))
    data.title = "<b>@DATA@</b>"
    page = build_report(data)
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert page.count("<!--") == 0
    assert "<b>" not in page
    assert "<h1>&lt;b&gt;@DATA@&lt;/b&gt;</h1>" in page
    assert payload_of(page)["channels"] == [evil, "@TITLE@", "'\"&"]


def test_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = build_report(random_report(pictures=tmp_path, heatmaps=True))
    addresses = re.findall(
        r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'`]*""", re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    )
    assert [address for address in addresses if "www.w3.org/2000/svg" not in address] == []
    assert re.findall(r"<link|@import|\bfetch\(|XMLHttpRequest", page) == []


def test_undefined_numbers_are_null():
    image = image_of([[], [(10, 10)]], [[], [(math.nan, 3, 0.5)]])
    payload = payload_of(build_report(ReportData("t", ["never there", "never found"], [2], [image])))
    assert payload["table"]["rows"][1][2] is None
    assert payload["table"]["rows"][2][2] == 0
    assert payload["quality"][0]["errors"][0]["count"] == [0, 1]


def test_report_without_images_or_keypoints():
    payload = payload_of(build_report(ReportData("nothing", ["a"], [2, 4], [])))
    assert payload["images"] == []
    assert payload["gallery_note"] == "There are no images to show."
    payload = payload_of(build_report(ReportData("empty", ["a"], [2], [image_of([[]], [[]])])))
    assert payload["images"][0]["truths"] == [[]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": 3.0}, "distance 3: expected one of the threshold distances"),
        ({"score_thresholds": [0.5]}, "got 1 score thresholds, expected one for each of 3 channels"),
        ({"channel_names": ("a", "b")}, "expected 2 channels"),
    ],
)
def test_data_that_does_not_fit_is_refused(change, message):
    data = random_report()
    for name, value in change.items():
        setattr(data, name, value)
    with pytest.raises(ValueError, match=message):
        build_report(data)


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.html"
    data = random_report()
    write_report(data, path)
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!DOCTYPE html>")
    assert before.rstrip().endswith("</html>")

    def fail(self, target):
        raise OSError(28, "disk full")

    monkeypatch.setattr(Path, "replace", fail)
    data.title = "Another"
    with pytest.raises(OSError, match="disk full"):
        write_report(data, path)
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_training_curves_are_sorted_into_charts():
    charts = payload_of(build_report(random_report()))["curves"]
    titles = {chart["title"]: [series["name"] for series in chart["series"]] for chart in charts}
    assert titles == {
        "Loss": ["train/loss", "validation/loss"],
        "Mean AP": ["validation/meanAP"],
        "AP within 2 px, per channel": ["nose"],
    }
    assert charts[0]["series"][1]["values"] == [0.6, None, 0.2]


def test_zeros_are_left_out_of_log_axes():
    curves = {"learning_rate": ([0, 1, 2], [0.1, 0.01, 0.0]), "validation/meanAP": ([0, 1], [0.0, 0.5])}
    data = ReportData("t", ["a"], [2], [], curves=curves)
    charts = {chart["title"]: chart["series"][0] for chart in payload_of(build_report(data))["curves"]}
    assert (charts["Learning rate"]["steps"], charts["Learning rate"]["values"]) == ([0, 1], [0.1, 0.01])
    assert charts["Mean AP"]["values"] == [0, 0.5]


def test_a_test_set_has_a_table_of_its_own_at_the_thresholds_of_the_page():
    assert payload_of(build_report(random_report()))["test"] is None
    # The best F1 on the test set would be at 0.3; the best on the page's own images is between 0.5 and 0.9.
    own = image_of([[(10, 10)]], [[(10, 10, 0.9), (90, 70, 0.5)]])
    tested = image_of([[(10, 10), (50, 50)]], [[(10, 10, 0.9), (90, 70, 0.8), (50, 50, 0.3)]])
    for thresholds in (None, [0.7]):
        data = ReportData("t", ["c"], [2], [own], score_thresholds=thresholds, test_images=[tested])
        data.metrics = {"meanAP": 0.123, "AP/c/d=2": 0.123}  # of the page's own images
        payload = payload_of(build_report(data))
        table = payload["test"]
        assert table["columns"] == payload["table"]["columns"]
        row = dict(zip(table["columns"], table["rows"][1], strict=True))
        assert [row["Precision"], row["Recall"], row["F1"], row["Threshold"]] == pytest.approx(
            [1 / 2, 1 / 2, 1 / 2, 0.7]
        )
        assert row["AP 2 px"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
        assert table["title"] == "Test set: mean AP 0.833"


def test_run_information_says_what_made_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["keypoint-detection", "evaluate", "--output", "a b.json"])
    info = run_information(checkpoint="best.ckpt")
    assert info["checkpoint"] == "best.ckpt"
    assert info["command"] == "keypoint-detection evaluate --output 'a b.json'"
    assert f"torch {torch.__version__.split('+')[0]}" in info["versions"]
    monkeypatch.setattr("sys.argv", ["folder/train.py", "--max_epochs", "3"])
    monkeypatch.setattr("sys.executable", "/somewhere/bin/python3")
    assert run_information()["command"] == provenance({})["command"] == "python3 folder/train.py --max_epochs 3"


def test_scores_on_an_edge_belong_to_the_bin_above():
    scores = torch.arange(11, dtype=torch.float64) / 10
    bins = calibration_bins(scores, scores > 0.45)
    assert bins["count"] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert bins["true"] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert bins["score"] == pytest.approx([*[i / 10 for i in range(9)], 1.9])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3000))
def test_thinned_curve_stays_close_and_keeps_ends_and_best_f1(seed, count):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    matched = torch.rand(count, generator=generator) < scores
    truths = int(matched.sum()) + 3
    full = {}
    order = scores.argsort(descending=True)
    hits = 0
    for rank, index in enumerate(order.tolist()):
        hits += int(matched[index])
        full[scores[index].item()] = (hits / (rank + 1), hits / truths)
    curve = curve_points(scores, matched, truths, 0.5)
    assert len(curve["score"]) <= 204
    for point in zip(curve["score"], curve["precision"], curve["recall"], strict=True):
        assert full[point[0]] == pytest.approx(point[1:])
    f1 = lambda p, r: 2 * p * r / (p + r) if p + r else 0.0  # noqa: E731
    kept = [f1(p, r) for p, r in zip(curve["precision"], curve["recall"], strict=True)]
    assert max(kept) == pytest.approx(max(f1(*values) for values in full.values()))
    assert (curve["score"][0], curve["score"][-1]) == (scores.max().item(), scores.min().item())


def test_a_thinned_curve_keeps_the_last_point_above_the_score_threshold():
    scores = torch.linspace(1, 0.001, 1000, dtype=torch.float64)  # thousandths
    for threshold in (0.3335, 0.5005, 0.7125):
        curve = curve_points(scores, torch.ones(1000, dtype=torch.bool), 1000, threshold)
        assert len(curve["score"]) < 210
        assert min(score for score in curve["score"] if score >= threshold) == pytest.approx(threshold + 0.0005)


def test_without_a_true_keypoint_there_is_no_curve():
    curve = curve_points(torch.rand(500), torch.zeros(500, dtype=torch.bool), 0, 0.5)
    assert curve == {"precision": [], "recall": [], "score": []}


def test_random_images_hold_ties():
    # The browser's counts are compared on these: they have to contain what could go wrong.
    scores = np.concatenate([np.concatenate(image.scores) for image in random_images(0, images=20)])
    assert len(np.unique(scores)) < len(scores)


def test_errors_of_an_image_are_misses_and_false_positives_of_labelled_channels():
    # One miss, one false positive at the threshold, and a true keypoint of a channel that is not labelled.
    xy = torch.tensor([[[[5.0, 5.0]], [[math.nan, math.nan]]]], dtype=torch.float64)
    scores = torch.tensor([[[0.5], [0.0]]], dtype=torch.float64)
    truths = torch.tensor([[[[50.0, 5.0]], [[9.0, 9.0]]]], dtype=torch.float64)
    points = Points(xy, scores, truths, torch.tensor([[True, False]]))
    assert image_errors(points, match_points(points, ["a", "b"], [2.0]), 0, 2.0, [0.5, 0.5]).tolist() == [2]
