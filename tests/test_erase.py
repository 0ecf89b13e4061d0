"""Erasing people: nothing of theirs can be decoded from any file, all else stays as it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import leftovers
import numpy as np
import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.columns import name_hash
from matchwright.engine.erased import key_of, listed_keys, stand_in
from matchwright.engine.errors import EpochGone, InvalidArgument, NotFound
from matchwright.engine.policy import Policy
from matchwright.engine.records import ingest
from matchwright.engine.records import quarantine as quarantines
from matchwright.engine.runs.base import Base
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.incremental import IncrementalExecutor
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.verify import verify
from matchwright.engine.store import Store, erase, places
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import hash_keys

AS_OF = synthetic.AS_OF
KINDS = ("job", "freelancer")
OPS = Ops(threads=1)
SALT = bytes(range(16))
K, SLACK = 12, 6
LEASE = "nightly"
POLICY = Policy.parse(
    "\n".join(
        f"rules.{rule}.enabled = false"
        for rule in (
            "required_skills", "rate_ceiling", "rate_budget", "pay_minimum", "languages",
            "countries_allowed", "declined_categories", "same_category", "hours_overlap",
            "experience_minimum", "rating_minimum", "success_minimum", "reviews_minimum",
            "hours_minimum", "hours_available", "certifications",
        )
    )
)  # fmt: skip
"""Most pairs are eligible, so that lists are full, slack is kept and horizons are set."""


# ── A marketplace with a past ─────────────────────────────────────────────────────────────────


def records(kind, n, seed, ids):
    """Synthetic records under other ids."""
    return synthetic.frame(kind, n, seed=seed).with_columns(pl.Series("id", ids))


def planted(kind, ids, version):
    """Records of people who will be erased: words and numbers that nobody else has."""
    frame = records(kind, len(ids), 90 + version, ids)
    words = [f"{name}Word{version}" for name in ids]
    skills = [
        [*(was or []), {**_skill(kind), "name": f"{word.lower()}skill"}]
        for was, word in zip(frame["skills"].to_list(), words, strict=True)
    ]
    count = "reviews" if kind == "freelancer" else "client_reviews"
    return frame.with_columns(
        pl.Series("title", [f"Expert in {word}ing" for word in words]),
        pl.Series("text", [f"I did {word} for years, and much else. " * 30 for word in words]),
        pl.Series("skills", skills, dtype=frame.schema["skills"]),
        pl.Series(count, [number(name, version) for name in ids], dtype=frame.schema[count]),
        pl.lit(None, dtype=frame.schema["weekly_hours"]).alias("weekly_hours"),
    )


def _skill(kind):
    return {"level": 3, "must": False} if kind == "job" else {"level": 3}


def number(name, version):
    """Nine digits that belong to one version of one record."""
    return 300_000_007 + 1_000_003 * int(name[-4:]) + 211 * version + (name[0] == "J") * 50_000_017


@dataclass
class Shop:
    root: Path
    elsewhere: Path
    victims: dict[str, list[str]]
    epoch: int = 0
    runs: list[str] = field(default_factory=list)

    def needles(self):
        texts, numbers, hashes = [], [], []
        for kind, names in self.victims.items():
            texts += names
            for name in names:
                for version in range(3):
                    texts.append(f"{name}Word{version}")
                    numbers.append(number(name, version))
                    hashes.append(name_hash(f"{name.lower()}word{version}skill"))
            assert len(set(numbers)) == len(numbers), kind
        return {"texts": texts, "numbers": numbers, "hashes": hashes}

    def search(self):
        return leftovers.search([self.root, self.elsewhere], **self.needles())


def make_shop(folder, people, erased):
    """A store with history, runs in both directions here and elsewhere, and quarantine files."""
    victims = {
        "freelancer": [f"Frl{n:04d}" for n in range(erased)],
        "job": [f"Job{n:04d}" for n in range(max(erased // 4, 2))],
    }
    shop = Shop(folder / "store", folder / "elsewhere", victims)
    shop.elsewhere.mkdir(parents=True)
    with Store.open(shop.root, mode="w", create=True, salt=SALT, retain_s=0.0) as store:
        for kind, n in (("job", people // 3), ("freelancer", people)):
            with store.bulk(kind) as sink:
                sink.write(records(kind, n, 1, [f"{kind}-{i}" for i in range(n)]))
                sink.write(planted(kind, victims[kind], 0))
        _exclude(store, victims["freelancer"])
        store.refit(seed=1, sample=10_000, as_of=AS_OF)
        store.keep("before")
        for kind in KINDS:  # replaced: sealed rows die, live rows are added
            store.upsert(kind, planted(kind, victims[kind], 1))
        store.keep(LEASE)
        snapshot = store.snapshot()
        shop.epoch = snapshot.epoch.number
        for output in (shop.root / "runs", shop.elsewhere / "runs"):
            shop.runs.append(start(snapshot, output))
        store.upsert("freelancer", planted("freelancer", victims["freelancer"][:-1], 2))
        store.delete("freelancer", victims["freelancer"][:2])
        store.seal()
        store.upsert("job", planted("job", victims["job"], 2))
    _quarantine(shop)
    return shop


def _exclude(store, victims):
    """Some clients want none of them; the lists are the clients'."""
    for place in range(3):
        listed = ["freelancer-1", victims[place], victims[-1]]
        store.patch("job", f"job-{place}", {"excluded_freelancers": listed})


def start(snapshot, output, base=None):
    """A run in both directions, with a page that shows it; its folder."""
    asked = RunOptions(
        kinds=KINDS,
        k=K,
        slack=SLACK,
        contributions=True,
        as_of=AS_OF,
        policy=POLICY,
        block=16,
        base=None if base is None else base.run_id,
    )
    plan = make_plan(snapshot, asked)
    folder = Output(output).folder(plan.run_id)
    executor = LocalExecutor(OPS, snapshot, plan, prefetch=False)
    if base is not None:
        executor = IncrementalExecutor(OPS, snapshot, plan, Base(side(base)))
    run(plan, folder, executor, snapshot=snapshot)
    page = [row["id"] for unit in plan.units for row in folder.part(unit).to_dicts()]
    folder.write("report.html", json.dumps(page).encode())
    return folder.url


def _quarantine(shop):
    """Two imports with rows that are refused, one of which writes its quarantine elsewhere."""
    victim, other = shop.victims["freelancer"][0], shop.victims["freelancer"][1]
    rows = [
        {"id": victim, "rate_cents": f"{number(victim, 0)} a year"},
        {"id": "freelancer-1", "rate_cents": f"as {other} asks"},
        {"id": "freelancer-2", "rate_cents": "plenty"},
    ]
    source = shop.elsewhere.parent / "people.jsonl"
    source.write_text("\n".join(map(json.dumps, [*rows, f"{other}, who is no object"])))
    line = ["ingest", "freelancers", str(source), "--store", str(shop.root), "-f", "json"]
    assert main([*line, "-o", str(shop.elsewhere.parent / "a.json")]) == 3
    given = ["--quarantine", str(shop.elsewhere / "refused.parquet")]
    assert main([*line, *given, "-o", str(shop.elsewhere.parent / "b.json")]) == 3


@pytest.fixture(scope="module")
def made(tmp_path_factory, count):
    """A shop that tests copy."""
    folder = tmp_path_factory.mktemp("shop")
    people = count(reduced=90, full=400)
    return make_shop(folder, people, count(reduced=8, full=100))


def copy_of(made, folder):
    """A copy of a shop; absolute paths lead to the copy."""
    shutil.copytree(made.root, folder / "store")
    shutil.copytree(made.elsewhere, folder / "elsewhere")
    old, new = str(made.root.parent), str(folder)
    path = folder / "store" / places.FILE
    path.write_text(path.read_text().replace(old, new))
    runs = [url.replace(old, new) for url in made.runs]
    return Shop(folder / "store", folder / "elsewhere", made.victims, made.epoch, runs)


@pytest.fixture
def shop(made, tmp_path):
    return copy_of(made, tmp_path)


def erase_all(shop, **options):
    """Both kinds; the second answer."""
    options.setdefault("runs", [shop.elsewhere / "runs"])
    with Store.open(shop.root, mode="w") as store:
        store.erase("freelancer", shop.victims["freelancer"], **options)
        return store.erase("job", shop.victims["job"], **options)


# ── Nothing is left ───────────────────────────────────────────────────────────────────────────


def test_nothing_of_them_can_be_decoded_from_any_file(shop):
    before = shop.search()
    for how in (
        "raw utf-8", "raw u64 little", "deflated utf-8", "deflated msgpack", "decoded utf-8",
        "decoded integer",
    ):  # fmt: skip
        assert any(found == how for found, _ in before), how
    named = {
        path.relative_to(shop.root.parent).parts[:2] for paths in before.values() for path in paths
    }
    assert {
        ("store", "catalog.sqlite"), ("store", "segments"), ("store", "runs"),
        ("store", "quarantine"), ("elsewhere", "runs"), ("elsewhere", "refused.parquet"),
    } <= named  # fmt: skip
    done = erase_all(shop)
    assert done.not_reached == []
    assert not done.incomplete
    assert shop.search() == {}
    with Store.open(shop.root) as store:
        assert store.verify() == []


def test_everybody_else_stays_as_they_were(shop):
    with Store.open(shop.root) as store:
        before = _content(store.snapshot(), shop), _content(store.snapshot(epoch=shop.epoch), shop)
    erase_all(shop)
    with Store.open(shop.root) as store:
        snapshot, kept = store.snapshot(), store.snapshot(epoch=shop.epoch)
        assert _content(snapshot, shop) == before[0]
        assert _content(kept, shop) == before[1]
        for kind, names in shop.victims.items():
            for one in (snapshot, kept):
                assert (one.rows_of(kind, names) == -1).all()
                assert not np.isin(
                    np.concatenate([part.source.segment.key_n for part in one.parts[kind]]),
                    one.keys(names),
                ).any()


def _content(snapshot, shop):
    """Everybody but the victims: vectors and columns by id, and living records."""
    found = {}
    for kind in KINDS:
        corpus = snapshot.corpus(kind)
        base = 0
        for segment, alive in corpus.parts:
            rows = np.arange(segment.n) if alive is None else np.flatnonzero(alive)
            for row, name in zip(rows, snapshot.ids_of(kind, base + rows), strict=True):
                if name not in shop.victims[kind]:
                    scalars = tuple(
                        (key, int(col[row])) for key, col in sorted(segment.scalars.items())
                    )
                    sets = tuple(
                        (key, tuple(col.value[col.start_n[row] : col.start_n[row + 1]].tolist()))
                        for key, col in sorted(segment.sets.items())
                    )
                    found[kind, name] = (segment.x_nd[row].tobytes(), scalars, sets)
            base += segment.n
    return found


def test_a_run_says_redacted_and_is_equal_otherwise(shop):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    plan = folder.plan()
    before = {
        (unit, what): folder.frame(unit, what)
        for unit in plan.units
        for what in ("part", "slack", "queries")
    }
    summary = folder.summary()
    erase_all(shop)
    gone = {kind: hash_keys(names, SALT) for kind, names in shop.victims.items()}
    other = {"job": "freelancer", "freelancer": "job"}
    for (unit, what), frame in before.items():
        left = frame.filter(~pl.Series(np.isin(frame["query_key"].to_numpy(), gone[unit.kind])))
        if what != "queries":
            left = left.filter(~pl.Series(np.isin(left["key"].to_numpy(), gone[other[unit.kind]])))
        assert folder.frame(unit, what).equals(left)
    after = folder.summary()
    assert after["digest"] == summary["digest"] != after["digest_redacted"]
    assert {name for name in after if after[name] != summary.get(name)} == {
        "redacted", "digest_redacted", "units",
    }  # fmt: skip
    rows = sum(entry["rows"] for entry in after["redacted"])
    queries = sum(entry["queries"] for entry in after["redacted"])
    assert rows > 0
    assert queries == sum(map(len, shop.victims.values()))
    assert all(entry["done"] for entry in after["redacted"])
    with Store.open(shop.root) as store:
        verdict = verify(folder, store.snapshot(epoch=shop.epoch), sample=80)
    assert verdict.verdict == "REDACTED", verdict.figures()
    assert verdict.digest == after["digest_redacted"]
    assert 40 < verdict.sampled <= 80


def test_the_next_night_can_start_from_a_redacted_run(shop):
    erase_all(shop)
    base = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    with Store.open(shop.root, mode="w") as store:
        # Somebody of the same id is somebody new.
        store.upsert("freelancer", planted("freelancer", shop.victims["freelancer"][:1], 0))
        snapshot = store.snapshot()
        full = Output(shop.root / "runs").folder(start(snapshot, shop.root / "runs")[-16:])
        after = Output(shop.root / "runs").folder(start(snapshot, shop.root / "runs", base)[-16:])
        assert full.run_id != after.run_id
        assert full.summary()["digest"] == after.summary()["digest"]
        assert verify(after, snapshot).verdict == "SOUND"


def test_a_report_of_what_is_left(shop, capsys):
    erase_all(shop)
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    assert not folder.exists("report.html")
    assert main(["run", "report", folder.url, "--store", str(shop.root)]) == 0
    assert folder.exists("report.html")
    assert shop.search() == {}


def test_what_was_tampered_with_beside_is_found(shop):
    erase_all(shop)
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    summary = folder.summary()
    summary["digest_redacted"] = "0" * 64
    folder.write("run.json", json.dumps(summary).encode())
    assert verify(folder, None).verdict == "FAILED"


def test_a_run_that_nobody_was_in_is_untouched(shop):
    erase_all(shop)
    with Store.open(shop.root, mode="w") as store:
        url = start(store.snapshot(), shop.root / "runs")
        before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
        done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.runs == []
        assert {path: path.read_bytes() for path in before} == before


# ── What is left on purpose ───────────────────────────────────────────────────────────────────


def test_who_was_erased_is_kept_as_a_key(shop):
    erase_all(shop)
    with Store.open(shop.root) as store:
        left = erase.erased(store._catalog)
        for kind, names in shop.victims.items():
            assert sorted(hash_keys(names, SALT).tolist()) == left[kind].key_n.tolist()
            assert (left[kind].epoch_n > shop.epoch).all()
        assert erase.unfinished(store._catalog) == 0


def test_a_limit_that_lists_an_erased_id_holds_when_it_comes_back(shop):
    victims = shop.victims["freelancer"]
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("freelancer", victims)
        assert done.mentions == 3
        (listed,) = store.records("job", ["job-0"])["excluded_freelancers"].to_list()
        keys = hash_keys(victims, SALT)
        assert listed == ["freelancer-1", stand_in(int(keys[0])), stand_in(int(keys[-1]))]
        column = _set_of(store.snapshot(), "job-0")
        assert set(column) == {
            *hash_keys(["freelancer-1"], SALT).tolist(),
            int(keys[0]),
            int(keys[-1]),
        }
        # What the record says and what its row says stay the same when it is encoded again.
        store.patch("job", "job-0", {"title": "Another"})
        assert set(_set_of(store.snapshot(), "job-0")) == set(column)
        back = store.upsert("freelancer", planted("freelancer", victims[:1], 0))
        assert (back.accepted, back.replaced) == (1, 0)
        assert store.erase("freelancer", victims[:1]).living == 1


def _set_of(snapshot, name):
    (row,) = snapshot.rows_of("job", [name])
    base = 0
    for segment, _ in snapshot.corpus("job").parts:
        if row < base + segment.n:
            column = segment.sets["excluded_freelancers"]
            return column.value[
                column.start_n[row - base] : column.start_n[row - base + 1]
            ].tolist()
        base += segment.n
    raise AssertionError


def test_a_store_without_texts(tmp_path):
    with Store.open(tmp_path / "store", mode="w", create=True, keep_text=False) as store:
        store.upsert("freelancer", planted("freelancer", ["Frl0001", "Frl0002"], 0))
        store.upsert("job", records("job", 2, 1, ["a", "b"]))
        store.patch("job", "a", {"excluded_freelancers": ["Frl0001"]})
        done = store.erase("freelancer", ["Frl0001", "never-there"])
        assert (done.ids, done.living, done.mentions, done.incomplete) == (2, 1, 1, False)
        assert store.verify() == []
        assert store.records("freelancer", ["Frl0002"]).height == 1
        store.patch("job", "a", {"rate_max_cents": 12_345})
        assert store.verify() == []
    found = leftovers.search([tmp_path], texts=["Frl0001"], numbers=[number("Frl0001", 0)])
    assert found == {}
    assert leftovers.search([tmp_path], texts=["Frl0002"])


def test_a_client_is_erased_with_their_jobs(tmp_path):
    ids = [f"Job{n:04d}" for n in range(4)]
    quarantine = tmp_path / "store" / "quarantine"
    with Store.open(tmp_path / "store", mode="w", create=True, retain_s=0.0) as store:
        store.upsert("freelancer", records("freelancer", 3, 1, ["a", "b", "c"]))
        store.patch("freelancer", "a", {"excluded_clients": ["Client0001", "client-2"]})
        clients = ["Client0001", "Client0001", "Client0002", "Client0001"]
        jobs = planted("job", ids, 0).with_columns(pl.Series("client_id", clients))
        store.upsert("job", jobs)
        store.seal()
        # Rows that nobody knows the ids of any more: their records have gone.
        store.delete("job", ids[3:])
        store.upsert("job", records("job", 1, 2, ["other"]))
        quarantine.mkdir()
        path = tmp_path / "jobs.jsonl"
        rows = [{"id": ids[0], "rate_max_cents": "x"}, {"id": "other", "client_id": ["Client0001"]}]
        path.write_text("\n".join(map(json.dumps, rows)))
        ingest.read("job", [path], quarantine=quarantine / "jobs-1.parquet")
        done = store.erase("client", ["Client0001"])
        assert (done.living, done.mentions, done.incomplete) == (2, 1, False)
        assert store.verify() == []
        (listed,) = store.records("freelancer", ["a"])["excluded_clients"].to_list()
        assert listed == [stand_in(int(hash_keys(["Client0001"], store.salt)[0])), "client-2"]
        assert store.records("job", [ids[2]])["client_id"].to_list() == ["Client0002"]
        assert erase.erased(store._catalog)["job"].key_n.tolist() == sorted(
            hash_keys([ids[0], ids[1], ids[3]], store.salt).tolist()
        )
    gone = [ids[0], ids[1], ids[3]]
    texts = ["Client0001", *gone, *(f"{name}Word0" for name in gone)]
    numbers = [number(name, 0) for name in gone]
    assert leftovers.search([tmp_path / "store"], texts, numbers) == {}
    assert leftovers.search([tmp_path / "store"], [ids[2]], [number(ids[2], 0)])


def test_stand_ins():
    key = 0x00C0FFEE00C0FFEE
    assert stand_in(key) == "erased:00c0ffee00c0ffee"
    assert key_of(stand_in(key)) == key
    for other in ("erased:", "erased:00C0FFEE00C0FFEE", "erased:00c0ffee00c0ffe", "someone"):
        assert key_of(other) is None
        assert listed_keys([other], SALT).tolist() == hash_keys([other], SALT).tolist()
    assert listed_keys([stand_in(2**64 - 1)], SALT).tolist() == [2**64 - 1]


def test_a_reader_of_an_older_epoch_is_told(shop):
    victims = shop.victims["freelancer"]
    with Store.open(shop.root) as reader:
        before = reader.snapshot()
        assert before.records("freelancer", victims[3:4]).height == 1
        with Store.open(shop.root, mode="w") as store:
            store.erase("freelancer", victims)
        with pytest.raises(EpochGone):
            before.records("freelancer", victims[3:4])
        assert before.records("freelancer", ["freelancer-5"]).height == 1
        time.sleep(0.06)
        with pytest.raises(NotFound):
            reader.records("freelancer", victims[3:4])


# ── What is not reached is said ───────────────────────────────────────────────────────────────


def test_what_is_out_of_reach_is_named(shop):
    places.note(shop.root, "published", "memory://replica")
    places.note(shop.root, "backup", "/backups/monday.tar")
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    with Store.open(shop.root, mode="w") as store:
        with folder.lock():
            done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.incomplete
        assert erase.unfinished(store._catalog) == len(shop.victims["freelancer"])
        told = "\n".join(done.not_reached)
        for what in ("memory://replica", "/backups/monday.tar", folder.url):
            assert what in told
        again = store.erase("freelancer", shop.victims["freelancer"])
        assert not again.incomplete
        assert erase.unfinished(store._catalog) == 0
        assert len(again.not_reached) == 2


def test_a_run_that_was_not_complete_is_removed(shop):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    folder.remove("run.json")
    erase_all(shop)
    assert not folder.exists("plan.json")
    assert shop.search() == {}


def test_what_is_no_run_is_left_alone(shop, tmp_path):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    folder.write("mine.csv", b"Frl0003")
    other = tmp_path / "elsewhere" / "runs" / "0123456789abcdef"
    (other / "segments").mkdir(parents=True)
    (other / "segments" / "x").write_bytes(b"of a store")
    emptied = tmp_path / "elsewhere" / "runs" / "00000000000000aa" / "for=job"
    emptied.mkdir(parents=True)
    (emptied / "part-00000.parquet").write_bytes(b"Frl0003")
    (tmp_path / "elsewhere" / "runs" / "their.part").write_bytes(b"")
    done = erase_all(shop)
    assert not done.incomplete
    assert [line for line in done.not_reached if "mine.csv" in line]
    assert (other / "segments" / "x").exists()
    assert (tmp_path / "elsewhere" / "runs" / "their.part").exists()
    assert not emptied.exists()
    assert set(shop.search()) == {("raw utf-8", "Frl0003")}


def test_an_output_that_does_not_answer(shop):
    places.note(shop.root, "runs", "http://127.0.0.1:1/runs")
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.incomplete
        assert "127.0.0.1" in done.not_reached[0]
        assert erase.unfinished(store._catalog) == len(shop.victims["freelancer"])


def test_what_cannot_be_erased(shop):
    with Store.open(shop.root, mode="w") as store:
        with pytest.raises(InvalidArgument, match="ids"):
            store.erase("freelancer", [])
        with pytest.raises(InvalidArgument, match=r"nowhere\.parquet"):
            store.erase("freelancer", ["x"], quarantine=["nowhere.parquet"])


# ── Killed ────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import sys, json
from matchwright.engine.store import Store
root, runs, victims = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with Store.open(root, mode="w") as store:
    print("ready", flush=True)
    for kind in ("freelancer", "job"):
        store.erase(kind, victims[kind], runs=[runs])
"""


def test_killed_at_any_moment_the_same_again_completes_it(made, tmp_path, count):
    whole = copy_of(made, tmp_path / "whole")
    code, seconds = _erase_in_a_child(whole, None)
    assert code == 0
    assert whole.search() == {}
    shares = np.random.default_rng(7).uniform(0.05, 0.95, count(reduced=3, full=20))
    ends = Counter()
    for turn, share in enumerate(sorted(shares)):
        shop = copy_of(made, tmp_path / str(turn))
        ends[_erase_in_a_child(shop, share * seconds)[0]] += 1
        with Store.open(shop.root) as store:
            assert store.verify() == []
        done = erase_all(shop)
        assert not done.incomplete
        assert shop.search() == {}
        with Store.open(shop.root) as store:
            assert store.verify() == []
            folder = Output(shop.root / "runs").folder(shop.runs[0][-16:])
            verdict = verify(folder, store.snapshot(epoch=shop.epoch), sample=20)
        assert verdict.verdict == "REDACTED", verdict.figures()
        shutil.rmtree(tmp_path / str(turn))
    assert ends[-signal.SIGKILL], ends


def _erase_in_a_child(shop, seconds):
    """(exit code, seconds) of a process that erases, killed so long after it opened the store."""
    arguments = [str(shop.root), str(shop.elsewhere / "runs"), json.dumps(shop.victims)]
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        began = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        return child.wait(600), time.monotonic() - began


# ── Quarantine files ──────────────────────────────────────────────────────────────────────────


def test_rows_of_a_quarantine(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [
        {"id": "ann", "rate_cents": "x"},
        {"id": "annabel", "rate_cents": "of ann"},
        {"id": "bob", "rate_cents": "of annabel"},
        "ann alone",
        {"id": "ann+bob", "rate_cents": "y"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    target = tmp_path / "q.parquet"
    ingest.read("freelancer", [path], quarantine=target)
    assert quarantines.erase(target, ["carl"]) == 0
    assert quarantines.erase(target, ["ann"]) == 4
    left = pl.read_parquet(target)
    assert left["id"].to_list() == ["annabel", "bob"]
    assert left["value"].to_list() == ["", "of annabel"]
    assert quarantines.erase(target, ["ann"]) == 0
    assert quarantines.erase(target, ["annabel", "bob"]) == 2
    assert not target.exists()


# ── The command line ──────────────────────────────────────────────────────────────────────────


def _answer(capsys, *words):
    code = main(["store", "erase", *map(str, words), "-f", "json"])
    out = capsys.readouterr()
    return code, (json.loads(out.out) if out.out else out.err)


def test_store_erase(shop, capsys):
    victims = shop.victims["freelancer"]
    names = shop.elsewhere.parent / "names"
    names.write_text("\n".join(victims))
    line = (f"@{names}", "--store", shop.root, "--kind", "freelancer")
    code, told = _answer(capsys, *line, "--dry-run")
    assert code == 0
    # Two were deleted, and of the others one was not replaced a second time.
    assert told["would_erase"]["living"] == len(victims) - 2
    assert told["would_erase"]["mentions"] == 3
    assert told["runs"] == [str(shop.root / "runs")]
    assert len(told["quarantine"]) == 2
    code, told = _answer(capsys, *line)
    assert (code, "--yes" in told) == (2, True)
    assert shop.search()
    code, told = _answer(capsys, *line, "--yes", "--runs", shop.elsewhere / "runs")
    assert (code, told["incomplete"], told["not_reached"]) == (0, False, [])
    assert [run["outcome"] for run in told["runs"]] == ["redacted", "redacted"]
    assert sum(told["quarantine"].values()) >= 2
    line = (*shop.victims["job"], "--store", shop.root, "--kind", "job", "--yes")
    assert _answer(capsys, *line, "--runs", shop.elsewhere / "runs")[0] == 0
    assert shop.search() == {}


def test_run_erase_reaches_copies_that_nobody_knew(shop, capsys):
    names = [url.rsplit("/", 1)[-1] for url in shop.runs]
    erase_all(shop, runs=[])
    assert {path for paths in shop.search().values() for path in paths}
    line = ["run", "erase", "--store", str(shop.root), "-o", str(shop.elsewhere / "runs")]
    assert main([*line, "-f", "json"]) == 2
    capsys.readouterr()
    assert main([*line, names[1][:6], "-f", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["outcome"] == "redacted"
    assert shop.search() == {}
    assert main([*line, "--all", "-f", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["outcome"] == "untouched"


def test_runs_elsewhere_are_remembered(shop, capsys):
    line = ["run", "start", "--store", str(shop.root), "--for", "jobs", "-k", "3"]
    target = shop.elsewhere / "more"
    assert main([*line, "--output", str(target), "--as-of", "2026-01-01", "-f", "json"]) == 0
    assert places.known(shop.root, "runs") == [str(target)]
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("job", shop.victims["job"])
    assert [run.run for run in done.runs if str(target) in run.run]
