"""Builds and writes the page of a report.

C channels, N detections, K true keypoints.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.data.images import load_image
from keypoint_detection.files import finite, write_atomic
from keypoint_detection.picture_layout import paper_colours
from keypoint_detection.report.curves import curve_charts
from keypoint_detection.report.data import EPOCH_AXIS, ReportData, ReportImage
from keypoint_detection.report.measured import measure, rank_images
from keypoint_detection.report.pictures import data_url, encode_preview, heatmap_payload
from keypoint_detection.report.statistics import histogram, quality
from keypoint_detection.report.tables import numbers, test_table
from keypoint_detection.wording import counted

TEMPLATE = Path(__file__).with_name("template")
SCRIPTS = ("matching.js", "charts.js", "page.js", "gallery.js", "controls.js")
MAX_DETECTIONS = 100_000  # with more, the browser counts only in the images of the gallery, to stay fast


def write_report(data: ReportData, path: str | Path) -> None:
    """Writes the page of `build_report`; readers see the old file or the new one, never half of it."""
    write_atomic(Path(path), build_report(data))


def build_report(data: ReportData) -> str:
    """The page as text: one HTML file that needs nothing else.

    Raises:
        ValueError: If `distance` is not one of the threshold distances, or something does not fit the channels.
        InputError: If the picture of an image cannot be read; the message names the file.
    """
    # The names of channels and images must not be able to end the script element that holds the JSON.
    payload = json.dumps(finite(_payload(data)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {
        "TITLE": html.escape(data.title),
        "STYLE": _template("style.css"),
        "SCRIPT": "\n".join(_template(name) for name in SCRIPTS),
        "DATA": payload.replace("<", "\\u003c"),
    }
    pieces = _template("page.html").split("@")
    return "".join(parts.get(piece, piece) for piece in pieces)


def _template(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _payload(data: ReportData) -> dict[str, Any]:
    """Everything that the scripts of the page need, as plain values."""
    measured = measure(data)
    points, matches, distances, position, thresholds = measured
    order = rank_images(measured)
    shown, rest = order[: data.max_images], order[data.max_images :]
    few = len(matches.scores) <= MAX_DETECTIONS
    budget = data.max_bytes * 3 // 4 // max(len(shown), 1)  # base64 turns three bytes into four characters
    return {
        "subtitle": ", ".join(
            [
                counted(len(data.images), "image"),
                counted(int(matches.num_truths.sum()), "true keypoint"),
                counted(len(data.channel_names), "channel"),
            ]
        ),
        "channels": list(data.channel_names),
        "colours": ["#" + bytes(colour).hex() for colour in paper_colours(len(data.channel_names))],
        "distances": distances,
        "distance": distances[position],
        "thresholds": thresholds,
        **numbers(data, measured),
        "test": test_table(data, measured),
        "curves": curve_charts(data.curves, data.channel_names, data.curves_unit),
        "curves_x": EPOCH_AXIS,
        "quality": quality(points, matches, distances, thresholds),
        "histogram": histogram(matches, distances, position),
        "gallery_note": _gallery_note(len(shown), len(rest), few),
        "images": [_image(data.images[i], budget) for i in shown],
        "others": [_points(data.images[i]) for i in rest] if few else [],
        "info": [[str(name), str(value)] for name, value in data.run_info.items()],
    }


def _gallery_note(shown: int, left_out: int, few: bool) -> str:
    if not shown:
        return "There are no images to show."
    note = (
        "Worst first: the images with the most misses and false positives at the thresholds that the page opens with; "
    )
    note += "ties are broken by the localisation error. "
    if left_out:
        note += f"The {shown} worst of {counted(shown + left_out, 'image')} are shown; {left_out} left out"
        note += ", but counted." if few else ", and not counted below."
    return note


def _image(image: ReportImage, budget: int) -> dict[str, Any]:
    """One image of the gallery: its points, and its pictures, which take about `budget` bytes."""
    source = heatmaps = None
    if image.heatmaps is not None:
        extent = image.heatmap_extent or (0.0, 0.0, float(image.width), float(image.height))
        heatmaps = heatmap_payload(image.heatmaps, extent)
    if image.path is not None:
        taken = len(heatmaps["source"]) * 3 // 4 if heatmaps else 0
        source = data_url(encode_preview(load_image(image.path), max(budget - taken, budget // 4)))
    return {
        **_points(image),
        "source": source,
        "heatmaps": heatmaps,
    }


def _points(image: ReportImage) -> dict[str, Any]:
    """Truths and detections per channel as flat lists (x, y and x, y, score), detections in descending score.

    Unlabelled channels are None.
    """
    truths: list[list[float] | None] = []
    detections: list[list[float] | None] = []
    for xy, scores, true, labelled in zip(image.xy, image.scores, image.truths, image.labelled, strict=True):
        scores = np.asarray(scores, np.float32)
        order = np.argsort(-scores, kind="stable")
        rows = np.concatenate([np.asarray(xy, np.float32).reshape(-1, 2), scores[:, None]], 1)[order]
        truths.append(_shortest(np.asarray(true)) if labelled else None)
        detections.append(_shortest(rows) if labelled else None)
    return {
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "truths": truths,
        "detections": detections,
    }


def _shortest(values: np.ndarray) -> list[float]:
    """Floats with the fewest digits that still round to the same float32, as the page does with `Math.fround`."""
    return [float(str(value)) for value in values.astype(np.float32).ravel()]
