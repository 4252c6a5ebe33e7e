"""Training curves, grouped into charts by their log names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keypoint_detection.log_names import log_name, parse_log_name

Curve = tuple[Sequence[float], Sequence[float]]

STAGES = ("train", "validation")
MEANINGS = {"gt_loss": ", the lowest possible BCE"}
DASHES = ("none", "7 3", "2 3", "9 3 2 3")


def curve_charts(curves: Mapping[str, Curve], channel_names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Charts of loss, mean AP, AP per channel, loss per channel and learning rate, without those that have no curve.

    Args:
        curves: Steps and values by log name: `train/loss`, `validation/meanAP`, `validation/AP/<channel>/d=2` ...
        channel_names: Names of the channels.
        unit: Unit of the distances in these names.
    """
    distances = sorted({distance for key in curves if (distance := parse_log_name(key).distance) is not None})
    losses = [log_name(kind, stage=stage) for stage in STAGES for kind in ("loss", "gt_loss")]
    means = [log_name("meanAP", distance=distance, stage="validation") for distance in (None, *distances)]
    charts = [_chart("Loss", losses, curves, log=True), _chart("Mean AP", means, curves, unit=True)]
    for distance in distances:
        keys = [log_name("AP", name, distance, "validation") for name in channel_names]
        title = f"AP within {distance:g} {unit}, per channel"
        charts.append(_chart(title, keys, curves, names=channel_names, unit=True, axis="AP"))
    keys = [log_name("loss", name, stage="validation") for name in channel_names]
    charts.append(_chart("Validation loss per channel", keys, curves, names=channel_names, log=True))
    charts.append(_chart("Learning rate", ["learning_rate"], curves, log=True))
    return [chart for chart in charts if chart["series"]]


def _chart(
    title: str,
    keys: Sequence[str],
    curves: Mapping[str, Curve],
    names: Sequence[str] | None = None,
    log: bool = False,
    unit: bool = False,
    axis: str | None = None,
) -> dict[str, Any]:
    """One chart of those `keys` that were logged; `names` are the channels that they belong to.

    With `unit`, values are in [0, 1]. `axis` is the label of the vertical axis, by default the title.
    """
    series = []
    for position, key in enumerate(keys):
        if key not in curves or not len(curves[key][0]):
            continue
        # A log axis cannot show zeros, such as the learning rate at the end of a schedule.
        shown = [(step, value) for step, value in zip(*curves[key], strict=True) if not (log and value <= 0)]
        if not shown:
            continue
        series.append(
            {
                "name": f"{key}{MEANINGS.get(parse_log_name(key).kind, '')}" if names is None else names[position],
                "channel": None if names is None else position,
                "colour": position,
                "dash": DASHES[(position if names is None else position // 8) % len(DASHES)],
                "steps": [float(step) for step, _ in shown],
                "values": [float(value) for _, value in shown],
            }
        )
    return {"title": title, "axis": axis or title, "series": series, "log": log, "unit": unit}
