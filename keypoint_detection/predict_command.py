"""`keypoint-detection predict`: finds keypoints in files, folders, globs and videos; writes a file and pictures."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from keypoint_detection import flags
from keypoint_detection.data.images import load_image, warn_of_unused_bits
from keypoint_detection.errors import InputError, want_of_memory
from keypoint_detection.files import (
    is_special,
    make_folder,
    prepare_file,
    refuse_overwriting,
    unfinished,
    write_atomic,
    writing,
)
from keypoint_detection.markers import draw_keypoints
from keypoint_detection.picture_layout import add_legend
from keypoint_detection.predict import DEFAULT_BATCH_SIZE, DEFAULT_DEVICE, KeypointPredictor, Prediction
from keypoint_detection.prediction_files import FILE_FORMATS, Journal, PredictedImage, as_predicted, summary
from keypoint_detection.prediction_inputs import absolute, common_folder, find_inputs, is_video
from keypoint_detection.processes import Processes, start_processes
from keypoint_detection.wording import first_line

logger = logging.getLogger(__name__)

# Minimum width in pixels of a picture that gets a legend.
LEGEND_FROM = 150
FORMAT_ENDINGS = {".json": "native", ".csv": "csv"}


def predict(
    paths: list[str],
    checkpoint: str,
    output: str,
    format: Literal["auto", "native", "csv", "coco"] = "auto",
    overlays: str | None = None,
    score_threshold: float | dict[str, float] | None = None,
    max_keypoints: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    tile: int | None = None,
    device: str = DEFAULT_DEVICE,
    keypoint_coordinates: Literal["pixel", "normalized", "blender"] = "pixel",
    resume: bool = False,
    processes: Processes | None = None,
) -> int:
    """Find keypoints in files, folders, globs and videos, and write them to a file.

    Args:
        paths: Images, videos, folders (searched recursively, but links to folders are not followed) and globs. Paths
            that lead to nothing are skipped, unless all of them do.
        checkpoint: Checkpoint of a training run, or an ONNX file from `keypoint-detection export`.
        output: File to write.
        format: native (this library's own, which can be corrected and trained on), csv, coco (results) or auto, which
            chooses by the output's file name extension.
        overlays: Folder for images with the keypoints drawn in (.jpg), and for a video of each input video (.mp4), at
            the relative paths of the inputs. If two of these paths would be the same, as for a.png and a.tif, all names
            keep the extensions of their inputs: a.png.jpg, a.tif.jpg.
        score_threshold: Score from which a detection counts, or one score per channel (no detection is below 0.01); by
            default the checkpoint's own, which may be near 0.01 for a channel that was hardly learned.
        max_keypoints: Maximum number of keypoints per image for channels without their own; by default as in training.
        batch_size: Number of images that go through the network at once.
        tile: Side length in pixels of overlapping tiles, for images much larger than the training images.
        device: Where the network runs, such as cpu or cuda:0; auto takes an accelerator if there is one.
        keypoint_coordinates: Coordinate convention to write: pixel, normalized (origin top left) or blender (origin
            bottom left).
        resume: Continue an interrupted run where it stopped.
        processes: The processes that share the images; the first one writes the output. None means only this process.

    Returns:
        The number of unreadable files and of paths that lead to nothing; they were reported and skipped.

    Raises:
        InputError: If the checkpoint, the output or all of the paths are not usable.
    """
    files, wrong = find_inputs(paths, overlays)
    root = common_folder(files)
    target = Path(output)
    ending = target.suffix.lower()
    if format == "auto" and ending not in FORMAT_ENDINGS:
        raise InputError(f"--output {output}: expected a name that ends with .json or .csv, or --format")
    write = FILE_FORMATS[FORMAT_ENDINGS[ending] if format == "auto" else format]
    write([], [], keypoint_coordinates)  # rejects a convention that the format lacks, before any work is done
    refuse_overwriting(output, [checkpoint, *files])
    prepare_file(target, "--output")
    if resume and is_special(target):
        raise InputError(f"--resume: expected a regular file as --output, got {target}")
    processes = processes or Processes(device)
    predictor = KeypointPredictor(checkpoint, processes.device, score_threshold, max_keypoints, batch_size, tile)
    settings = {
        "--checkpoint": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "--score_threshold": score_threshold,
        "--max_keypoints": max_keypoints,
        "--tile": tile,
        "--overlays": overlays and str(absolute(Path(overlays))),
        "folder of all PATHS": str(root),
    }
    journal = _open_journal(unfinished(target, processes.gather(secrets.token_hex(8))[0]), resume, settings, processes)
    pictures = _Overlays(Path(overlays), root, files) if overlays is not None else None
    wrong = [] if processes.rank else wrong  # all processes find the same, so only the first one reports it
    for line in wrong:
        logger.error("skipped: %s", line)
    failed = len(wrong)
    images = processes.share([file for file in files if not is_video(file)])
    warn_of_unused_bits([] if processes.rank else images)
    hidden = not images or processes.rank > 0 or None  # None: hidden if standard error is not a terminal
    with tqdm(total=len(images), unit="image", desc="predict", disable=hidden) as bar:
        for chunk in (images[start : start + batch_size] for start in range(0, len(images), batch_size)):
            failed += _predict_images(chunk, root, predictor, journal, pictures)
            bar.update(len(chunk))
    for video in processes.share([file for file in files if is_video(file)]):
        failed += _predict_video(video, root, predictor, journal, pictures)
    failures, counts = zip(*processes.gather((failed, journal.close())), strict=True)
    if processes.rank == 0:
        if not journal.holds(counts):
            raise InputError(
                f"--output {target}: partial results are missing; expected a folder that all machines see, and no "
                "other predict command with this output"
            )
        found = _in_order(journal, sorted(files, key=is_video), root)
        with writing(f"--output {target}"):
            write_atomic(target, write(found, predictor.channel_names, keypoint_coordinates))
        journal.remove()
        logger.info("%s: %s; paths are relative to %s", target, summary(found), root)
    return sum(failures)


def _in_order(journal: Journal, files: Sequence[Path], root: Path) -> list[PredictedImage]:
    """Predictions for the files, in the order of the files; an interrupted run may also have predicted others."""
    position = {absolute(file).relative_to(root).as_posix(): number for number, file in enumerate(files)}
    found = [image for image in journal if image.name in position]
    return sorted(found, key=lambda image: (position[image.name], image.frame or 0))


def _open_journal(target: Path, resume: bool, settings: dict[str, Any], processes: Processes) -> Journal:
    with writing(f"--output {target}"):
        if not resume and processes.rank == 0:
            for path in Journal.paths(target):
                path.unlink()
        processes.gather(None)  # wait for that
        return Journal(target, settings, processes.rank, processes.world)


def _predict_images(
    paths: Sequence[Path], root: Path, predictor: KeypointPredictor, journal: Journal, pictures: _Overlays | None
) -> int:
    """Predicts a batch of files; returns how many could not be read."""
    loaded: list[tuple[str, np.ndarray]] = []
    failed = 0
    for path in paths:
        name = absolute(path).relative_to(root).as_posix()
        if (name, None) in journal.done:
            continue
        try:
            loaded.append((name, load_image(path)))
        except InputError as error:
            logger.error("skipped: %s", error)
            failed += 1
    for (name, image), prediction in zip(loaded, predictor([image for _, image in loaded]), strict=True):
        if pictures is not None:
            pictures.picture(name, image, prediction)
        journal.add(as_predicted(name, None, (image.shape[0], image.shape[1]), prediction))
    return failed


def _predict_video(
    path: Path, root: Path, predictor: KeypointPredictor, journal: Journal, pictures: _Overlays | None
) -> int:
    """Predicts the frames of a video; returns 1 if it could not be read."""
    name = absolute(path).relative_to(root).as_posix()
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise InputError(f'{path}: videos need `pip install "keypoint_detection[video]"`') from error
    try:
        frames = enumerate(tqdm(imageio.imiter(path, plugin="FFMPEG"), unit="frame", desc=path.name, disable=None))
        if pictures is None:  # an overlay video is drawn from its first frame, but labels resume where they stopped
            frames = ((number, frame) for number, frame in frames if (name, number) not in journal.done)
        predicted = _predict_frames(frames, predictor)
        if pictures is not None:
            predicted = pictures.video(name, imageio.immeta(path, plugin="FFMPEG").get("fps", 25), predicted)
        for number, frame, prediction in predicted:
            if (name, number) not in journal.done:
                journal.add(as_predicted(name, number, (frame.shape[0], frame.shape[1]), prediction))
    except (OSError, RuntimeError, StopIteration) as error:
        if want_of_memory(error):  # an error of the network, not of the video
            raise
        logger.error("skipped: %s: not a readable video (%s)", path, first_line(error))
        return 1
    return 0


Frame = tuple[int, np.ndarray, Prediction]


def _predict_frames(frames: Iterable[tuple[int, np.ndarray]], predictor: KeypointPredictor) -> Iterator[Frame]:
    frames = iter(frames)
    while chunk := list(itertools.islice(frames, predictor.batch_size)):
        for (number, frame), prediction in zip(chunk, predictor([frame for _, frame in chunk]), strict=True):
            yield number, frame, prediction


class _Overlays:
    """Writes pictures and videos with the keypoints drawn in."""

    def __init__(self, folder: Path, root: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        names = [absolute(file).relative_to(root).as_posix() for file in files]
        self._keep_endings = len({_overlay_path(folder / name, False) for name in names}) < len(names)
        inputs = set(map(os.path.realpath, files))  # realpath copes with links that lead to themselves
        if absolute(folder) == root or any(os.path.realpath(self._path(name)) in inputs for name in names):
            raise InputError(f"--overlays {folder}: would overwrite the images, expected another folder")
        make_folder(folder, f"--overlays {folder}")

    def _path(self, name: str) -> Path:
        """Where the overlay of an input goes."""
        return _overlay_path(self.folder / name, self._keep_endings)

    def picture(self, name: str, image: np.ndarray, prediction: Prediction) -> None:
        """Writes the picture of an image."""
        path = self._path(name)
        with writing(f"--overlays {self.folder}: {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_draw(image, prediction)).save(path, quality=92)

    def video(self, name: str, rate: float, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Writes the video while its frames pass through."""
        import imageio.v2 as imageio

        path = self._path(name)
        asked = f"--overlays {self.folder}: {path}"
        with writing(asked):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            writer = imageio.get_writer(path, fps=rate, macro_block_size=2)
        count = 0
        with writer:
            for number, frame, prediction in frames:
                with writing(asked):
                    picture = _draw(frame, prediction)
                    odd = (picture.shape[0] % 2, picture.shape[1] % 2)  # the sides of a video must be even
                    writer.append_data(np.pad(picture, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge"))
                count += 1
                yield number, frame, prediction
        if count and not path.is_file():  # ffmpeg, a separate process, fails silently
            raise InputError(f"{asked}: cannot be written")


def _overlay_path(path: Path, keep_ending: bool) -> Path:
    ending = ".mp4" if is_video(path) else ".jpg"
    return path.with_name(path.name + ending) if keep_ending else path.with_suffix(ending)


def _draw(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    xy = {name: keypoints.xy for name, keypoints in prediction.items()}
    scores = {name: keypoints.scores for name, keypoints in prediction.items()}
    picture = draw_keypoints(image, predicted=xy, scores=scores)
    names = dict.fromkeys(xy, "")
    return add_legend(picture, names, "larger cross: higher score") if image.shape[1] >= LEGEND_FROM else picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection predict`.

    Args:
        arguments: The flags and paths.

    Returns:
        0, or 1 if a file could not be read or found (0 in all processes but the first).

    Raises:
        KeyboardInterrupt: If the user stops it; its message says how to resume.
    """
    parser = flags.parser_for(
        predict, "keypoint-detection predict", computed={"paths", "processes"}, also=[start_processes]
    )
    parser.usage = "keypoint-detection predict --checkpoint FILE --output FILE [--flag value ...] PATHS..."
    text = "Images, videos, folders (searched recursively, but links to folders are not followed) and globs; "
    parser.add_argument("paths", nargs="+", help=text + "what cannot be found or read is reported and skipped.")
    config: dict[str, Any] = parser.parse_args(arguments).as_dict()
    processes = flags.call(start_processes, config)
    try:
        failed = flags.call(predict, config, processes=processes)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("" if processes.rank else "interrupted: add --resume to continue") from error
    # If another process ended with an error, Lightning would kill the first one, which may still be writing.
    return 1 if failed and processes.rank == 0 else 0
