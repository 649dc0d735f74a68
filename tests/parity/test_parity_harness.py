"""lm-eval finds with our model class what it finds with its own of `transformers`."""

from __future__ import annotations

import os

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # The tasks are files of ours.
pytest.importorskip("lm_eval")
pytest.importorskip("torch")

from benchmarks.evaluate_cpu import difference, evaluated, ours, theirs, write_tasks
from model.exchange.gguf import find_smollm2
from model.exchange.source import ExchangeError

try:
    find_smollm2()
except ExchangeError as error:
    pytest.skip(str(error), allow_module_level=True)


pytestmark = pytest.mark.slow  # Two minutes of computing: SmolLM2 by both, in three ways.


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For each task, what both get for its questions."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, questions=4)
    networks = ours(layers="scan"), theirs()
    names = ("choosing", "writing", "reading")
    return {name: [evaluated(network, folder, name, shots=2) for network in networks] for name in names}


@pytest.mark.parametrize("name", ["choosing", "reading"])
def test_texts_are_as_likely(found, name):
    mine, others = found[name]
    assert difference(mine, others) < 1e-3
    # The perplexity of a word, of which the paragraphs have few, is e to the sum over about ten tokens.
    assert mine["metrics"] == pytest.approx(others["metrics"], rel=1e-4)


def test_the_same_is_the_likeliest(found):
    mine, others = found["choosing"]
    assert [answer[1] for answer in mine["answers"]] == [answer[1] for answer in others["answers"]]
    assert 0 < mine["metrics"]["acc,none"] <= 1


def test_the_same_is_written(found):
    mine, others = found["writing"]
    assert difference(mine, others) == 0
    assert mine["metrics"] == others["metrics"]
