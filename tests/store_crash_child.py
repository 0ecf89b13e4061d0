"""A process that changes a store until it is killed, saying before and after what it does.

Usage: store_crash_child.py FOLDER SEED [run|step|compact]. With ``step`` it waits for a line before
each operation; with ``compact`` the store compacts in the background all the time. Lines on
stdout: ``do JSON`` before an operation, ``done`` after it was acknowledged.
"""

from __future__ import annotations

import json
import random
import sys

from store_fakes import frame, neighbours, record

from matchwright.engine.store import Store, compact


def operations(rng):
    """An endless stream of [what, arguments]."""
    while True:
        names = [f"j{rng.randrange(60)}" for _ in range(rng.choice((1, 1, 1, 5, 20)))]
        version = rng.randrange(1_000_000)
        yield rng.choices(
            [
                ["upsert", names, version],
                ["delete", names[:3]],
                ["bulk", [f"b{rng.randrange(200)}" for _ in range(30)], version],
                ["seal"],
                ["refit", version],
            ],
            weights=(10, 3, 3, 1, 1),
        )[0]


def perform(store, operation):
    what, *arguments = operation
    if what == "upsert":
        names, version = arguments
        store.upsert("job", frame(*(record(name, version) for name in names)))
    elif what == "delete":
        store.delete("job", arguments[0])
    elif what == "bulk":
        names, version = arguments
        with store.bulk("job") as sink:
            sink.write(frame(*(record(name, version) for name in names)))
    elif what == "seal":
        store.seal()
    else:
        store.refit(seed=arguments[0], sample=100, as_of=0)


def main(folder, seed, how="run"):
    options = {"seal_rows": 100, "neighbours": neighbours()}
    if how == "compact":
        compact.IDLE_S, compact.PACE = 0.001, 0.0
        options |= {"seal_rows": 15, "chunk_rows": 200, "retain_s": 0.3, "compact": "background"}
    store = Store.open(folder, mode="w", create=True, **options)
    print("open", flush=True)
    for operation in operations(random.Random(seed)):
        if how == "step":
            sys.stdin.readline()
        print("do", json.dumps(operation), flush=True)
        perform(store, operation)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
