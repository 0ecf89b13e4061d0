"""The place of a served encoder in a generation that is read where nobody can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from matchwright.engine.errors import ModelUnavailable
from matchwright.engine.generation.manifest import TextState
from matchwright.engine.generation.text import Texts
from matchwright.engine.prose import Prose, plain
from matchwright.kernels.types import Float64

NOT_CONFIGURED = "ENCODER_NOT_CONFIGURED"


class NotServed:
    """Knows what the encoder is, and no text. Blank texts are zeros, as with any encoder."""

    def __init__(self, state: TextState) -> None:
        self._state = state

    @property
    def content_hash(self) -> str:
        return self._state.content_hash

    @property
    def width(self) -> int:
        return self._state.width

    def encode(self, texts: Texts) -> Float64:
        """Zeros for blank texts.

        Raises:
            ModelUnavailable: there is any other.
        """
        listed = texts.to_list() if isinstance(texts, pl.Series) else texts
        return self.encode_prose([plain(text) for text in listed])

    def encode_prose(self, prose: Sequence[Prose]) -> Float64:
        """As ``encode``."""
        if all(one.blank for one in prose):
            return np.zeros((len(prose), self.width))
        raise ModelUnavailable(
            f"the generation's texts were encoded by the served encoder {self.content_hash}, and "
            "this copy of it stands alone; open it through its store",
            model="encoder",
            why="NOT_CONFIGURED",
        )

    def look(
        self, prose: Sequence[Prose], deadline: float | None
    ) -> tuple[Float64, Mapping[int, str]]:
        """Nothing is known but blank texts."""
        missing = {n: NOT_CONFIGURED for n, one in enumerate(prose) if not one.blank}
        return np.zeros((len(prose), self.width)), missing
