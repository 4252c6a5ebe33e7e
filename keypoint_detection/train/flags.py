"""The command line: flags derived from the signatures of what they configure, never repeated.

A flag, a constructor argument and a logged hyperparameter are one thing. `build_parser` reads them from the signatures
and docstrings of `SOURCES` and of everything in the registries; `call` hands them back to the same signatures.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
import jsonargparse
import pytorch_lightning as pl
from jsonargparse import ArgumentParser, Namespace

from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.train.callbacks import HeatmapPictures, MetricsLogger
from keypoint_detection.train.checkpoints import create_checkpoint_callbacks
from keypoint_detection.train.ema import ExponentialMovingAverage
from keypoint_detection.train.recipe import choose_recipe
from keypoint_detection.train.run_folder import RunFolder
from keypoint_detection.train.trainer import create_trainer, trainer_flags
from keypoint_detection.train.wandb_logger import create_wandb_logger
from keypoint_detection.train.watch import RelativeEarlyStopping

T = TypeVar("T")

# (title, what has the signature, arguments that are not flags because the training computes them)
SOURCES: list[tuple[str, Callable[..., Any], set[str]]] = [
    ("Recipe (`auto` chooses from the data and the device)", choose_recipe, {"annotations", "sizes", "accelerator"}),
    (
        "Data",
        KeypointsDataModule,
        {"augmentation", "split", "batch_size", "image_size", "heatmap_sigma", "heatmap_stride"},
    ),
    ("Augmentation of the training images", Augmentation, set()),
    (
        "Model and optimisation",
        KeypointDetector,
        {
            "backbone",
            "loss_arguments",
            "image_size",
            "heatmap_sigma",
            "heatmap_stride",
            "learning_rate",
            "keypoint_channel_max_keypoints",
            "load_pretrained",
        },
    ),
    ("Averaged weights", ExponentialMovingAverage, set()),
    ("Metrics", MetricsLogger, {"channel_names"}),
    ("Pictures", HeatmapPictures, {"metrics", "folder", "channel_names"}),
    ("Stopping early", RelativeEarlyStopping, set()),
    ("Checkpoints", create_checkpoint_callbacks, {"folder"}),
    ("Run folder", RunFolder.choose, {"name"}),
    ("Weights & Biases", create_wandb_logger, {"run_dir", "hyperparameters", "resume_id"}),
    ("Duration and devices", create_trainer, {"config", "folder", "callbacks", "loggers", "batches_per_epoch"}),
]


# Arguments of backbones and losses that are not theirs to choose.
GIVEN_TO_MEMBERS = {"heatmap_stride", "logits", "targets"}


class OneLineParser(ArgumentParser):
    """A parser whose errors are one clear line, with exit code 2, and whose help leaves types to the text."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `InputError` with the message on one line.

        Args:
            message: What was wrong.
            ex: The error behind it.

        Raises:
            InputError: Always.
        """
        raise InputError(_one_line(message)) from ex


def _one_line(message: str) -> str:
    """The parser's message, often several indented lines, as one."""
    unrecognized = re.search(r"[Uu]nrecognized arguments?: (.*)|[Kk]ey '([^']*)' is not expected", message)
    if unrecognized:
        name = unrecognized.group(1) or unrecognized.group(2)
        return f"unknown flag: {name.strip()} (-h lists the flags)"
    return re.sub(r"\s*\n\s*[-|]*\s*", " ", message).strip()


def build_parser() -> OneLineParser:
    """The parser of all flags of a training.

    Returns:
        A parser with one flag for each hyperparameter. Its `error` raises `InputError`.
    """
    parser = OneLineParser(
        prog="keypoint-detection train",
        description="Train a keypoint detector from a JSON file and a folder of images.",
        usage="%(prog)s --json_dataset_path FILE --image_dataset_path FOLDER [--flag value ...]",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with flags; later flags override it.")
    for title, source, computed in SOURCES:
        group = parser.add_argument_group(title)
        for parameter in _parameters(source):
            if parameter.name not in computed:
                _add_flag(parser, group, parameter, source)
    _add_registry(parser, f"Backbones ({', '.join(BACKBONES)})", BACKBONES)
    _add_registry(parser, f"Losses ({', '.join(LOSSES)})", LOSSES)
    group = parser.add_argument_group("Trainer (PyTorch Lightning's own)")
    for parameter in _parameters(pl.Trainer):
        if parameter.name in trainer_flags():
            _add_flag(parser, group, parameter, pl.Trainer)
    return parser


def call(function: Callable[..., T], config: Mapping[str, Any], /, **given: Any) -> T:
    """Calls a function or class with the hyperparameters that its signature names.

    Args:
        function: What to call.
        config: All hyperparameters by name.
        **given: Arguments that are no hyperparameters, or that replace them.

    Returns:
        What the function returns.
    """
    names = [parameter.name for parameter in _parameters(function)]
    return function(**{name: config[name] for name in names if name in config and name not in given}, **given)


def registry_arguments(
    registry: Mapping[str, Callable[..., Any]], name: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that were given for one member of a registry.

    Args:
        registry: `BACKBONES` or `LOSSES`.
        name: The chosen member.
        config: All hyperparameters by name; None stands for the member's own default.

    Returns:
        The arguments to pass to the member.

    Raises:
        InputError: If the name is not in the registry.
    """
    if name not in registry:
        raise InputError(f"unknown name {name!r}: expected one of {', '.join(registry)}")
    return {key: config[key] for key in _member_flags(registry[name]) if config.get(key) is not None}


def unused_registry_flags(
    registry: Mapping[str, Callable[..., Any]], name: str, config: Mapping[str, Any]
) -> list[str]:
    """Flags that were given for other members of a registry and that the chosen one does not have."""
    flags = {flag for member in registry.values() for flag in _member_flags(member)}
    return sorted(flag for flag in flags - _member_flags(registry[name]) if config.get(flag) is not None)


def _member_flags(member: Callable[..., Any]) -> set[str]:
    return {parameter.name for parameter in _parameters(member)} - GIVEN_TO_MEMBERS


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"
    ]


def _documentation(source: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    texts = [source.__doc__ or "", (source.__init__.__doc__ or "") if inspect.isclass(source) else ""]
    parsed = [param for text in texts for param in docstring_parser.parse(text).params]
    described = {param.arg_name: " ".join((param.description or "").split()) for param in parsed}
    return {name: text[:1].upper() + text[1:] for name, text in described.items()}


def _hints(source: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(source.__init__ if inspect.isclass(source) else source)


def _add_flag(parser: ArgumentParser, group: Any, parameter: inspect.Parameter, source: Callable[..., Any]) -> None:
    """Adds one flag. An argument that two signatures share is one flag, and only one of them may have a default."""
    required = parameter.default is inspect.Parameter.empty
    if any(action.dest == parameter.name for action in parser._actions):
        if not required:
            raise TypeError(f"{parameter.name} has a second default, in {source.__qualname__}")
        return
    text = _documentation(source).get(parameter.name, "")
    if source is pl.Trainer:  # its paragraphs are for its own manual: the first sentence says what the flag does
        text = re.split(r"(?<=\.)\s+|\s*Default: ", text, maxsplit=1)[0].replace("``", "`")
    options = {"required": True} if required else {"default": parameter.default}
    group.add_argument(f"--{parameter.name}", type=_hints(source)[parameter.name], help=text, **options)


def _add_registry(parser: ArgumentParser, title: str, registry: Mapping[str, Callable[..., Any]]) -> None:
    """Adds the arguments of all members of a registry; a flag that is left out means the chosen member's default."""
    described: dict[str, tuple[Any, str, list[str]]] = {}
    for name, member in registry.items():
        for parameter in _parameters(member):
            if parameter.name in GIVEN_TO_MEMBERS:
                continue
            text = _documentation(member).get(parameter.name, "")
            hint, _, owners = described.setdefault(parameter.name, (_hints(member)[parameter.name], text, []))
            owners.append(f"{name}: {parameter.default}")
    group = parser.add_argument_group(title)
    for name, (hint, text, owners) in described.items():
        text = f"{text} (default: {', '.join(owners)})"
        group.add_argument(f"--{name}", type=hint | None, default=None, help=text)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help with the default behind each text, and without Python types, which say little to a reader."""

    def _get_help_string(self, action: Any) -> str:
        text = action.help or ""
        if "(default:" in text or action.dest in ("help", "config", "print_config"):
            return text
        if action.required:
            return f"{text} (required)"
        return text if action.default is None else f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: Any) -> str:
        return ", ".join(action.option_strings[:1]) if action.option_strings else action.dest


def parse_hyperparameters(parser: OneLineParser, hyperparameters: Mapping[str, Any]) -> Namespace:
    """Validates hyperparameters that were given as Python values as if they had been flags.

    Args:
        parser: The parser of `build_parser`.
        hyperparameters: Values by flag name.

    Returns:
        All hyperparameters, defaults filled in.

    Raises:
        InputError: If a name is unknown, a value has the wrong type, or a required one is missing.
    """
    return parser.parse_object(dict(hyperparameters))
