"""Reads checkpoint files without running code from them, and says who wrote them."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from keypoint_detection.errors import InputError, want_of_memory
from keypoint_detection.wording import first_line

VERSION_KEY = "keypoint_detection_version"
# How a training evaluates: `channel_members`, the channels of its file by that of the detector, `empty_channels`,
# `distances` and `threshold_unit`, and the `fingerprints` of the labels that it trains, validates and tests on, which
# older checkpoints lack.
EVALUATION_KEY = "evaluation"
# The metrics of the latest evaluation before the checkpoint was written, by name.
METRICS_KEY = "validation_metrics"
SAFETENSORS = ".safetensors"
_ARCHIVE = b"PK\x03\x04"  # the first bytes of a ZIP archive


def library_version() -> str:
    """Version of this library, `0.0.0` where it runs without being installed."""
    try:
        return version("keypoint_detection")
    except PackageNotFoundError:
        return "0.0.0"


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Loads all that a checkpoint holds to the CPU, without running code from the file.

    Args:
        path: A checkpoint that a trainer wrote, or weights that `checkpoint export-weights` wrote (`.safetensors`).

    Returns:
        What Lightning saved, or as much of it as there is; `state_dict` and `hyper_parameters` with `keypoint_channels`
        are there.

    Raises:
        InputError: when the file is missing or cannot be read, is no checkpoint of a detector, or from a newer version
            of this library.
    """
    try:
        if Path(path).is_dir():
            example = Path(path) / ("best.ckpt" if Path(path).name == "checkpoints" else "checkpoints/best.ckpt")
            raise InputError(f"checkpoint {path} is a folder, expected a file as {example}")
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
    """Reads what torch.save wrote.

    Raises:
        ValueError: when the file is another one.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError("the file is empty")
    with Path(path).open("rb") as file:
        # What torch saves is a ZIP archive, whose directory is at its end.
        if file.read(len(_ARCHIVE)) == _ARCHIVE and not zipfile.is_zipfile(file):
            raise ValueError("the file is cut off")
    try:
        return dict(torch.load(path, "cpu", weights_only=True))
    except (pickle.UnpicklingError, struct.error, EOFError, LookupError, AttributeError, RuntimeError) as error:
        if want_of_memory(error):
            raise
        # Any bytes are instructions to an unpickler. torch's own text advises to run the code in the file.
        raise ValueError("no file that torch.save wrote, or one with code in it") from error


def read_safetensors(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads weights that `checkpoint export-weights` wrote.

    Raises:
        InputError: when the extra `safetensors` is not installed.
        ValueError: when the file is another one.
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
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return {
        "state_dict": weights,
        "hyper_parameters": json.loads(about["hyper_parameters"]),
        VERSION_KEY: about[VERSION_KEY],
        **({EVALUATION_KEY: json.loads(about[EVALUATION_KEY])} if EVALUATION_KEY in about else {}),
    }


def _check_version(path: str | PathLike[str], written_by: str) -> None:
    """Only a higher major or minor version may have changed what a checkpoint means."""
    own = library_version()
    if own != "0.0.0" and _release(written_by) > _release(own):
        raise InputError(
            f"checkpoint {path} was written by version {written_by} of keypoint_detection, expected at most {own}: "
            "upgrade the library"
        )


def check_known(source: str, names: Iterable[str], known: Iterable[str], written_by: str | None) -> None:
    """Checks that a detector takes the hyperparameters of a checkpoint, of which a later version may have more.

    Args:
        source: The checkpoint, for the error.
        names: Its hyperparameters.
        known: Those that the detector takes.
        written_by: The version that wrote it, None where it does not say.

    Raises:
        InputError: for one that it does not take.
    """
    if unknown := sorted(set(names) - set(known)):
        wrote = f"version {written_by}" if written_by else "an unknown version"
        raise InputError(
            f"{source}: version {library_version()} of keypoint_detection knows no hyperparameter {unknown[0]!r}; "
            f"{wrote} wrote the file"
        )


def _release(text: str) -> tuple[int, int]:
    """`1.12.3rc1` -> (1, 12)."""
    major, minor, *_ = *(int(number) for number in re.findall(r"\d+", text)[:2]), 0, 0
    return major, minor
