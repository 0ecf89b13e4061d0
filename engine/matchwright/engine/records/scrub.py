"""Takes out of a text what says who somebody is: names, e-mail, phone, links, handles.

``scrub`` also folds the text to NFKC and drops control, zero-width and bidirectional characters, so
that nothing can hide in it. What is taken out leaves no mark: two texts that differ in a first name
only are equal afterwards. It is idempotent.

Given names come from ``names.toml`` in two lists. Plain ones go wherever they stand capitalised.
Those that are also words (Mark, Ruby, Jordan) go only where the sentence announces a name. A
capitalised word after "my name is" goes whatever it is. This is a filter of the obvious, not
anonymisation: a rare surname in running text stays.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

PASSES_MAX = 16
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
    "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)

_EMAIL = re.compile(
    r"[\w.+%-]{1,64}\s?(?:@|\(at\)|\[at\])\s?[\w-]{1,63}"
    r"(?:\s?(?:\.|\(dot\)|\[dot\])\s?[a-zA-Z][\w-]{1,62}){1,4}",
    re.IGNORECASE,
)
_HOSTS = (
    r"t\.me|wa\.me|bit\.ly|linkedin\.com|github\.com|gitlab\.com|facebook\.com|instagram\.com"
    r"|twitter\.com|behance\.net|dribbble\.com|youtube\.com|youtu\.be"
)
_LINK = re.compile(
    r"\b(?:[a-z][a-z0-9+]{1,9}://|www\.)[^\s<>\"]+"
    rf"|\b(?:[a-z0-9-]{{1,63}}\.){{0,3}}(?:{_HOSTS})\b(?:/[^\s<>\"]*)?"
    # A bare domain counts as a link where a path follows: "Make.com" and "ASP.NET" are skills.
    r"|\b(?:[a-z0-9-]{1,63}\.){1,4}(?:com|org|co|app|dev|in|uk|de|fr|ru|xyz|info|biz|eu)/[^\s<>\"]+",
    re.IGNORECASE,
)
_MAY_LINK = re.compile(r"/|www\.|\.(?:com|net|me|ly|be)\b", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.,/$€£-])[+(\d][\d\s().\-\u2013/]{6,24}\d(?![\w%]|[.,]\d)")
_DATE = re.compile(
    r"\b(?:19|20)\d\d(?:[-/.\u2013]\s?\d|\s*[-\u2013])|\d[-/.]\d{1,2}[-/.](?:19|20)\d\d\b"
)
_HANDLE = re.compile(r"(?<![\w@/.])@\w[\w.]{1,38}\w(?![\w/])")
_MESSENGER = re.compile(
    r"\b(?:skype|telegram|whatsapp|wechat|viber|discord)(?:\s(?:id|me|number|no))?"
    r"\s?[:=]\s?(?=live:|\S*[\d_])[\w.:#+-]{3,40}",
    re.IGNORECASE,
)

_UPPER = "A-Z\u00c0-\u00d6\u00d8-\u00de\u0100-\u017f\u1e00-\u1eff\u0400-\u042f\u0391-\u03a9"
_WORD = rf"[{_UPPER}][^\W\d_]+"
_NAME = rf"{_WORD}(?:[-'\u2019]{_WORD})*"
_CAPITALISED = re.compile(rf"(?<![^\W_]){_NAME}(?:['\u2019]s\b)?")
_ANNOUNCED = re.compile(
    rf"(?:\b(?i:my name is|my name's|my name\u2019s|name\s?:|call me|known as)\s+)"
    rf"(?:{_NAME}(?:[ \t]+{_NAME}){{0,2}}|[^\W\d_]{{2,30}})"
)
_LOWER = re.compile(
    r"(?P<lead>\b(?:i am|i'm|i\u2019m|this is)\s+)(?P<name>[^\W\d_]{3,20})\b", re.IGNORECASE
)
_I_AM = re.compile(r"\b(?:i am|i'm|i\u2019m|im|this is)\s+$", re.IGNORECASE)
_ADDRESSED = re.compile(
    r"(?:\b(?:dear|hello|hi|hey|thanks|regards|cheers|sincerely|mr|mrs|ms|dr)[.,]?\s+)$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\b(?:San|Santa|Santo|St|St\.|Saint|El|Los|Las|Port|Fort|Lake)\s$")
_NAME_ENDS = re.compile(r"\s*(?:[,.!;:)\n]|$)|\s+(?:and|from|with|an?|the|here|\u2013|-)\b")
_NEXT_WORD = re.compile(rf"[ \t]+({_NAME})")
_PARTS = re.compile(r"[-'\u2019]")
_BLANKS = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n ?")
_MANY_LINES = re.compile(r"\n{3,}")


@cache
def _names() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Plain given names, all given names, surnames; lower case without accents."""
    file = resources.files("matchwright.engine.records") / "names.toml"
    lists = tomllib.loads(file.read_text("utf-8"))
    ambiguous = frozenset(lists["ambiguous"].split())
    plain = frozenset(lists["plain"].split()) - ambiguous
    return plain, plain | ambiguous, frozenset(lists["surnames"].split())


@lru_cache(maxsize=1 << 16)
def fold(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def is_given_name(word: str) -> bool:
    """Whether ``word`` is in the lists of given names, the ambiguous ones included."""
    return fold(word) in _names()[1]


def clean(text: str) -> str:
    """NFKC without control, zero-width and bidirectional characters. Idempotent."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    text = _INVISIBLE.sub("", text)
    text = unicodedata.normalize("NFKC", text)
    again = _INVISIBLE.sub("", text)
    return again if again == text else unicodedata.normalize("NFKC", again)


def tidy(text: str) -> str:
    """Single blanks, no blanks at line ends, at most one empty line in a row."""
    text = _LINES.sub("\n", _BLANKS.sub(" ", text))
    return _MANY_LINES.sub("\n\n", text).strip()


def scrub(text: str) -> str:
    """``text`` without names and contact details. Idempotent; see the module."""
    text = clean(text)
    for _ in range(PASSES_MAX):  # what is left can join into something new
        once = tidy(_scrub_once(text))
        if once == text:
            break
        text = once
    return text


def _scrub_once(text: str) -> str:
    if "@" in text or "(at)" in text or "[at]" in text:
        text = _HANDLE.sub(" ", _EMAIL.sub(" ", text))
    if "." in text and _MAY_LINK.search(text):
        text = _LINK.sub(" ", text)
    if ":" in text or "=" in text:
        text = _MESSENGER.sub(" ", text)
    text = _PHONE.sub(_phone, text)
    return _without_names(text)


def _phone(found: re.Match[str]) -> str:
    text = found[0]
    digits = sum(c.isdigit() for c in text)
    least = 8 if text[0] in "+(" else 10
    return " " if least <= digits <= 15 and not _DATE.search(text) else text


def _without_names(text: str) -> str:
    text = _LOWER.sub(_lower, _ANNOUNCED.sub(" ", text))
    kept: list[str] = []
    done = 0  # text before it is copied or left out
    name_end = -1  # where a name that was left out has ended
    for found in _CAPITALISED.finditer(text):
        after_name = name_end >= 0 and not text[name_end : found.start()].strip(" \t")
        rest = _left_of(found, after_name)
        if rest is not None:
            kept += (text[done : found.start()], rest)
            done = found.end()
            name_end = -1 if rest else done
    return "".join(kept) + text[done:] if done else text


def _lower(found: re.Match[str]) -> str:
    """A name that somebody gives in lower case; the others are looked at with their surnames."""
    name = found["name"]
    return found["lead"] if name[0].islower() and fold(name) in _names()[0] else found[0]


def _left_of(found: re.Match[str], after_name: bool) -> str | None:
    """What stays of a capitalised word when names are taken out of it; None: all of it."""
    word = _word(found[0])
    if after_name and word.surname:
        return ""
    if word.plain:
        return None if _PLACE.search(_before(found)) else ""
    if word.given and _announced(found):
        return ""
    return word.rest


class _Word(NamedTuple):
    """What a capitalised word can be; ``rest`` is what stays of "Maria-based"."""

    plain: bool = False
    given: bool = False
    surname: bool = False
    rest: str | None = None


@lru_cache(maxsize=1 << 15)
def _word(text: str) -> _Word:
    plain, given, surnames = _names()
    word = re.sub(r"['\u2019]s$", "", text)
    parts = [fold(part) for part in _PARTS.split(word)]
    surname = all(part in surnames for part in parts)
    if not any(part in given for part in parts) or _is_no_name(word):
        return _Word(surname=surname)
    if all(part in plain for part in parts):
        return _Word(plain=True, given=True, surname=surname)
    if all(part in given for part in parts):
        return _Word(given=True, surname=surname)
    left = [part for part in _PARTS.split(text) if fold(part) not in plain]
    rest = "-".join(left) if len(left) < len(parts) else None
    return _Word(surname=surname, rest=rest)


def _is_no_name(word: str) -> bool:
    """Short capitals and inner capitals: IAN and BEN as acronyms, RoBERTa."""
    if word.isupper():
        return len(word) <= 3
    return any(part != part.title() for part in _PARTS.split(word))


def _before(found: re.Match[str]) -> str:
    return found.string[max(0, found.start() - 16) : found.start()]


def _announced(found: re.Match[str]) -> bool:
    """Whether the sentence says that a name follows; "I am Ruby developer" does not."""
    before = _before(found)
    if _I_AM.search(before):
        after = _NEXT_WORD.match(found.string, found.end())
        if after is not None and _word(after[1]).surname:
            return True
        return _NAME_ENDS.match(found.string, found.end()) is not None
    return _ADDRESSED.search(before) is not None
