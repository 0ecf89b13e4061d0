"""A marketplace with a past, from which people are erased."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import leftovers
import polars as pl

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.columns import name_hash
from matchwright.engine.policy import Policy
from matchwright.engine.runs.base import Base
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.incremental import IncrementalExecutor
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.store import Store, places
from matchwright.kernels.ops import Ops

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


def copy_of(made, folder):
    """A copy of a shop; absolute paths lead to the copy."""
    shutil.copytree(made.root, folder / "store")
    shutil.copytree(made.elsewhere, folder / "elsewhere")
    old, new = str(made.root.parent), str(folder)
    path = folder / "store" / places.FILE
    path.write_text(path.read_text().replace(old, new))
    runs = [url.replace(old, new) for url in made.runs]
    return Shop(folder / "store", folder / "elsewhere", made.victims, made.epoch, runs)


def erase_all(shop, **options):
    """Both kinds; the second answer."""
    options.setdefault("runs", [shop.elsewhere / "runs"])
    with Store.open(shop.root, mode="w") as store:
        store.erase("freelancer", shop.victims["freelancer"], **options)
        return store.erase("job", shop.victims["job"], **options)
