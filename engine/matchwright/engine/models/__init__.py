"""Models that Triton serves: their repository, the client that asks them, and the encoder."""
