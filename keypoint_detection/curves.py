"""Training curves as a PNG file, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from keypoint_detection.log_names import LogName, parse_log_name
from keypoint_detection.picture_layout import boxes_for_letters, paper_colours

DISTANCES = {f"{mean}_distance": f"{mean} distance of matched keypoints" for mean in ("median", "mean")}
# Kinds of values with the same title share a plot.
TITLES = {
    "loss": "loss",
    "gt_loss": "loss",
    "AP": "average precision",
    "meanAP": "average precision",
    **DISTANCES,
    "learning_rate": "learning rate",
}
LEGEND_CHANNELS = 60
LEGEND_COLUMNS = 8
LEGEND_FONT = 8  # points
# Curves of at most FEW_POINTS have markers. With more than MANY_CHANNELS, the curves of channels are thin and pale.
FEW_POINTS = 30
MANY_CHANNELS = 12
MARGIN = 0.4  # epochs on either side, if there is only one
LEGEND_SPACE = 42  # points of a column's width in addition to its longest name
STAGE_DASHES = {"train": "--", "validation": "-"}
DISTANCE_DASHES = ("-", "--", ":", "-.")
TOTAL = "black"

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def group_series(series: Series) -> dict[str, list[str]]:
    """Groups curves into plots by what their values mean.

    Args:
        series: Steps and values by log name.

    Returns:
        Names by title of the plot: one plot for losses, one for average precision, and one for each other kind.
    """
    groups: dict[str, list[str]] = {}
    for name in series:
        kind = parse_log_name(name).kind
        groups.setdefault(TITLES.get(kind, kind), []).append(name)
    order = list(dict.fromkeys(TITLES.values()))
    return dict(sorted(groups.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


@boxes_for_letters()
def plot_curves(
    series: Series,
    path: str | PathLike,
    x_label: str = "epoch",
    channel_names: Sequence[str] = (),
    distance_unit: str = "pixels",
) -> None:
    """Draws training curves, one plot per kind of value.

    A channel has the same colour everywhere, as in pictures of keypoints, and totals are black; dashes distinguish
    training from validation, and threshold distances from one another. Legends are below the plots.

    Args:
        series: Steps and values by log name (`train/loss`, `validation/AP/<channel>/d=2`, ...). NaN leaves a gap.
        path: The PNG file to write.
        x_label: What the steps count.
        channel_names: The channels in the order of their colours; others follow in the order of their curves.
        distance_unit: Unit of distances.
    """
    series = {name: curve for name, curve in series.items() if np.isfinite(curve[1]).any()}
    colours = _colours(series, channel_names)
    distances = _distances(series)
    groups = group_series(series)
    columns = 2 if len(groups) == 4 else min(3, max(1, len(groups)))
    rows = max(1, math.ceil(len(groups) / columns))
    width = 5.4 * columns
    height = 4.3 * rows + 0.2 * math.ceil(len(colours) / _legend_columns(colours, width))
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    for position, (title, names) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        first, last = (pick(pick(series[name][0]) for name in names) for pick in (min, max))
        if first == last:
            axes.set_xlim(first - MARGIN, last + MARGIN)
        positive = True
        # Totals are drawn last, on top of the channels.
        for name in sorted(names, key=lambda name: parse_log_name(name).channel is None):
            steps, values = (np.asarray(column, dtype=np.float64) for column in series[name])
            known = np.isfinite(values)
            positive &= bool((values[known] > 0).all())
            curve = parse_log_name(name)
            # With few points, the line alone would not show which values were measured.
            marker = "o" if known.sum() == 1 or (known.sum() <= FEW_POINTS and curve.channel is None) else None
            colour, look = colours.get(curve.channel, TOTAL), _look(curve, distances)
            if curve.channel is not None and len(colours) > MANY_CHANNELS:  # the totals must stand out
                look |= {"linewidth": 0.8, "alpha": 0.5}
            axes.plot(steps[known], values[known], color=colour, marker=marker, markersize=4, **look)
        if title == "loss" and positive:
            axes.set_yscale("log")
        if title == "average precision":
            axes.set_ylim(-0.02, 1.02)
        if title in DISTANCES.values():
            axes.set_ylabel(distance_unit)
        _legend_of_looks(axes, names, distances)
    _legend_of_channels(figure, colours)
    FigureCanvasAgg(figure).print_png(str(path))


def _legend_columns(names: Iterable[str], width: float) -> int:
    """Number of legend columns that fit into a width in inches."""
    font = FontProperties(size=LEGEND_FONT)
    sizes = (text_to_path.get_text_width_height_descent(name, font, ismath=False) for name in names)
    longest = max((width for width, *_ in sizes), default=0.0)
    return max(1, min(LEGEND_COLUMNS, int(72 * width / (longest + LEGEND_SPACE))))


def _colours(names: Iterable[str], channel_names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Colour of each channel that has a curve, by name."""
    found = dict.fromkeys(channel for name in names if (channel := parse_log_name(name).channel) is not None)
    order = list(dict.fromkeys([*channel_names, *found]))
    colours = (paper_colours(len(order)) / 255).tolist()
    return {name: tuple(colour) for name, colour in zip(order, colours, strict=True) if name in found}


def _distances(names: Iterable[str]) -> list[float]:
    """All threshold distances, ascending."""
    return sorted({distance for name in names if (distance := parse_log_name(name).distance) is not None})


def _look(curve: LogName, distances: Sequence[float]) -> dict[str, float | str]:
    """Width and dashes of a curve."""
    if curve.distance is not None:
        dashes = DISTANCE_DASHES[distances.index(curve.distance) % len(DISTANCE_DASHES)]
    elif curve.kind == "gt_loss":
        dashes = {"train": "-.", "validation": ":"}.get(curve.stage, ":")
    else:
        dashes = STAGE_DASHES.get(curve.stage, "-")
    total = curve.channel is None and curve.distance is None
    return {"linewidth": 2.4 if total else 1.3, "linestyle": dashes}


def _meaning(curve: LogName) -> str:
    """What the dashes of a curve mean, in words."""
    if curve.distance is not None:
        return f"d={curve.distance:g}"
    if curve.kind == "meanAP":
        return "mean over d"
    return f"{curve.stage}, lowest possible BCE" if curve.kind == "gt_loss" else curve.stage


def _legend_of_looks(axes: Axes, names: Iterable[str], distances: Sequence[float]) -> None:
    """Explains the dashes below a plot, once for all channels, or in its title if there is only one meaning."""
    curves = [curve for name in names if (curve := parse_log_name(name)).stage]
    curves.sort(key=lambda curve: (curve.distance or 0, curve.kind, curve.stage))
    looks = {_meaning(curve): _look(curve, distances) for curve in curves}
    handles = [Line2D([], [], color=TOTAL, label=text, **look) for text, look in looks.items()]
    if len(handles) == 1:
        axes.set_title(f"{axes.get_title()}, {handles[0].get_label()}")
    if len(handles) < 2:
        return
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2 if len(handles) == 4 else 3}
    axes.legend(handles=handles, fontsize=LEGEND_FONT, frameon=False, handlelength=3, **place)


def _legend_of_channels(figure: Figure, colours: Mapping[str, tuple[float, ...]]) -> None:
    """Explains the channels' colours below all plots."""
    if not colours:
        return
    # Text between two dollar signs would be read as a formula.
    shown = [(name.replace("$", r"\$"), colour) for name, colour in colours.items()][:LEGEND_CHANNELS]
    handles = [Line2D([], [], color=TOTAL, linewidth=2.4, label="all channels")]
    handles += [Line2D([], [], color=colour, linewidth=2.4, label=name) for name, colour in shown]
    if len(shown) < len(colours):
        handles.append(Line2D([], [], linestyle="none", label=f"and {len(colours) - len(shown)} more"))
    columns = min(_legend_columns(colours, figure.get_figwidth()), len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=LEGEND_FONT, frameon=False)
