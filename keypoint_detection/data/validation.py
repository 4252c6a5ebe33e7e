"""Checks labels against their images: leaves out keypoints that are outside, and reports on a whole data set.

N images, C channels, T keypoints of all images together.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.copies import tell_of_copies
from keypoint_detection.data.crop import keep_inside
from keypoint_detection.data.decoding import ImageHeader, conversions, has_16_bits
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import load_image, path_advice, read_header, scan_headers, tell_of_unused_bits
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.errors import InputError
from keypoint_detection.files import is_missing
from keypoint_detection.wording import cells, counted, padded

logger = logging.getLogger(__name__)

_EXAMPLES = 9
_ERRORS_IN_REPORT = 20


def leave_out_outside(annotations: Annotations, sizes: np.ndarray, report: bool = True) -> Annotations:
    """Leaves out keypoints that are outside their image, with one warning; a keypoint on the border is inside.

    A keypoint that is outside by a rounding error, at most a millionth of the image's side, is moved onto the border.

    Args:
        annotations: the data.
        sizes: `(N, 2)` width and height of each image in pixels. Images of unknown size, 0, keep their keypoints if
            these are in pixels.
        report: whether to log the warning.

    Raises:
        InputError: if most keypoints are outside, or a file in pixels holds only numbers up to 1; the message suggests
            the right `--keypoint_coordinates`. Also if an image does not have the size that the file states.
    """
    annotations, warning = _leave_out(annotations, sizes)
    if warning and report:
        logger.warning(warning)
    return annotations


def _leave_out(annotations: Annotations, sizes: np.ndarray) -> tuple[Annotations, str | None]:
    """The annotations that `leave_out_outside` returns, and its warning, if there is one."""
    _check_declared_sizes(annotations, sizes)
    annotations, outside, judged = _judge(annotations, sizes)
    count = int(outside.sum())
    if count == 0:
        return annotations, None
    first = _describe_keypoint(annotations, int(outside.nonzero()[0]), sizes)
    if count * 2 > judged:
        raise InputError(
            f'{first}; {count} of {judged} keypoints are, read as "{annotations.coordinates}" coordinates'
            f"{_advice(annotations, sizes)}"
        )
    advice = "" if annotations.declared_sizes is not None else " (--keypoint_coordinates chooses others)"
    return annotations.keep(~outside), (
        f"{first}; {count} of {judged} keypoints are outside and left out, read as "
        f'"{annotations.coordinates}" coordinates{advice}'
    )


@dataclass
class CheckReport:
    """What was found in a data set.

    Attributes:
        source: the file.
        images: number of images.
        channel_names: the C channels.
        counts: `(N, C)` keypoints of each image and channel, without those that are outside.
        sizes: how many images have each (width, height) in pixels.
        conversions: how many images the loader converts, for each kind of conversion.
        warnings: what is allowed but worth a look, one line each.
        errors: what has to be fixed before training, one line each.
        examples: positions of images that are worth drawing.
        annotations: the data, without keypoints that are outside; None if the labels are unusable.
    """

    source: Path
    images: int
    channel_names: tuple[str, ...]
    counts: np.ndarray
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    annotations: Annotations | None = None

    def lines(self) -> list[str]:
        """The report as text: images, a table of channels, sizes, conversions, warnings and errors."""
        lines = [
            f"{self.source}: {counted(self.images, 'image')}, {counted(len(self.channel_names), 'channel')}, "
            f"{counted(int(self.counts.sum()), 'keypoint')}"
        ]
        width = max(map(cells, ("channel", *self.channel_names)))
        lines.append(f"{padded('channel', width)}  keypoints  images with any  most in an image")
        for name, column in zip(self.channel_names, self.counts.T, strict=True):
            lines.append(f"{padded(name, width)}  {column.sum():>9}  {(column > 0).sum():>15}  {column.max():>16}")
        for (image_width, image_height), number in self.sizes.most_common(5):
            lines.append(f"{counted(number, 'image')} of {image_width} x {image_height}")
        if len(self.sizes) > 5:
            lines.append(f"and {counted(len(self.sizes) - 5, 'more size')}")
        lines += [f"{counted(number, 'image')}: {kind}" for kind, number in self.conversions.items()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return lines + [f"error: {error}" for error in self.errors]


def check_dataset(
    json_path: str | Path,
    image_root: str | Path,
    *,
    keypoint_channels: Sequence[str] | str | None = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    decode: bool = True,
) -> CheckReport:
    """Checks a whole data set including every image, and collects errors in images instead of stopping at the first.

    Args:
        json_path: the file, in any known format.
        image_root: the folder that image paths are relative to.
        keypoint_channels: the channels to check, as in `read_annotations`. None takes all.
        keypoint_coordinates: the convention of the file, as in `read_annotations`.
        decode: whether to decode every image, which finds damage beyond the header, and to look for copies; both take
            longer.

    Raises:
        InputError: if the labels themselves are wrong, naming file and entry.
    """
    annotations = read_annotations(
        json_path,
        image_root,
        keypoint_channels=keypoint_channels,
        keypoint_coordinates=keypoint_coordinates,
        report=False,
    )
    report = CheckReport(annotations.source, len(annotations), annotations.channel_names, annotations.counts())
    report.warnings += annotations.warnings
    sizes = np.zeros((len(annotations), 2), np.int64)
    failed, deep = 0, []
    for index, header in scan_headers(annotations, range(len(annotations)), _decoded_header if decode else read_header):
        if isinstance(header, InputError):
            failed += 1
            if failed <= _ERRORS_IN_REPORT:
                report.errors.append(str(header))
            continue
        sizes[index] = header[:2]
        report.sizes[header[:2]] += 1
        report.conversions.update(conversions(header))
        if has_16_bits(header):
            deep.append(index)
    if unused := tell_of_unused_bits(annotations, deep):
        report.warnings.append(unused)
    if decode and (copies := tell_of_copies(annotations, np.flatnonzero(sizes.all(axis=1)).tolist())):
        report.warnings.append(copies)
    if failed == len(annotations) > 1 and all(is_missing(annotations.path(index)) for index in range(failed)):
        path = annotations.path(0)
        advice = path_advice(path) or "--image_dataset_path names the folder that their paths are relative to"
        report.errors = [f"{annotations.source}: none of its {failed} images exists (first: {path}); {advice}"]
    elif failed > _ERRORS_IN_REPORT:
        report.errors.append(f"{annotations.source}: {failed - _ERRORS_IN_REPORT} more images cannot be read")
    _add_labels(report, annotations, sizes)
    return report


def _add_labels(report: CheckReport, annotations: Annotations, sizes: np.ndarray) -> None:
    """Adds the counts of the labels, and what is wrong with them, to a report."""
    try:
        inside, outside = _leave_out(annotations, sizes)
    except InputError as error:
        report.errors.append(str(error))
        return
    report.annotations, report.counts = inside, inside.counts()
    if outside:
        report.warnings.append(outside)
    for name, column in zip(report.channel_names, report.counts.T, strict=True):
        if not column.any():
            report.warnings.append(f'channel "{name}" has no keypoint in any image')
    empty = int((report.counts.sum(1) == 0).sum())
    if empty:
        report.warnings.append(f"{counted(empty, 'image')} without a keypoint in any channel, counted as negatives")
    repeated = _repeated_keypoints(inside)
    if len(repeated):
        place, written = _describe_place(inside, int(repeated[0]))
        text = f"{counted(len(repeated), 'keypoint')} repeating another one of the same channel"
        report.warnings.append(f"{text}, such as {written} in {place}")
    readable = np.nonzero(sizes.all(1))[0]
    # The fullest image, the emptiest, and some in between.
    by_count = readable[np.argsort(-report.counts.sum(1)[readable], kind="stable")]
    picks = np.linspace(0, len(by_count) - 1, min(_EXAMPLES, len(by_count))).astype(int)
    report.examples = by_count[picks].tolist()


def _decoded_header(path: Path) -> ImageHeader:
    load_image(path)
    return read_header(path)


def _judge(annotations: Annotations, sizes: np.ndarray) -> tuple[Annotations, Tensor, int]:
    """Moves keypoints that are outside by a rounding error onto the border.

    Returns:
        The annotations, which keypoints are outside, `(T,)` bool, and for how many keypoints that is known.
    """
    xy = annotations.xy
    size = torch.ones(len(xy), 2) if annotations.normalized else _size_of_keypoints(annotations, sizes)
    known = (size > 0).all(1)
    too_small = len(xy) > 1 and bool((xy.abs() <= 1).all()) and bool((size > 2)[known].all())
    if too_small and not annotations.normalized:
        raise InputError(
            f"{annotations.source}: no coordinate is above 1, expected pixels{_advice(annotations, sizes)}"
        )
    inside = torch.from_numpy(keep_inside(xy.numpy(), size.numpy()))
    outside = inside.isnan().any(1) & known
    moved = (inside != xy).any(1) & known & ~outside
    if moved.any():
        annotations = replace(annotations, xy=torch.where(moved[:, None], inside, xy))
    return annotations, outside, int(known.sum())


def _size_of_keypoints(annotations: Annotations, sizes: np.ndarray) -> Tensor:
    """Width and height of the image of each keypoint, `(T, 2)`."""
    return torch.from_numpy(sizes)[annotations.images_of_keypoints()]


def _advice(annotations: Annotations, sizes: np.ndarray) -> str:
    """Which convention would put most keypoints inside their images."""
    if annotations.declared_sizes is not None:
        return "; COCO keypoints are pixels with the origin at the top left"
    x, y = annotations.xy.unbind(1)
    written = torch.stack([x, 1 - y if annotations.coordinates == "blender" else y], 1)
    if annotations.normalized:
        limits, better = _size_of_keypoints(annotations, sizes), "pixel"
    else:
        limits, better = torch.ones(2), "blender (v points up) or normalized (v points down)"
    inside = ((written >= 0) & (written <= limits)).all(1) & (limits > 0).all(-1)
    if int(inside.sum()) * 2 <= len(inside):
        return "; they fit no other --keypoint_coordinates either"
    return f'; use --keypoint_coordinates {better}, or correct "coordinates" in the file if it has that key'


def _describe_place(annotations: Annotations, keypoint: int) -> tuple[str, str]:
    """File, entry and channel of a keypoint, and its coordinates as written there."""
    row = int(torch.searchsorted(annotations.offsets, keypoint, right=True)) - 1
    image, channel = divmod(row, len(annotations.channel_names))
    x, y = annotations.xy[keypoint].tolist()
    written = 1 - y if annotations.coordinates == "blender" else y
    return f'{annotations.describe(image)}, channel "{annotations.channel_names[channel]}"', f"({x:.7g}, {written:.7g})"


def _describe_keypoint(annotations: Annotations, keypoint: int, sizes: np.ndarray) -> str:
    """File, entry, channel and coordinates of a keypoint that is outside."""
    place, written = _describe_place(annotations, keypoint)
    width, height = sizes[int(annotations.images_of_keypoints()[keypoint])].tolist()
    limits = "0 to 1" if annotations.normalized else f"an image of {width} x {height}"
    return f"{place}: the keypoint {written} is outside {limits}"


def _check_declared_sizes(annotations: Annotations, sizes: np.ndarray) -> None:
    """Checks that images have the sizes that the file states; if one was resized since, its labels are wrong."""
    if annotations.declared_sizes is None:
        return
    declared = annotations.declared_sizes.numpy()
    wrong = (declared != sizes).any(1) & (declared > 0).all(1) & (sizes > 0).all(1)
    if wrong.any():
        index = int(np.nonzero(wrong)[0][0])
        claimed, found = declared[index].tolist(), sizes[index].tolist()
        upright = " (turned upright according to EXIF)" if claimed == found[::-1] else ""
        raise InputError(
            f"{annotations.describe(index)}: the file says {claimed[0]} x {claimed[1]} pixels, the image has "
            f"{found[0]} x {found[1]}{upright}, so its labels cannot be right "
            f"(found in {counted(int(wrong.sum()), 'image')})"
        )


def _repeated_keypoints(annotations: Annotations) -> np.ndarray:
    """Indices of keypoints at exactly the position of an earlier one of the same image and channel, ascending."""
    rows = torch.repeat_interleave(torch.arange(len(annotations.offsets) - 1), annotations.offsets.diff())
    place = annotations.xy.view(torch.int32).to(torch.int64)
    keys = np.stack([rows.numpy(), place[:, 0].numpy(), place[:, 1].numpy()], 1)
    _, first = np.unique(keys, axis=0, return_index=True)
    return np.setdiff1d(np.arange(len(keys)), first)
