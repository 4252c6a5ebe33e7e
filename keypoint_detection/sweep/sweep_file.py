"""Reads and checks a wandb sweep file."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from keypoint_detection.errors import InputError
from keypoint_detection.files import check_yaml
from keypoint_detection.sweep.parameters import Parameter, grid_points, read_parameter
from keypoint_detection.wording import did_you_mean

METHODS = ("grid", "random", "bayes")
KEYS = (
    "program", "command", "method", "metric", "parameters", "early_terminate", "run_cap", "name", "description",
    "project", "entity",
)  # fmt: skip
DEFAULT_COMMAND = ["${interpreter}", "${program}", "${args}"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepFile:
    """A sweep.

    Attributes:
        path: The file.
        content: The parsed content of the file.
        method: grid, random or bayes.
        metric: Name under which training logs the metric.
        maximize: Whether high values of the metric are good, rather than low ones.
        parameters: The parameters.
        points: All combinations of values; only for the method grid.
        program: The script that trains.
        folder: Folder in which runs start; relative paths in the file are relative to it.
    """

    path: Path
    content: Mapping[str, Any]
    method: str
    metric: str
    maximize: bool
    parameters: list[Parameter]
    points: list[dict[str, Any]]
    program: Path
    folder: Path

    @property
    def name(self) -> str:
        """Name of the sweep: the one given in the file, or that of the file itself."""
        return re.sub(r"[^\w.-]+", "-", str(self.content.get("name") or self.path.stem))

    @property
    def identity(self) -> str:
        """What must stay the same for a sweep to be resumed, as text."""
        kept = {key: self.content[key] for key in ("method", "metric", "parameters", "program") if key in self.content}
        plain = json.loads(json.dumps(kept, default=str))  # keys in YAML may be a mix of numbers and text
        return json.dumps(plain, sort_keys=True)

    def differences(self, identity: str) -> list[str]:
        """Names of entries that differ from another `identity`, such as `parameters.learning_rate`."""
        now, before = json.loads(self.identity), json.loads(identity)
        named = []
        for key in sorted(now.keys() | before.keys()):
            new, old = now.get(key), before.get(key)
            if key == "parameters" and isinstance(new, dict) and isinstance(old, dict):
                named += [f"{key}.{name}" for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
            elif new != old:
                named.append(key)
        return named

    def runs(self, count: int | None) -> int:
        """How many runs the sweep has.

        Args:
            count: The number asked for, which overrides the file's run_cap; None takes that of the file.

        Raises:
            InputError: If neither the count nor the file gives a number, or the count is below 1.
        """
        if count is not None and count < 1:
            raise InputError(f"--count {count}: expected at least 1")
        limits = [limit for limit in (count or self.content.get("run_cap"), len(self.points)) if limit]
        if not limits:
            raise InputError(f"--count: expected a number, since {self.path} has no run_cap and no grid")
        return min(limits)

    def command(self, flags: Mapping[str, Any]) -> list[str]:
        """The command line of one run.

        Args:
            flags: Values by flag name.

        Returns:
            Program and arguments, with wandb's macros filled in.
        """
        expanded = {f"${{{name}}}": words for name, words in _macros(self.program, flags).items()}
        parts = [str(part) for part in self.content.get("command") or DEFAULT_COMMAND]
        parts = [re.sub(r"\$\{envvar:(\w+)\}", lambda m: os.environ.get(m.group(1), m.group(1)), p) for p in parts]
        return [word for part in parts for word in expanded.get(part, [part])]


def _macros(program: Path, flags: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words that replace each of wandb's macros in a command."""
    texts = {name: flag_text(value) for name, value in flags.items()}
    told = [name for name, value in flags.items() if value is not False]
    switches = [f"--{name}" if flags[name] is True else f"--{name}={texts[name]}" for name in told]
    return {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [sys.executable],
        "program": [str(program)],
        "args": [f"--{name}={text}" for name, text in texts.items()],
        "args_no_equals": [word for name, text in texts.items() for word in (f"--{name}", text)],
        "args_no_boolean_flags": switches,
        "args_no_hyphens": [f"{name}={text}" for name, text in texts.items()],
        "args_append_hydra": [f"+{name}={text}" for name, text in texts.items()],
        "args_override_hydra": [f"++{name}={text}" for name, text in texts.items()],
        "args_json": [json.dumps(dict(flags))],
    }


def flag_text(value: Any) -> str:
    """A value as the text of a flag, with booleans as wandb's agent writes them."""
    return str(value) if isinstance(value, str | bool) else json.dumps(value)


def own_program() -> Path:
    """The script of this library that trains."""
    return Path(importlib.util.find_spec("keypoint_detection.train.train").origin)


def read_sweep_file(path: str | Path) -> SweepFile:
    """Reads a sweep file.

    Args:
        path: The YAML file.

    Returns:
        The sweep.

    Raises:
        InputError: If anything is wrong with the file; the message is one line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        check_yaml(text)
        return _check(path, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check(path: Path, content: Any) -> SweepFile:
    if not isinstance(content, Mapping):
        raise InputError("expected method, metric and parameters")
    unknown = next((key for key in content if key not in KEYS), None)
    if unknown is not None:
        raise InputError(
            f"{unknown}: unknown entry{did_you_mean(str(unknown), KEYS)}, expected some of {', '.join(KEYS)}"
        )
    if content.get("method") not in METHODS:
        raise InputError(f"method is {content.get('method')!r}, expected one of {', '.join(METHODS)}")
    metric = content.get("metric")
    if not isinstance(metric, Mapping) or not metric.get("name"):
        raise InputError("metric is missing, expected for example `metric: {name: validation/meanAP, goal: maximize}`")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise InputError(f"metric.goal is {metric['goal']!r}, expected minimize or maximize")
    entries = content.get("parameters")
    if not isinstance(entries, Mapping) or not entries:
        raise InputError("parameters is missing, expected an entry for each flag of the training")
    run_cap = content.get("run_cap", 1)
    if not isinstance(run_cap, int) or run_cap < 1:
        raise InputError(f"run_cap is {run_cap!r}, expected a whole number of at least 1")
    if not isinstance(content.get("command", []), list):
        raise InputError(f"command is {content['command']!r}, expected a list of words")
    known = _macros(Path(), {})
    for word in content.get("command", []):
        macro = re.fullmatch(r"\$\{([^:]*)\}", str(word))
        if macro and macro.group(1) not in known:
            raise InputError(
                f"command: {word}: unknown, expected some of {', '.join(f'${{{name}}}' for name in known)}"
            )
    if not isinstance(content.get("program"), str | None):
        raise InputError(f"program is {content['program']!r}, expected the name of a script")
    parameters = [read_parameter(str(name), entry) for name, entry in entries.items()]
    points = grid_points(parameters) if content["method"] == "grid" else []
    program, folder = _find_program(path, content.get("program"))
    if "goal" not in metric:
        logger.warning(
            "%s: metric.goal is missing, so it is minimize: the best run has the lowest %s", path, metric["name"]
        )
    maximize = metric.get("goal") == "maximize"
    return SweepFile(
        path, content, content["method"], str(metric["name"]), maximize, parameters, points, program, folder
    )


def _find_program(path: Path, name: str | None) -> tuple[Path, Path]:
    """The script that trains, and the folder that the paths in its flags are relative to."""
    if name is None:
        return own_program(), Path.cwd()
    for folder in (Path.cwd(), path.resolve().parent):
        if (folder / name).is_file():
            return (folder / name).resolve(), folder
    if name == own_program().name:
        logger.warning("program %s: not found here or next to the sweep file, using %s", name, own_program())
        return own_program(), Path.cwd()
    raise InputError(
        f"program {name}: no such file in {Path.cwd()} or next to the sweep file, expected a script, or no program to "
        "use this library's"
    )
