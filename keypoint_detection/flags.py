"""Flags derived from signatures and docstrings, so that nothing is declared twice: the parser of all subcommands."""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, Union, get_args, get_type_hints

import docstring_parser
import jsonargparse
from jsonargparse import ArgumentParser

from keypoint_detection.errors import InputError
from keypoint_detection.files import checked_yaml
from keypoint_detection.wording import did_you_mean

T = TypeVar("T")
# Names of types in messages about a value that has none of the expected types.
_TYPE_NAMES = {
    "float": "a number", "int": "a whole number", "str": "text", "bool": "true or false", "NoneType": "none",
    "dict[str, float]": '{"name": 0.5}',
}  # fmt: skip
# Types whose values cannot all be listed.
_NUMBER_OR_TEXT = "<class '(?!NoneType)"


class OneLineParser(ArgumentParser):
    """A parser whose errors are one clear line, with exit code 2, and whose help does not list types.

    A true/false flag without a value is true. `none` means no value, unless the flag takes text. Flags cannot be
    abbreviated, just as in a file.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Parses a command line, by default that of the process."""
        return super().parse_args(self._complete(sys.argv[1:] if args is None else args), *others, **options)

    def parse_object(self, cfg_obj: Any, *others: Any, **options: Any) -> Any:
        """Parses values by name."""
        config = super().parse_object(cfg_obj, *others, **options)
        _refuse_empty(self, config)
        return config

    def _complete(self, args: Sequence[str]) -> list[str]:
        """Turns a true/false `--flag` without a value into `--flag=true`, and `none` into null."""
        has_paths = any(not action.option_strings for action in self._actions)
        hints = {name: getattr(action, "_typehint", None) for action in self._actions for name in action.option_strings}
        words = [_null_for_none(before, word, hints) for before, word in itertools.pairwise(["", *args])]
        return [
            f"{word}=true" if _stands_alone(hints.get(word), after, has_paths) else word
            for word, after in itertools.pairwise([*words, "--"])
        ]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `InputError` with the message on one line.

        Args:
            message: What is wrong.
            ex: The underlying error.

        Raises:
            InputError: Always.
        """
        flags = [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]
        raise InputError(_one_line(message, flags)) from ex


def _refuse_empty(parser: ArgumentParser, config: Any) -> None:
    """Raises an error if a flag that needs a value has none: the parser allows that in files and objects."""
    for action in parser._actions:
        is_empty = action.default is not None and action.dest in config and config[action.dest] is None
        if is_empty and type(None) not in get_args(getattr(action, "_typehint", None)):
            parser.error(f"--{action.dest}: expected a value, found none")


def _stands_alone(hint: Any, following: str, has_paths: bool) -> bool:
    """Whether a flag of type `hint`, followed by that word, has no value; a word may be a path if `has_paths`."""
    kinds = set(get_args(hint) or [hint])
    if bool not in kinds:
        return False
    # After a flag that is only ever true or false, any other word must be a path.
    only_bool = has_paths and kinds <= {bool, type(None)} and following.lower() not in ("true", "false", "yes", "no")
    return following.startswith("--") or only_bool


def _null_for_none(before: str, word: str, hints: Mapping[str, Any]) -> str:
    """A word of a command line, with `null` for `none` if its flag may be empty and does not take text."""
    flag, value = word.split("=", 1) if "=" in word else (before, word)
    kinds = get_args(hints.get(flag))
    if value.lower() != "none" or type(None) not in kinds or str in kinds:
        return word
    return word[: -len(value)] + "null"


def _one_line(message: str, flags: Sequence[str]) -> str:
    """The parser's message, often several indented lines, on one line; an unknown flag gets the nearest known one."""
    key_of_file = r"[Kk]ey '([^']*)' is not expected|[Oo]ption '([^']*)' is not accepted"
    unrecognized = re.search(rf"[Uu]nrecognized arguments?: (.*)|{key_of_file}", message)
    if unrecognized:
        words, *keys = unrecognized.groups()
        # In a file, flags have no dashes.
        given, dashes = (keys[0] or keys[1] or "", "") if words is None else (words.strip(), "--")
        unknown = [word[len(dashes) :].split("=")[0] for word in given.split() if word.startswith(dashes)]
        is_word = bool(dashes and given) and not given.startswith(dashes)
        advice = "; several words for one flag belong in quotes" if is_word else ""
        return f"unknown flag: {given}{did_you_mean(unknown, flags, dashes + '{}') or f' (-h lists the flags{advice})'}"
    missing = re.search(r"arguments are required: ([\w, ]+)", message)
    if missing:
        # Arguments without dashes are positional.
        given = [f"--{name}" if name in flags else name for name in re.split(r",\s*", missing.group(1).strip())]
        return f"missing: {', '.join(given)} (-h lists the flags)"
    no_file = re.search(r'key "(\w+)": (?:File does not exist|Path is not a file): \'(.*)\'', message)
    if no_file:
        return f"--{no_file.group(1)} {no_file.group(2)}: expected a file, found none"
    several = r'key "([^"]*)":.*?Subtypes: \[(.*?)\]\s*Errors.*Given value: (.*)'
    single = r'key "([^"]*)":\s*Expected a (<class [^>]*>|typing\.Literal\[[^\]]*\]).*Got value: (.*)'
    mistyped = re.search(several, message, re.DOTALL) or re.search(single, message, re.DOTALL)
    if mistyped and _names_of_types(mistyped.group(2)):
        name, types, value = mistyped.groups()
        names, only_choices = _names_of_types(types), "Literal" in types and not re.search(_NUMBER_OR_TEXT, types)
        expected = f"one of {', '.join(names)}" if only_choices else " or ".join(names)
        return f"--{name} {value.strip()}: expected {expected}"
    return re.sub(r"\s*\n\s*[-|]*\s*", " ", message).strip()


def _names_of_types(types: str) -> list[str]:
    """Readable names for types in the parser's messages, such as `<class 'float'>, typing.Literal['auto']`."""
    names = []
    for kind, values in re.findall(r"((?<=<class ')\w+|dict\[str, float\])|Literal\[([^\]]*)\]", types):
        names += [_TYPE_NAMES.get(kind, kind)] if kind else [value.strip(" '") for value in values.split(",")]
    return names


def parser_for(
    function: Callable[..., Any],
    command: str,
    *,
    positional: Collection[str] = (),
    computed: Collection[str] = (),
    also: Sequence[Callable[..., Any]] = (),
) -> OneLineParser:
    """The parser of a subcommand that calls one function; `call` then calls it with the parsed flags.

    Args:
        function: What the subcommand calls. The first line of its docstring is the description.
        command: What the user types, such as `keypoint-detection evaluate`.
        positional: Arguments without a flag, in order.
        computed: Arguments that are not flags.
        also: More functions that the subcommand calls, whose arguments are flags too.

    Returns:
        A parser with one flag for each argument. Its `error` raises `InputError`.
    """
    chosen = [parameter for parameter in parameters(function) if parameter.name not in computed]
    required = [p.name for p in chosen if p.default is p.empty and p.name not in positional]
    usage = [command, *(f"--{name} {name.split('_')[0].upper()}" for name in required)]
    parser = OneLineParser(
        prog=command,
        description=(inspect.getdoc(function) or "").split("\n")[0],
        usage=" ".join([*usage, *(p.name.upper() for p in chosen if p.name in positional), "[--flag value ...]"]),
        formatter_class=HelpFormatter,
    )
    for parameter in chosen:
        if parameter.name in positional:
            text = documentation(function).get(parameter.name, "")
            parser.add_argument(parameter.name, type=type_of(function, parameter.name), help=text)
        else:
            add_flag(parser, parser, parameter, function)
    for other in also:
        for parameter in parameters(other):
            if parameter.name not in computed:
                add_flag(parser, parser, parameter, other)
    return parser


def call(function: Callable[..., T], config: Mapping[str, Any], /, **given: Any) -> T:
    """Calls a function or class with the hyperparameters that its signature names.

    Args:
        function: What to call.
        config: All hyperparameters by name.
        **given: Arguments that are not hyperparameters, or that replace them.

    Returns:
        What the function returns.
    """
    names = [parameter.name for parameter in parameters(function)]
    return function(**{name: config[name] for name in names if name in config and name not in given}, **given)


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that a function or class takes by name."""
    return [
        p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"
    ]


def documentation(source: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says about each argument."""
    texts = [source.__doc__ or "", (source.__init__.__doc__ or "") if inspect.isclass(source) else ""]
    parsed = [param for text in texts for param in docstring_parser.parse(text).params]
    described = {param.arg_name: " ".join((param.description or "").split()) for param in parsed}
    return {name: text[:1].upper() + text[1:] for name, text in described.items()}


def type_of(source: Callable[..., Any], name: str) -> Any:
    """The type of an argument.

    Raises:
        InputError: If it has none, as may happen in a user's own loss or backbone.
    """
    types = get_type_hints(source.__init__ if inspect.isclass(source) else source)
    if name not in types:
        raise InputError(
            f"{source.__module__}.{source.__qualname__}: the argument {name} has no type; a flag needs one and a "
            f"default, such as `{name}: float = 1.0`"
        )
    return types[name]


def add_flag(
    parser: ArgumentParser,
    group: Any,
    parameter: inspect.Parameter,
    source: Callable[..., Any],
    first_sentence: bool = False,
) -> None:
    """Adds one flag. An argument that two signatures share is one flag, and only one of them may have a default.

    Args:
        parser: The parser.
        group: The parser's group that shows the flag, or the parser itself.
        parameter: The argument.
        source: The function or class that has the argument in its signature.
        first_sentence: Show only the first sentence of its description, if the rest is too long for a help text.
    """
    required = parameter.default is inspect.Parameter.empty
    if any(action.dest == parameter.name for action in parser._actions):
        if not required:
            raise TypeError(f"{parameter.name} has a second default, in {source.__qualname__}")
        return
    text = documentation(source).get(parameter.name, "")
    if first_sentence:
        text = re.split(r"(?<=\.)\s+|\s*Default: ", text, maxsplit=1)[0].replace("``", "`")
    options = {"required": True} if required else {"default": parameter.default}
    hint = _whole_numbers_first(type_of(source, parameter.name))
    group.add_argument(f"--{parameter.name}", type=hint, help=text, **options)


def _whole_numbers_first(hint: Any) -> Any:
    """The type with int before float, so that `1` stays whole: for Lightning's limits, 1 is one batch, 1.0 is all."""
    kinds = get_args(hint)
    if not {int, float} <= set(kinds):
        return hint
    return Union[tuple(sorted(kinds, key=lambda kind: kind is not int))]  # noqa: UP007  the types are only known at run time


class ConfigFile(jsonargparse.ActionConfigFile):
    """A file with flags; errors in it name the file."""

    def __call__(self, parser: ArgumentParser, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Reads the flags from the file.

        Raises:
            InputError: If it is not a valid file of flags.
        """
        try:
            with checked_yaml(values) as source:
                super().__call__(parser, cfg, source, option_string)
            known = {action.dest for action in parser._actions}
            unknown = [name for name in vars(cfg) if name not in known]
            if unknown:
                parser.error(f"Key '{unknown[0]}' is not expected")
            _refuse_empty(parser, cfg)
        except (InputError, UnicodeDecodeError) as error:
            problem = re.sub("^Unexpected config:.*", "expected flags such as `max_epochs: 50`", str(error))
            problem = problem.replace('in "<unicode string>", ', "").removeprefix("Problems parsing config: ")
            raise InputError(f"--{self.dest} {values}: {problem}") from error


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help with the default after each text, and without Python types, which tell users little."""

    def _get_help_string(self, action: Any) -> str:
        text = action.help or ""
        if "(default:" in text or action.dest in ("help", "help_all", "config", "print_config"):
            return text
        if action.required:
            return f"{text} (required)"
        return text if action.default in (None, argparse.SUPPRESS) else f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: Any) -> str:
        return ", ".join(action.option_strings[:1]) if action.option_strings else action.dest
