"""The client of a Triton server: ``client`` asks, and ``link`` alone knows ``tritonclient``."""

from __future__ import annotations

from matchwright.engine.models.refs import ModelRef, ModelState, TritonConfig
from matchwright.engine.models.triton.client import Triton

__all__ = ["ModelRef", "ModelState", "Triton", "TritonConfig"]
