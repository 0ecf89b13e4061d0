"""The nightly rematch as an Airflow DAG: one task that calls nightly.sh (Airflow 3).

Exit codes 5 (a target that does not answer) and 75 (try again later) and a script that was killed
are retried, and the run is resumed. What another try would not change (usage, data, verification)
fails at once.
"""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

NIGHTLY = "/usr/lib/matchwright/nightly.sh"
SETTINGS = {
    "STORE": "/var/lib/matchwright/store",
    "FOR": "both",
    "K": "100",
    "FINISH_BY": "06:00",
    "INCREMENTAL": "yes",
}
TRY_AGAIN = (5, 75)
MEANING = {
    1: "a defect",
    2: "wrong usage or settings",
    3: "invalid data",
    4: "some queries had errors; the run is not published",
    6: "the run did not pass verification, or the gate of publish",
}


def nightly(command: str = NIGHTLY) -> None:
    """Runs the script; its output goes to the task's log."""
    code = subprocess.run([command], env={**os.environ, **SETTINGS}, check=False).returncode
    if code in TRY_AGAIN or code < 0:
        raise AirflowException(f"ended with {code}: try again later")
    if code:
        raise AirflowFailException(f"ended with {code}: {MEANING.get(code, 'see the log')}")


with DAG(
    dag_id="matchwright_nightly",
    description="Match every open job with every available freelancer",
    schedule="0 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    # A night that was missed is not made up for: the next one covers it.
    catchup=False,
    # Never two runs at once.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    tags=["matchwright"],
) as dag:
    task(
        task_id="nightly",
        retries=5,
        retry_delay=timedelta(minutes=5),
        execution_timeout=timedelta(hours=5, minutes=30),
        max_active_tis_per_dag=1,
        # A pool with one slot keeps other DAGs that use the store away as well.
        pool_slots=1,
    )(nightly)()
