"""One call of a model, from the caller to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from matchwright.engine.models.breaker import Permit
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.triton.tensors import Array
from matchwright.engine.models.watch import Hop, Mark, Outcome, Way


@dataclass(eq=False, kw_only=True)
class Call:
    """A call on its way.

    Attributes:
        deadline: moment of ``time.monotonic()``.
        permit: of the model's breaker; None when that refused.
    """

    ref: ModelRef
    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    rows: int
    deadline: float
    started: float
    mark: Mark
    permit: Permit | None = None
    attempts: int = 0
    way: Way = "wire"
    received: int = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def end(self, outcome: Outcome) -> None:
        """Tell whoever watches."""
        hop = Hop(
            model=self.ref.name,
            version=self.ref.version,
            outcome=outcome,
            seconds=time.monotonic() - self.started,
            attempts=self.attempts,
            rows=self.rows,
            way=self.way,
            sent_bytes=sum(array.nbytes for array in self.inputs.values()),
            received_bytes=self.received,
        )
        self.mark.end(hop)
