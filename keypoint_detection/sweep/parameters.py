"""The parameters of a sweep file and the distributions that their values are drawn from, under wandb's names."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from keypoint_detection.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial

Entry = Mapping[str, Any]
# Range of quantiles to draw from if a distribution has no bounds: +-4.75 standard deviations for a normal one.
LOWEST_QUANTILE, HIGHEST_QUANTILE = 1e-6, 1 - 1e-6
_POWER_OF_TEN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Parameter:
    """One parameter: either a choice between values, or a number between bounds.

    Attributes:
        name: Its name, which is a flag of training.
        choices: The values to choose from; empty for a number between bounds.
        weights: Probabilities of the choices; if empty, all are equally likely.
        low: Lower bound of the number that is drawn.
        high: Upper bound of the number that is drawn.
        log: Draw the logarithm uniformly, instead of the number.
        whole: Draw whole numbers.
        convert: Turns the number that is drawn into the value of the parameter; None leaves it as it is.
    """

    name: str
    choices: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    convert: Callable[[Any], Any] | None = None

    @property
    def varies(self) -> bool:
        """Whether it has more than one value."""
        return len(self.choices) > 1 or (not self.choices and self.low < self.high)

    def draw(self, trial: Trial) -> Any:
        """Draws a value.

        Args:
            trial: The Optuna trial to draw for, which records what is drawn.

        Returns:
            The value.
        """
        if len(self.choices) == 1:
            return self.choices[0]
        if self.weights:
            drawn = trial.suggest_float(self.name, 0.0, 1.0)
            ends = itertools.accumulate(self.weights)
            return next((c for c, end in zip(self.choices, ends, strict=True) if drawn < end), self.choices[-1])
        if self.choices:
            plain = self._plain_choices()
            return self.choices[plain.index(trial.suggest_categorical(self.name, plain))]
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        drawn = suggest(self.name, self.low, self.high, log=self.log)
        return self.convert(drawn) if self.convert else drawn

    def _plain_choices(self) -> list[str | int | float | bool | None]:
        """The choices as plain values, as Optuna needs them; among numbers, true becomes text, as it would equal 1."""
        numbers = any(type(choice) in (int, float) for choice in self.choices)
        texts = (dict, list, bool) if numbers else (dict, list)
        return [json.dumps(choice) if isinstance(choice, texts) else choice for choice in self.choices]

    def grid(self) -> list[Any]:
        """All its values.

        Raises:
            InputError: If there are infinitely many.
        """
        if self.choices:
            return list(self.choices)
        if not self.whole:
            raise InputError("method grid: expected value, values, or whole numbers between min and max")
        return list(range(int(self.low), int(self.high) + 1))

    def extremes(self) -> list[Any]:
        """All choices, or the values at both bounds."""
        if self.choices:
            return list(self.choices)
        return [self.convert(bound) if self.convert else bound for bound in dict.fromkeys((self.low, self.high))]


def grid_points(parameters: list[Parameter]) -> list[dict[str, Any]]:
    """All combinations of the values of parameters; the last parameter changes fastest.

    Raises:
        InputError: If a parameter has infinitely many values.
    """
    names = [parameter.name for parameter in parameters]
    return [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(_named_grid(p) for p in parameters))
    ]


def _named_grid(parameter: Parameter) -> list[Any]:
    try:
        return parameter.grid()
    except InputError as error:
        raise InputError(f"parameters.{parameter.name}: {error}") from error


def read_parameter(name: str, entry: Any) -> Parameter:
    """Reads one parameter of a sweep file.

    Args:
        name: Its name.
        entry: Its entry in the file: `value`, `values`, or `min` and `max`, and `distribution`.

    Returns:
        The parameter.

    Raises:
        InputError: If the entry is not a valid distribution, or its numbers are out of range.
    """
    try:
        if not isinstance(entry, Mapping) or "parameters" in entry:
            raise InputError(f"expected value, values, or min and max, got {entry!r}")
        distribution = entry.get("distribution") or _implied(entry)
        if distribution not in DISTRIBUTIONS:
            raise InputError(f"distribution {distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}")
        base, quantised = distribution.removeprefix("q_"), distribution.startswith("q_")
        required, build = _BUILDERS[base]
        _check_keys(entry, distribution, required, ("q",) if quantised else ())
        parameter = build(name, entry)
        if not quantised:
            return parameter
        return _quantised(parameter, _number(entry, "q", 1), positive=base.startswith("log"))
    except OverflowError as error:
        problem = f"distribution {distribution}: expected natural logarithms, got {dict(entry)}"
        raise InputError(f"parameters.{name}: {problem}") from error
    except InputError as error:
        raise InputError(f"parameters.{name}: {error}") from error


def _implied(entry: Entry) -> str:
    """The distribution if none is named: the same as in wandb."""
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if {"min", "max"} <= entry.keys():
        return "int_uniform" if all(type(entry[key]) is int for key in ("min", "max")) else "uniform"
    if {"mu", "sigma"} <= entry.keys():
        return "normal"
    raise InputError(f"expected value, values, or min and max, got {dict(entry)}")


def _check_keys(entry: Entry, distribution: str, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for key in required:
        if key not in entry:
            raise InputError(f"distribution {distribution} needs {' and '.join(required)}, got {dict(entry)}")
    unknown = [key for key in entry if key not in ("distribution", *required, *optional)]
    if unknown:
        expected = ", ".join((*required, *optional))
        raise InputError(f"{unknown[0]}: unknown entry of distribution {distribution}, expected {expected}")


def _number(entry: Entry, key: str, otherwise: float | None = None) -> float:
    """A number in the entry, or a text such as `1e-4`, which YAML does not read as a number without a decimal point."""
    value = plain_value(entry.get(key, otherwise))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key} is {value!r}, expected a number")
    return value


def plain_value(value: Any) -> Any:
    """The value as its author meant it: YAML reads `1e-4` and `1.5e3` as text, and `2026-01-31` as a date."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return float(value) if isinstance(value, str) and _POWER_OF_TEN.fullmatch(value) else value


def _bounds(entry: Entry, minimum: float = -math.inf) -> tuple[float, float]:
    low, high = _number(entry, "min"), _number(entry, "max")
    if low > high:
        raise InputError(f"min is {low} and max is {high}, expected min not above max")
    if low <= minimum:
        raise InputError(f"min is {low}, expected a number above {minimum:g}")
    return low, high


def _constant(name: str, entry: Entry) -> Parameter:
    return Parameter(name, (plain_value(entry["value"]),))


def _categorical(name: str, entry: Entry) -> Parameter:
    values = entry["values"]
    if not isinstance(values, list) or not values:
        raise InputError(f"values is {values!r}, expected a list of at least one")
    return Parameter(name, tuple(plain_value(value) for value in values))


def _weighted(name: str, entry: Entry) -> Parameter:
    values, weights = _categorical(name, entry).choices, entry["probabilities"]
    weights = [plain_value(weight) for weight in weights] if isinstance(weights, list) else weights
    numbers = [w for w in weights if isinstance(w, int | float) and w >= 0] if isinstance(weights, list) else []
    if numbers != weights or len(weights) != len(values) or not abs(math.fsum(weights) - 1) <= 1e-6:
        raise InputError(f"probabilities is {weights!r}, expected {len(values)} numbers, one per value, that sum to 1")
    return Parameter(name, values, tuple(weights))


def _int_uniform(name: str, entry: Entry) -> Parameter:
    low, high = _bounds(entry)
    if low != int(low) or high != int(high):
        raise InputError(f"min is {low} and max is {high}, expected whole numbers")
    return Parameter(name, low=int(low), high=int(high), whole=True)


def _uniform(name: str, entry: Entry) -> Parameter:
    low, high = _bounds(entry)
    return Parameter(name, low=float(low), high=float(high))


def _log_uniform_values(name: str, entry: Entry) -> Parameter:
    low, high = _bounds(entry, minimum=0.0)
    return Parameter(name, low=float(low), high=float(high), log=True)


def _log_uniform(name: str, entry: Entry) -> Parameter:
    low, high = _bounds(entry)  # of the natural logarithm
    return Parameter(name, low=math.exp(low), high=math.exp(high), log=True)


def _inverse_log_uniform(name: str, entry: Entry) -> Parameter:
    low, high = _bounds(entry)  # of the natural logarithm of 1 / value
    return Parameter(name, low=math.exp(-high), high=math.exp(-low), log=True)


def _normal(name: str, entry: Entry) -> Parameter:
    mean, deviation = _number(entry, "mu"), _number(entry, "sigma")
    if deviation <= 0:
        raise InputError(f"sigma is {deviation}, expected a positive number")
    quantile = NormalDist(mean, deviation).inv_cdf
    return Parameter(name, low=LOWEST_QUANTILE, high=HIGHEST_QUANTILE, convert=quantile)


def _log_normal(name: str, entry: Entry) -> Parameter:
    normal = _normal(name, entry)
    return replace(normal, convert=lambda drawn: math.exp(normal.convert(drawn)))


def _quantised(parameter: Parameter, step: float, positive: bool) -> Parameter:
    """The parameter with values rounded to multiples of a step, at least one step if `positive`."""
    if step <= 0:
        raise InputError(f"q is {step}, expected a positive number")
    before = parameter.convert or float

    def nearest(drawn: float) -> float:
        value = max(round(before(drawn) / step), int(positive)) * step
        return value if isinstance(step, int) else float(f"{value:.12g}")  # 3 * 0.1 is 0.3

    return replace(parameter, convert=nearest)


# The entries that each distribution needs, and the function that reads it.
_BUILDERS: dict[str, tuple[tuple[str, ...], Callable[[str, Entry], Parameter]]] = {
    "constant": (("value",), _constant),
    "categorical": (("values",), _categorical),
    "categorical_w_probabilities": (("values", "probabilities"), _weighted),
    "int_uniform": (("min", "max"), _int_uniform),
    "uniform": (("min", "max"), _uniform),
    "log_uniform": (("min", "max"), _log_uniform),
    "log_uniform_values": (("min", "max"), _log_uniform_values),
    "inv_log_uniform": (("min", "max"), _inverse_log_uniform),
    "inv_log_uniform_values": (("min", "max"), _log_uniform_values),
    "normal": (("mu", "sigma"), _normal),
    "log_normal": (("mu", "sigma"), _log_normal),
}
DISTRIBUTIONS = (
    *_BUILDERS, *(f"q_{name}" for name in ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal")),
)  # fmt: skip
