"""The command line: flags derived from the signatures of what they configure, never declared twice.

A flag, a constructor argument and a logged hyperparameter are the same thing. `build_parser` reads them from the
signatures and docstrings of `SOURCES` and of everything in the registries; `keypoint_detection.flags.call` passes their
values back.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentParser

from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.errors import InputError
from keypoint_detection.flags import (
    ConfigFile,
    HelpFormatter,
    OneLineParser,
    add_flag,
    documentation,
    parameters,
    type_of,
)
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.models.optimization import PLATEAU
from keypoint_detection.models.registry import look_up, own_arguments
from keypoint_detection.train.callbacks import MetricsLogger
from keypoint_detection.train.checkpoints import create_checkpoint_callbacks
from keypoint_detection.train.device_speed import DeviceSpeed
from keypoint_detection.train.early_stopping import RelativeEarlyStopping
from keypoint_detection.train.ema import ExponentialMovingAverage
from keypoint_detection.train.fine_tune import find_trained_weights
from keypoint_detection.train.pictures import HeatmapPictures
from keypoint_detection.train.recipe import choose_recipe
from keypoint_detection.train.resume import find_interrupted
from keypoint_detection.train.run_folder import RunFolder
from keypoint_detection.train.trainer import create_trainer, trainer_flags
from keypoint_detection.train.wandb_logger import create_wandb_logger

logger = logging.getLogger(__name__)

# (title, function or class with the signature, arguments that are not flags because training computes them)
SOURCES: list[tuple[str, Callable[..., Any], set[str]]] = [
    (
        "Recipe (`auto` chooses from the data and the device)",
        choose_recipe,
        {"annotations", "sizes", "device", "flip_pairs", "trained_channels", "by_heart"},
    ),
    (
        "Data",
        KeypointsDataModule,
        {"augmentation", "split", "batch_size", "image_size", "train_crop_size", "heatmap_sigma", "heatmap_stride"},
    ),
    ("Augmentation of the training images", Augmentation, set()),
    (
        "Model and optimisation",
        KeypointDetector,
        {
            "backbone",
            "loss_arguments",
            "image_size",
            "keypoint_channel_max_keypoints",
            "load_pretrained",
        },
    ),
    ("Speed", DeviceSpeed, set()),
    ("Averaged weights", ExponentialMovingAverage, set()),
    ("Metrics", MetricsLogger, {"row", "channel_names"}),
    ("Pictures", HeatmapPictures, {"metrics", "folder", "channel_names"}),
    ("Stopping early", RelativeEarlyStopping, set()),
    ("Checkpoints", create_checkpoint_callbacks, {"folder"}),
    ("Run folder", RunFolder.choose, {"name"}),
    ("Resuming", find_interrupted, {"run_dir"}),
    ("Fine-tuning", find_trained_weights, set()),
    ("Weights & Biases", create_wandb_logger, {"run_dir", "hyperparameters", "resume_id"}),
    ("Duration and devices", create_trainer, {"config", "folder", "callbacks", "batches_per_epoch"}),
]


# The flags that `-h` explains; `--help_all` explains all.
USUAL = (
    "json_dataset_path", "image_dataset_path", "json_validation_dataset_path", "validation_split_ratio",
    "json_test_dataset_path", "keypoint_channels", "empty_channels", "keypoint_coordinates", "image_size",
    "heatmap_sigma", "heatmap_stride", "backbone_type", "loss", "batch_size", "learning_rate", "augment_train",
    "maximal_gt_keypoint_pixel_distances", "max_epochs", "max_time", "devices", "run_dir", "resume", "checkpoint",
    "wandb_project", "wandb_mode", "config",
)  # fmt: skip
# Column at which its texts begin: all flags but the longest fit to the left of it.
_USUAL_COLUMN = 28


def build_parser() -> OneLineParser:
    """Makes the parser of all training flags.

    Returns:
        A parser with one flag for each hyperparameter. Its `error` raises `InputError`.
    """
    parser = _TrainingParser(
        prog="keypoint-detection train",
        description="Train a keypoint detector from a JSON file and a folder of images.",
        usage="%(prog)s --json_dataset_path FILE [--image_dataset_path FOLDER] [--flag value ...]",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_UsualHelp, help="Explain the usual flags.")
    parser.add_argument("--help_all", action="help", help="Explain all flags.")
    parser.add_argument("--config", action=ConfigFile, help="YAML file with flags; later flags override it.")
    printing = next(action for action in parser._actions if action.dest == "print_config")  # comes with --config
    printing.help = "Print all flags as YAML and end; --print_config=skip_default prints only those that were changed."
    for title, source, computed in SOURCES:
        group = parser.add_argument_group(title)
        for parameter in parameters(source):
            if parameter.name not in computed:
                add_flag(parser, group, parameter, source)
    _add_registry(parser, f"Backbones ({', '.join(BACKBONES)})", BACKBONES)
    _add_registry(parser, f"Losses ({', '.join(LOSSES)})", LOSSES)
    group = parser.add_argument_group("Trainer (PyTorch Lightning's own)")
    for parameter in parameters(pl.Trainer):
        if parameter.name in trainer_flags():
            add_flag(parser, group, parameter, pl.Trainer, first_sentence=True)
    return parser


def learning_flags() -> set[str]:
    """Flags that affect what a training run learns and how. They have to stay the same throughout the run."""
    sources = (choose_recipe, Augmentation, KeypointDetector, ExponentialMovingAverage)
    names = {
        parameter.name
        for _, source, computed in SOURCES
        for parameter in parameters(source)
        if source in sources and parameter.name not in computed
    }
    for registry in (BACKBONES, LOSSES):
        names = names.union(*map(_member_flags, registry.values()))
    names |= {"keypoint_channels", "empty_channels", "accumulate_grad_batches", "gradient_clip_val"}
    # The sampler checks the batch size itself; the others depend on the device, or only affect what is detected.
    return names - {"batch_size", "precision", "max_keypoints", "minimal_keypoint_extraction_pixel_distance"}


def automatic_flags() -> set[str]:
    """Flags whose `auto` depends on the data and the device, and is decided once per training run."""
    return {p.name for p in parameters(choose_recipe) if p.default == "auto"}


class _TrainingParser(OneLineParser):
    """A parser whose error about missing flags says that `--resume` does not supply them."""

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Parses a command line, by default that of the process."""
        words = sys.argv[1:] if args is None else args
        try:
            return super().parse_args(words, *others, **options)
        except InputError as error:
            if not str(error).startswith("missing: ") or all(word.split("=")[0] != "--resume" for word in words):
                raise
            advice = "--resume needs the same flags again, or --config with the run's hparams.yaml"
            raise InputError(f"{error}; {advice}") from error


class _UsualHelp(argparse.Action):
    """Prints a help text that fits on a screen."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(usual_help(parser))
        parser.exit()


def usual_help(parser: argparse.ArgumentParser) -> str:
    """The help of the usual flags, one sentence each, and the groups of the others."""
    actions = {action.dest: copy.copy(action) for action in parser._actions}
    for action in actions.values():
        action.help = re.split(r"(?<=[.;:])\s", action.help or "", maxsplit=1)[0].rstrip(".;:")
    actions["backbone_type"].help, actions["loss"].help = ", ".join(BACKBONES), ", ".join(LOSSES)
    formatter = HelpFormatter(parser.prog, max_help_position=_USUAL_COLUMN)
    formatter.add_usage(parser.usage, [], [])
    formatter.add_text(parser.description)
    formatter.start_section("The usual flags")
    formatter.add_arguments([actions[name] for name in USUAL])
    formatter.end_section()
    groups = [group.title for group in parser._action_groups if group._group_actions and "(" not in group.title]
    formatter.add_text(f"--help_all explains all {len(actions) - 2} flags: {', '.join(groups[1:])}, Trainer, ...")
    return formatter.format_help()


def registry_arguments(
    registry: Mapping[str, Callable[..., Any]], flag: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that the flags give to the chosen member of a registry.

    Args:
        registry: `BACKBONES` or `LOSSES`.
        flag: The flag that chooses the member, without its dashes.
        config: All hyperparameters by name; None means the member's own default.

    Returns:
        The arguments to pass to the member.

    Raises:
        InputError: If the name is not in the registry.
    """
    member = look_up(registry, config[flag], f"--{flag}")
    return {key: config[key] for key in _member_flags(member) if config.get(key) is not None}


def warn_of_unused(config: Mapping[str, Any]) -> None:
    """Warns of flags that were given, but have no effect because of the others.

    Args:
        config: A value for every flag, as given.
    """
    augmentation = {parameter.name for parameter in parameters(Augmentation)} | {"augmented_share"}
    schedule, plateau = config["learning_rate_schedule"], {name for name in config if name.startswith("plateau_")}
    validation, weights = config["json_validation_dataset_path"], config.get("encoder_weights")
    stops_at = config["early_stopping_relative_threshold"]
    never = f"--early_stopping_relative_threshold is {stops_at:g}, which never stops"
    rules: list[tuple[bool, set[str], str]] = [
        (schedule != PLATEAU, plateau, f"--learning_rate_schedule is {schedule}"),
        (schedule == PLATEAU, {"learning_rate_warmup"}, f"--learning_rate_schedule is {schedule}"),
        (stops_at < 0, {"early_stopping_patience"}, never),
        (bool(validation), {"validation_split_ratio"}, "--json_validation_dataset_path is the validation set"),
        (config["augment_train"] is False, augmentation, "--augment_train is false"),
        (bool(weights and config["pretrained"]), {"pretrained"}, "the encoder starts from --encoder_weights"),
    ]
    for registry, name in ((BACKBONES, config["backbone_type"]), (LOSSES, config["loss"])):
        if name in registry:
            flags = set().union(*map(_member_flags, registry.values()))
            for flag in flags - _member_flags(registry[name]):
                takers = ", ".join(taker for taker, member in registry.items() if flag in _member_flags(member))
                rules.append((True, {flag}, f"{name} does not take it, unlike {takers}"))
    defaults = {
        parameter.name: parameter.default
        for _, source, _ in SOURCES
        for parameter in parameters(source)
        if parameter.default is not parameter.empty
    }
    for applies, names, reason in rules:
        for name in sorted(names) if applies else ():
            if config[name] != defaults.get(name):
                logger.warning("--%s has no effect: %s", name, reason)


def _member_flags(member: Callable[..., Any]) -> set[str]:
    return {parameter.name for parameter in own_arguments(member)}


def _add_registry(parser: ArgumentParser, title: str, registry: Mapping[str, Callable[..., Any]]) -> None:
    """Adds the arguments of all members of a registry; a flag that is not given means the chosen member's default."""
    described: dict[str, tuple[Any, dict[str, str], list[str]]] = {}
    for name, member in registry.items():
        for parameter in own_arguments(member):
            _check_member_flag(parser, member, parameter)
            text = documentation(member).get(parameter.name, "")
            _, texts, owners = described.setdefault(parameter.name, (type_of(member, parameter.name), {}, []))
            if text:
                texts.setdefault(text, name)
            owners.append(f"{name}: {parameter.default}")
    group = parser.add_argument_group(title)
    for name, (hint, texts, owners) in described.items():
        text = " ".join(texts if len(texts) == 1 else (f"{owner}: {text}" for text, owner in texts.items()))
        text = f"{text} (default: {', '.join(owners)})"
        group.add_argument(f"--{name}", type=hint | None, default=None, help=text)


def _check_member_flag(parser: ArgumentParser, member: Callable[..., Any], parameter: inspect.Parameter) -> None:
    """Checks that an argument can be a flag; it may belong to a user's own loss or backbone."""
    name = parameter.name
    problem = ""
    if parameter.default is parameter.empty:
        problem = f"has no default; a flag needs a type and a default, such as `{name}: float = 1.0`"
    elif name in trainer_flags() or any(f"--{name}" in action.option_strings for action in parser._actions):
        problem = f"has the same name as the flag --{name}; expected a name of its own"
    if problem:
        raise InputError(f"{member.__module__}.{member.__qualname__}: the argument {name} {problem}")
