"""The second phase: the best candidates of the first one, ordered by a learnt model."""
