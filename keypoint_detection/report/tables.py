"""Tables with the numbers of a report: for its images, and for a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from keypoint_detection.log_names import log_name
from keypoint_detection.metrics.average_precision import mean_of_defined
from keypoint_detection.report.data import ReportData
from keypoint_detection.report.measured import Measured, measure
from keypoint_detection.report.statistics import channel_numbers, mean_numbers


def numbers(data: ReportData, measured: Measured) -> dict[str, Any]:
    """`table` with the mean and the numbers per channel, and `figures`, the key figures as name, value and hint."""
    matches, distances, position = measured.matches, measured.distances, measured.position
    rows = [channel_numbers(matches, c, position, t) for c, t in enumerate(measured.thresholds)]
    for name, row in zip(data.channel_names, rows, strict=True):
        logged = [data.metrics.get(log_name("AP", name, d)) for d in distances]
        row["average_precision"] = _prefer(logged, row["average_precision"])
    mean = mean_numbers(rows)
    logged = [data.metrics.get(log_name("meanAP", distance=d)) for d in distances]
    mean["average_precision"] = _prefer(logged, mean["average_precision"])
    mean_ap = data.metrics.get("meanAP", mean_of_defined(mean["average_precision"]))
    keys = ("median", "mean", "p90", "threshold", "precision", "recall", "f1", "best_f1", "best_threshold")
    columns = ["Channel", "True", *(f"AP {d:g} px" for d in distances), "Median px", "Mean px", "90 % px"]
    columns += ["Threshold", "Precision", "Recall", "F1", "Best F1", "Best threshold"]
    cells = [
        [name, row["truths"], *row["average_precision"], *(row[key] for key in keys)]
        for name, row in zip(("mean", *data.channel_names), (mean, *rows), strict=True)
    ]
    cells[0][1] = f"{mean['truths']} in total"
    within = f"within {distances[position]:g} px"
    note = f"AP covers all scores. Distances are those of matched detections {within}; precision, recall and F1 are "
    note += f"at the score threshold of each channel, {within}. A dash means undefined, and is left out of means."
    note = f"{note} {data.note}".rstrip()
    figures = [["Mean AP", f"{mean_ap:.3f}", "over distances and channels"]]
    if len(distances) > 1:
        values = zip(distances, mean["average_precision"], strict=True)
        figures += [[f"AP {d:g} px", f"{value:.3f}", "mean over channels"] for d, value in values]
    figures += [["Median error", f"{mean['median']:.2f} px", f"of matches {within}"]]
    figures += [[key.title(), f"{mean[key]:.3f}", "at the score thresholds"] for key in ("precision", "recall")]
    figures += [["F1", f"{mean['f1']:.3f}", "at the score thresholds"]]
    figures = [[name, "–" if value.startswith("nan") else value, hint] for name, value, hint in figures]
    return {"table": {"columns": columns, "rows": cells, "note": note}, "figures": figures}


def test_table(data: ReportData, measured: Measured) -> dict[str, Any] | None:
    """The table of the test set at the score thresholds of the page, titled with its mean AP; None without test set."""
    if not data.test_images:
        return None
    tested = replace(data, images=data.test_images, metrics={}, score_thresholds=measured.thresholds)
    found = numbers(tested, measure(tested))
    return {"title": f"Test set: mean AP {found['figures'][0][1]}", **found["table"]}


def _prefer(logged: Sequence[float | None], measured: Sequence[float]) -> list[float]:
    return [value if log is None else log for log, value in zip(logged, measured, strict=True)]
