"""What was fitted: encoder, vocabularies, rotations, steps, knots, zones (see docs/scoring.md)."""
