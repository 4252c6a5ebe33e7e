"""Reads checkpoint files without running code from them, and checks which version of the library wrote them."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from keypoint_detection.errors import InputError, want_of_memory
from keypoint_detection.version import library_version
from keypoint_detection.wording import first_line

VERSION_KEY = "keypoint_detection_version"
# How a training run evaluates: `channel_members` (for each channel of the detector, those of the label file),
# `empty_channels`, `distances`, `threshold_unit`, `fingerprints` of the labels that it trains, validates and tests on,
# and TRAINED_IMAGES. Older checkpoints lack the fingerprints and the images.
EVALUATION_KEY = "evaluation"
# Within it, the record of the images that the weights were trained on, see `data.trained_images.TrainedImages`.
TRAINED_IMAGES = "trained_images"
# The metrics of the latest evaluation before the checkpoint was written, by name.
METRICS_KEY = "validation_metrics"
# Of score thresholds that promise a recall, see `calibration.Calibration`.
CALIBRATION_KEY = "score_threshold_calibration"
# What `checkpoint export-weights` keeps besides the weights and hyperparameters, if the checkpoint has it.
RECORDS = (EVALUATION_KEY, METRICS_KEY, CALIBRATION_KEY)
SAFETENSORS = ".safetensors"
_ARCHIVE = b"PK\x03\x04"  # the first bytes of a ZIP archive


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Loads everything in a checkpoint to the CPU, without running code from the file.

    Args:
        path: A checkpoint that a trainer wrote, or weights that `checkpoint export-weights` wrote (`.safetensors`).

    Returns:
        What Lightning saved, or the part of it that the file holds; at least `state_dict`, and `hyper_parameters` with
        `keypoint_channels` and all those without a default.

    Raises:
        InputError: when the file is missing or cannot be read, is not a checkpoint of a detector, or was written by a
            newer version of this library.
    """
    try:
        if Path(path).is_dir():
            example = Path(path) / ("best.ckpt" if Path(path).name == "checkpoints" else "checkpoints/best.ckpt")
            raise InputError(f"checkpoint {path} is a folder, expected a file such as {example}")
        if not Path(path).is_file():
            raise InputError(f"checkpoint {path} does not exist")
        checkpoint = read_safetensors(path) if Path(path).suffix == SAFETENSORS else _unpickle(path)
        dict(checkpoint["state_dict"])
        list(checkpoint["hyper_parameters"]["keypoint_channels"])
        for name in ("heatmap_sigma", "heatmap_stride", "learning_rate"):  # those without a default
            float(checkpoint["hyper_parameters"][name])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror or first_line(error)}") from error
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        message = f"checkpoint {path} is not the checkpoint of a keypoint detector: {reason}"
        raise InputError(message.splitlines()[0]) from error
    _check_version(path, str(checkpoint.get(VERSION_KEY, "0.0")))
    return checkpoint


def _unpickle(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a file that torch.save wrote.

    Raises:
        ValueError: when it is not such a file.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError("the file is empty")
    with Path(path).open("rb") as file:
        # What torch saves is a ZIP archive, whose directory is at its end.
        if file.read(len(_ARCHIVE)) == _ARCHIVE and not zipfile.is_zipfile(file):
            raise ValueError("the file is truncated")
    try:
        return dict(torch.load(path, "cpu", weights_only=True))
    except (pickle.UnpicklingError, struct.error, EOFError, LookupError, AttributeError, RuntimeError) as error:
        if want_of_memory(error):
            raise
        # An unpickler takes any bytes for instructions, so anything may go wrong. torch's own message advises running
        # the code in the file.
        raise ValueError("it was not written by torch.save, or contains code") from error


def read_safetensors(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads weights that `checkpoint export-weights` wrote.

    Raises:
        InputError: when the extra `safetensors` is not installed.
        ValueError: when it is not such a file.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            f"{path} needs the extra safetensors: pip install 'keypoint_detection[safetensors]'"
        ) from error
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return {
        "state_dict": weights,
        "hyper_parameters": json.loads(about["hyper_parameters"]),
        VERSION_KEY: about[VERSION_KEY],
        **{name: json.loads(about[name]) for name in RECORDS if name in about},
    }


def _check_version(path: str | PathLike[str], written_by: str) -> None:
    """Rejects a checkpoint of a later major or minor version: only these may change what a checkpoint means."""
    own = library_version()
    if own != "0.0.0" and _release(written_by) > _release(own):
        raise InputError(
            f"checkpoint {path} was written by version {written_by} of keypoint_detection, expected at most {own}: "
            "upgrade the library"
        )


def check_known(source: str, names: Iterable[str], known: Iterable[str], written_by: str | None) -> None:
    """Checks that a detector takes all hyperparameters of a checkpoint: a later version may have more of them.

    Args:
        source: The checkpoint, for the error.
        names: Its hyperparameters.
        known: Those that the detector takes.
        written_by: The version that wrote it, None if unknown.

    Raises:
        InputError: for one that it does not take.
    """
    if unknown := sorted(set(names) - set(known)):
        wrote = f"version {written_by}" if written_by else "an unknown version"
        raise InputError(
            f"{source}: version {library_version()} of keypoint_detection does not know the hyperparameter "
            f"{unknown[0]!r}; {wrote} wrote the file"
        )


def _release(text: str) -> tuple[int, int]:
    """`1.12.3rc1` -> (1, 12)."""
    major, minor, *_ = *(int(number) for number in re.findall(r"\d+", text)[:2]), 0, 0
    return major, minor
