"""Reads a large JSON object in parts, so that a file of a gigabyte needs little more memory than its columns."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from keypoint_detection.errors import InputError

try:  # The optional extra `fast`.
    from orjson import loads as fast_loads
except ImportError:
    fast_loads: Callable[[str], Any] = json.loads

_WHITESPACE = " \t\n\r"
_BOUNDARY = "},"
_UNTERMINATED = "Unterminated string"
# Upper limit for the length of a word or escape that may be cut at the end of the text read so far.
_LONGEST_WORD = 32


class JsonStream:
    """The top level of a JSON file, one key after another; a long list comes in parts.

    Use it as a context manager and iterate over the keys. For each key, call `value()` or `items()` once, or neither to
    skip it.

    Args:
        path: the file.
        part_characters: how much text is read at a time.
    """

    def __init__(self, path: Path, part_characters: int = 1 << 20) -> None:
        self.path = path
        self.part_characters = part_characters
        self.text = ""
        self.position = 0
        self._ended = False
        self._pending = False
        # Counts of the text dropped so far: characters, lines, and characters since the last line break.
        self._dropped = 0
        self._lines_before = 0
        self._columns_before = 0
        self._item: int | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique_object)

    def __enter__(self) -> JsonStream:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: no such file, expected a data set in JSON") from error
        except IsADirectoryError as error:
            raise InputError(f"{self.path}: is a folder, expected a JSON file") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Yields the keys of the object at the top level in the order of the file.

        Raises:
            InputError: if the file is not one JSON object, or holds a key twice.
        """
        first = self._peek()
        if first == "":
            raise InputError(f"{self.path}: the file is empty, expected a data set in JSON")
        if first == "[":
            raise InputError(
                f'{self.path}: a list at the top level, expected an object with the key "dataset" that holds a list of '
                "labelled images (COCO results are predictions, not labels)"
            )
        if first != "{":
            self.value()
            raise InputError(f'{self.path}: expected a JSON object with the key "dataset" at the top level')
        self.position += 1
        seen: set[str] = set()
        while self._peek() != "}":
            if seen:
                self._expect(",")
            if self._peek() != '"':
                raise self.error("expected a key in double quotes")
            key = self.value()
            if key in seen:
                raise InputError(f'{self.path}: the key "{key}" occurs twice at the top level')
            seen.add(key)
            self._expect(":")
            self._pending = True
            yield key
            if self._pending:
                self.value()
        self.position += 1
        if self._peek():
            raise self.error("more text after the end of the data")

    def value(self) -> Any:
        """Reads the value at the current position.

        Raises:
            InputError: if it is not valid JSON, or an object holds a key twice.
        """
        self._pending = False
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith(_UNTERMINATED) or error.pos > len(self.text) - _LONGEST_WORD
                if not cut or self._ended:
                    raise self.error(error.msg, error.pos) from error
            except ValueError as error:
                raise self.error(str(error)) from error
            except RecursionError as error:
                raise self.error("brackets are nested too deeply") from error
            else:
                # A number at the end of the text read so far may be cut: 1 may be the start of 1.5.
                if self._ended or self.text[end : end + _LONGEST_WORD].strip("0123456789+-.eE"):
                    self.position = end
                    return value
            self._read()

    def items(self) -> Iterator[list[Any]]:
        """Yields the items of the list at the current position in parts.

        Raises:
            InputError: if it is not a list, or not valid JSON.
        """
        self._pending = False
        if self._peek() != "[":
            raise InputError(f"{self.path}: expected a list, got {json.dumps(self.value())[:80]}")
        self.position += 1
        if self._peek() == "]":
            self.position += 1
            return
        self._item = 0
        while True:
            yield self._part()
            if self._peek() == "]":
                self.position += 1
                self._item = None
                return
            self._expect(",")
            self._peek()

    def error(self, what: str, position: int | None = None) -> InputError:
        """An error that names file, line and column, and says if the text just ends there."""
        position = self.position if position is None else position
        line = self._lines_before + self.text.count("\n", 0, position) + 1
        last_break = self.text.rfind("\n", 0, position)
        column = position - last_break if last_break >= 0 else self._columns_before + position + 1
        if self._ended and (what.startswith(_UNTERMINATED) or not self.text[position:].strip(_WHITESPACE)):
            what = "the text ends too early, was the file cut off?"
        entry = "" if self._item is None else f" entry {self._item}:"
        return InputError(f"{self.path}:{entry} not valid JSON at line {line}, column {column}: {what}")

    def _part(self) -> list[Any]:
        """Parses the whole items in the text read so far: all at once, or one by one if that fails.

        The text is cut after a `}` that precedes a comma. If this is inside an item, brackets do not match, and the
        parser refuses the text.
        """
        if len(self.text) - self.position < self.part_characters:
            self._read()
        end = self.text.rfind(_BOUNDARY, self.position) + 1
        if end > 0:
            text = self.text[self.position : end]
            try:
                items = fast_loads(f"[{text}]")
            except (ValueError, RecursionError):
                items = None
            if items is not None and _keys_are_unique(items, text):
                self.position = end
                self._item += len(items)
                return items
        return self._one_by_one(self._dropped + end)

    def _one_by_one(self, end: int) -> list[Any]:
        """Parses items one by one up to this position in the file: slower, but locates errors."""
        items = []
        while True:
            items.append(self.value())
            self._item += 1
            if self._dropped + self.position >= end or self._peek() != ",":
                return items
            self.position += 1

    def _peek(self) -> str:
        """The next character that is not white space, or an empty string at the end of the file."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _WHITESPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read():
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self.error(f'expected "{character}"')
        self.position += 1

    def _read(self) -> bool:
        """Appends more text to what is left; False at the end of the file."""
        if self._ended:
            return False
        try:
            # At least doubling keeps the cost of one very large value linear.
            data = self._file.read(max(self.part_characters, len(self.text) - self.position))
            new = self._decode(data, not data)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not a text file in UTF-8 ({error.reason})") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        self._ended = not data
        breaks = self.text.count("\n", 0, self.position)
        last_break = self.text.rfind("\n", 0, self.position)
        self._lines_before += breaks
        self._columns_before = self.position - last_break - 1 if breaks else self._columns_before + self.position
        self._dropped += self.position
        self.text = self.text[self.position :] + new
        self.position = 0
        return not self._ended


def _keys_are_unique(items: list[Any], text: str) -> bool:
    """Whether no object holds a key twice, judged by counting; False may be a false alarm, which costs only time."""
    objects = [item for item in items if type(item) is dict]
    written = sum(text.count(f"{before}:") for before in ('"', *_WHITESPACE))
    if written == sum(map(len, objects)):
        return True
    inner = (value for item in objects for value in item.values() if type(value) is dict)
    return written == sum(map(len, objects)) + sum(map(len, inner))


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object and refuses duplicate keys, since Python would silently keep only the last one."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice}" occurs twice in this object')
    return result
