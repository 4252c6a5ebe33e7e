"""Checks the parameters of a sweep as flags of training, before any run starts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keypoint_detection.data.channels import split_word
from keypoint_detection.errors import InputError
from keypoint_detection.log_names import log_name, parse_log_name
from keypoint_detection.sweep.sweep_file import SweepFile, flag_text, own_program
from keypoint_detection.wording import did_you_mean

# Flags that the sweep sets for every run.
GIVEN = ("run_dir", "resume")


def check_flags(sweep: SweepFile) -> None:
    """Checks the names and values of parameters; flags are known only if the program is this library's own.

    Args:
        sweep: The sweep.

    Raises:
        InputError: If a parameter is not a flag, a value is not valid for its flag, a required flag is missing, or
            training does not log the metric.
    """
    for parameter in sweep.parameters:
        if parameter.name in GIVEN:
            raise InputError(f"{sweep.path}: parameters.{parameter.name}: is set by the sweep, expected no such entry")
    if sweep.program != own_program():
        return
    # Imported late, because torch takes seconds, and other errors are found before.
    from keypoint_detection.models.backbones import BACKBONES
    from keypoint_detection.models.losses import LOSSES
    from keypoint_detection.models.registry import look_up
    from keypoint_detection.train.flags import build_parser

    parser = build_parser()
    known = {action.dest for action in parser._actions}
    for parameter in sweep.parameters:
        if parameter.name not in known:
            hint = did_you_mean(parameter.name, known)
            raise InputError(f"{sweep.path}: parameters.{parameter.name}: expected a flag of train{hint}")

    fixed = _fixed_flags(sweep)

    def parse(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        here = Path.cwd()
        os.chdir(sweep.folder)  # --config is relative to the folder in which runs start
        try:
            words = [*fixed, *(f"--{name}={flag_text(value)}" for name, value in values.items())]
            config = parser.parse_args(words)
            for registry, name in ((BACKBONES, "backbone_type"), (LOSSES, "loss")):
                look_up(registry, config[name], f"--{name}")
            return config
        except InputError as error:
            raise InputError(f"{sweep.path}: {where}: {error}") from error
        finally:
            os.chdir(here)

    in_command = {word.partition("=")[0].removeprefix("--") for word in fixed}
    required = {a.dest: "file.json" for a in parser._actions if a.required and a.dest not in in_command}
    if fixed:
        parse(required, "command")
    for parameter in sweep.parameters:
        for value in parameter.extremes():
            parse({**required, parameter.name: value}, f"parameters.{parameter.name}")
    config = parse({parameter.name: parameter.extremes()[0] for parameter in sweep.parameters}, "parameters")
    _check_metric(sweep, config)


def _check_metric(sweep: SweepFile, config: Mapping[str, Any]) -> None:
    """Checks that training with these flags logs the metric.

    If channels or distances are unknown, those in the name of the metric are assumed to exist.
    """
    from keypoint_detection.evaluation.images import metric_names
    from keypoint_detection.metrics.distances import parse_distances

    asked = parse_log_name(sweep.metric)
    varying = {parameter.name for parameter in sweep.parameters if parameter.varies}
    spec = None if "keypoint_channels" in varying else config["keypoint_channels"]
    words = spec.split() if isinstance(spec, str) else []
    # A channel in the file may itself be called `a=b`.
    channels = [name for word in words for name in (split_word(word, ())[0], word)] or [asked.channel or ""]
    distances = parse_distances(config["maximal_gt_keypoint_pixel_distances"], config["threshold_unit"])
    if "maximal_gt_keypoint_pixel_distances" in varying and asked.distance:
        distances = [asked.distance]
    measured = metric_names(channels, distances)
    losses = ["loss", *(["gt_loss"] if config["loss"] == "bce" else []), *(log_name("loss", name) for name in channels)]
    names = ["step", "epoch", "learning_rate", "train/loss_step", *(f"train/{name}" for name in losses)]
    names += [f"{stage}/{name}" for stage in ("validation", "best", "test") for name in (*losses, *measured)]
    if sweep.metric not in names:
        hint = did_you_mean(sweep.metric, [name for name in names if parse_log_name(name).channel != ""])
        raise InputError(f"{sweep.path}: metric.name {sweep.metric!r}: expected a metric that training logs{hint}")


def _fixed_flags(sweep: SweepFile) -> list[str]:
    """The flags, with their values, that the sweep's command passes to every run."""
    words = sweep.command({})
    program = str(sweep.program)
    behind = words[words.index(program) + 1 :] if program in words else words
    return list(itertools.dropwhile(lambda word: not word.startswith("--"), behind))
