"""Job views as questions with an answer: what somebody viewed before asks, the next view answers.

Candidates are split in two by a seed. Those of one half are learnt from (*training*), those of the
other only ask (*judged*); nobody is in both. Views stand in for hires.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from matchwright.engine.records import Kind, to_frame

CASES_OF_ONE_MAX = 5
"""Of a training candidate, so that the busiest do not decide alone. The last view is one."""
_FILES = ("jobs.csv", "views_train.csv", "candidates.jsonl")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Case:
    """One view that is to be found.

    Attributes:
        id: of the record that asks: the person as of just before that view.
        person: who it is.
        earlier: places of the jobs that were viewed before, the oldest first.
        target: the place of the job that is to be found.
        at: when it was viewed.
        order: how many views there were before, of anybody.
    """

    id: str
    person: str
    earlier: tuple[int, ...]
    target: int
    at: datetime.datetime
    order: int

    @property
    def day(self) -> int:
        """Days since 1970-01-01."""
        return (self.at - _EPOCH).days


@dataclass(frozen=True, eq=False)
class Views:
    """The data, split.

    Attributes:
        jobs: as they are in the file.
        training, judged: cases; of who is judged only the last view.
        viewed_by_training: place of the job of each view, in order of time; -1 where somebody else
            viewed it than a candidate of the training half.
        work: person -> what the candidate worked as.
        digest: BLAKE2b-128 of the files.
    """

    jobs: Sequence[Mapping[str, str]]
    training: Sequence[Case]
    judged: Sequence[Case]
    viewed_by_training: NDArray[np.int64]
    work: Mapping[str, Sequence[Mapping[str, Any]]]
    digest: str

    @property
    def last(self) -> list[Case]:
        """One case of each training candidate, the last."""
        found = {case.person: case for case in self.training}
        return list(found.values())

    def popular_before(self, order: int) -> NDArray[np.float64]:
        """Views of each job by training candidates before a moment."""
        seen = self.viewed_by_training[:order]
        return np.bincount(seen[seen >= 0], minlength=len(self.jobs)).astype(np.float64)

    def job_frame(self) -> pl.DataFrame:
        """All jobs, as records."""
        return _frame("job", [job_row(job) for job in self.jobs])

    def people(self, cases: Sequence[Case]) -> pl.DataFrame:
        """Who asks, as records of what was known before each case."""
        rows = [
            person_row(case, [self.jobs[n] for n in case.earlier], self.work.get(case.person, ()))
            for case in cases
        ]
        return _frame("freelancer", rows)


def read_views(folder: Path, seed: int = 0) -> Views:
    """The views of a folder, candidates split in halves by ``seed``."""
    with (folder / "jobs.csv").open(newline="", encoding="utf-8") as file:
        jobs = list(csv.DictReader(file))
    place = {job["Job.ID"]: n for n, job in enumerate(jobs)}
    with (folder / "views_train.csv").open(newline="", encoding="utf-8") as file:
        views = sorted(csv.DictReader(file), key=lambda view: view["View.Start"])
    with (folder / "candidates.jsonl").open(encoding="utf-8") as file:
        candidates = list(map(json.loads, file))
    work = {str(one["candidate_id"]): one.get("experience", ()) for one in candidates}
    histories = _histories(views, place)
    people = sorted(histories)
    chosen = np.random.default_rng(seed).permutation(len(people))[: len(people) // 2]
    training = {people[n] for n in chosen.tolist()}
    cases = {person: _cases(person, history) for person, history in histories.items()}
    seen = [place[v["Job.ID"]] if v["Applicant.ID"] in training else -1 for v in views]
    return Views(
        jobs=jobs,
        training=[case for p in people if p in training for case in cases[p][-CASES_OF_ONE_MAX:]],
        judged=[cases[p][-1] for p in people if p not in training and cases[p]],
        viewed_by_training=np.array(seen, dtype=np.int64),
        work=work,
        digest=_digest(folder),
    )


_Seen = tuple[int, datetime.datetime, int]


def _histories(
    views: Sequence[Mapping[str, str]], place: Mapping[str, int]
) -> dict[str, list[_Seen]]:
    """Person -> first views of jobs in order of time, as (place, moment, number of the view)."""
    found: dict[str, dict[int, _Seen]] = {}
    for order, view in enumerate(views):
        job = place[view["Job.ID"]]
        moment = datetime.datetime.fromisoformat(view["View.Start"].replace(" UTC", "+00:00"))
        seen = job, moment, order
        found.setdefault(view["Applicant.ID"], {}).setdefault(job, seen)
    return {person: list(seen.values()) for person, seen in found.items()}


def _cases(person: str, history: Sequence[_Seen]) -> list[Case]:
    places = tuple(job for job, _, _ in history)
    return [
        Case(f"{person}-{n}", person, places[:n], job, moment, order)
        for n, (job, moment, order) in enumerate(history)
        if n > 0
    ]


def _digest(folder: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name in _FILES:
        state.update(hashlib.blake2b((folder / name).read_bytes()).digest())
    return state.hexdigest()


def _frame(kind: Kind, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return to_frame(kind, rows)


def _job_text(job: Mapping[str, str]) -> str:
    return f"{job['Company']} {job['City']} {job['State.Code']} {job['Industry']}"


def job_row(job: Mapping[str, str]) -> dict[str, Any]:
    """A job's record."""
    return {
        "id": job["Job.ID"],
        "title": job["Position"] or None,
        "text": _job_text(job),
        "category": job["Industry"] or None,
    }


def person_row(
    case: Case, earlier: Sequence[Mapping[str, str]], work: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What somebody viewed before, the newest first, and worked as, as a freelancer's record."""
    newest = list(reversed(earlier))
    words = [f"{job['Position']} {_job_text(job)}" for job in newest]
    words += [f"{place['title'] or ''} {place['city'] or ''}" for place in work]
    industries = dict.fromkeys(job["Industry"] for job in newest if job["Industry"])
    return {
        "id": case.id,
        "title": newest[0]["Position"] or None,
        "text": "\n".join(words),
        "categories": list(industries) or None,
    }
