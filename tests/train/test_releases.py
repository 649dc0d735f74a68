"""Runs that released versions wrote: this one opens them, reads the same in them, and goes on with them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.train.make_release import CONFIG, FOLDER, logits
from train.checkpoint import find
from train.loop import train

RELEASES = sorted(path.name for path in FOLDER.iterdir())


def test_there_is_a_first_release():
    assert "0.1.0" in RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_a_run_of_a_release_is_read_and_goes_on(release, tmp_path):
    said = json.loads((FOLDER / release / "said.json").read_text())
    run = tmp_path / "run"
    shutil.copytree(FOLDER / release / "run", run)
    assert find(run)[1] == 2
    np.testing.assert_allclose(logits(run), said["logits"], atol=1e-5)
    result = train(CONFIG, run, "command")
    assert (result.step, result.finished) == (4, True)
    assert result.evaluation["eval/loss"] == pytest.approx(said["end"], rel=1e-5)
