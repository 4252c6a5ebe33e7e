"""Looks names up in the registries, so that a wrong name or argument lists the right ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from keypoint_detection.errors import InputError
from keypoint_detection.wording import nearest

T = TypeVar("T")


def look_up(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of a registry.

    Args:
        registry: Entries by name.
        name: The name that was asked for.
        what: What the registry holds, for the error: `backbone_type`, `loss`.

    Raises:
        InputError: when there is no such name; lists those that there are.
    """
    if name not in registry:
        raise InputError(f"{what} {name!r} is unknown, {_choices(name, registry)}")
    return registry[name]


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], what: str, given: Collection[str] = ()
) -> None:
    """Check that a function or class takes all of these keyword arguments.

    Args:
        function: Function or class.
        arguments: Values by argument name.
        what: What the function is, for the error: `backbone_type 'Unet'`.
        given: Arguments that it gets elsewhere.

    Raises:
        InputError: for an argument that it does not take; lists those that it takes.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given]
    for name in arguments:
        if name not in known:
            raise InputError(f"{what} takes no argument {name!r}, {_choices(name, known)}")


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of a function or class that have a default, with it."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def _choices(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = nearest(name, known)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of: {', '.join(known) or 'none'}{guess}"
