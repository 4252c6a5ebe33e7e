"""Writes predictions to files in several formats, and keeps what was predicted before an interruption.

N keypoints.
"""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keypoint_detection.data.format_writers import from_pixels
from keypoint_detection.data.native_format import PATH_KEY, SCORES_KEY, check_writable
from keypoint_detection.errors import InputError
from keypoint_detection.files import write_atomic, writing
from keypoint_detection.wording import counted


class PredictedImage(NamedTuple):
    """The keypoints of one image, or of one frame of a video.

    Attributes:
        name: Path of the image, relative to the common folder of all inputs, with `/`.
        frame: Number of the frame in a video, None for an image.
        width: Width in pixels.
        height: Height in pixels.
        xy: For each channel `(N, 2)` in pixels of the image.
        scores: For each channel `(N,)` in [0, 1].
    """

    name: str
    frame: int | None
    width: int
    height: int
    xy: dict[str, list[list[float]]]
    scores: dict[str, list[float]]

    @property
    def path(self) -> str:
        """Its name in formats without a column for frames: `clip.mp4#17` for frame 17 of a video."""
        return self.name if self.frame is None else f"{self.name}#{self.frame}"


def native(images: Iterable[PredictedImage], channel_names: Sequence[str], coordinates: str) -> str:
    """The library's own data set format, so that predictions can be corrected and trained on.

    Raises:
        InputError: If the format uses a channel's name for something else.
    """
    check_writable(channel_names)
    entries = []
    for image in images:
        points = {n: convert_points(image.xy[n], image.width, image.height, coordinates) for n in channel_names}
        entries.append(json.dumps({PATH_KEY: image.path, **points, SCORES_KEY: image.scores}))
    return f'{{"coordinates": "{coordinates}", "dataset": [\n' + ",\n".join(entries) + "\n]}\n"


def table(images: Iterable[PredictedImage], channel_names: Sequence[str], coordinates: str) -> str:
    """CSV with one row per keypoint."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_path", "frame", "channel", "x", "y", "score"])
    for image in images:
        for name in channel_names:
            points = convert_points(image.xy[name], image.width, image.height, coordinates)
            for (x, y), score in zip(points, image.scores[name], strict=True):
                writer.writerow([image.name, image.frame, name, x, y, score])
    return text.getvalue()


def coco_results(images: Iterable[PredictedImage], channel_names: Sequence[str], coordinates: str) -> str:
    """COCO keypoint results, one per keypoint: its category is the channel, counted from 1.

    Raises:
        InputError: If the coordinates are not COCO's pixels.
    """
    if coordinates != "pixel":
        raise InputError(f"--keypoint_coordinates {coordinates}: COCO results are always in pixels, expected pixel")
    results = [
        {
            "image_id": number,
            "file_name": image.path,
            "category_id": channel + 1,
            "category_name": name,
            "keypoints": [*point, 2],
            "score": score,
        }
        for number, image in enumerate(images, start=1)
        for channel, name in enumerate(channel_names)
        for point, score in zip(image.xy[name], image.scores[name], strict=True)
    ]
    return json.dumps(results, indent=0) + "\n"


FILE_FORMATS: dict[str, Callable[[Iterable[PredictedImage], Sequence[str], str], str]] = {
    "native": native,
    "csv": table,
    "coco": coco_results,
}


def convert_points(points: Sequence[Sequence[float]], width: int, height: int, coordinates: str) -> list[list[float]]:
    """Converts keypoints to another convention.

    Args:
        points: `(N, 2)` in pixels.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        coordinates: `pixel`, `normalized` or `blender`.

    Returns:
        `(N, 2)`, rounded to a thousandth of a pixel or less.
    """
    converted = from_pixels(np.reshape(points, (-1, 2)), width, height, coordinates)
    return converted.round(3 if coordinates == "pixel" else 7).tolist()


def summary(found: Sequence[PredictedImage]) -> str:
    """Says how many keypoints there are, in how many images and frames."""
    keypoints = sum(len(scores) for image in found for scores in image.scores.values())
    frames = sum(image.frame is not None for image in found)
    seen = [counted(number, noun) for number, noun in ((len(found) - frames, "image"), (frames, "frame")) if number]
    if not seen:
        return "no image could be read"
    advice = "; --score_threshold 0.05 shows weaker detections, --tile finds small objects in large images"
    return f"{counted(keypoints, 'keypoint')} in {' and '.join(seen)}{'' if keypoints else advice}"


class Journal:
    """What has been predicted so far, one line per image, so that an interrupted run loses nothing.

    Each process writes its own file, and reads those of all processes. The first line of a file holds the settings.

    Args:
        output: The output; the journal's files are next to it.
        settings: Plain values that the results depend on, by the name of their flag.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        InputError: If an existing file was predicted with different settings.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        self.output = output
        self._paths = [output.with_name(f"{output.name}.partial{number}") for number in range(world)]
        self.path = self._paths[rank]
        for path in self._all_paths():
            _check_settings(path, settings)
        self.done = {(image.name, image.frame) for image in self}
        own = list(_read_journal(self.path))
        # Written anew without a last line that an interruption cut off.
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in (dict(settings), *own)))
        self._count = len(own)
        self._file = self.path.open("a", encoding="utf-8")

    @staticmethod
    def paths(output: Path) -> list[Path]:
        """The files of all processes."""
        return sorted(output.parent.glob(f"{glob.escape(output.name)}.partial*"))

    def _all_paths(self) -> list[Path]:
        # A network disk may be slow to list files of other machines, but still open them by name.
        return sorted({*self.paths(self.output), *self._paths})

    def __iter__(self) -> Iterator[PredictedImage]:
        """The images of all processes so far."""
        for path in self._all_paths():
            yield from _read_journal(path)

    def add(self, image: PredictedImage) -> None:
        """Adds an image.

        Raises:
            InputError: If it cannot be written.
        """
        with writing(str(self.path)):
            self._file.write(json.dumps(image) + "\n")
            self._file.flush()
        self._count += 1

    def close(self) -> int:
        """Flushes the images of this process to disk, where other machines can see them; returns their number."""
        with writing(str(self.path)):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._count

    def holds(self, counts: Sequence[int]) -> bool:
        """Whether this process can read the images of all processes, so that none is missing from the output.

        Args:
            counts: What `close` returned in each process.
        """
        written = zip(self._paths, counts, strict=True)
        return all(sum(1 for _ in _read_journal(path)) == count for path, count in written)

    def remove(self) -> None:
        """Deletes the files of all processes; call it after all have closed theirs and the output is written."""
        for path in self._all_paths():
            path.unlink(missing_ok=True)


def _read_lines(path: Path) -> Iterator[Any]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _read_journal(path: Path) -> Iterator[PredictedImage]:
    for line in itertools.islice(_read_lines(path), 1, None):
        yield PredictedImage(*line)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    found = next(_read_lines(path), settings)
    others = [name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name]]
    if others:
        raise InputError(
            f"{path} was started with a different {' and '.join(others)}; expected the same as then, or no --resume to "
            "start anew"
        )


def as_predicted(
    name: str, frame: int | None, size: tuple[int, int], prediction: dict[str, tuple[np.ndarray, np.ndarray]]
) -> PredictedImage:
    """Turns what a predictor returns into plain values.

    Args:
        name: Path of the image, relative to the common folder of all inputs.
        frame: Number of the frame, None for an image.
        size: `(H, W)` in pixels.
        prediction: Keypoints and scores by channel.

    Returns:
        The record to write.
    """
    xy = {channel: np.round(points.astype(float), 4).tolist() for channel, (points, _) in prediction.items()}
    scores = {channel: np.round(heights.astype(float), 5).tolist() for channel, (_, heights) in prediction.items()}
    return PredictedImage(name, frame, size[1], size[0], xy, scores)
