"""Prints the table of features of ``docs/models.md``."""

from __future__ import annotations

from collections.abc import Iterator

from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION, UNKNOWN, Feature

MODULE = "matchwright.engine.rerank.features_document"
BEGIN = f"<!-- Written by `python -m {MODULE}`; a test compares. -->"
END = "<!-- End of the table. -->"


def features_md() -> str:
    """The table, between its two marks."""
    return "\n".join([BEGIN, *_lines(), END])


def _lines() -> Iterator[str]:
    yield ""
    yield (
        f"Version {FEATURES_VERSION} of the features, {len(FEATURES)} of them. Unknown is "
        f"{UNKNOWN:,}, below every value that is known."
    )
    yield ""
    yield "| feature | in words | unit | from | to | reads |"
    yield "|---|---|---|---|---|---|"
    for feature in FEATURES:
        yield _row(feature)
    yield ""


def _row(feature: Feature) -> str:
    reads = ", ".join(f"`{name}`" for name in feature.reads) or "what the weighted facets read"
    if feature.name == "asking":
        reads = ""
    cells = (
        f"`{feature.name}`", feature.text, feature.unit, f"{feature.low:,}", f"{feature.high:,}",
        reads,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    import sys

    sys.stdout.write(features_md() + "\n")
