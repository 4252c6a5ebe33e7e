"""Checks the detector's hyperparameters once, when it is built."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from keypoint_detection.errors import InputError
from keypoint_detection.heatmaps import SIGMAS
from keypoint_detection.models.backbones import BACKBONES, Backbone
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.models.optimization import OPTIMIZERS, PLATEAU, SCHEDULES
from keypoint_detection.models.registry import check_arguments, defaults, look_up

# Keypoints that are decoded per channel by default.
MAX_KEYPOINTS = 20


def plain(name: str, value: Any) -> Any:
    """Convert a hyperparameter to plain Python values, so that its checkpoint loads without running code.

    Args:
        name: Name of the hyperparameter, for the error.
        value: A number (a numpy one, too), a string, None, or a list, tuple or dictionary of these.

    Raises:
        InputError: for any other value.
    """
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(name, entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(name, value.item())
    raise InputError(f"{name} is {value!r}, expected a number, a string, None, or a list or dictionary of these")


def complete(values: MutableMapping[str, Any]) -> None:
    """Convert all hyperparameters to plain values, check them, and fill in defaults.

    Arguments of the backbone and the loss that were left out are filled in, so that a checkpoint still builds the same
    network after a default has changed.

    Args:
        values: Hyperparameters of the detector by name; changed in place.

    Raises:
        InputError: names the hyperparameter, its value and what was expected.
    """
    for name, value in list(values.items()):
        values[name] = plain(name, value)
    if values["max_keypoints"] is None:
        values["max_keypoints"] = MAX_KEYPOINTS
    check(values)
    backbone = look_up(BACKBONES, values["backbone_type"], "backbone_type")
    for name, member in (("backbone", backbone), ("loss_arguments", LOSSES[values["loss"]])):
        values[name] = plain(name, defaults(member) | (values[name] or {}))


def keypoint_caps(values: Mapping[str, Any]) -> list[int]:
    """The maximum number of keypoints that are decoded in each of the C channels."""
    caps = values["keypoint_channel_max_keypoints"] or [-1] * len(values["keypoint_channels"])
    return [values["max_keypoints"] if cap == -1 else cap for cap in caps]


def check(values: Mapping[str, Any]) -> None:
    """Check the values of a detector's hyperparameters.

    Raises:
        InputError: names the hyperparameter, its value and what was expected.
    """
    channels = values["keypoint_channels"]
    if not isinstance(channels, list) or not channels or len(set(channels)) < len(channels):
        raise InputError(f"keypoint_channels is {channels!r}, expected a list of one or more different names")
    loss = look_up(LOSSES, values["loss"], "loss")
    check_arguments(loss, values["loss_arguments"] or {}, f"loss {values['loss']!r}")
    look_up({**SCHEDULES, PLATEAU: None}, values["learning_rate_schedule"], "learning_rate_schedule")
    look_up(dict.fromkeys(OPTIMIZERS), values["optimizer"], "optimizer")
    caps = values["keypoint_channel_max_keypoints"]
    if caps is not None and (len(caps) != len(channels) or any(cap != -1 and cap < 1 for cap in caps)):
        raise InputError(
            f"keypoint_channel_max_keypoints is {caps}, expected one value for each of the {len(channels)} channels, "
            "-1 or at least 1"
        )
    size = values["image_size"]
    if size is not None and (not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1):
        raise InputError(f"image_size is {size}, expected a height and a width of at least 1")
    _check_ranges(values)


def _check_ranges(values: Mapping[str, Any]) -> None:
    ranges = {
        "heatmap_sigma": (SIGMAS[0] <= values["heatmap_sigma"] <= SIGMAS[1], "{:g} to {:g}".format(*SIGMAS)),
        "heatmap_stride": (values["heatmap_stride"] in (1, 2, 4), "1, 2 or 4"),
        "max_keypoints": (values["max_keypoints"] >= 1, "at least 1"),
        "minimal_keypoint_extraction_pixel_distance": (
            0 <= values["minimal_keypoint_extraction_pixel_distance"] < math.inf,
            "0 or more, and finite",
        ),
        "learning_rate": (0 < values["learning_rate"] < math.inf, "more than 0, and finite"),
        "weight_decay": (0 <= values["weight_decay"] < math.inf, "0 or more, and finite"),
        "learning_rate_warmup": (0 <= values["learning_rate_warmup"] < 1, "at least 0 and less than 1"),
        "plateau_factor": (0 < values["plateau_factor"] < 1, "between 0 and 1"),
        "plateau_patience": (values["plateau_patience"] >= 0, "0 or more"),
        "plateau_relative_threshold": (0 <= values["plateau_relative_threshold"] < 1, "at least 0 and less than 1"),
        "encoder_learning_rate_factor": (
            0 <= values["encoder_learning_rate_factor"] < math.inf,
            "0 or more, and finite",
        ),
        "freeze_encoder_epochs": (values["freeze_encoder_epochs"] >= -1, "-1 or more"),
    }
    for name, (is_right, expected) in ranges.items():
        if not is_right:
            raise InputError(f"{name} is {values[name]}, expected {expected}")


def check_overrides(detector: type, names: Iterable[str]) -> None:
    """Check that a detector takes the hyperparameters that are to replace those of a checkpoint.

    Args:
        detector: Its class.
        names: Names of hyperparameters.

    Raises:
        InputError: for a name that it does not take.
    """
    parameters = inspect.signature(detector).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return  # Its base class checks what it passes on.
    known = [parameter.name for parameter in parameters if parameter.name != "load_pretrained"]
    for name in names:
        look_up(dict.fromkeys(known), name, f"{detector.__name__}'s hyperparameter")


def check_encoder(values: Mapping[str, Any], backbone: Backbone) -> None:
    """Check that the backbone has an encoder if a hyperparameter acts on one.

    Raises:
        InputError: names the hyperparameter and the backbone.
    """
    asks = {"encoder_learning_rate_factor": 1.0, "freeze_encoder_epochs": 0}
    for name, neutral in asks.items():
        if values[name] != neutral and not backbone.encoder_modules():
            raise InputError(
                f"{name} is {values[name]}, but backbone_type {values['backbone_type']!r} has no encoder, "
                f"expected {neutral}"
            )
