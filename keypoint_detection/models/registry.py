"""Looks up names in the registries, with errors that list the valid names or arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from keypoint_detection.errors import InputError
from keypoint_detection.wording import did_you_mean

T = TypeVar("T")

# Arguments that every backbone or every loss gets from the detector.
_GIVEN = {"heatmap_stride", "logits", "targets"}
# The registries to which users add members of their own, by the hyperparameter that chooses one of them.
_OPEN = {"backbone_type": "BACKBONES", "loss": "LOSSES"}


def look_up(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of a registry.

    Args:
        registry: Entries by name.
        name: The requested name.
        what: What the registry holds, for the error: `backbone_type`, `--loss`.

    Raises:
        InputError: when there is no such name; lists the valid ones, and says how to add one's own.
    """
    if name not in registry:
        own = _OPEN.get(what.removeprefix("--"))
        advice = f"; register your own first: {own}[{name!r}] = ..." if own else ""
        raise InputError(f"{what} {name!r} is unknown, {_choices(name, registry)}{advice}")
    return registry[name]


def check_registered(registry: Mapping[str, Any], name: str, what: str, checkpoint: str) -> None:
    """Check that a registry has the entry that a checkpoint needs, which may be the user's own.

    Args:
        registry: Entries by name.
        name: The name in the checkpoint.
        what: What the registry holds, for the error: `backbone`, `loss`.
        checkpoint: The checkpoint, for the error: `checkpoint best.ckpt`.

    Raises:
        InputError: when there is no such name.
    """
    if name not in registry:
        raise InputError(
            f"{checkpoint} needs the {what} {name}, which is not registered: add it to its registry before loading"
        )


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    """Check that a backbone or a loss takes all of these arguments.

    Args:
        function: The backbone's class, or the loss.
        arguments: Values by argument name.
        what: What the function is, for the error: `backbone_type 'Unet'`.

    Raises:
        InputError: for an argument that it does not take; lists the valid ones.
    """
    known = [parameter.name for parameter in own_arguments(function)]
    for name in arguments:
        if name not in known:
            raise InputError(f"{what} takes no argument {name!r}, {_choices(name, known)}")


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a backbone's or a loss's arguments by name, without those that have none."""
    return {p.name: p.default for p in own_arguments(function) if p.default is not p.empty}


def own_arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments of a backbone or a loss that its user chooses."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.kind in by_name and p.name not in _GIVEN]


def _choices(name: str, known: Iterable[str]) -> str:
    known = list(known)
    hint = did_you_mean(name, known, "'{}'")
    return f"expected one of: {', '.join(known) or 'none'}{hint}"
