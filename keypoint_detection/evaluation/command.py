"""`keypoint-detection evaluate`: evaluates a checkpoint on a labelled set, and finds thresholds with a promise."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from keypoint_detection.calibration import Calibration, calibrate_channel
from keypoint_detection.checkpoint import store_calibration
from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.dataset import EMPTY_CHANNELS, KeypointsDataset
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.images import EvaluatedImages, add_heatmaps, make_dataset, make_loader, run_network
from keypoint_detection.evaluation.inputs import (
    chosen_channels,
    chosen_distances,
    fingerprint_as_trained,
    held_out,
    read_labels,
)
from keypoint_detection.evaluation.summary import Evaluation, summarise
from keypoint_detection.evaluation.training_images import check_training_images
from keypoint_detection.files import check_given, is_special, prepare_file, refuse_overwriting, writing
from keypoint_detection.flags import call, parser_for
from keypoint_detection.models.checkpoint_file import SAFETENSORS
from keypoint_detection.predict import DEFAULT_DEVICE, KeypointPredictor, Network, TorchNetwork
from keypoint_detection.processes import Processes, start_processes
from keypoint_detection.report import worst_images, write_report

logger = logging.getLogger(__name__)

COMMAND = "keypoint-detection evaluate"
HEATMAPS_IN_REPORT = 50  # of the worst images; each needs another pass through the network


class UnwrittenError(InputError):
    """Results of an evaluation could not be written.

    Attributes:
        evaluation: The results.
    """

    def __init__(self, message: str, evaluation: Evaluation) -> None:
        super().__init__(message)
        self.evaluation = evaluation


def evaluate(
    checkpoint: str | Path,
    json_dataset_path: str | Path,
    image_dataset_path: str | Path | None = None,
    *,
    keypoint_channels: str | list[str] | None = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    empty_channels: Literal["absent", "ignore"] | None = None,
    split: str | Path | None = None,
    maximal_gt_keypoint_pixel_distances: str | float | list[float] | None = None,
    threshold_unit: Literal["pixel", "image"] | None = None,
    distance: float | None = None,
    score_threshold: float | dict[str, float] | None = None,
    recall: float | None = None,
    output: str | Path | None = None,
    report: str | Path | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    device: str = DEFAULT_DEVICE,
    processes: Processes | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a labelled set: average precision, localisation, kinds of errors, report.

    Args:
        checkpoint: Checkpoint of a training run, such as best.ckpt, or an ONNX file that export made from one.
        json_dataset_path: Labelled file, in this library's or COCO's format.
        image_dataset_path: Folder that its image paths are relative to. By default the folder of the file.
        keypoint_channels: Channels to evaluate; a=b makes channel a from the file's b, and from its a if there is one.
            Others are made as in training. By default all.
        keypoint_coordinates: Coordinate convention of the native format: blender, normalized or pixel.
        empty_channels: Meaning of channels without keypoints: absent, or ignore (not labelled). By default as in
            training.
        split: The split.json of a training run with this file; only its validation images are evaluated.
        maximal_gt_keypoint_pixel_distances: Distances for average precision. By default those of the training.
        threshold_unit: Unit of these distances: pixel (of the image file), or image for fractions of its diagonal. By
            default that of the training, or pixels if distances are given.
        distance: One of these distances, at which errors, precision and recall are measured. By default the largest.
        score_threshold: Score from which a detection counts, or one score per channel. By default the checkpoint's.
        recall: Find score thresholds that promise this recall within the distance on new images, and store them in the
            checkpoint. The labelled images must have been held out from training.
        output: JSON file for all numbers.
        report: HTML file for the report.
        batch_size: Images per batch.
        num_workers: Processes that load images; 0 loads them in this process.
        device: Where the network runs, such as cpu or cuda:0; auto takes an accelerator if there is one.
        processes: The processes that share the images. All of them return all results, but only the first one writes
            files. None means only this process.

    Returns:
        All numbers, and what was found in each image.

    Raises:
        InputError: If a file or a value is not usable.
        UnwrittenError: If the numbers, the report or the thresholds could not be written at the end; it holds the
            evaluation.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise InputError(f"--{name} {value}: expected at least {least}")
    if recall is not None and not 0 < recall < 1:
        raise InputError(f"--recall {recall:g}: expected a number above 0 and below 1")
    if recall is not None and Path(checkpoint).suffix in (SAFETENSORS, ".onnx"):
        raise InputError(f"--recall {recall:g}: expected a checkpoint to store thresholds in, got {checkpoint}")
    check_given(str(json_dataset_path), "--json_dataset_path")
    processes = processes or Processes(device)
    _prepare_files(output, report, [path for path in (checkpoint, json_dataset_path, split) if path])
    predictor = KeypointPredictor(checkpoint, device=processes.device, score_threshold=score_threshold)
    if recall is not None:
        prepare_file(checkpoint, f"--recall {recall:g} stores thresholds in")
    network = predictor.network
    distances, unit = chosen_distances(network.evaluation, maximal_gt_keypoint_pixel_distances, threshold_unit)
    distance = _choose_distance(distance, distances)
    if unit == "image" and (report is not None or recall is not None):
        flag = "--report" if report is not None else "--recall"
        raise InputError(f"{flag}: expected --maximal_gt_keypoint_pixel_distances with --threshold_unit pixel")
    folder = Path(image_dataset_path or Path(json_dataset_path).parent)
    chosen = chosen_channels(network, keypoint_channels)
    annotations, sizes = read_labels(Path(json_dataset_path), folder, list(chosen.values()), keypoint_coordinates)
    annotations = annotations.select_channels(list(chosen))
    for written in filter(None, (output, report)):
        refuse_overwriting(written, map(annotations.path, range(len(annotations))))
    fingerprint = None
    if processes.rank == 0:  # it warns for all processes
        fingerprint = fingerprint_as_trained(network, annotations, sizes, chosen, keypoint_coordinates)
    if split is not None:
        validation = held_out(annotations, split, fingerprint)
        annotations, sizes, fingerprint = annotations.subset(validation), sizes[validation], None
    if processes.rank == 0:
        check_training_images(checkpoint, network, annotations, fingerprint, is_promise=recall is not None)
    # A checkpoint that does not record it falls back to the default of training.
    empty_channels = empty_channels or network.evaluation.get("empty_channels", EMPTY_CHANNELS[0])
    # An exported file resizes images itself.
    image_size = network.image_size if isinstance(network, TorchNetwork) else None
    dataset = make_dataset(annotations, empty_channels, image_size)
    evaluated = EvaluatedImages(annotations, distances, unit)
    loader = make_loader(dataset, sizes, batch_size, num_workers, processes.rank, processes.world)
    run_network(network, loader, evaluated, progress=processes.rank == 0)
    evaluated.gather(processes)
    sources = {"checkpoint": str(checkpoint), "labels": str(json_dataset_path), "image folder": str(folder)}
    thresholds = [predictor.score_thresholds[name] for name in annotations.channel_names]
    evaluation = summarise(evaluated, distance, thresholds, sources)
    if recall is not None:
        evaluation.calibration = calibrate(evaluation, annotations, recall)
    if processes.rank != 0:
        return evaluation
    try:
        if output is not None:
            with writing(f"--output {output}"):
                evaluation.save(output)
        if report is not None:
            _write_report(evaluation, report, network, dataset)
        if evaluation.calibration is not None:
            _store(evaluation.calibration, checkpoint)
    except InputError as error:
        raise UnwrittenError(str(error), evaluation) from error
    return evaluation


def _prepare_files(output: str | Path | None, report: str | Path | None, read: Sequence[str | Path]) -> None:
    """Checks, before any work is done, that both files can be written and do not overwrite an input."""
    for name, path in (("--output", output), ("--report", report)):
        if path is not None:
            refuse_overwriting(path, read)
            prepare_file(path, name)
    if output and report and os.path.realpath(output) == os.path.realpath(report) and not is_special(Path(output)):
        raise InputError(f"--report {report}: is also the file of --output, expected another name")


def _choose_distance(distance: float | None, distances: Sequence[float]) -> float:
    if distance is None:
        return max(distances)
    if distance not in distances:
        expected = ", ".join(f"{value:g}" for value in distances)
        raise InputError(
            f"--distance {distance:g}: expected one of the threshold distances {expected}, which are set by "
            "--maximal_gt_keypoint_pixel_distances"
        )
    return float(distance)


def _write_report(evaluation: Evaluation, path: str | Path, network: Network, dataset: KeypointsDataset) -> None:
    """Writes the report, with heatmaps of the worst images (an exported file does not return any)."""
    checkpoint, labels = (Path(evaluation.sources[name]).name for name in ("checkpoint", "labels"))
    data = evaluation.report_data(f"{checkpoint} on {labels}")
    if isinstance(network, TorchNetwork):
        indices = list(evaluation.images)
        worst = [indices[position] for position in worst_images(data)[:HEATMAPS_IN_REPORT]]
        add_heatmaps(network.detector, dataset, {index: evaluation.images[index] for index in worst})
    with writing(f"--report {path}"):
        write_report(data, path)


def _store(calibration: Calibration, checkpoint: str | Path) -> None:
    """Stores the thresholds that keep a promise, and warns of channels without one."""
    if calibration.promises:
        store_calibration(checkpoint, calibration)
    without = [name for name, channel in calibration.channels.items() if channel.threshold is None]
    if without:
        logger.warning(
            "--recall %g: no score threshold promises it for %s, so the checkpoint keeps its thresholds for these",
            calibration.recall, ", ".join(without),
        )  # fmt: skip


def calibrate(evaluation: Evaluation, annotations: Annotations, recall: float) -> Calibration:
    """Looks for the score thresholds that promise a recall within the evaluation's distance.

    Args:
        evaluation: An evaluation on images that were held out from training.
        annotations: The labels of these images.
        recall: The recall to promise, in (0, 1).
    """
    position = evaluation.threshold_distances.index(evaluation.distance)
    channels = {}
    for channel, name in enumerate(evaluation.channel_names):
        counts = {
            index: len(image.truths[channel])
            for index, image in evaluation.images.items()
            if len(image.truths[channel])
        }
        channels[name] = calibrate_channel(evaluation.matches, channel, position, counts, recall)
    data = {"labels": str(annotations.source), "fingerprint": annotations.fingerprint()}
    return Calibration(recall, evaluation.distance, data, channels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection evaluate`.

    Args:
        arguments: The flags; by default those of the process.

    Returns:
        The exit code.
    """
    parser = parser_for(evaluate, COMMAND, computed={"processes"}, also=[start_processes])
    config = parser.parse_args(arguments).as_dict()
    processes = call(start_processes, config)
    problem = None
    try:
        evaluation = call(evaluate, config, processes=processes)
    except UnwrittenError as error:
        evaluation, problem = error.evaluation, error
    if processes.rank != 0:
        return 0
    sys.stdout.write(f"{evaluation.table()}\n")
    sys.stdout.flush()  # before the error message
    if problem is not None:
        raise problem
    if evaluation.calibration is not None:
        stored = "stored these thresholds in" if evaluation.calibration.promises else "no thresholds to store in"
        sys.stdout.write(f"{stored} {config['checkpoint']}\n")
    for name in ("output", "report"):
        if config[name]:
            sys.stdout.write(f"\n{name}: {config[name]}")
    sys.stdout.write("\n")
    return 0
