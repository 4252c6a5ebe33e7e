"""The parallel coordinates plot of a sweep: an axis for each parameter and the metric, and a line for each run.

R runs, A axes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from keypoint_detection.files import write_atomic
from keypoint_detection.picture_layout import boxes_for_letters
from keypoint_detection.sweep.parameters import Parameter
from keypoint_detection.sweep.sweep_file import flag_text
from keypoint_detection.wording import counted

MOST_TICKS = 12
TICKS_OF_NUMBERS = 6
TITLE_STEP = 13  # points


@dataclass(frozen=True)
class Axis:
    """One vertical axis.

    Attributes:
        title: The text above it.
        positions: Where the line of each run crosses it, `(R,)` in [0, 1].
        ticks: Positions and texts of its ticks.
    """

    title: str
    positions: np.ndarray
    ticks: list[tuple[float, str]]


def parameter_axis(parameter: Parameter, values: Sequence[Any]) -> Axis:
    """The axis of a parameter: logarithmic if its logarithm was drawn, evenly spaced for a choice of values.

    Args:
        parameter: The parameter.
        values: Its value in each run.

    Returns:
        The axis.
    """
    if parameter.choices or not all(isinstance(value, int | float) for value in values):
        names = list(dict.fromkeys(map(flag_text, parameter.choices or sorted(values, key=str))))
        last = max(len(names) - 1, 1)
        ticks = [(index / last, name) for index, name in enumerate(names)]
        where = {name: position for position, name in ticks}
        step = -(-len(ticks) // MOST_TICKS)
        return Axis(parameter.name, np.array([where[flag_text(value)] for value in values]), ticks[::step])
    return number_axis(parameter.name, values, parameter.log, parameter.whole)


def number_axis(title: str, values: Sequence[float], log: bool = False, whole: bool = False) -> Axis:
    """An axis of numbers, from the smallest to the largest of them, with ticks at round numbers.

    Args:
        title: The text above it.
        values: The number of each run.
        log: Whether the axis is logarithmic.
        whole: Whether all numbers are whole.

    Returns:
        The axis.
    """
    numbers = np.array(values, dtype=float)
    log = log and len(numbers) > 0 and bool((numbers > 0).all())
    low, high = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 1.0)
    scale = np.log if log else np.asarray
    if low == high:
        return Axis(title, np.full(len(numbers), 0.5), [(0.5, f"{low:.6g}")])
    locator = (
        LogLocator(subs=(1, 2, 5), numticks=99)
        if log
        else MaxNLocator(TICKS_OF_NUMBERS, integer=whole, steps=[1, 2, 5, 10])
    )
    ticks = locator.tick_values(low, high)
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    positions = (scale(np.concatenate((numbers, ticks))) - scale(low)) / (scale(high) - scale(low))
    texts = [f"{tick:.6g}" for tick in ticks]
    return Axis(title, positions[: len(numbers)], list(zip(positions[len(numbers) :].tolist(), texts, strict=True)))


@boxes_for_letters()
def draw_parallel_coordinates(
    path: Path,
    *,
    values: Sequence[float],
    parameters: Sequence[Mapping[str, Any]],
    complete: Sequence[bool],
    axes: Sequence[Parameter],
    metric: str,
    maximize: bool,
) -> None:
    """Draws the picture.

    Args:
        path: The PNG file to write.
        values: The metric of each run, `(R,)`.
        parameters: The parameters of each run.
        complete: Whether each run was trained to the end; the lines of others are dotted.
        axes: The parameters to draw an axis for.
        metric: Name of the metric, whose axis comes last.
        maximize: Whether high values are good.
    """
    drawn = [parameter_axis(axis, [given[axis.name] for given in parameters]) for axis in axes]
    drawn.append(number_axis(metric, values))
    figure = Figure(figsize=(max(6.0, 2.1 * len(drawn)), 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    colours = ScalarMappable(Normalize(low, high), matplotlib.colormaps["viridis"])
    if not maximize:
        colours.set_cmap("viridis_r")
    # The best run (the first one, if several are equal) is drawn last, on top of the others.
    order = sorted(range(len(values)), key=lambda run: (complete[run], values[run] if maximize else -values[run], -run))
    for run in order:
        heights = [axis.positions[run] for axis in drawn]
        style = {"linestyle": "-", "alpha": 0.9} if complete[run] else {"linestyle": ":", "alpha": 0.7}
        width = 3.0 if run == order[-1] else 1.3
        plot.plot(range(len(drawn)), heights, color=colours.to_rgba(values[run]), linewidth=width, **style)
    _draw_axes(plot, drawn)
    dotted = len(complete) - sum(complete)
    title = f"{counted(len(values), 'run')}, thick: best" + (
        f", dotted: {dotted} not trained to the end" if dotted else ""
    )
    plot.set_title(title, fontsize=10, pad=28 + TITLE_STEP)
    if low < high:
        figure.colorbar(colours, ax=plot, pad=0.02).set_label(metric, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_atomic(path, stream.getvalue())


def _draw_axes(plot: Axes, drawn: Sequence[Axis]) -> None:
    shared = {"textcoords": "offset points", "parse_math": False}  # text between dollar signs is not a formula
    for place, axis in enumerate(drawn):
        plot.axvline(place, color="0.3", linewidth=1, zorder=3)
        for position, text in axis.ticks:
            plot.annotate(
                text, (place, position), xytext=(4, 0), fontsize=8, va="center", zorder=4, **shared,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
        height = 12 + TITLE_STEP * (place % 2)  # on one line, neighbours would overlap
        plot.annotate(axis.title, (place, 1), xytext=(0, height), fontsize=9, ha="center", va="bottom", **shared)
    plot.set_xlim(-0.2, len(drawn) - 0.6)
    plot.set_ylim(-0.04, 1.04)
    plot.set_axis_off()
