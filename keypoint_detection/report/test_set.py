"""The table of a test set, whose images the report does not hold."""

from __future__ import annotations

import math
from typing import Any

from keypoint_detection.report.data import ReportData

KINDS = {"median_distance": "Median", "precision": "Precision", "recall": "Recall", "best_f1": "Best F1"}


def test_table(data: ReportData) -> dict[str, Any] | None:
    """Columns and rows of the metrics that were logged for the test set, the mean first; None where there are none."""
    metrics = data.test_metrics
    if "meanAP" not in metrics:
        return None
    distances = [name.removeprefix("meanAP/") for name in metrics if name.startswith("meanAP/d=")]
    columns = ["Channel", *(f"AP {distance}" for distance in distances), *KINDS.values()]
    rows = []
    for channel in (None, *data.channel_names):
        end = "" if channel is None else f"/{channel}"
        average = "meanAP" if channel is None else f"AP/{channel}"
        keys = [*(f"{average}/{distance}" for distance in distances), *(f"{kind}{end}" for kind in KINDS)]
        rows.append(["mean" if channel is None else channel, *(metrics.get(key, math.nan) for key in keys)])
    note = f"Mean AP {metrics['meanAP']:.3f} on the test set. Distances d are in the unit of the training; precision"
    note += " and recall are at the best F1 on this set. All else on this page is of the set in its title."
    return {"columns": columns, "rows": rows, "note": note}
