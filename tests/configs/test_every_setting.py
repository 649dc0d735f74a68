"""Every setting changes something that can be observed, and each of its choices something else.

`SETTINGS` says for each where to look (an observer) and which values must make a difference there. An observer does
what the programs do with a config, as little of it as will do, and returns what came out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import launch.train
import train.evaluate
import train.loop
import train.translation
import train.writing
from configs import schema
from configs.convert import leaves, override
from configs.derived import fills_in, translates
from configs.schema import Config
from model import Source, build
from model.experts import LOSSES
from model.sharding import make_mesh, parameter_shapes
from train.checkpoint import CheckpointError
from train.data.pipeline import held_out_batches, train_batches
from train.data.sections import DataError, Section
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer
from train.evaluate import make_score
from train.initial import initial_params
from train.optimizer import make_optimizer, schedule
from train.run import Run
from train.step import init_state, make_train_step, state_shape

BASE = override(
    tiny(num_layers=1),
    {
        "data.source": "text:text/*.txt",
        "data.section_bytes": 64,
        "tokenizer.vocab_size": 300,
        "train.batch_size": 4,
        "train.steps": 4,
        "train.log_every": 2,
        "train.eval_every": 2,
        "train.checkpoint_every": 2,
        "train.sample_every": 2,
        "optimizer.warmup_steps": 1,
    },
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A working directory with text of every kind."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "text").mkdir()
    (folder / "other").mkdir()
    for number in range(8):
        lines = "".join(f"line {line} of text {number}, and what it says is {line * number}\n" for line in range(20))
        (folder / "text" / f"{number}.txt").write_text(lines)
        (folder / "other" / f"{number}.txt").write_text(lines.upper())
        with (folder / "records.jsonl").open("a") as records:
            records.write(json.dumps({"text": lines, "body": lines[::-1]}) + "\n")
    pairs = (f"line {n} and {n * n}\tZeile {n} und {n * n}\n" for n in range(60))
    (folder / "pairs.tsv").write_text("".join(pairs))
    tokenizer = make_tokenizer(BASE.tokenizer, None)  # type: ignore[arg-type]  # Bytes need no text.
    (folder / "tokenizer.json").write_text(tokenizer.to_json().replace("<|endoftext|>", "</s>"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def one_device(config: schema.Mesh) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[:1])


def program(config: Config, shape: tuple[int, int] = (2, 8)) -> str:
    """The compiled network: its parameters and operations."""
    module = build(config)
    inputs_BT = jax.ShapeDtypeStruct(shape, jnp.int32)

    def apply(params, tokens_BT, positions_BT, segments_BT, key):
        options = {"deterministic": False, "rngs": {"dropout": key}, "mutable": [LOSSES]}
        if translates(config):
            options["source"] = Source(tokens_BT, positions_BT, segments_BT)
        return module.apply({"params": params}, tokens_BT, positions_BT, segments_BT, **options)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(apply).lower(parameter_shapes(module), inputs_BT, inputs_BT, inputs_BT, key).as_text()


def backward(config: Config) -> str:
    """The program of the gradients."""
    module = build(config)
    loss = lambda params: module.apply({"params": params}, jnp.zeros((1, 8), jnp.int32)).sum()  # noqa: E731
    return str(jax.make_jaxpr(jax.grad(loss))(parameter_shapes(module)))


def training_step(config: Config) -> str:
    """The program of one step."""
    module, mesh = build(config), one_device(config.mesh)
    optimizer = make_optimizer(config, parameter_shapes(module))
    batch = {name: jnp.ones((config.train.batch_size, 8), jnp.int32) for name in BATCH}
    step = make_train_step(module, optimizer, config)
    return str(jax.make_jaxpr(step)(state_shape(module, optimizer, config, mesh), batch))


BATCH = ("inputs", "targets", "segments", "positions")
PARAMETERS = {
    "embedding": {"embedding": jnp.ones((40, 64))},
    "layers": {
        "attention": {"query": {"kernel": jnp.ones((2, 64, 4, 8))}},
        "attention_norm": {"scale": jnp.ones((2, 64))},
    },
}


def updates(config: Config) -> str:
    """The program that turns gradients into updates."""
    optimizer = make_optimizer(config, PARAMETERS)
    return str(jax.make_jaxpr(optimizer.update)(PARAMETERS, optimizer.init(PARAMETERS), PARAMETERS))


def learning_rates(config: Config) -> list[float]:
    """The learning rate of each step."""
    return np.asarray(schedule(config)(np.arange(30))).tolist()


def weights(config: Config) -> list[float]:
    """Some of the weights before the first step."""
    module, mesh = build(config), one_device(config.mesh)
    state = init_state(module, make_optimizer(config, parameter_shapes(module)), config, mesh)
    return np.asarray(state.params["embedding"]["embedding"])[0].tolist()


def batches(config: Config) -> Any:
    """What is read: the first batches, and how much is held out."""
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus, masked=fills_in(config))
    reader = train_batches(corpus, tokenizer, config)
    first = [{name: x.tolist() for name, x in next(reader).items()} for _ in range(2)]
    return first, len(list(held_out_batches(corpus, tokenizer, config))), len(corpus.train)


def vocabulary(config: Config) -> str:
    """The tokenizer."""
    return make_tokenizer(config.tokenizer, open_corpus(config.data)).to_json()


def background_reading(config: Config) -> bool:
    """Whether another thread reads the text."""
    threads = set()

    class Sections:
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Section:
            threads.add(threading.get_ident())
            return Section("some text", last=True)

    corpus: Any = types.SimpleNamespace(train=Sections())
    next(train_batches(corpus, make_tokenizer(config.tokenizer, corpus), config))
    return threads != {threading.get_ident()}


def where_datasets_are(config: Config) -> str:
    """Where TFDS looks."""
    with pytest.raises(DataError) as error:
        open_corpus(config.data)
    return str(error.value)


def what_is_skipped(config: Config) -> Any:
    """What is left out of a file whose second line cannot be read, or the error."""
    with open("damaged.jsonl", "w") as file:
        file.write('{"text": "a"}\n{"text"\n{"text": "b"}\n')
    try:
        return open_corpus(config.data).skipped
    except DataError as error:
        return str(error)


def where_weights_come_from(config: Config) -> str:
    """The checkpoint that a run starts from."""
    with pytest.raises(CheckpointError) as error:
        initial_params(config, one_device(config.mesh))
    return str(error.value)


def scores(config: Config) -> Any:
    """Which sentences are translated to be scored, and by which rules."""
    asked, corpus = [], open_corpus(config.data)

    def translate_each(module, params, tokenizer, sources, **_):
        asked.extend(sources)
        return enumerate(sources)

    def score(texts, references, between):
        asked.append(train.translation.score(texts, references, between))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.evaluate, "translate_each", translate_each)
        patch.setattr(train.evaluate, "score", score)
        make_score(build(config), config, corpus, make_tokenizer(config.tokenizer, corpus))(None)
    return asked


def shared_program(config: Config) -> str:
    """The compiled network where two devices share each row."""
    with jax.set_mesh(make_mesh(schema.Mesh(sequence=2))):
        return program(config, (4, 256))


def pipelined_program(config: Config) -> str:
    """The compiled network where two devices share the layers."""
    with jax.set_mesh(make_mesh(schema.Mesh(stage=2))):
        return program(config, (4, 8))


def devices(config: Config) -> tuple[int, ...]:
    """The mesh of eight devices."""
    return make_mesh(config.mesh).devices.shape


def sample_request(config: Config) -> Any:
    """What the samples of a run are asked for."""
    asked = []

    def write(module, params, tokenizer, prompts, sampling, **options):
        asked.append((prompts, {name: value for name, value in options.items() if name != "on_token"}))
        return [types.SimpleNamespace(text="")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.writing, "write", write)
        run: Any = types.SimpleNamespace(config=config, tokenizer=None)
        launch.train.sampler(run)(None, 1)
    return asked


def life(config: Config) -> dict[str, Any]:
    """What a run leaves behind whose steps compute nothing, and whose second one goes wrong."""
    number = next(NUMBERS)
    corpus = open_corpus(config.data)
    run = Run(config, pathlib.Path(f"run{number}"), corpus, make_tokenizer(config.tokenizer, corpus))
    run.folder.mkdir()
    told: list[Any] = []

    def step(state, batch):
        state = dataclasses.replace(state, step=state.step + 1)
        return state, {"train/loss": 1.0, "train/grad_norm": 1.0, "train/anomaly": float(state.step == 2)}

    def evaluate(params, batches, stop):
        return {"eval/loss": 1.0, "eval/bits_per_byte": 1.0, "eval/tokens": float(len(list(batches)))}

    def start(module, optimizer, config, mesh, given):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_shape(module, optimizer, config, mesh))

    wandb: Any = types.ModuleType("wandb")
    wandb.util = types.SimpleNamespace(generate_id=lambda: "id")
    wandb.Settings = dict
    wandb.init = lambda project, name, **_: (
        told.append((project, name)) or types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setattr(train.loop, "jit_train_step", lambda *_: step)
        patch.setattr(train.loop, "make_evaluate", lambda *_: evaluate)
        patch.setattr(train.loop, "init_state", start)
        patch.setattr(train.loop, "make_mesh", one_device)
        sample = lambda params, step: {"prompt": config.train.sample_prompt, "text": f"sample {step}"}  # noqa: E731
        trainer = train.loop.Trainer(run, sample, train.loop.Stop())
        try:
            end = str(trainer.go())
        except train.loop.TrainingError:
            end = "stopped"
        finally:
            trainer.close()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    rollbacks = run.folder / "rollbacks.jsonl"
    return {
        "rollbacks": len(rollbacks.read_text().splitlines()) if rollbacks.exists() else 0,
        "end": end,
        "logged": [line["step"] for line in lines if "train/loss" in line],
        "evaluated": [(line["step"], line["eval/tokens"]) for line in lines if "eval/tokens" in line],
        "samples": (run.folder / "samples.jsonl").read_text(),
        "checkpoints": sorted(path.name for path in (run.folder / "checkpoints").iterdir()),
        "wandb": told,
    }


PAIRS = {
    "model.network": "encoder_decoder", "data.source": "tsv:pairs.tsv", "data.languages": "en-de",
    "data.length": 32, "data.held_out": 0.3,
}  # fmt: skip
NUMBERS = itertools.count()
LEARNED = {"model.position": "learned"}
SCALED = {"model.rope_scaling": "llama3", "model.rope_scaling_factor": 8.0, "model.rope_base": 500_000.0}
YARN = {**SCALED, "model.rope_scaling": "yarn", "model.head_width": 32, "model.rope_fast": 32.0}
LONG = {"model.rope_scaling": "longrope", "model.rope_factors": "1.5,2", "model.rope_original_length": 4}
STRETCHED = {**SCALED, "model.head_width": 32, "data.length": 4096, "model.rope_factors": ",".join(16 * ["2"])}
LATENT = {"model.attention": "latent"}
DELTA = {"model.attention": "delta"}
RELATIVE = {"model.position": "relative"}
TRANSLATOR = {"model.network": "encoder_decoder"}
EXPERTS = {"model.num_experts": 4}
LORA = {"model.lora_rank": 2}
WINDOW = {"model.window": 4, "model.num_layers": 2}
SKIP = {"train.anomaly": "skip"}
JSONL = {"data.source": "jsonl:records.jsonl"}
BPE = {"tokenizer.source": "bpe"}
ATTENTIONS = ["mha", "gqa", "mqa", "latent", "linear", "delta"]
Look = tuple[Callable[[Config], Any], dict[str, Any], list[Any]]

# Each setting: where to look, with which other settings, and the values that must all look different.
SETTINGS: dict[str, list[Look]] = {
    "name": [(life, {"train.wandb": "one", **SKIP}, [BASE.name, "other"])],
    "init_from": [(where_weights_come_from, {}, ["runs/one", "runs/other"])],
    "model.network": [
        (program, {}, ["decoder", "encoder", "encoder_decoder", "lstm", "lstm_encoder_decoder"]),
    ],
    "model.num_layers": [(program, {}, [1, 2])],
    "model.encoder_layers": [(program, TRANSLATOR, [0, 2])],
    "model.width": [(program, {}, [16, 32])],
    "model.num_heads": [(program, {}, [4, 8])],
    "model.attention": [(program, {"model.num_heads": 8, "model.num_kv_heads": 0}, ATTENTIONS)],
    "model.latent_width": [(program, LATENT, [0, 8])],
    "model.query_latent_width": [(program, LATENT, [0, 8])],
    "model.latent_rope_width": [(program, LATENT, [0, 4])],
    "model.convolution": [(program, DELTA, [0, 3, 4])],
    "model.base_width": [(program, {}, [0, 8])],
    "model.attention_scale": [(program, {}, [0.0, 1.0])],
    "model.alignment": [(program, {"model.network": "lstm_encoder_decoder"}, ["luong", "bahdanau"])],
    "model.num_kv_heads": [(program, {}, [0, 2, 4])],
    "model.head_width": [(program, {}, [0, 8])],
    "model.position": [(program, {}, ["rope", "learned", "sinusoidal", "alibi", "relative", "none"])],
    "model.rope_base": [(program, {}, [1e4, 1e5])],
    "model.rope_scaling": [(program, STRETCHED, ["none", "linear", "ntk", "llama3", "yarn", "longrope"])],
    "model.rope_local_base": [(program, WINDOW, [0.0, 100.0])],
    "model.rope_fraction": [(program, {"model.head_width": 8}, [0.5, 1.0])],
    "model.rope_slow": [(program, YARN, [1.0, 2.0])],
    "model.rope_fast": [(program, YARN, [8.0, 32.0])],
    "model.rope_attention_factor": [(program, YARN, [0.0, 1.5])],
    "model.rope_factors": [(program, LONG, ["1.5,2", "2,2"])],
    "model.rope_long_factors": [(program, {**LONG, "data.length": 16}, ["", "1.5,3", "3,3"])],
    "model.relative_buckets": [(program, RELATIVE, [4, 8])],
    "model.relative_distance": [(program, RELATIVE, [20, 40])],
    "model.rope_scaling_factor": [(program, {**SCALED, "model.head_width": 32}, [1.0, 4.0])],
    "model.rope_original_length": [(program, {**SCALED, "model.head_width": 32}, [100, 8192])],
    "model.max_length": [(program, LEARNED, [0, 50])],
    "model.norm": [(program, {}, ["rms", "layer"])],
    "model.norm_position": [(program, {}, ["pre", "post", "both", "output"])],
    "model.final_norm": [(program, {"model.norm_position": "post"}, ["on", "off"])],
    "model.norm_epsilon": [(program, {}, [1e-6, 1e-5])],
    "model.qk_norm": [(program, {}, ["none", "head", "all"])],
    "model.activation": [(program, {}, ["gelu", "gelu_exact", "silu", "relu", "relu2"])],
    "model.feed_forward": [(program, {}, [False, True])],
    "model.gated": [(program, {"model.feed_forward_width": 8}, [False, True])],
    "model.feed_forward_width": [(program, {}, [0, 8])],
    "model.num_experts": [(program, {}, [0, 2, 4])],
    "model.experts_per_token": [(program, EXPERTS, [1, 2])],
    "model.expert_capacity": [(program, EXPERTS, [0.0, 0.5, 1.0])],
    "model.router_renormalize": [(program, EXPERTS, [False, True])],
    "model.router_balance": [(training_step, EXPERTS, [0.0, 0.01, 0.02])],
    "model.router_z_loss": [(training_step, EXPERTS, [0.0, 0.01, 0.02])],
    "model.qkv_biases": [(program, {}, [False, True])],
    "model.output_bias": [(program, {}, [False, True])],
    "model.scale_embeddings": [(program, {}, [False, True])],
    "model.logit_scale": [(program, {}, [1.0, 0.5])],
    "model.lora_rank": [(program, {}, [0, 2])],
    "model.lora_alpha": [(program, LORA, [16.0, 8.0])],
    "model.lora_targets": [(program, LORA, ["query,value", "query", "all"])],
    "model.biases": [(program, {}, [False, True])],
    "model.tied_embeddings": [(program, {}, [False, True])],
    "model.window": [(program, {}, [0, 3, 4])],
    "model.window_pattern": [(program, WINDOW, ["L", "LG", "GL"])],
    "model.attention_softcap": [(program, {}, [0.0, 5.0, 6.0])],
    "model.logit_softcap": [(program, {}, [0.0, 5.0, 6.0])],
    "model.attention_sinks": [(program, {}, [False, True])],
    "model.dropout": [(program, {}, [0.0, 0.1, 0.2])],
    "model.dtype": [(program, {}, ["float32", "bfloat16"])],
    "model.param_dtype": [(program, {}, ["float32", "bfloat16"])],
    "model.matmul": [(program, {}, ["default", "int8", "fp8"])],
    "model.layers": [(program, {"model.num_layers": 2}, ["scan", "unroll"])],
    "model.remat": [(backward, {}, ["none", "dots", "minimal", "qkv", "full", "offload", "up,down"])],
    # And auto, which is one of them.
    "model.kernel": [(shared_program, {}, ["dense", "chunked", "fused", "splash", "ring", "gather"])],
    "tokenizer.source": [(vocabulary, {}, ["bpe", "bytes", "tokenizer.json"])],
    "tokenizer.vocab_size": [(vocabulary, BPE, [300, 310]), (program, {}, [300, 310])],
    "data.source": [(batches, {}, ["text:text/*.txt", "text:other/*.txt", "jsonl:records.jsonl"])],
    "data.field": [(batches, JSONL, ["text", "body"])],
    "data.languages": [(scores, PAIRS, ["en-de", "en-zh"])],
    "data.source_length": [(batches, PAIRS, [0, 48])],
    "data.masked": [(batches, {"model.network": "encoder"}, [0.15, 0.3])],
    "data.length": [(batches, {}, [16, 17]), (program, LEARNED, [16, 17])],
    "data.held_out": [(batches, {}, [0.05, 0.2])],
    "data.section_bytes": [(batches, {}, [64, 100])],
    "data.shuffle": [(batches, {}, [False, True])],
    "data.prefetch": [(background_reading, {}, [0, 2])],
    "data.bad_records": [(what_is_skipped, {"data.source": "jsonl:damaged.jsonl"}, ["stop", "skip"])],
    "data.directory": [(where_datasets_are, {"data.source": "tfds:no_such_dataset"}, ["here", "there"])],
    "optimizer.name": [(updates, {}, ["adamw", "adafactor", "lion", "muon", "sgd", "schedule_free"])],
    "optimizer.learning_rate": [(learning_rates, {}, [1e-3, 2e-3])],
    "optimizer.schedule": [
        (
            learning_rates,
            {"train.steps": 30, "optimizer.warmup_steps": 3},
            ["cosine", "linear", "wsd", "inverse_sqrt", "constant"],
        )
    ],
    "optimizer.warmup_steps": [(learning_rates, {}, [0, 2])],
    "optimizer.decay_fraction": [(learning_rates, {"train.steps": 30, "optimizer.schedule": "wsd"}, [0.1, 0.2])],
    "optimizer.end_fraction": [(learning_rates, {}, [0.0, 0.1])],
    "optimizer.beta1": [(updates, {}, [0.8, 0.9])],
    "optimizer.beta2": [(updates, {}, [0.8, 0.9])],
    "optimizer.epsilon": [(updates, {}, [1e-8, 1e-6])],
    "optimizer.weight_decay": [(updates, {}, [0.0, 0.1, 0.2])],
    "optimizer.decay_mask": [(updates, {}, ["matrices", "all"])],
    "optimizer.state_dtype": [(updates, {}, ["float32", "bfloat16"])],
    "optimizer.clip_norm": [(updates, {}, [0.0, 1.0, 2.0])],
    "optimizer.ema_decay": [(training_step, {}, [0.0, 0.9, 0.99])],
    "train.steps": [(life, SKIP, [4, 5]), (learning_rates, {}, [4, 5])],
    "train.batch_size": [(batches, {}, [4, 5])],
    "train.microbatches": [(training_step, {}, [1, 2])],
    "train.z_loss": [(training_step, {}, [0.0, 1e-4, 1e-3])],
    "train.label_smoothing": [(training_step, {}, [0.0, 0.1, 0.2])],
    "train.seed": [(weights, {}, [0, 1]), (training_step, {"model.dropout": 0.1}, [0, 1]), (batches, {}, [0, 1])],
    "train.log_every": [(life, SKIP, [2, 3])],
    "train.eval_every": [(life, SKIP, [0, 2])],
    "train.eval_batches": [(life, SKIP, [0, 1])],
    "train.checkpoint_every": [(life, SKIP, [0, 2])],
    "train.keep": [(life, SKIP, [1, 2])],
    "train.sample_every": [(life, SKIP, [0, 2])],
    "train.sample_prompt": [(sample_request, {}, ["one", "two"]), (life, SKIP, ["def ", "one"])],
    "train.sample_tokens": [(sample_request, {}, [1, 2])],
    "train.anomaly": [(life, {}, ["stop", "skip", "rollback"])],
    "train.rollbacks": [(life, {"train.anomaly": "rollback"}, [1, 2])],
    "train.spike_factor": [(training_step, {}, [0.0, 2.0, 3.0])],
    "train.score_sentences": [(scores, PAIRS, [2, 3])],
    "train.wandb": [(life, SKIP, ["", "one", "two"])],
    "train.rounds": [(pipelined_program, {"mesh.stage": 2, "model.num_layers": 4, "train.microbatches": 2}, [1, 2])],
    "mesh.stage": [(devices, {"mesh.data": -1}, [1, 2])],
    "mesh.data": [(devices, {"mesh.fsdp": -1}, [1, 2])],
    "mesh.fsdp": [(devices, {"mesh.data": -1}, [1, 2])],
    "mesh.expert": [(devices, {"mesh.data": -1}, [1, 2])],
    "mesh.sequence": [(devices, {"mesh.data": -1}, [1, 2])],
    "mesh.tensor": [(devices, {"mesh.data": -1}, [1, 2])],
}
LOOKS = [(name, number) for name, looks in SETTINGS.items() for number in range(len(looks))]
OBSERVERS = sorted({look[0] for looks in SETTINGS.values() for look in looks}, key=lambda observer: observer.__name__)

seen: dict[tuple[Callable[[Config], Any], Config], str] = {}


def look(observer: Callable[[Config], Any], config: Config) -> str:
    """What the observer sees, once for each config."""
    key = (observer, config)
    if key not in seen:
        seen[key] = repr(observer(config))
    return seen[key]


def test_every_setting_of_the_schema_is_tested():
    assert {name for name, _, _ in leaves(Config())} == set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "number"), LOOKS, ids=[f"{name}-{SETTINGS[name][n][0].__name__}" for name, n in LOOKS]
)
def test_a_setting_changes_what_can_be_observed(name, number):
    observer, others, values = SETTINGS[name][number]
    field = next(field for leaf, field, _ in leaves(Config()) if leaf == name)
    assert set(field.metadata["choices"]) <= {*values, "auto"}, "a choice is not tested"
    found = {value: look(observer, override(BASE, {**others, name: value})) for value in values}
    for one, other in itertools.combinations(values, 2):
        assert found[one] != found[other], f"--{name}={one} and --{name}={other} do the same"


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: observer.__name__)
def test_what_is_observed_is_the_same_for_the_same_config(observer):
    """Else a difference would say nothing."""
    name, number = next((name, number) for name, number in LOOKS if SETTINGS[name][number][0] is observer)
    _, others, values = SETTINGS[name][number]
    config = override(BASE, {**others, name: values[0]})
    assert repr(observer(config)) == look(observer, config)


def test_a_network_is_the_same_whatever_is_set_for_data_and_training():
    """Else a program that merely held the config would pass for one that uses it."""
    others = {"name": "other", "train.steps": 9, "data.shuffle": False, "optimizer.beta1": 0.5, "mesh.data": 2}
    assert look(program, override(BASE, others)) == look(program, BASE)
    assert look(training_step, override(BASE, {"name": "other", "train.keep": 9})) == look(training_step, BASE)
