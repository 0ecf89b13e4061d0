"""Protobuf's text format, as far as a ``config.pbtxt`` needs it: written exactly, and read back.

The engine writes these files without Triton's libraries. The tests parse everything that is written
here into tritonclient's ``ModelConfig``, and compare what is read here with what that parser reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matchwright.engine.errors import InvalidData

DEPTH_MAX = 32
"""How deep messages may lie in each other; Triton's own go to 6."""


class EnumName(str):
    """The name of an enum's value, which is written without quotes."""

    __slots__ = ()


class Entries(dict[str, Any]):
    """A map field: written as one ``{ key ... value ... }`` for each entry."""


_TOKEN = re.compile(
    r"""
    (?P<skip>(?:\s|\#[^\n]*)+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?f?))
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>[{}\[\]<>:,;])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_LETTERS = {"n": b"\n", "t": b"\t", "r": b"\r", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v"}
_CLOSING = {"{": "}", "<": ">"}


def render(message: Mapping[str, Any]) -> str:
    """A message as text: one field in a line, in the order of the mapping, two spaces a level."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Entries):
            for key, item in value.items():
                yield from _field(name, {"key": key, "value": item}, indent)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if value and not isinstance(value[0], Mapping):
                yield f"{indent}{name}: [{', '.join(map(_scalar, value))}]"
            else:
                for item in value:
                    yield from _field(name, item, indent)
        else:
            yield from _field(name, value, indent)


def _field(name: str, value: Any, indent: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{indent}{name}: {_scalar(value)}"
    elif value:
        yield f"{indent}{name} {{"
        yield from _lines(value, indent + "  ")
        yield f"{indent}}}"
    else:
        yield f"{indent}{name} {{}}"


def _scalar(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case EnumName():
            return str(value)
        case int():
            return str(value)
        case str():
            return f'"{_escaped(value)}"'
    raise TypeError(f"a config holds whole numbers, texts and booleans, got {value!r}")


def _escaped(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return "".join(c if c.isprintable() else _octal(c) for c in quoted)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode())


def parse(text: str, where: str = "config.pbtxt") -> dict[str, list[Any]]:
    """A text as a mapping of field names to lists of their values, nested.

    Without a schema nothing says which fields repeat, so that every field is a list. A map's entry
    is a message with the fields ``key`` and ``value``.

    Raises:
        InvalidData: when it is no text format; the message names the line.
    """
    return _Reader(text, where).message("", 0)


class _Reader:
    """Tokens of one text, one ahead."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._tokens = list(self._split(text))
        self._at = 0

    def _split(self, text: str) -> Iterator[tuple[str, str, int]]:
        at, line = 0, 1
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._wrong(text[at : at + 20].partition("\n")[0], line)
            if found.lastgroup != "skip":
                yield str(found.lastgroup), found.group(), line
            line += found.group().count("\n")
            at = found.end()
        yield "end", "", line

    def _wrong(self, got: str, line: int) -> InvalidData:
        return InvalidData(
            f"{self._where}, line {line}: {got or 'the end'!r} was not expected here; "
            "this is no protobuf text format",
            file=self._where,
            line=line,
        )

    def _next(self, *wanted: str) -> str:
        """Takes the next token; ``wanted`` are marks, or kinds of token."""
        kind, text, line = self._tokens[self._at]
        if wanted and text not in wanted and kind not in wanted:
            raise self._wrong(text, line)
        self._at += 1
        return text

    def _peek(self) -> tuple[str, str]:
        kind, text, _ = self._tokens[self._at]
        return kind, text

    def message(self, closing: str, depth: int) -> dict[str, list[Any]]:
        """Fields up to the closing mark, or to the end of the text when there is none."""
        if depth > DEPTH_MAX:
            raise self._wrong("a message this deep", self._tokens[self._at][2])
        fields: dict[str, list[Any]] = {}
        while self._peek()[1] != closing:
            name = self._next("word")
            fields.setdefault(name, []).extend(self._values(depth))
            if self._peek()[1] in {",", ";"}:
                self._next()
        self._next()
        return fields

    def _values(self, depth: int) -> list[Any]:
        colon = self._peek()[1] == ":"
        if colon:
            self._next()
        if self._peek()[1] != "[":
            return [self._value(colon, depth)]
        self._next()
        values: list[Any] = []
        while self._peek()[1] != "]":
            values.append(self._value(True, depth))
            if self._peek()[1] != "]":
                self._next(",")
        self._next()
        return values

    def _value(self, scalar_too: bool, depth: int) -> Any:
        kind, text = self._peek()
        if text in _CLOSING:
            self._next()
            return self.message(_CLOSING[text], depth + 1)
        if not scalar_too:
            self._next("{", "<")
        if kind == "string":
            return self._string()
        text, line = self._next("number", "word"), self._tokens[self._at - 1][2]
        try:
            return _plain(text)
        except ValueError:  # more digits than Python takes
            raise self._wrong(text[:20], line) from None

    def _string(self) -> str:
        raw = b""
        while self._peek()[0] == "string":  # neighbours are one text, as in C
            raw += _unescaped(self._next()[1:-1])
        return raw.decode("utf-8", "replace")


def _plain(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    if text[0].isalpha() or text[0] == "_":
        return EnumName(text)
    digits = text.lstrip("+-").lower()
    if digits.startswith("0x") or digits.isdigit():
        number = int(digits, _base(digits))
        return -number if text[0] == "-" else number
    return float(text.rstrip("fF"))


def _base(digits: str) -> int:
    if digits.startswith("0x"):
        return 16
    return 8 if digits[0] == "0" and set(digits) <= set("01234567") else 10


def _unescaped(text: str) -> bytes:
    parts, end = [], 0
    for found in _ESCAPE.finditer(text):
        parts += [text[end : found.start()].encode(), _byte(found.group(1))]
        end = found.end()
    return b"".join([*parts, text[end:].encode()])


def _byte(escape: str) -> bytes:
    if escape[0] == "x" and len(escape) > 1:
        return bytes([int(escape[1:], 16)])
    if escape[0] in "01234567":
        return bytes([int(escape, 8) & 0xFF])
    return _LETTERS.get(escape, escape.encode())
