"""Every network through the one loop: it learns, is stopped, goes on as if it had not been, and is restored."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import schema
from configs.convert import override
from configs.derived import translates
from configs.presets import smoke
from model.sharding import make_mesh
from train import loop, metrics
from train.checkpoint import restore_params
from train.loop import train

pytestmark = pytest.mark.end_to_end

NETWORKS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "encoder": {"model.network": "encoder"},
    "encoder_decoder": {"model.network": "encoder_decoder", "model.position": "sinusoidal"},
    "lstm": {"model.network": "lstm"},
    "lstm_encoder_decoder": {"model.network": "lstm_encoder_decoder"},
    "experts": {"model.num_experts": 4, "model.expert_capacity": 1.0},
    "latent": {"model.attention": "latent", "optimizer.state_dtype": "bfloat16"},
    "linear": {"model.attention": "linear"},
    "delta": {"model.attention": "delta"},
    "lora": {"model.lora_rank": 2},
}
ALWAYS = ("decoder",)  # The others are slow.
STEPS = 12


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"number {n} and {n + 1}" for n in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "pairs.tsv").write_text("".join(f"{line}\t{line[::-1]}\n" for line in lines))
    return folder


def config_of(name, texts):
    changes = NETWORKS[name]
    config = override(smoke(), {
        "data.source": f"text:{texts}/*.txt", "data.length": 32, "data.held_out": 0.2, "data.section_bytes": 64,
        "train.batch_size": 4, "train.steps": STEPS, "train.log_every": 1, "train.eval_every": 0,
        "train.eval_batches": 1, "train.checkpoint_every": 4, "train.sample_every": 0, "train.score_sentences": 0,
        "model.width": 16, "model.dropout": 0.1, "model.layers": "scan", "optimizer.learning_rate": 0.01,
    } | changes)  # fmt: skip
    if translates(config):
        config = override(config, {"data.source": f"tsv:{texts}/pairs.tsv", "data.languages": "en-de"})
    return config


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in NETWORKS]
)
def test_a_network_learns_stops_and_goes_on(name, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda mesh: make_mesh(schema.Mesh(), jax.devices()[:1]))
    monkeypatch.setattr(metrics, "matmul_peak", lambda dtype: 1e11)
    config, on = config_of(name, texts), make_mesh(schema.Mesh(), jax.devices()[:1])

    class StopAfter(loop.Stop):
        polls = 0

        def __call__(self) -> bool:
            self.polls += 1
            return self.polls > 6

    assert not train(config, tmp_path / "stopped", "", stop=StopAfter()).finished
    for folder in ("stopped", "whole"):
        result = train(config, tmp_path / folder, "", stop=loop.Stop())
        assert result.finished
        assert np.isfinite(result.evaluation["eval/loss"])
    runs = [restore_params(tmp_path / folder, on) for folder in ("stopped", "whole")]
    flat = [flatten_dict(run.params, sep="/") for run in runs]
    for path, value in flat[0].items():
        np.testing.assert_array_equal(value, flat[1][path], err_msg=path)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert len(losses) == STEPS
