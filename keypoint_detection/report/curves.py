"""Training curves, sorted into charts by their log names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Curve = tuple[Sequence[float], Sequence[float]]

STAGES = ("train", "validation")
MEANINGS = {"gt_loss": ", the lowest that BCE can be"}
DASHES = ("none", "7 3", "2 3", "9 3 2 3")


def curve_charts(curves: Mapping[str, Curve], channel_names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Charts of loss, mean AP, AP per channel, loss per channel and learning rate, as far as there are curves for them.

    Args:
        curves: steps and values by log name: `train/loss`, `validation/meanAP`, `validation/AP/<channel>/d=2` ...
        channel_names: names of the channels.
        unit: what the distances in these names count.
    """
    parts = (key.rpartition("/d=") for key in curves if key.startswith(("validation/meanAP/", "validation/AP/")))
    distances = sorted({distance for name, _, distance in parts if name}, key=float)
    losses = [f"{stage}/{kind}" for stage in STAGES for kind in ("loss", "gt_loss")]
    means = ["validation/meanAP", *(f"validation/meanAP/d={distance}" for distance in distances)]
    charts = [_chart("Loss", losses, curves, log=True), _chart("Mean AP", means, curves, unit=True)]
    for distance in distances:
        keys = [f"validation/AP/{name}/d={distance}" for name in channel_names]
        title = f"AP within {distance} {unit}, per channel"
        charts.append(_chart(title, keys, curves, names=channel_names, unit=True))
    keys = [f"validation/loss/{name}" for name in channel_names]
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
) -> dict[str, Any]:
    """One chart of those `keys` that were logged; `names` are the channels they belong to, `unit` means [0, 1]."""
    series = []
    for position, key in enumerate(keys):
        if key not in curves or not len(curves[key][0]):
            continue
        # A log axis has no place for zeros, such as the rate at a schedule's end.
        shown = [(step, value) for step, value in zip(*curves[key], strict=True) if not (log and value <= 0)]
        if not shown:
            continue
        series.append(
            {
                "name": f"{key}{MEANINGS.get(key.split('/')[-1], '')}" if names is None else names[position],
                "channel": None if names is None else position,
                "colour": position,
                "dash": DASHES[(position if names is None else position // 8) % len(DASHES)],
                "steps": [float(step) for step, _ in shown],
                "values": [float(value) for _, value in shown],
            }
        )
    return {"title": title, "series": series, "log": log, "unit": unit}
