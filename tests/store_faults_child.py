"""A process that may write only small files: what each way of writing says of it.

Usage: store_faults_child.py FOLDER LIMIT. FOLDER holds ``store`` and ``backup.tar``, and ``target``
with an epoch. Prints one JSON object a line: what was tried, the error, and whether it went well
afterwards, without the limit.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

from store_fakes import contents, frame, neighbours, record

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.store import Store
from matchwright.engine.store.backup import backup
from matchwright.engine.store.publish import publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.restore import restore

BIG = "x" * 100_000


@contextmanager
def small_files(limit):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def ways(folder, store, nb):
    def bulk():
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"bulk{n}", text=BIG[: 9 * n]) for n in range(300))))

    return {
        "upsert": lambda: store.upsert(
            "job", frame(*(record(f"u{n}", text=BIG) for n in range(9)))
        ),
        "bulk": bulk,
        "refit": lambda: store.refit(seed=5, sample=9, as_of=7),
        "publish": lambda: publish(folder / "store", folder / "other"),
        "pull": lambda: pull(folder / "target", folder / "replica"),
        "backup": lambda: backup(folder / "store", folder / "more.tar", neighbours=nb),
        "restore": lambda: restore(folder / "backup.tar", folder / "back", neighbours=nb),
    }


def main(folder, limit):
    nb = neighbours()
    with Store.open(folder / "store", mode="w", neighbours=nb) as store:
        with Store.open(folder / "store", neighbours=nb) as reader:
            for name, way in ways(folder, store, nb).items():
                before = contents(store.snapshot(), "job")
                told = {"way": name, "error": None, "file": None, "message": "", "exit": 0}
                try:
                    with small_files(limit):
                        way()
                except MatchwrightError as error:
                    told |= {"error": error.reason, "file": error.details.get("file")}
                    told |= {"message": str(error), "exit": error.exit_code}
                told["kept"] = contents(store.snapshot(), "job") == before
                told["read"] = contents(reader.snapshot(), "job") == before
                told["trouble"] = str(reader.trouble or "")
                way()
                epoch = store.snapshot().epoch
                told["after"] = reader.snapshot(min_epoch=epoch.number).epoch == epoch
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
