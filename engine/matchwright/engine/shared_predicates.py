"""Predicates that recur, each of them one object while it is remembered.

Of 4,096 queries most ask the same of a column: thousands of rules are a few hundred predicates.
One that is remembered is not made again, and kernels compile what is one object once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

REMEMBERED = 16_384
"""Predicates; the longest unused one leaves first."""
VALUES_MOST = 32
"""Longer lists are hardly ever asked twice, and are not remembered."""


@lru_cache(maxsize=REMEMBERED, typed=True)
def shared(form: Callable[..., Any], *fields: Any) -> Any:
    """``form(*fields)``, a predicate without a list."""
    return form(*fields)


def shared_list(form: Callable[..., Any], column: str, values: tuple[int, ...], *more: Any) -> Any:
    """``form(column, values, *more)``."""
    make = shared if len(values) <= VALUES_MOST else _made
    return make(form, column, values, *more)


def _made(form: Callable[..., Any], *fields: Any) -> Any:
    return form(*fields)
