"""Who may call what: static tokens with scopes, from one file.

The file holds no token, only their SHA-256, so that reading it gives nobody access::

    [[token]]
    name = "search-backend"
    sha256 = "…"                      # printf %s "$TOKEN" | sha256sum
    scopes = ["match", "explain"]
    marketplaces = ["default"]        # left out: every one

Callers send ``authorization: Bearer TOKEN``. Without a file every caller may do everything.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchwright.engine.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    unknown_key,
)

MATCH, EXPLAIN, EXPLAIN_OPERATOR = "match", "explain", "explain.operator"
SCOPES = (MATCH, EXPLAIN, EXPLAIN_OPERATOR)
FILE_BYTES_MAX = 1 << 20
_KEYS = ("name", "sha256", "scopes", "marketplaces")
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may call.

    Attributes:
        marketplaces: those that may be asked; None for every one.
    """

    name: str
    scopes: frozenset[str]
    marketplaces: frozenset[str] | None = None

    def require(self, scope: str, marketplace: str) -> None:
        """Refuse what the token does not allow.

        Raises:
            PermissionDenied: naming the scope or the marketplace.
        """
        if scope not in self.scopes:
            raise PermissionDenied(
                f"the token {self.name!r} lacks the scope {scope!r}", scope=scope, token=self.name
            )
        if self.marketplaces is not None and marketplace not in self.marketplaces:
            raise PermissionDenied(
                f"the token {self.name!r} may not ask the marketplace {marketplace!r}",
                marketplace=marketplace,
                token=self.name,
            )


ANYBODY = Caller("anybody", frozenset(SCOPES))


class Tokens:
    """The tokens that a server knows; none at all lets everybody in."""

    def __init__(self, callers: Mapping[bytes, Caller] | None = None) -> None:
        self._callers = callers

    @classmethod
    def load(cls, path: Path | None) -> Tokens:
        """Read a token file.

        Raises:
            NotFound: there is no such file.
            InvalidArgument, UnknownKey: it is not as described above.
        """
        if path is None:
            return cls()
        if not path.is_file():
            raise NotFound(f"there is no token file {str(path)!r}", file=path)
        if path.stat().st_size > FILE_BYTES_MAX:
            raise InvalidArgument(f"{path}: larger than {FILE_BYTES_MAX:,} bytes", file=path)
        try:
            document = tomllib.loads(path.read_bytes().decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path}: not TOML: {error}", file=path) from None
        for key in document:
            if key != "token":
                raise unknown_key("key", key, ("token",), str(path))
        entries = document.get("token", [])
        if not isinstance(entries, list) or not entries:
            raise InvalidArgument(f"{path}: holds no [[token]]", file=path)
        return cls(dict(_caller(entry, f"{path}: token {n}") for n, entry in enumerate(entries, 1)))

    def caller(self, metadata: Iterable[tuple[str, Any]] | None) -> Caller:
        """Who calls, by the ``authorization`` header.

        Raises:
            Unauthenticated: no token, or one that is not known.
        """
        if self._callers is None:
            return ANYBODY
        given = [str(value) for key, value in metadata or () if key == "authorization"]
        if len(given) != 1 or not given[0].lower().startswith(_SCHEME):
            raise Unauthenticated("send one header authorization: Bearer TOKEN")
        token = given[0][len(_SCHEME) :].strip()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for known, caller in self._callers.items():  # all of them: no early end tells anything
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthenticated("the token is not known to this server")
        return found


def _caller(entry: Any, where: str) -> tuple[bytes, Caller]:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where}: expected a table")
    for key in entry:
        if key not in _KEYS:
            raise unknown_key("key", key, _KEYS, where)
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{where}: name is {name!r}; expected a text", field="name")
    try:
        key = bytes.fromhex(digest) if isinstance(digest, str) else b""
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidArgument(f"{where}: sha256 takes 64 hexadecimal digits", field="sha256")
    scopes = _names(entry.get("scopes"), "scopes", where)
    for scope in scopes:
        if scope not in SCOPES:
            raise unknown_key("scope", scope, SCOPES, where)
    markets = entry.get("marketplaces")
    allowed = None if markets is None else _names(markets, "marketplaces", where)
    return key, Caller(name, scopes, allowed)


def _names(value: Any, field: str, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument(f"{where}: {field} takes a list of names", field=field)
    return frozenset(value)
