"""Which versions of a model a server has ready: one more, or one less, while the others answer.

Triton loads and unloads models, not versions; its version policy says which versions a loaded model
has. So a version comes or goes by loading the model again with the configuration that it has now
and another policy. Versions that stay go on answering meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any, Protocol

from matchwright.engine.errors import (
    FailedPrecondition,
    MatchwrightError,
    ModelUnavailable,
    NotFound,
)
from matchwright.engine.models.refs import ModelRef, ModelState

_POLL_S = 0.05


class Control(Protocol):
    """What is asked of a server: ``models.triton.Triton``, or anything like it."""

    def versions(self, name: str, *, deadline: float) -> tuple[int, ...]: ...
    def index(self, *, deadline: float) -> list[ModelState]: ...
    def load(self, name: str, *, deadline: float, config: str | None = None) -> None: ...
    def unload(self, name: str, *, deadline: float) -> None: ...
    def config_of(self, ref: ModelRef, *, deadline: float) -> dict[str, Any]: ...


def load(server: Control, name: str, version: int | None, *, deadline: float) -> tuple[int, ...]:
    """Makes a version ready beside those that are; waits until it is.

    Of a model that is not loaded at all, those versions become ready that its ``config.pbtxt``
    names: every one, unless it was edited.

    Args:
        version: None for every version that the server's repository holds.
        deadline: moment of ``time.monotonic()``.

    Returns:
        The versions that are ready afterwards, in ascending order.

    Raises:
        ModelUnavailable: it did not become ready; those that were still are.
    """
    before = server.versions(name, deadline=deadline)
    if version is not None and version in before:
        return before
    try:
        if before:
            policy = _specific([*before, version]) if version is not None else {"all": {}}
            _load_again(server, ModelRef(name, before[-1]), policy, deadline)
        else:
            server.load(name, deadline=deadline)
    except MatchwrightError as error:
        raise _not_loaded(name, version, error)
    return _wait(server, name, version, deadline)


def unload(
    server: Control, name: str, version: int | None, *, force: bool, deadline: float
) -> tuple[int, ...]:
    """Takes a version away; waits until it is gone. Calls that it is answering are answered.

    Args:
        version: None for the model with all its versions.
        force: also when no version is left.

    Returns:
        The versions that are ready afterwards.

    Raises:
        NotFound: it is not ready.
        FailedPrecondition: nothing would be left, and ``force`` was not given.
    """
    before = server.versions(name, deadline=deadline)
    if not before or (version is not None and version not in before):
        what = name if version is None else f"{name}:{version}"
        has = f"ready are {', '.join(map(str, before))}" if before else "no version of it is ready"
        raise NotFound(f"{what} is not ready on the server: {has}", model=name)
    rest = [one for one in before if version is not None and one != version]
    if not rest and not force:
        raise FailedPrecondition(
            f"{name} would have no version left, and whoever asks for one would be answered "
            "without it; load another version first, or give --force",
            model=name,
        )
    if rest:
        _load_again(server, ModelRef(name, rest[-1]), _specific(rest), deadline)
    else:
        server.unload(name, deadline=deadline)
    while (after := server.versions(name, deadline=deadline)) != tuple(rest):
        if time.monotonic() + _POLL_S > deadline:
            raise ModelUnavailable(
                f"{name} has {after} ready, expected {tuple(rest)}; the server is still unloading",
                model=name,
                why="NOT_READY",
            )
        time.sleep(_POLL_S)
    return after


def _load_again(server: Control, ref: ModelRef, policy: dict[str, Any], deadline: float) -> None:
    """Loads a model with the configuration that it has now, and another version policy.

    Without a configuration Triton would not look again at files that did not change.
    """
    config = server.config_of(ref, deadline=deadline)
    config["version_policy"] = policy
    server.load(ref.name, deadline=deadline, config=json.dumps(config))


def _specific(versions: Iterable[int]) -> dict[str, Any]:
    return {"specific": {"versions": sorted(versions)}}


def _wait(server: Control, name: str, version: int | None, deadline: float) -> tuple[int, ...]:
    """The ready versions, as soon as nothing of the model is being loaded any more."""
    while True:
        states = [one for one in server.index(deadline=deadline) if one.name == name]
        ready = tuple(sorted(one.version for one in states if one.ready))
        loading = any(one.state == "LOADING" for one in states)
        if not loading and ready and (version is None or version in ready):
            return ready
        if not loading:
            raise _not_loaded(name, version, _reason(states, version))
        if time.monotonic() + _POLL_S > deadline:
            raise _not_loaded(name, version, "it did not become ready in time")
        time.sleep(_POLL_S)


def _reason(states: list[ModelState], version: int | None) -> str:
    """What the server says of the version, or that it does not know it."""
    told = [one.reason for one in states if version in (None, one.version) and one.reason]
    return "; ".join(told) or "the server's repository does not hold it"


def _not_loaded(name: str, version: int | None, why: object) -> ModelUnavailable:
    what = name if version is None else f"{name}:{version}"
    return ModelUnavailable(
        f"{what} was not loaded: {why}. Look at the server's log, and check the repository with "
        "`matchwright models check`; versions that were ready still are",
        model=what,
        why="NOT_READY",
    )
