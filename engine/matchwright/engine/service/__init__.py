"""The gRPC service: messages, limits and errors around the batcher and the matcher."""

from __future__ import annotations

from matchwright.engine.service.server import running, serve

__all__ = ["running", "serve"]
