"""One name for the many spellings of a skill.

``Skills.normalise`` depends on the spelling and the alias tables alone, so the same spelling gives
the same name in any record, batch and process::

    "ReactJS"  "React.js"  "react js"    ->  words "react.js"  ->  alias  "React"
    "data-entry"  "Data Entry"           ->  words "data entry" -> alias  "Data Entry"
    "Knitwear_Repair"                    ->  words "knitwear repair" (unknown: kept as words)
    "C"  "C++"  "C#"  ".NET"             ->  stay apart: + and # belong to the word before them,
                                             a leading dot to the word after it
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

from matchwright.engine.errors import InvalidArgument, NotFound, unknown_key
from matchwright.engine.records.fields import LABEL_CHARS_MAX

ALIAS_FILE_BYTES_MAX = 4 << 20

_KEPT = frozenset("+#&.")
_SIGN = re.compile(r"(?<![^\W_])(?<![+#])[+#]+")  # a + or # that follows no word
_LETTER_SIGN = re.compile(r"(?<!\S)(\w) (\+\+|#)(?!\S)")  # "c ++" -> "c++"
_DOT = re.compile(r"(?<!^)\.|\.(?!\w)")
_JS = re.compile(r"^(\w[\w+# ]*\w) ?js$")


@lru_cache(maxsize=1 << 14)
def _as_word(char: str) -> str:
    """A character as it takes part in a skill's words; separators become a space."""
    if char in _KEPT:
        return char
    if char in "'’`´":
        return ""
    group = unicodedata.category(char)[0]
    if group in "LMN":
        return char
    return "" if unicodedata.category(char) in ("Cf", "So") else " "


@lru_cache(maxsize=1 << 16)
def words(spelling: str) -> str:
    """The spelling in lower-case words: what an unknown skill is stored as. Idempotent."""
    text = re.sub("[™®©]", " ", spelling)
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text)
    text = "".join(map(_as_word, text)).replace("&", " and ")
    text = " ".join(text.split())
    text = _LETTER_SIGN.sub(r"\1\2", text)
    text = _SIGN.sub(" ", text).strip()
    stem = text.removesuffix(".js") if text.endswith(".js") else ""
    text = " ".join(_DOT.sub(" ", text).split())
    found = _JS.match(text) if not stem.startswith(".") else None
    return f"{found[1].rstrip()}.js" if found else text


def squeeze(spelling: str) -> str:
    """The key under which aliases are found: the words without spaces and inner dots."""
    text = words(spelling).replace(" ", "")
    return text[:1] + text[1:].replace(".", "")


class Skills:
    """Alias tables, frozen after construction.

    Args:
        aliases: name -> other spellings.
        splits: spelling -> the several skills that it stands for.

    Raises:
        InvalidArgument: one spelling is given to two names.
    """

    def __init__(
        self, aliases: Mapping[str, Iterable[str]], splits: Mapping[str, Iterable[str]]
    ) -> None:
        self._name: dict[str, str] = {}
        for name in aliases:
            self._claim(name, name)
        for name, spellings in aliases.items():
            for spelling in spellings:
                self._claim(spelling, name)
        self._split = {squeeze(s): tuple(map(self._one, parts)) for s, parts in splits.items()}

    def _claim(self, spelling: str, name: str) -> None:
        key = squeeze(spelling)
        if not key:
            raise InvalidArgument(f"alias {spelling!r} of skill {name!r} has no letters or digits")
        if self._name.setdefault(key, name) != name:
            raise InvalidArgument(
                f"skill alias {spelling!r} belongs to both {self._name[key]!r} and {name!r}"
            )

    def _one(self, spelling: str) -> str:
        return self._name.get(squeeze(spelling)) or words(spelling)

    def normalise(self, spelling: str) -> tuple[str, ...]:
        """The skills that ``spelling`` stands for: one as a rule, none if it holds no word."""
        split = self._split.get(squeeze(spelling))
        if split is not None:
            return split
        name = self._one(spelling)
        return (name,) if name else ()

    def known(self, name: str) -> bool:
        """Whether the alias tables know the skill."""
        return squeeze(name) in self._name


def read_aliases(text: str, where: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The tables ``[skills]`` and ``[split]`` of an alias file.

    Raises:
        UnknownKey, InvalidArgument: the file is not what it should be; ``where`` is named.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidArgument(f"{where} is not TOML: {error}") from None
    for key in document:
        if key not in ("skills", "split"):
            raise unknown_key("table", key, ("skills", "split"), where)
    return (
        _spellings(document.get("skills", {}), f"{where}, [skills]"),
        _spellings(document.get("split", {}), f"{where}, [split]"),
    )


def _spellings(table: object, where: str) -> dict[str, list[str]]:
    if not isinstance(table, dict):
        raise InvalidArgument(f"{where} must be a table of name = [spellings]")
    for name, spellings in table.items():
        strings = isinstance(spellings, list) and all(isinstance(s, str) for s in spellings)
        if not strings:
            raise InvalidArgument(f"{where}: {name!r} must be a list of strings, got {spellings!r}")
        if not 0 < len(name) <= LABEL_CHARS_MAX:
            raise InvalidArgument(f"{where}: a name has 1 to {LABEL_CHARS_MAX} characters")
    return table


@cache
def default_skills() -> Skills:
    """The alias tables that are shipped."""
    return Skills(*_shipped())


@cache
def _shipped() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    file = resources.files("matchwright.engine.records") / "aliases.toml"
    return read_aliases(file.read_text("utf-8"), "aliases.toml")


def skills_with(path: Path) -> Skills:
    """The shipped tables with a user's own on top; the user's names win.

    Raises:
        NotFound, UnknownKey, InvalidArgument.
    """
    names, splits = read_aliases(_read_text(path), str(path))
    own = {squeeze(s) for name, spellings in names.items() for s in (name, *spellings)}
    own |= {squeeze(s) for s in splits}
    shipped_names, shipped_splits = _shipped()
    merged = {
        name: [s for s in spellings if squeeze(s) not in own]
        for name, spellings in shipped_names.items()
        if squeeze(name) not in own
    }
    for name in shipped_names.keys() & names.keys():
        merged[name] = [s for s in shipped_names[name] if squeeze(s) not in own]
    for name, spellings in names.items():
        merged[name] = [*merged.get(name, ()), *spellings]
    kept = {s: parts for s, parts in shipped_splits.items() if squeeze(s) not in own}
    return Skills(merged, kept | splits)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > ALIAS_FILE_BYTES_MAX:
            raise InvalidArgument(f"{path} is larger than {ALIAS_FILE_BYTES_MAX:,} bytes")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8: {error}") from None
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None


def normalise(spelling: str) -> tuple[str, ...]:
    """``Skills.normalise`` with the shipped tables."""
    return default_skills().normalise(spelling)
