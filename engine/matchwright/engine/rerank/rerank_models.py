"""Rankers out of a model repository, each version opened once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from matchwright.engine.models.description import RANKER
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.rerank.features_pairs import SHARED, FeatureMaker
from matchwright.engine.rerank.rerank import Ranker
from matchwright.engine.rerank.trees import Trees

if TYPE_CHECKING:
    from matchwright.engine.models.opened import Models


class Rankers:
    """Versions of the ranker: trees from the repository, scores from the server. Thread-safe.

    Args:
        models: the repository and the client.
        maker: makes features for all of them.
    """

    def __init__(self, models: Models, maker: FeatureMaker = SHARED) -> None:
        self._models, self._maker = models, maker
        self._lock = threading.Lock()
        self._opened: dict[int, Ranker] = {}

    def ranker(self, version: int) -> Ranker:
        """One version; its files are checked when it is opened.

        Raises:
            NotFound: the repository has no such version.
            StoreDamaged: a file is not what its digest says.
            ModelUnavailable: no server was named.
        """
        with self._lock:
            found = self._opened.get(version)
        if found is not None:
            return found
        artefact = self._models.ranker(version)
        trees = Trees.load(artefact.path)
        made = Ranker(self._models.client, trees, ModelRef(RANKER, version), maker=self._maker)
        with self._lock:
            return self._opened.setdefault(version, made)
