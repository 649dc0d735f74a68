from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from train.stop import RESTART

ROOT = Path(__file__).parents[2]
CHILD = """
import sys, time
from pathlib import Path
from train.watchdog import Watchdog

def stands_still():
    time.sleep(60)

watchdog = Watchdog(Path(sys.argv[1]), 0.8, lambda sentence: print("told the others:", sentence, flush=True))
for step in range(4):
    time.sleep(0.4)
    watchdog.beat(step)
stands_still()
"""


def test_a_run_that_stands_still_shows_its_stacks_and_asks_to_be_started_again(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == RESTART
    assert "in stands_still" in done.stderr
    assert "no step for 0.8 s, at step 3" in done.stderr
    assert "told the others: no step for 0.8 s, at step 3" in done.stdout
    assert "in stands_still" in (tmp_path / "stalled-0.txt").read_text()
