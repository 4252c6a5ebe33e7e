"""Curves of a training and of its precision over recall, as PNG files, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Which log names share a plot: the part after the stage, as in `validation/AP/<channel>/d=2`.
TITLES = {
    "loss": "loss",
    "gt_loss": "loss",
    "AP": "average precision",
    "meanAP": "average precision",
    "median_distance": "distance of matched keypoints",
    "mean_distance": "distance of matched keypoints",
    "learning_rate": "learning rate",
}
LEGEND_ENTRIES = 14

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def group_series(series: Series) -> dict[str, list[str]]:
    """Sorts curves into plots by what their values mean.

    Args:
        series: Steps and values by log name.

    Returns:
        Names by title of the plot: losses, average precision and distances each together, all else by its own name.
    """
    groups: dict[str, list[str]] = {}
    for name in series:
        parts = name.split("/")
        kind = parts[1] if len(parts) > 1 else parts[0]
        kind = "learning_rate" if kind.startswith(("lr", "learning_rate")) else kind
        groups.setdefault(TITLES.get(kind, kind), []).append(name)
    order = list(dict.fromkeys(TITLES.values()))
    return dict(sorted(groups.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def plot_curves(series: Series, path: str | PathLike, x_label: str = "epoch") -> None:
    """Draws curves of a training, one plot per kind of value; those of single channels are thinner.

    Args:
        series: Steps and values by log name (`train/loss`, `validation/AP/<channel>/d=2`, ...). NaN leaves a gap.
        path: The PNG file to write.
        x_label: What the steps count.
    """
    groups = group_series(series)
    columns = min(3, max(1, len(groups)))
    rows = max(1, math.ceil(len(groups) / columns))
    figure = _figure(5.4 * columns, 3.9 * rows)
    for position, (title, names) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        _style(axes, title, x_label)
        positive = True
        for name in names:
            steps, values = (np.asarray(column, dtype=np.float64) for column in series[name])
            known = np.isfinite(values)
            positive &= bool((values[known] > 0).all())
            marker = "o" if known.sum() == 1 else None
            axes.plot(steps[known], values[known], label=name, marker=marker, markersize=4, **_line(name))
        if title == "loss" and positive:
            axes.set_yscale("log")
        if title == "average precision":
            axes.set_ylim(-0.02, 1.02)
        _legend(axes, names)
    FigureCanvasAgg(figure).print_png(str(path))


def plot_precision_recall(curves: Series, path: str | PathLike, title: str = "precision over recall") -> None:
    """Draws precision over recall.

    Args:
        curves: Recall and precision, both in [0, 1], by name.
        path: The PNG file to write.
        title: Title of the plot.
    """
    figure = _figure(6.4, 5.0)
    axes = figure.add_subplot()
    _style(axes, title, "recall")
    axes.set_ylabel("precision")
    for name, (recall, precision) in curves.items():
        axes.step(recall, precision, where="post", label=name)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _legend(axes, list(curves))
    FigureCanvasAgg(figure).print_png(str(path))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _style(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _line(name: str) -> dict[str, float | str]:
    """Width, opacity and dashes of a curve: totals stand out from channels, truth and training from validation."""
    total = name.count("/") < 2 or "/meanAP" in name
    style = ":" if "gt_loss" in name else "--" if name.startswith("train/") else "-"
    return {"linewidth": 2.2 if total else 1.0, "alpha": 1.0 if total else 0.55, "linestyle": style}


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Names the curves: all if there is room, otherwise the totals and how many more there are."""
    handles, labels = axes.get_legend_handles_labels()
    if len(names) > LEGEND_ENTRIES:
        totals = [i for i, name in enumerate(labels) if name.count("/") < 2 or "/meanAP" in name]
        shown = (totals or list(range(len(labels))))[:LEGEND_ENTRIES]
        handles, labels = [handles[i] for i in shown], [labels[i] for i in shown]
        labels[-1] += f" (and {len(names) - len(shown)} thinner ones)"
    if labels:
        axes.legend(handles, labels, fontsize=7, framealpha=0.6)
