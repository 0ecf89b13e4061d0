"""The text of a record that an encoder reads, and the name under which its embedding is kept.

A key covers the text through the text's own digest, so it can be worked out again from a record
whose text is not kept: such a record asks with the embedding of the text that it once had.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

KEY_BYTES = 16
TEXT_DIGEST = "text_digest"
"""A field of a stored record as it is read back, where the text itself is not kept: its digest."""
_TEXT_PERSON, _PROSE_PERSON = b"mw-store-v1", b"mw-prose-v1"


class Prose(NamedTuple):
    """What an encoder reads of one record.

    Attributes:
        key: 16 bytes that name it.
        text: title twice, text, skills; None where the record's text is not kept.
    """

    key: bytes
    text: str | None

    @property
    def blank(self) -> bool:
        """Whether there is nothing to read."""
        return self.text is not None and not self.text.strip()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def digest(*parts: bytes, person: bytes = _TEXT_PERSON) -> bytes:
    """blake2b-128 of the parts, each preceded by its length, so that no two lists collide."""
    state = (_TEXT if person == _TEXT_PERSON else _started(person)).copy()
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _started(person: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=KEY_BYTES, person=person)


_TEXT = _started(_TEXT_PERSON)
"""A digest to copy, which takes half the time of making one."""


def text_digest(text: str) -> bytes:
    """What stands for a text that is not kept."""
    return digest(_utf8(text))


_NO_TEXT = text_digest("")


def prose(title: str | None, text: str | bytes | None, skills: str) -> Prose:
    """Of a record's title, text (or the text's digest) and joined names of skills."""
    title = title or ""
    if isinstance(text, bytes):
        kept = None if text != _NO_TEXT else joined(title, "", skills)
        return Prose(_key(title, text, skills), kept)
    text = text or ""
    return Prose(_key(title, text_digest(text), skills), joined(title, text, skills))


def plain(text: str) -> Prose:
    """Of a text by itself."""
    return Prose(_key("", text_digest(text), ""), text)


def joined(title: str, text: str, skills: str) -> str:
    """Title, title, text and skills, a line each: the title counts twice."""
    return f"{title}\n{title}\n{text}\n{skills}"


def _key(title: str, digest_of_text: bytes, skills: str) -> bytes:
    return digest(_utf8(title), digest_of_text, _utf8(skills), person=_PROSE_PERSON)
