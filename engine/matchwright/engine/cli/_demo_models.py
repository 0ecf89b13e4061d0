"""The models of ``matchwright demo``: made on the spot, served by a Triton server of its own."""

from __future__ import annotations

import enum
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchwright.engine.errors import DependencyUnavailable, InvalidData, MatchwrightError

if TYPE_CHECKING:
    from matchwright.engine.config import ModelsConfig
    from matchwright.engine.models.local_server import Found, LocalServer
    from matchwright.engine.rerank.train import Trained

DIMENSIONS = 96
CANDIDATES = 100
TIMEOUT_MS = 2_000
DECISIONS_MAX = 1_500
_NEEDED = {"tritonclient": "triton", "tokenizers": "triton", "onnx": "triton", "lightgbm": "train"}
_START_S = 40.0


class Triton(enum.StrEnum):
    """Whether the demo serves models."""

    AUTO = "auto"
    OFF = "off"


def found_server(asked: Triton) -> Found | str:
    """A Triton server that can be run, or the reason why the demo goes without one."""
    from matchwright.engine.config import tritonserver_in
    from matchwright.engine.models.local_server import find_tritonserver

    if asked is Triton.OFF:
        return "not asked for (--triton off)"
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(sorted({_NEEDED[name] for name in missing}))
        return f"no package {', '.join(missing)}: pip install 'matchwright[{extras}]'"
    try:
        return find_tritonserver(None, tritonserver_in(os.environ))
    except MatchwrightError as error:
        return str(error)


@dataclass
class Served:
    """An encoder and a ranker, and who serves them.

    Attributes:
        folder: of the demo; the repository is ``models`` in it, the policy ``policy.toml``.
        server: runs from ``start`` on.
        ranker: version of the ranker; None until there is one.
    """

    folder: Path
    found: Found
    ranker: int | None = field(default=None, init=False)
    _server: LocalServer | None = field(default=None, init=False)

    @property
    def repository(self) -> Path:
        """The model repository's folder."""
        return self.folder / "models"

    @property
    def policy(self) -> Path | None:
        """The policy that names the ranker; None where there is none."""
        return self.folder / "policy.toml" if self.ranker is not None else None

    @property
    def server(self) -> LocalServer:
        """The server that ``start`` started."""
        assert self._server is not None, "start comes first"
        return self._server

    @property
    def config(self) -> ModelsConfig:
        """The repository and the running server."""
        from matchwright.engine.config import ModelsConfig

        return ModelsConfig(repository=self.repository, triton=self.server.url)

    def start(self) -> None:
        """Makes the encoder and starts a server with it.

        Raises:
            DependencyUnavailable: the server could not be started.
        """
        from matchwright.engine.models.local_server import LocalServer
        from matchwright.engine.models.repository import add_encoder
        from matchwright.engine.models.small import make_small_encoder

        source = self.folder / "encoder"
        make_small_encoder(source, dimensions=DIMENSIONS)
        add_encoder(self.repository, source, backend="python")
        server = LocalServer(
            repository=self.repository, models=["encoder"], found=self.found, threads=1
        )
        self._server = server.start(_START_S)

    def stop(self) -> None:
        """Stops the server, if there is one; may be called twice."""
        if self._server is not None:
            self._server.stop()

    def start_again(self) -> None:
        """Starts the stopped server with all models, on the same port."""
        self.server.models = ["encoder", "ranker"]
        self.server.start(_START_S)

    def train(self, store: Path, jobs: Sequence[str], seed: int, as_of: int) -> str:
        """Trains, promotes and loads a ranker; one line that says what came of it.

        Raises:
            DependencyUnavailable: the server does not load it.
        """
        logged = _decisions(self.folder, store, jobs, seed, as_of)
        if logged is None:
            return "no ranker: too few freelancers are eligible for any job to learn from"
        try:
            made = _trained(logged, seed)
        except InvalidData as error:
            return f"no ranker: {error}"
        version, forced = self._promoted(made)
        self._load(version)
        self.folder.joinpath("policy.toml").write_text(
            f"[rerank]\nversion = {version}\ncandidates = {CANDIDATES}\n"
            f"timeout_ms = {TIMEOUT_MS}\n",
            "utf-8",
        )
        self.ranker = version
        return _said(made, version, forced)

    def _promoted(self, made: Trained) -> tuple[int, bool]:
        """(version in the repository, whether the gate had refused it)."""
        from matchwright.engine.rerank.export import write_ranker
        from matchwright.engine.rerank.gate import GateRefused
        from matchwright.engine.rerank.promotion import promote

        write_ranker(
            self.folder / "ranker",
            made.text,
            features=made.trees.features,
            grid_bits=made.grid_bits,
            features_version=made.trees.features_version,
            version=1,
            training={"simulated": "the clients of matchwright demo, who do not exist"}
            | made.record,
        )
        given: dict[str, Any] = {"now": _now(), "backend": "python"}
        try:
            return int(promote(self.repository, self.folder / "ranker", **given)["version"]), False
        except GateRefused:
            given |= {"force": True, "reason": "the demo shows a second phase, whatever it learnt"}
            return int(promote(self.repository, self.folder / "ranker", **given)["version"]), True

    def _load(self, version: int) -> None:
        from matchwright.engine.models.opened import Models
        from matchwright.engine.models.refs import ModelRef

        with Models(self.config) as models:
            models.client.load("ranker")
            if not models.client.ready(ModelRef("ranker", version)):
                raise DependencyUnavailable(f"ranker:{version} was loaded and is not ready")


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _decisions(folder: Path, store: Path, jobs: Sequence[str], seed: int, as_of: int) -> Any:
    """What simulated clients did with the store's answers; None when there is nothing."""
    from matchwright.engine.matcher import Matcher
    from matchwright.engine.policy import Policy
    from matchwright.engine.rerank.decisions_read import read
    from matchwright.engine.rerank.simulate_store import simulate_clients
    from matchwright.engine.store import Store
    from matchwright.kernels.ops import get_ops

    with Store.open(store) as opened:
        snapshot = opened.snapshot()
        matcher = Matcher(snapshot, get_ops("cpu"), Policy.load())
        frame = simulate_clients(snapshot, matcher, jobs[:DECISIONS_MAX], seed=seed, last_day=as_of)
    if frame.is_empty():
        return None
    path = folder / "decisions.parquet"
    frame.write_parquet(path)
    return read([path])


def _trained(logged: Any, seed: int) -> Trained:
    from matchwright.engine.policy import Policy
    from matchwright.engine.rerank.train import Settings, excluded_by, train

    settings = Settings(
        seed=seed % 2**31, rounds=60, leaves=8, learning_rate=0.1, bootstraps=200, threads=1,
        excluded=excluded_by(Policy.load()),
    )  # fmt: skip
    return train(logged, settings)


def _said(made: Trained, version: int, forced: bool) -> str:
    data, k = made.record["data"], made.evaluation["k"]
    figure = made.evaluation["metrics"][f"ndcg@{k}"]
    change = figure["vs_first_phase"]
    told = (
        f"trained ranker:{version} on {data['decisions_trained']:,} decisions of simulated clients "
        f"(they do not exist); on {figure['decisions']:,} later ones NDCG@{k} "
        f"{figure['model']:.2f}, first phase {figure['first_phase']:.2f} "
        f"[{change['low']:+.2f}, {change['high']:+.2f}]"
    )
    return f"{told}; the gate refused it, forced for the demo" if forced else told
