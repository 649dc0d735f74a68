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
    """The network, every choice a setting."""

    network: str = setting(
        "decoder",
        "decoder predicts the next token; encoder reads in both directions and fills in masked tokens; "
        "encoder_decoder translates; lstm and lstm_encoder_decoder are the recurrent decoder and encoder_decoder.",
        ("decoder", "encoder", "encoder_decoder", "lstm", "lstm_encoder_decoder"),
    )
    num_layers: int = setting(4, "Number of layers: Transformer blocks or LSTMs.", at_least=1)
    encoder_layers: int = setting(0, "Layers of the encoder in an encoder-decoder; 0 is num_layers.", at_least=0)
    width: int = setting(256, "Model width D: the size of the vector that stands for a token.", at_least=1)
    base_width: int = setting(
        0,
        "µP (Yang et al. 2022): the width at which the learning rate was found; at every other one, initial sizes, "
        "scores, logits and the learning rates of layers are set so that it stays the best one. Heads grow with the "
        "width unless head_width is given. 0 is off.",
        at_least=0,
    )
    num_heads: int = setting(8, "Number of attention (query) heads N.", at_least=1)
    attention: str = setting(
        "gqa",
        "mha gives each query head its own keys and values, gqa shares them in a group, mqa among all; latent keeps "
        "one small vector per token (DeepSeek's MLA); linear and delta keep a state of fixed size "
        "instead, which knows the order by itself: rope is not applied.",
        ("mha", "gqa", "mqa", "latent", "linear", "delta"),
    )
    num_kv_heads: int = setting(
        0,
        "Key/value heads K for gqa, no other kind; 0 is a quarter of num_heads, or the next smaller divisor.",
        at_least=0,
    )
    head_width: int = setting(0, "Width H of one head; 0 is width / num_heads.", at_least=0)
    latent_width: int = setting(
        0, "Latent attention: width of the vector that keys and values are made from; 0 is 4 x head width.", at_least=0
    )
    query_latent_width: int = setting(
        0, "Latent attention: width of the vector that queries are made from; 0 makes them from the token.", at_least=0
    )
    latent_rope_width: int = setting(
        0, "Latent attention: width of the rotated key that all heads share; 0 is half the head width.", at_least=0
    )
    convolution: int = setting(
        4, "Delta attention: how many tokens a short convolution before it mixes; 0 is none.", at_least=0
    )
    attention_scale: float = setting(
        0.0, "What attention scores are multiplied by; 0 is 1 / sqrt(head width).", at_least=0
    )
    alignment: str = setting(
        "luong",
        "LSTM encoder-decoder: how well state and source token match; luong: a bilinear form, bahdanau: a small "
        "network (additive).",
        ("luong", "bahdanau"),
    )
    position: str = setting(
        "rope",
        "How a token's place is told: rotary, a learned table, fixed sinusoids, a linear penalty on distance, "
        "a learned bias per range of distances (T5), or not.",
        ("rope", "learned", "sinusoidal", "alibi", "relative", "none"),
    )
    rope_base: float = setting(10_000.0, "RoPE: base of the geometric series of wavelengths.", at_least=1)
    rope_local_base: float = setting(
        0.0, "RoPE: another base, without scaling, for layers with a window (Gemma 3); 0 is the same.", at_least=0
    )
    rope_fraction: float = setting(1.0, "RoPE: the share of each head's width that is rotated.", at_least=0)
    rope_scaling: str = setting(
        "none",
        "RoPE: how positions are stretched beyond the trained length.",
        ("none", "linear", "ntk", "llama3", "yarn", "longrope"),
    )
    rope_scaling_factor: float = setting(1.0, "RoPE: by how much positions are stretched.", at_least=1)
    rope_original_length: int = setting(
        8192, "RoPE scaling llama3, yarn, longrope: the length that the unscaled model was trained for.", at_least=1
    )
    rope_slow: float = setting(
        1.0, "RoPE scaling llama3, yarn: waves with fewer turns in the original length are stretched fully.", at_least=0
    )
    rope_fast: float = setting(
        4.0, "RoPE scaling llama3, yarn: waves with more turns in the original length are kept.", at_least=0
    )
    rope_attention_factor: float = setting(
        0.0, "RoPE scaling yarn, longrope: what rotated vectors are multiplied by; 0 is the method's own.", at_least=0
    )
    rope_factors: str = setting(
        "", "RoPE scaling longrope: by how much each wave is stretched, comma-separated, half a head's width of them."
    )
    rope_long_factors: str = setting(
        "", "RoPE scaling longrope: the same for texts beyond rope_original_length; empty is no other."
    )
    relative_buckets: int = setting(
        32, "Relative positions: ranges of distances, each with a bias per head.", at_least=4
    )
    relative_distance: int = setting(128, "Relative positions: all longer distances share a bias.", at_least=2)
    max_length: int = setting(
        0, "Rows in a learned position table, so the longest text it can read; 0 is data.length.", at_least=0
    )
    norm: str = setting("rms", "Normalization: root mean square, or layer (mean and variance).", ("rms", "layer"))
    norm_position: str = setting(
        "pre",
        "Normalize what enters a sub-layer (pre), the residual sum (post, the 2017 paper), what enters and what leaves "
        "a sub-layer (both, Gemma), or only what leaves it (output, OLMo 2).",
        ("pre", "post", "both", "output"),
    )
    final_norm: str = setting(
        "auto", "Normalize after the last layer; auto does so unless norm_position is post.", ("auto", "on", "off")
    )
    norm_epsilon: float = setting(1e-6, "Added to the variance before its root is taken.", at_least=0)
    qk_norm: str = setting(
        "none",
        "Normalize queries and keys (RMS), which keeps scores bounded: each head's by itself, or all heads' together.",
        ("none", "head", "all"),
    )
    feed_forward: bool = setting(
        True, "Layers have a feed-forward layer behind attention; without it they are attention alone."
    )
    activation: str = setting(
        "silu",
        "Non-linearity of the feed-forward layer (relu2 is relu squared; gelu is the usual approximation by tanh).",
        ("gelu", "gelu_exact", "silu", "relu", "relu2"),
    )
    gated: bool = setting(True, "Multiply the activation by a second linear map (SwiGLU, GEGLU).")
    feed_forward_width: int = setting(
        0, "Hidden width F of the feed-forward layer; 0 is 4 x width, or 8/3 x width if gated.", at_least=0
    )
    num_experts: int = setting(
        0,
        "Mixture of experts: feed-forward layers among which a router chooses for each token; 0 is one for all.",
        at_least=0,
    )
    experts_per_token: int = setting(2, "Mixture of experts: how many experts each token goes to.", at_least=1)
    expert_capacity: float = setting(
        0.0,
        "Mixture of experts: while training, an expert takes at most this times its fair share of a row's tokens and "
        "the others are dropped; 0 drops none.",
        at_least=0,
    )
    router_renormalize: bool = setting(
        True, "Mixture of experts: the weights of a token's experts add up to 1, else to their share of the router's."
    )
    router_balance: float = setting(
        0.01, "Mixture of experts: weight of the loss that spreads tokens evenly over the experts.", at_least=0
    )
    router_z_loss: float = setting(
        0.001, "Mixture of experts: weight of log(Z)^2 of the router, which keeps its logits small.", at_least=0
    )
    biases: bool = setting(False, "Add a bias to every linear map but the output layer (and to layer norms).")
    qkv_biases: bool = setting(False, "Add a bias to queries, keys and values (Qwen 2), whatever biases says.")
    output_bias: bool = setting(False, "Add a bias to the output logits.")
    tied_embeddings: bool = setting(True, "Use the token embedding, transposed, as the output layer.")
    scale_embeddings: bool = setting(False, "Multiply token embeddings by sqrt(width) (Vaswani et al. 2017, Gemma).")
    window: int = setting(
        0,
        "Sliding window: a token sees itself and the window-1 before it (and behind it in an encoder); 0 sees all.",
        at_least=0,
    )
    window_pattern: str = setting(
        "L", "Which layers have the window, repeated over the layers: L has it (local), G sees everything (global)."
    )
    attention_softcap: float = setting(
        0.0, "Cap attention scores smoothly: cap * tanh(score / cap); 0 is off.", at_least=0
    )
    logit_scale: float = setting(1.0, "What output logits are multiplied by (T5: 1 / sqrt(width)).", at_least=0)
    logit_softcap: float = setting(0.0, "Cap output logits smoothly in the same way; 0 is off.", at_least=0)
    attention_sinks: bool = setting(False, "A learned logit per head in each softmax, so that a head can look nowhere.")
    dropout: float = setting(0.0, "Share of activations dropped after the embedding and each sub-layer.", at_least=0)
    lora_rank: int = setting(
        0, "LoRA: train matrices of this rank beside the frozen ones (Hu et al. 2021); 0 trains everything.", at_least=0
    )
    lora_alpha: float = setting(16.0, "LoRA: what they add is scaled by this / lora_rank.", at_least=0)
    lora_targets: str = setting("query,value", "LoRA: names of the linear maps that get one, comma-separated, or all.")
    dtype: str = setting("float32", "What is computed with.", ("float32", "bfloat16"))
    param_dtype: str = setting("float32", "What parameters are stored as.", ("float32", "bfloat16"))
    matmul: str = setting(
        "default",
        "What the linear maps of layers multiply in. default: model.dtype; int8 and fp8 (e4m3): numbers scaled by the "
        "largest of each token and of each output, by the package qwix, in the forward pass alone. Embeddings, norms, "
        "scores of attention, the output layer and gradients stay as they are.",
        ("default", "int8", "fp8"),
    )
    layers: str = setting(
        "unroll",
        "scan compiles one block and loops over it; unroll compiles each, faster on a CPU.",
        ("scan", "unroll"),
    )
    remat: str = setting(
        "none",
        "What is computed again in the backward pass to save memory. none: nothing; dots: all but the results of "
        "matrix products; minimal: attention as well; qkv: all but queries, keys and values; full: whole layers; "
        "offload: as qkv, with these and the layers' inputs in the host's memory. Or what to keep, by name, such as "
        "query,key,value,attention,output.",
    )
    kernel: str = setting(
        "auto",
        "How attention is computed. dense: with all its weights, the only one that can record them; chunked: without "
        "the keys behind each quarter of the row, for a CPU; fused: cuDNN's on a GPU; splash: Pallas' on a TPU; ring: "
        "block by block, keys and values sent around the devices of mesh.sequence; gather: the same with all keys "
        "brought to each of them. auto picks by platform, mesh and what is asked.",
        ("auto", "dense", "chunked", "fused", "splash", "ring", "gather"),
    )


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes numbers."""

    source: str = setting(
        "bpe",
        "bpe: byte-level BPE trained on the training text; bytes: one token per byte; words: one token per word; "
        "checkpoint: that of --init_from; or a tokenizer.json.",
    )
    vocab_size: int = setting(
        4096, "Number of tokens that bpe learns; for the other sources it is read from them.", at_least=2
    )


@dataclass(frozen=True)
class Data:
    """What is read, and how it becomes batches."""

    source: str = setting(
        "stdlib",
        "stdlib: the running Python's own standard library; tfds:NAME[/CONFIG][:SPLIT]; text:GLOB; jsonl:GLOB; "
        "pairs to translate: tsv:FILE, libreoffice[:FOLDER of .deb files], tfds; generated sentences: coreference; "
        "tasks that are made up: induction, recall[:PAIRS], copy[:DISTANCE], lags, regression[:DIMENSIONS], "
        "lookup[:KEYS] and, with languages, reversal.",
    )
    languages: str = setting("", "Pairs to translate: from-to, such as en-zh; empty for text.")
    field: str = setting("text", "Which field holds the text in jsonl records and in TFDS examples.")
    length: int = setting(256, "Tokens in one row of a batch, T.", at_least=2)
    source_length: int = setting(
        0, "Tokens in one row of what an encoder-decoder translates from, S; 0 is data.length.", at_least=0
    )
    masked: float = setting(0.15, "Share of tokens that an encoder has to fill in.", at_least=0)
    held_out: float = setting(
        0.05, "Share of the text held out for evaluation where the source has no such split.", at_least=0
    )
    section_bytes: int = setting(
        4096, "Longer documents are cut at line ends into sections of about this size before shuffling.", at_least=64
    )
    shuffle: bool = setting(True, "Read sections in a random order, another one in each epoch.")
    prefetch: int = setting(2, "Batches that a background thread prepares ahead.", at_least=0)
    bad_records: str = setting(
        "stop",
        "What to do about a line, or a piece of a file, that cannot be read: stop, and name its file and offset; or "
        "skip it, count it, and list it in skipped_records.txt of the run.",
        ("stop", "skip"),
    )
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
    state_dtype: str = setting(
        "float32",
        "What the optimizer's averages of gradients and of their squares are stored as; it computes in float32, and "
        "keeps Schedule-Free's second copy of the parameters in it. bfloat16 takes half the memory.",
        ("float32", "bfloat16"),
    )
    clip_norm: float = setting(1.0, "Scale gradients down to this global norm; 0 is off.", at_least=0)
    ema_decay: float = setting(
        0.0, "Keep a moving average of the parameters and evaluate with it; 0 is off.", at_least=0
    )


@dataclass(frozen=True)
class Train:
    """The run: how long, how often to look, what to do when it goes wrong."""

    steps: int = setting(1000, "Optimizer steps.", at_least=1)
    batch_size: int = setting(16, "Rows in one optimizer step, over all devices.", at_least=1)
    microbatches: int = setting(
        1,
        "Split each batch into this many parts and add up their gradients; with mesh.stage, the parts that are under "
        "way at once.",
        at_least=1,
    )
    rounds: int = setting(
        1,
        "With mesh.stage: how often each part goes around all stages, each time through fewer layers. More rounds, "
        "less waiting, more messages.",
        at_least=1,
    )
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
        "stop",
        "On a loss that is not finite or that spikes: stop the run, skip that update, or roll back to the newest "
        "checkpoint and go on from there with the data behind.",
        ("stop", "skip", "rollback"),
    )
    rollbacks: int = setting(3, "How often train.anomaly=rollback rolls back at most, before it stops.", at_least=1)
    spike_factor: float = setting(
        3.0,
        "A loss above this multiple of its moving average is a spike; 0 looks for NaN and infinity only.",
        at_least=0,
    )
    score_sentences: int = setting(
        200, "Held-out sentences translated at each evaluation for BLEU and chrF, if pairs are read.", at_least=0
    )
    wandb: str = setting("", "Weights & Biases project to log to as well; empty is off.")


@dataclass(frozen=True)
class Mesh:
    """How many devices along each axis; one may be -1, which takes what is left."""

    data: int = setting(-1, "Devices that each take a share of the batch and hold all parameters.", at_least=-1)
    stage: int = setting(1, "Devices that share the layers and pass parts of the batch on (a pipeline).", at_least=-1)
    fsdp: int = setting(1, "Devices that share the batch and the parameters.", at_least=-1)
    expert: int = setting(1, "Devices that share the batch and the experts.", at_least=-1)
    sequence: int = setting(1, "Devices that share the tokens of each row, so that texts can be long.", at_least=-1)
    tensor: int = setting(1, "Devices that share each matrix: heads, hidden units, vocabulary.", at_least=-1)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = setting("quickstart", "Name of the run; its folder is runs/NAME unless --run says otherwise.")
    init_from: str = setting(
        "",
        "Start from the weights, the network and the tokenizer of this checkpoint (as --checkpoint of launch.sample "
        "takes it); empty starts from random weights.",
    )
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
