"""The one typed description of a run.

Every setting stands here once, with its default and a sentence. `configs.flags` turns each leaf into a
command-line flag (`--model.num_heads=8`), `configs.presets` names whole configs, and the resolved config
is saved beside every run as `config.json`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", bool, int, float, str)


def setting(default: T, help: str, choices: tuple[str, ...] = (), at_least: float | None = None) -> T:
    """A dataclass field with its default, its help line and what is valid (`choices` or a lower bound)."""
    metadata = {"help": help, "choices": choices, "at_least": at_least}
    return dataclasses.field(default=default, metadata=metadata)  # type: ignore[return-value]


@dataclass(frozen=True)
class Model:
    """The network: a decoder-only Transformer, every choice a setting."""

    num_layers: int = setting(4, "Number of Transformer blocks.", at_least=1)
    width: int = setting(256, "Model width D: the size of the vector that stands for a token.", at_least=1)
    num_heads: int = setting(8, "Number of attention (query) heads N.", at_least=1)
    attention: str = setting(
        "gqa",
        "How keys and values are shared: mha gives each query head its own, gqa shares one among a group, "
        "mqa one among all.",
        ("mha", "gqa", "mqa"),
    )
    num_kv_heads: int = setting(
        0, "Number of key/value heads K for gqa; 0 is a quarter of num_heads, or the next smaller divisor.", at_least=0
    )
    head_width: int = setting(0, "Width H of one head; 0 is width / num_heads.", at_least=0)
    position: str = setting(
        "rope",
        "How a token's place is told: rotary, a learned table, fixed sinusoids, a linear penalty on distance, or not.",
        ("rope", "learned", "sinusoidal", "alibi", "none"),
    )
    rope_base: float = setting(10_000.0, "RoPE: base of the geometric series of wavelengths.", at_least=1)
    rope_scaling: str = setting(
        "none", "RoPE: how positions are stretched beyond the trained length.", ("none", "linear", "ntk", "llama3")
    )
    rope_scaling_factor: float = setting(1.0, "RoPE: by how much positions are stretched.", at_least=1)
    rope_original_length: int = setting(
        8192, "RoPE, llama3 scaling: the length that the unscaled model was trained for.", at_least=1
    )
    max_length: int = setting(
        0, "Rows in a learned position table, so the longest text it can read; 0 is data.length.", at_least=0
    )
    norm: str = setting("rms", "Normalization: root mean square, or layer (mean and variance).", ("rms", "layer"))
    norm_position: str = setting(
        "pre", "Normalize what enters a sub-layer, what leaves the residual sum, or both ends.", ("pre", "post", "both")
    )
    norm_epsilon: float = setting(1e-6, "Added to the variance before its root is taken.", at_least=0)
    qk_norm: bool = setting(False, "Normalize each head's queries and keys (RMS), which keeps scores bounded.")
    activation: str = setting(
        "silu", "Non-linearity of the feed-forward layer (relu2 is relu squared).", ("gelu", "silu", "relu", "relu2")
    )
    gated: bool = setting(True, "Multiply the activation by a second linear map (SwiGLU, GEGLU).")
    feed_forward_width: int = setting(
        0, "Hidden width F of the feed-forward layer; 0 is 4 x width, or 8/3 x width if gated.", at_least=0
    )
    biases: bool = setting(False, "Add a bias to every linear map (and to layer norms).")
    tied_embeddings: bool = setting(True, "Use the token embedding, transposed, as the output layer.")
    window: int = setting(
        0, "Sliding window: a token sees itself and the window-1 before it; 0 sees everything before it.", at_least=0
    )
    window_pattern: str = setting(
        "L", "Which layers have the window, repeated over the layers: L has it (local), G sees everything (global)."
    )
    attention_softcap: float = setting(
        0.0, "Cap attention scores smoothly: cap * tanh(score / cap); 0 is off.", at_least=0
    )
    logit_softcap: float = setting(0.0, "Cap output logits smoothly in the same way; 0 is off.", at_least=0)
    attention_sinks: bool = setting(False, "A learned logit per head in each softmax, so that a head can look nowhere.")
    dropout: float = setting(0.0, "Share of activations dropped after the embedding and each sub-layer.", at_least=0)
    dtype: str = setting("float32", "What is computed with.", ("float32", "bfloat16"))
    param_dtype: str = setting("float32", "What parameters are stored as.", ("float32", "bfloat16"))
    layers: str = setting(
        "unroll",
        "scan compiles one block and loops over it; unroll compiles each, faster on a CPU.",
        ("scan", "unroll"),
    )
    remat: str = setting(
        "none",
        "What is computed again in the backward pass to save memory: nothing, all but matmul outputs, all of a block.",
        ("none", "dots", "full"),
    )
    kernel: str = setting(
        "auto", "How attention is computed; auto picks by platform and by what is asked.", ("auto", "dense", "fused")
    )


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes numbers."""

    source: str = setting(
        "bpe", "bpe: byte-level BPE trained on the training text; bytes: one token per byte; or a tokenizer.json."
    )
    vocab_size: int = setting(
        4096, "Number of tokens that bpe learns; for the other sources it is read from them.", at_least=257
    )


@dataclass(frozen=True)
class Data:
    """What is read, and how it becomes batches."""

    source: str = setting(
        "stdlib",
        "stdlib: the running Python's own standard library; tfds:NAME[/CONFIG][:SPLIT]; text:GLOB; jsonl:GLOB.",
    )
    field: str = setting("text", "Which field holds the text in jsonl records and in TFDS examples.")
    length: int = setting(256, "Tokens in one row of a batch, T.", at_least=2)
    held_out: float = setting(
        0.05, "Share of the text held out for evaluation where the source has no such split.", at_least=0
    )
    section_bytes: int = setting(
        4096, "Longer documents are cut at line ends into sections of about this size before shuffling.", at_least=64
    )
    shuffle: bool = setting(True, "Read sections in a random order, another one in each epoch.")
    prefetch: int = setting(2, "Batches that a background thread prepares ahead.", at_least=0)
    directory: str = setting("", "Where TFDS keeps prepared datasets; empty is its own default.")


@dataclass(frozen=True)
class Optimizer:
    """How gradients become updates."""

    name: str = setting("adamw", "The optimizer.", ("adamw", "adafactor", "lion", "muon", "sgd", "schedule_free"))
    learning_rate: float = setting(1e-3, "Peak learning rate.", at_least=0)
    schedule: str = setting(
        "cosine",
        "Learning rate after warm-up: wsd stays, then falls to the end; inverse_sqrt falls as 1/sqrt(step). "
        "The schedule_free optimizer keeps it constant.",
        ("cosine", "linear", "wsd", "inverse_sqrt", "constant"),
    )
    warmup_steps: int = setting(100, "Steps in which the learning rate rises from zero.", at_least=0)
    decay_fraction: float = setting(0.2, "wsd: the share of all steps in which the learning rate falls.", at_least=0)
    end_fraction: float = setting(0.1, "The learning rate ends at this share of its peak.", at_least=0)
    beta1: float = setting(0.9, "Decay of the gradient's mean (momentum for sgd and muon).", at_least=0)
    beta2: float = setting(0.95, "Decay of the squared gradient's mean.", at_least=0)
    epsilon: float = setting(1e-8, "Added to the denominator of adaptive updates.", at_least=0)
    weight_decay: float = setting(0.1, "Decoupled weight decay.", at_least=0)
    decay_mask: str = setting("matrices", "What weight decay applies to.", ("matrices", "all"))
    clip_norm: float = setting(1.0, "Scale gradients down to this global norm; 0 is off.", at_least=0)
    ema_decay: float = setting(
        0.0, "Keep a moving average of the parameters and evaluate with it; 0 is off.", at_least=0
    )


@dataclass(frozen=True)
class Train:
    """The run: how long, how often to look, what to do when it goes wrong."""

    steps: int = setting(1000, "Optimizer steps.", at_least=1)
    batch_size: int = setting(16, "Rows in one optimizer step, over all devices.", at_least=1)
    microbatches: int = setting(1, "Split each batch into this many parts and add up their gradients.", at_least=1)
    z_loss: float = setting(0.0, "Weight of log(Z)^2, which keeps logits from drifting.", at_least=0)
    label_smoothing: float = setting(0.0, "Share of the target spread evenly over the vocabulary.", at_least=0)
    seed: int = setting(0, "Seed of the weights, of dropout and of the data order.")
    log_every: int = setting(10, "Steps between two lines of metrics.", at_least=1)
    eval_every: int = setting(250, "Steps between two evaluations on held-out text; 0 only at the end.", at_least=0)
    eval_batches: int = setting(0, "Batches in one evaluation; 0 is all of the held-out text.", at_least=0)
    checkpoint_every: int = setting(250, "Steps between two checkpoints; 0 only at the end.", at_least=0)
    keep: int = setting(2, "How many of the newest checkpoints to keep, besides the best one.", at_least=1)
    sample_every: int = setting(250, "Steps between two samples; 0 only at the end.", at_least=0)
    sample_prompt: str = setting("def ", "The prompt of the samples written while training.")
    sample_tokens: int = setting(64, "Tokens in each of those samples.", at_least=1)
    anomaly: str = setting(
        "stop", "On a loss that is not finite or that spikes: stop the run, or skip that update.", ("stop", "skip")
    )
    spike_factor: float = setting(
        3.0,
        "A loss above this multiple of its moving average is a spike; 0 looks for NaN and infinity only.",
        at_least=0,
    )
    wandb: str = setting("", "Weights & Biases project to log to as well; empty is off.")


@dataclass(frozen=True)
class Mesh:
    """How many devices along each axis; one may be -1, which takes what is left."""

    data: int = setting(-1, "Devices that each take a share of the batch and hold all parameters.", at_least=-1)
    fsdp: int = setting(1, "Devices that share the batch and the parameters.", at_least=-1)
    tensor: int = setting(1, "Devices that share each matrix: heads, hidden units, vocabulary.", at_least=-1)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = setting("quickstart", "Name of the run; its folder is runs/NAME unless --run says otherwise.")
    model: Model = Model()
    tokenizer: Tokenizer = Tokenizer()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    mesh: Mesh = Mesh()


SECTIONS: dict[str, type[Any]] = {
    "model": Model,
    "tokenizer": Tokenizer,
    "data": Data,
    "optimizer": Optimizer,
    "train": Train,
    "mesh": Mesh,
}


class ConfigError(ValueError):
    """A setting that cannot be: the message names the flag, its value and what would be valid."""
