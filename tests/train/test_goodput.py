from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import goodput
from train.goodput import Ledger

ROOT = Path(__file__).parents[2]


def line(after: int, at: float, /, **seconds: float) -> str:
    return json.dumps({"step": after, "time": at, "seconds": seconds})


def test_what_a_kill_took_away_is_lost_and_the_rest_adds_up(tmp_path):
    lines = [
        json.dumps({"from": 0, "time": 100.0}),
        line(10, 112.0, start=5.0, compile=2.0, step=5.0),
        line(20, 120.0, step=7.0, save=1.0),  # The last checkpoint.
        line(30, 126.0, step=5.5, data=0.5),  # Lost with
        line(40, 131.0, step=5.0),  # this.
        '{"step": 50, "ti',  # Torn by the kill.
        json.dumps({"from": 20, "time": 140.0}),
        line(30, 150.0, start=3.0, restore=1.0, step=6.0),
    ]
    (tmp_path / goodput.FILE).write_text("\n".join(lines) + "\n")
    found = goodput.read(tmp_path)
    assert found is not None
    assert found.seconds["lost"] == 11.0
    assert found.seconds["down"] == 9.0
    assert found.seconds["step"] == 18.0
    assert (found.starts, found.steps) == (2, 30)
    assert found.total == 50.0 == pytest.approx(sum(found.seconds.values()))
    assert found.share == pytest.approx(18 / 50)


CHILD = """
import sys, time
from pathlib import Path
from train.goodput import Ledger

ledger = Ledger(Path(sys.argv[1]), int(sys.argv[2]))
with ledger.spent_on("restore"):
    time.sleep(0.2)
ledger.begin_steps()
for step in range(int(sys.argv[2]), int(sys.argv[2]) + 3):
    with ledger.spent_on("data"):
        time.sleep(0.1)
        with ledger.spent_on("compile"):
            time.sleep(0.1)
    time.sleep(0.2)
    ledger.write(step + 1)
sys.stdout.write("done"); sys.stdout.flush()
time.sleep(60)
"""


def test_the_kinds_add_up_to_the_wall_time_across_kills(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.time()
    for step in (0, 2):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(step)]
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.read(4) == b"done"
        ended = time.time()
        child.kill()
        child.wait()
        time.sleep(0.5)
    found = goodput.read(tmp_path)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.total, abs=1e-2)
    # Between our clocks and the ledger's lie the start of one process and the pipe.
    assert found.total == pytest.approx(ended - began, abs=0.01 * (ended - began) + 0.1)
    assert found.seconds["down"] >= 0.48  # The system counts a process's start in hundredths of a second.
    assert found.seconds["lost"] >= 0.4  # The third step of the first process.
    assert found.seconds["restore"] >= 0.4
    assert found.seconds["compile"] >= 0.5
    assert found.seconds["data"] < found.seconds["step"] + found.seconds["lost"]


def test_a_process_that_writes_nothing_keeps_no_ledger(tmp_path):
    ledger = Ledger(None, 0)
    with ledger.spent_on("data"):
        pass
    ledger.write(1)
    ledger.close()
    assert goodput.read(tmp_path) is None


def test_a_run_after_another_in_one_process_is_charged_from_the_end_of_that(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one = Ledger(tmp_path / "one", 0)
    time.sleep(0.3)
    one.write(1)
    one.close()
    closed = time.time()
    two = Ledger(tmp_path / "two", 0)
    two.write(1)
    found = goodput.read(tmp_path / "two")
    assert found is not None
    assert found.total <= time.time() - closed + 0.01
    assert found.total == pytest.approx(sum(found.seconds.values()), abs=1e-3)
