"""Runs: every stored entity of a kind matched in one go, unattended, and written as Parquet.

See docs/runs.md. ``plan`` says what determines a run, ``folder`` where its files are, ``block``
answers a block of queries, ``execute`` does a plan's units one after another.
"""
