"""Made ``store_format_1.tar.gz`` with the last version of format 1. Kept to tell what is in it.

Versions that write format 2 cannot make it again.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from store_fakes import frame, neighbours, record  # noqa: E402

from matchwright.engine.store import Store  # noqa: E402


def fill(folder: Path) -> None:
    """Sealed rows, live rows, tombstones in both, replaced records, a refit."""
    options = {"create": True, "chunk_rows": 20, "salt": bytes(range(16))}
    with Store.open(folder, mode="w", neighbours=neighbours(), **options) as store:
        for kind in ("job", "freelancer"):
            with store.bulk(kind) as sink:
                sink.write(frame(*(record(f"x{n}", n) for n in range(30))))
        store.refit(seed=3, sample=10, as_of=7)
        store.delete("job", ["x3", "x25"])
        store.upsert("job", frame(record("x4", 44), record("live", 1), record("gone", 2)))
        store.delete("job", ["gone"])
        store.patch("freelancer", "x7", {"rate_cents": 777})
        # As after kill -9: replaced records are still there, nothing was sealed.
        shutil.copytree(folder, folder.with_name("format-1"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "store")
        with tarfile.open(HERE / "store_format_1.tar.gz", "w:gz") as archive:
            for path in sorted((Path(folder) / "format-1").rglob("*")):
                if path.name == "LOCK" or path.name.endswith("-shm"):
                    continue
                archive.add(path, str(path.relative_to(folder)), recursive=False)


if __name__ == "__main__":
    main()
