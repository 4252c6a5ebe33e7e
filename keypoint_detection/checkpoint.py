"""`keypoint-detection checkpoint`: shows what a checkpoint holds, and writes its weights to a file of their own."""

from __future__ import annotations

import inspect
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from keypoint_detection.calibration import Calibration
from keypoint_detection.errors import InputError
from keypoint_detection.files import finite, refuse_overwriting, write_atomic, writing
from keypoint_detection.flags import call, parser_for
from keypoint_detection.models.checkpoint_file import (
    CALIBRATION_KEY,
    EVALUATION_KEY,
    METRICS_KEY,
    RECORDS,
    SAFETENSORS,
    TRAINED_IMAGES,
    VERSION_KEY,
    load_checkpoint,
)
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.wording import counted

SHOWN_METRICS = ("meanAP", "median_distance", "recall", "precision", "best_f1")


def store_calibration(path: str | Path, calibration: Calibration) -> None:
    """Stores thresholds that keep a promise in a checkpoint, with a record of the promise; the rest stays as it is.

    Args:
        path: The checkpoint, which is replaced as a whole or not at all.
        calibration: The thresholds of some or all of its channels. Channels without a promise keep the threshold that
            they had.

    Raises:
        InputError: If the file is not a checkpoint of a detector, or cannot be written.
    """
    checkpoint = load_checkpoint(path)
    names = list(checkpoint["hyper_parameters"]["keypoint_channels"])
    thresholds = checkpoint["state_dict"]["score_thresholds"].clone()
    for position, name in enumerate(names):
        found = calibration.channels.get(name)
        if found is not None and found.threshold is not None:
            thresholds[position] = found.threshold
    checkpoint["state_dict"]["score_thresholds"] = thresholds
    checkpoint[CALIBRATION_KEY] = finite(calibration.record())
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    with writing(f"checkpoint {path}"):
        write_atomic(Path(path), stream.getvalue())


def describe(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, as plain values.

    Args:
        path: The checkpoint. No code from it is run.

    Returns:
        `file`, `version`, `channels`, `score_thresholds` by channel, `backbone` with its arguments, `parameters` (how
        many), `heatmap_stride`, `heatmap_sigma`, `image_size`, `epoch`, `step`, `evaluation` (which channels of the
        labelled file are merged, what empty ones mean, threshold distances, fingerprints of the labels), `metrics` of
        the validation before it was saved, and `calibration`. What the checkpoint does not record is None.

    Raises:
        InputError: If the file is not a checkpoint of a detector.
    """
    checkpoint = load_checkpoint(path)
    values, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    names = list(values["keypoint_channels"])
    thresholds = state.get("score_thresholds", torch.full((len(names),), math.nan)).tolist()
    evaluation = checkpoint.get(EVALUATION_KEY)
    return finite(
        {
            "file": str(path),
            "version": checkpoint.get(VERSION_KEY),
            "channels": names,
            "score_thresholds": dict(zip(names, thresholds, strict=True)),
            "backbone": {"type": values.get("backbone_type"), **(values.get("backbone") or {})},
            "parameters": parameter_count(values),
            "heatmap_stride": values.get("heatmap_stride"),
            "heatmap_sigma": values.get("heatmap_sigma"),
            "image_size": values.get("image_size"),
            "epoch": checkpoint.get("epoch"),
            "step": checkpoint.get("global_step"),
            "evaluation": evaluation and {name: evaluation[name] for name in evaluation if name != TRAINED_IMAGES},
            "metrics": checkpoint.get(METRICS_KEY),
            "calibration": checkpoint.get(CALIBRATION_KEY),
        }
    )


def parameter_count(values: Mapping[str, Any]) -> int | None:
    """Number of parameters of a detector with these hyperparameters.

    None if it cannot be built here, for example because of a hyperparameter that only another version knows.
    """
    try:
        with torch.device("meta"):  # shapes only
            detector = KeypointDetector(**{**values, "load_pretrained": False})
    except (InputError, TypeError):
        return None
    return sum(parameter.numel() for parameter in detector.parameters())


def info(path: str, as_json: bool = False) -> None:
    """Print what a checkpoint holds, without running code from it.

    Args:
        path: The checkpoint.
        as_json: Print JSON instead of a table.
    """
    found = describe(path)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return
    lines = [f"{name.replace('_', ' '):17}{_text(name, value)}" for name, value in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")


def _text(name: str, value: Any) -> str:
    """A value as text on one line, or on one line for each of its parts."""
    if value is None:
        return "-"
    if name == "evaluation":
        merged = ["=".join(members) for members in value["channel_members"].values() if len(members) > 1]
        unit = {"pixel": "px", "image": "of the image's diagonal"}[value["threshold_unit"]]
        ignored = ", empty channels ignored" if value.get("empty_channels") == "ignore" else ""
        return f"{' '.join([*merged, 'within'])} {', '.join(f'{d:g}' for d in value['distances'])} {unit}{ignored}"
    if name == "metrics":
        value = {key: value[key] for key in SHOWN_METRICS if key in value}
    if name == "epoch":
        return f"{value} (the first is 0)"
    if name == "parameters":
        return f"{value:,}"
    if name == "calibration":
        return _calibration_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _calibration_text(record: dict[str, Any]) -> str:
    lines = [f"recall {record['recall']:g} within {record['distance']:g} px, {record['method']}"]
    for name, channel in record["channels"].items():
        text = channel["problem"] or f"{channel['threshold']:.4g} ({counted(channel['images'], 'image')})"
        lines.append(f"{'':17}  {name}: {text}")
    return "\n".join(lines)


def export_weights(path: str, output: str) -> None:
    """Write the weights of a checkpoint as safetensors, with its hyperparameters and records as metadata.

    Args:
        path: The checkpoint.
        output: The file to write, such as weights.safetensors.

    Raises:
        InputError: If the file is not a checkpoint of a detector, both paths are the same file, the name of the output
            does not end with .safetensors, or the extra `safetensors` is not installed.
    """
    refuse_overwriting(output, [path])
    if Path(output).suffix != SAFETENSORS:  # readers tell it from a checkpoint by this
        raise InputError(f"{output}: expected a name that ends with {SAFETENSORS}")
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise InputError(
            "export-weights needs the extra safetensors: pip install 'keypoint_detection[safetensors]'"
        ) from error
    checkpoint = load_checkpoint(path)
    state = {name: value.contiguous() for name, value in checkpoint["state_dict"].items()}
    metadata = {
        VERSION_KEY: str(checkpoint.get(VERSION_KEY)),
        "hyper_parameters": json.dumps(dict(checkpoint["hyper_parameters"])),
    }
    metadata |= {name: json.dumps(checkpoint[name]) for name in RECORDS if name in checkpoint}
    with writing(output):
        write_atomic(Path(output), save(state, metadata))
    sys.stdout.write(f"{len(state)} tensors: {output}\n")


ACTIONS = {"info": info, "export-weights": export_weights}
POSITIONAL = ("path", "output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection checkpoint`.

    Args:
        arguments: The action and its arguments; by default those of the process.

    Returns:
        The exit code.

    Raises:
        InputError: If an argument is not usable.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if arguments else 2
    if arguments[0] not in ACTIONS:
        raise InputError(f"checkpoint: unknown action {arguments[0]!r}, expected one of {', '.join(ACTIONS)}")
    action = ACTIONS[arguments[0]]
    parser = parser_for(action, f"keypoint-detection checkpoint {arguments[0]}", positional=POSITIONAL)
    call(action, parser.parse_args(arguments[1:]).as_dict())
    return 0


def _usage() -> str:
    calls = {
        " ".join([name, *(word.upper() for word in POSITIONAL if word in inspect.signature(action).parameters)]): action
        for name, action in ACTIONS.items()
    }
    width = max(map(len, calls))
    lines = [f"  {shape:{width}}  {(action.__doc__ or '').splitlines()[0]}" for shape, action in calls.items()]
    return "\n".join(["usage: keypoint-detection checkpoint ACTION ...", "", *lines, ""])
