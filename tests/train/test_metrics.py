from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.convert import override
from configs.presets import quickstart
from configs.schema import ConfigError
from model import build
from model.sharding import parameter_shapes
from train import metrics
from train.metrics import JsonLines, Pace, TensorBoard, Terminal, WeightsAndBiases, matmul_peak, train_flops_per_token


def test_lines_of_later_steps_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path, 0)
    for step in (1, 2, 2, 3):
        file.write(step, {"train/loss": float(step), "bad": float("nan")})
    assert len(path.read_text().splitlines()) == 4  # on its way before anything is closed
    file.close()
    path.write_text(path.read_text() + '{"step": 2, "train/lo')
    again = JsonLines(path, 2)
    assert [line["step"] for line in again.kept] == [1, 2, 2]
    again.write(3, {"train/loss": 0.5})
    again.close()
    found = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [line["train/loss"] for line in found] == [1.0, 2.0, 2.0, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_gets_each_metric_and_hides_what_is_done_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format that is read below

    writer = TensorBoard(tmp_path, 7)
    writer.write(8, {"train/loss": 1.5})
    writer.close()
    data = next(tmp_path.glob("events.*")).read_bytes()
    events, at = [], 0
    while at < len(data):  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        events.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += size + 16
    assert [e.step for e in events if e.HasField("session_log")] == [8]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(8, "train/loss", 1.5)]


def test_wandb_that_is_not_installed_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = override(quickstart(), {"train.wandb": "project"})
    with pytest.raises(ConfigError, match=r"--train\.wandb=project needs a package that is not installed"):
        WeightsAndBiases(tmp_path, config)


def test_without_a_terminal_there_are_plain_lines_on_stderr(capsys):
    terminal = Terminal(steps=100, step=0)
    terminal.write(10, {"train/loss": 2.5, "train/bits_per_byte": 1.25, "train/tokens_per_second": 12345.0,
                        "train/mfu": 0.41})  # fmt: skip
    terminal.write(20, {"eval/loss": 2.0, "eval/bits_per_byte": 1.0})
    terminal.say("[sample] x = [1]")
    terminal.close()
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert first.startswith("step 10/100  loss 2.500  1.250 bits/byte  12,345 tokens/s  MFU 41%  ")
    assert first.endswith(" left")
    assert second == "step 20/100  held-out loss 2.000  held-out 1.000 bits/byte"
    assert third == "[sample] x = [1]"


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal(steps=100, step=40)
    terminal.write(50, {"train/loss": 2.5, "train/mfu": 0.41})
    terminal.close()
    err = capsys.readouterr().err
    assert "50/100" in err
    assert "loss 2.500" in err
    assert "MFU 41%" in err


def test_model_flops_are_six_per_weight_and_twelve_per_key():
    shape = {"model.num_layers": 2, "model.width": 64, "model.num_heads": 4, "model.num_kv_heads": 2,
             "data.length": 32, "model.window": 8, "model.window_pattern": "LG"}  # fmt: skip
    config = override(quickstart(), shape)
    params = flatten_dict(parameter_shapes(build(config)), sep="/")
    kernels = sum(np.prod(x.shape) for name, x in params.items() if name.endswith("kernel"))
    output = params["embedding/embedding"].size  # tied: looked up once, multiplied once
    assert train_flops_per_token(config) == 6 * (kernels + output) + 12 * 64 * (8 + 32)


def test_model_flops_are_about_what_xla_counts():
    shape = {"model.num_layers": 2, "model.width": 64, "model.num_heads": 4, "data.length": 32,
             "tokenizer.vocab_size": 300, "model.kernel": "dense"}  # fmt: skip
    config = override(quickstart(), shape)
    module = build(config)
    tokens_BT = jnp.zeros((4, 32), jnp.int32)

    def loss(params):
        return jnp.mean(jax.nn.logsumexp(module.apply({"params": params}, tokens_BT), axis=-1))

    counted = jax.jit(jax.grad(loss)).lower(parameter_shapes(module)).cost_analysis()["flops"] / tokens_BT.size
    assert train_flops_per_token(config) == pytest.approx(counted, rel=0.15)


def test_the_peak_is_above_what_one_matmul_reaches():
    peak = matmul_peak("float32")
    assert 1e9 < peak < 1e15
    assert matmul_peak("float32") == peak  # measured once


def test_pauses_do_not_count_as_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics, "matmul_peak", lambda dtype: 1e12)
    config = override(quickstart(), {"train.batch_size": 4, "data.length": 8})
    pace = Pace(config)
    assert pace.measure(1) == {}
    now[0] += 2.0
    with pace.pause():
        now[0] += 50.0
    measured = pace.measure(11)
    assert measured["train/tokens_per_second"] == pytest.approx(10 * 32 / 2.0)
    assert measured["train/mfu"] == pytest.approx(160 * train_flops_per_token(config) / 1e12)
    with pace.pause():  # In which the metrics of the last step are read.
        now[0] += 4.0
        pace.measure(12)
        now[0] += 50.0
    now[0] += 2.0
    assert pace.measure(13)["train/tokens_per_second"] == pytest.approx(32 / 2.0)
