"""Write the configurations and the table of tensors in the README, or check that they are current.

    python models/generate.py            writes them
    python models/generate.py --check    exits 1 and names the files that differ

Everything comes from ``engine/models/description.py`` and the ranker's features; what is here is
what ``matchwright models build`` writes for an encoder of 384 dimensions and the present features.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matchwright.engine.models import description
from matchwright.engine.models.description import ModelSpec, Variant
from matchwright.engine.rerank.features import FEATURES

HERE = Path(__file__).resolve().parent
DIMENSIONS = 384
TABLE = "\n| model | tensor | type | shape |\n|---|---|---|---|\n"
BEGIN, END = "<!-- tensors: generated -->\n", "<!-- end -->\n"


def main(arguments: list[str]) -> int:
    """Write beside this file, or compare with what lies there."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(str(__doc__))
        return 2
    stale = [name for name, text in generated().items() if _differs(HERE / name, text)]
    for name in stale:
        if arguments:
            sys.stderr.write(f"models/{name} is not current; run python models/generate.py\n")
        else:
            (HERE / name).parent.mkdir(parents=True, exist_ok=True)
            (HERE / name).write_text(generated()[name], encoding="utf-8")
    return 1 if arguments and stale else 0


def generated() -> dict[str, str]:
    """Every generated file: its name below this folder, and its text."""
    specs = (description.encoder(DIMENSIONS), description.ranker(len(FEATURES)))
    files: dict[str, str] = {}
    names: dict[Variant, str] = {
        "production": "{}/config.pbtxt",
        "python": "{}/configs/python.pbtxt",
    }
    for spec in specs:
        for variant, name in names.items():
            files[name.format(spec.name)] = description.config_text(spec, variant)
    before, begin, rest = (HERE / "README.md").read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    rows = "".join(row for spec in specs for row in _rows(spec))
    files["README.md"] = before + begin + TABLE + rows + end + after
    return files


def _rows(spec: ModelSpec) -> list[str]:
    return [
        f"| `{spec.name}` | {side} `{one.name}` | {one.data_type.removeprefix('TYPE_')} "
        f"| [batch, {', '.join('any' if dim < 0 else str(dim) for dim in one.dims)}] |\n"
        for side, tensors in (("input", spec.inputs), ("output", spec.outputs))
        for one in tensors
    ]


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text("utf-8") != text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
