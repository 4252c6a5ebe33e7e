"""Tells whether a detector is evaluated on images that it was trained on."""

from __future__ import annotations

import logging
from pathlib import Path

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.splits import SPLIT_FILE, read_split, recorded_fingerprints
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.models.checkpoint_file import TRAINED_IMAGES
from keypoint_detection.predict import Network

logger = logging.getLogger(__name__)


def check_training_images(
    checkpoint: str | Path, network: Network, annotations: Annotations, fingerprint: str | None, is_promise: bool
) -> None:
    """Warns if images were trained on, according to the checkpoint or to the folder of the run that it is in.

    Args:
        checkpoint: The file of the network.
        network: The network.
        annotations: The images.
        fingerprint: Their `fingerprint_as_trained` if they are all images of their file, None if they are not.
        is_promise: Whether a promise about new images is to be made from them.

    Raises:
        InputError: Instead of a warning, if `is_promise`.
    """
    trained, advice = _trained_file(checkpoint, network, fingerprint) if fingerprint else ("", "")
    record = TrainedImages.from_record(network.evaluation.get(TRAINED_IMAGES))
    if not trained and record:
        trained = record.tell(annotations)
        advice = "; leave those images out" if trained else ""
    if not trained:
        return
    text = f"{annotations.source}: the detector was trained on {trained}"
    if is_promise:
        raise InputError(f"{text}: expected held-out images to promise a recall on new ones{advice}")
    logger.warning("%s, so it may be worse on new ones%s", text, advice)


def _trained_file(checkpoint: str | Path, network: Network, fingerprint: str) -> tuple[str, str]:
    """How much of an unchanged label file was trained on, empty if nothing, and advice."""
    path = Path(checkpoint).absolute().parent.parent / SPLIT_FILE
    try:
        of_run = recorded_fingerprints(read_split(path))
    except InputError:  # there is none, or an unrelated one
        of_run = {}
    is_its_run = of_run.get("train") == fingerprint
    fingerprints = of_run if is_its_run else recorded_fingerprints(network.evaluation)
    if fingerprints.get("train") != fingerprint:
        return "", ""
    # If the validation images came from a file of their own, none of these were held out.
    if "validation" in fingerprints:
        return "these images", ""
    split = f"--split {path}" if is_its_run else f"--split with the {SPLIT_FILE} of its run"
    return "most of these images", f"; {split} selects those that were held out"
