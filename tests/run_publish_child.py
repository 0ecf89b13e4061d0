"""Publishes two runs in turn, and goes back now and then, until it is killed."""

from __future__ import annotations

import sys

from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.publish import Thresholds, publish, rollback
from matchwright.engine.runs.verify import SOUND, Verdict


def sound(folder):
    return Verdict(folder.run_id, SOUND, "", 0, 0, 0, 0, ())


output = Output(sys.argv[1])
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    if turn % 5 == 0:
        rollback(output, now=str(turn))
    else:
        run = sys.argv[2 + turn % 2]
        publish(output, run, verify=sound, thresholds=Thresholds(churn=1), now=str(turn))
