"""A process that copies a store until it is killed, saying what was acknowledged.

Usage: store_copies_child.py WHAT FOLDER. In FOLDER the test and this process share ``store``,
``target``, ``replica`` and backups. Lines on stdout: ``open``, then ``done N`` for each thing done.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from store_fakes import frame, neighbours, record

from matchwright.engine.store import Store
from matchwright.engine.store.backup import backup
from matchwright.engine.store.publish import publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.restore import restore

ROWS = 60


def version(number):
    """All records, as they are in a store at one version: none or all of them have it."""
    return frame(*(record(f"x{n}", number) for n in range(ROWS)))


def write_and_publish(folder):
    """Each version of the store is published; ``done N`` after it was."""
    nb = neighbours()
    with Store.open(folder / "store", mode="w", neighbours=nb, seal_rows=ROWS) as store:
        first = store.records("job", ["x0"])["rate_cents"][0] + 1
        print("open", flush=True)
        for number in itertools.count(first):
            store.upsert("job", version(number))
            publish(folder / "store", folder / "target", keep=2)
            print("done", number, flush=True)


def pull_to_and_fro(folder):
    """The replica goes from one published epoch to the other and back."""
    print("open", flush=True)
    for number in itertools.count():
        epoch = (folder / f"epoch-{number % 2}").read_text()
        pull(folder / "target", folder / "replica", epoch=epoch)
        print("done", number % 2, flush=True)


def backup_again_and_again(folder):
    print("open", flush=True)
    for number in itertools.count():
        backup(folder / "store", folder / "backup.tar", neighbours=neighbours())
        print("done", number, flush=True)


def restore_to_and_fro(folder):
    """The store is replaced by one backup, then by the other."""
    print("open", flush=True)
    for number in itertools.count():
        source = folder / f"backup-{number % 2}.tar"
        restore(source, folder / "restored", replace=True, neighbours=neighbours())
        print("done", number % 2, flush=True)


WHAT = {
    "publish": write_and_publish,
    "pull": pull_to_and_fro,
    "backup": backup_again_and_again,
    "restore": restore_to_and_fro,
}

if __name__ == "__main__":
    WHAT[sys.argv[1]](Path(sys.argv[2]))
