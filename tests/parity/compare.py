"""How far our networks are from those of `transformers` with the same weights, for each architecture that we read.

Needs torch and transformers (`pip install .[parity]`). The networks are small and random, of odd shapes.

    python -m tests.parity.compare                 prints the table of docs/models.md
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.convert import override
from model import build, exchange
from model.generate.choose import Sampling
from model.generate.decode import generate
from model.source import Source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEW_TOKENS = 24
LENGTHS_B = (28, 19, 9)  # of the texts in the batch; the rest is padding
VOCABULARY = 61
START = 60  # what a translation begins with

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WIDE = {"head_dim": 10}  # 6 x 10 is not 36
UNEVEN = {"head_dim": 10, "hidden_size": 44}  # 44 is no multiple of 6
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LENGTH = {"original_max_position_embeddings": 16, "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5}
SHORT, LONG = [1.0, 1.1, 1.3, 1.6, 2.0], [1.5, 2.5, 4.0, 6.0, 9.0]
T5 = {
    "vocab_size": VOCABULARY, "d_model": 20, "d_kv": 6, "d_ff": 30, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    "decoder_start_token_id": START, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MARIAN = {
    "vocab_size": VOCABULARY, "d_model": 36, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 50, "decoder_ffn_dim": 50, "max_position_embeddings": 64,
    "pad_token_id": START, "decoder_start_token_id": START, "eos_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to compare: its classes in `transformers`, its configuration, and what about it is unusual."""

    name: str
    network: str
    config: str
    fields: dict[str, Any]
    shapes: str
    untie: bool = False  # give the output layer weights of its own, which the class would not


CASES = {
    case.name: case
    for case in (
        Case("gpt2", "GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": VOCABULARY, "n_embd": 36, "n_layer": 3, "n_head": 6, "n_inner": 50, "n_positions": 64},
             "tied, hidden width 50"),
        Case("gpt2-exact-untied", "GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": VOCABULARY, "n_embd": 36, "n_layer": 2, "n_head": 2, "n_positions": 64,
              "activation_function": "gelu", "tie_word_embeddings": False, "scale_attn_weights": False},
             "exact GELU, untied, unscaled attention"),
        Case("llama", "LlamaForCausalLM", "LlamaConfig", SIZES | WIDE, "6 heads of 10 in width 36, 3 per group"),
        Case("llama-tied-biases", "LlamaForCausalLM", "LlamaConfig",
             SIZES | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "tied, biases"),
        Case("llama-3.1", "LlamaForCausalLM", "LlamaConfig", SIZES | WIDE | {"rope_parameters": LLAMA3 | LENGTH},
             "RoPE scaled as in Llama 3.1"),
        Case("llama-linear", "LlamaForCausalLM", "LlamaConfig",
             SIZES | WIDE | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}},
             "RoPE scaled linearly"),
        Case("mistral", "MistralForCausalLM", "MistralConfig", SIZES | UNEVEN | {"sliding_window": 7},
             "window 7, 6 heads of 10 in width 44"),
        Case("qwen2", "Qwen2ForCausalLM", "Qwen2Config",
             SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
             "biases of q, k, v; window 5 from layer 1 on"),
        Case("qwen2.5-yarn", "Qwen2ForCausalLM", "Qwen2Config",
             SIZES | {"tie_word_embeddings": True, "rope_parameters": YARN | LENGTH}, "tied, RoPE scaled by YaRN"),
        Case("qwen3", "Qwen3ForCausalLM", "Qwen3Config", SIZES | UNEVEN, "norms per head, 6 heads of 10 in width 44"),
        Case("gemma2", "Gemma2ForCausalLM", "Gemma2Config",
             SIZES | WIDE | {"sliding_window": 5, "query_pre_attn_scalar": 23, "attn_logit_softcapping": 3.0,
                             "final_logit_softcapping": 5.0},
             "soft-caps 3 and 5, window 5 in every other layer"),
        Case("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig",
             SIZES | WIDE | {"sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 23,
                             "rope_parameters": {
                                 "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                                 "sliding_attention": {"rope_type": "default", "rope_theta": 70.0}}},
             "two RoPE bases, one scaled; window 5 in every other layer"),
        Case("olmo2", "Olmo2ForCausalLM", "Olmo2Config", SIZES, "norms over all heads, norms after sub-layers"),
        Case("phi3", "Phi3ForCausalLM", "Phi3Config",
             SIZES | {"hidden_size": 72, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                                             "partial_rotary_factor": 0.5}, "sliding_window": 6},
             "fused maps, half of each head rotated, window 6"),
        Case("phi3-short", "Phi3ForCausalLM", "Phi3Config",
             SIZES | {"hidden_size": 60, "original_max_position_embeddings": 64, "max_position_embeddings": 256,
                      "rope_parameters": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                                          "rope_theta": 500.0}},
             "LongRoPE within the original length"),
        Case("phi3-long", "Phi3ForCausalLM", "Phi3Config",
             SIZES | {"hidden_size": 60, "original_max_position_embeddings": 8, "max_position_embeddings": 256,
                      "rope_parameters": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                                          "rope_theta": 500.0}},
             "LongRoPE beyond it"),
        Case("mixtral", "MixtralForCausalLM", "MixtralConfig",
             SIZES | UNEVEN | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7},
             "2 of 5 experts, window 7"),
        Case("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
             SIZES | UNEVEN | {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 14,
                               "norm_topk_prob": False}, "3 of 5 experts, not renormalized"),
        Case("t5", "T5ForConditionalGeneration", "T5Config", T5, "3 heads of 6 in width 20, tied, 8 ranges"),
        Case("t5-1.1", "T5ForConditionalGeneration", "T5Config",
             T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "gated, untied (FLAN-T5)",
             untie=True),
        Case("marian", "MarianMTModel", "MarianConfig",
             MARIAN | {"activation_function": "swish", "scale_embedding": True}, "post-norm, sinusoids, logit biases"),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was found: largest absolute differences, and whether greedy texts are the same."""

    logits: float  # over all real tokens of a padded batch
    largest_logit: float  # for scale
    exported: float  # of the logits of what `transformers` loads from our export
    same_text: bool


def make(case: Case, seed: int = 0) -> Any:
    """The network in torch, with weights as large as those of a trained one, so that a wrong term shows."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, case.config)(**case.fields)
    torch.manual_seed(seed)
    if "num_experts_per_tok" in case.fields:
        config._experts_implementation = "eager"
    network = getattr(transformers, case.network)(config).eval()
    if case.untie:
        network.lm_head.weight = torch.nn.Parameter(torch.zeros_like(network.lm_head.weight))
    with torch.no_grad():
        for name, values in (*network.named_parameters(), *network.named_buffers()):
            if name == "final_logits_bias" or (values.ndim == 1 and "inv_freq" not in name):
                values += 0.3 * torch.randn_like(values)
            elif values.ndim > 1 and "embed_positions" not in name:
                values.copy_(torch.randn_like(values) * values.shape[-1] ** -0.5)
    return network


def texts(config: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B,T] int32 and which of them are no padding, [B,T] int32."""
    real_BT = (np.arange(max(LENGTHS_B))[None] < np.array(LENGTHS_B)[:, None]).astype(np.int32)
    tokens_BT = np.random.default_rng(seed).integers(3, VOCABULARY - 1, real_BT.shape, np.int32)
    return np.where(real_BT == 1, tokens_BT, config.pad_token_id or 0).astype(np.int32), real_BT


def their_logits(network: Any, tokens_BT: np.ndarray, real_BT: np.ndarray) -> np.ndarray:
    """Logits [B,T,V] float32 of a network in torch; a translator reads the same tokens as source and as target."""
    tokens, real = torch.tensor(tokens_BT, dtype=torch.long), torch.tensor(real_BT, dtype=torch.long)
    more = {}
    if network.config.is_encoder_decoder:
        more = {"decoder_input_ids": tokens.flip(0), "decoder_attention_mask": real.flip(0)}
    with torch.no_grad():
        return network(input_ids=tokens, attention_mask=real, use_cache=False, **more).logits.numpy()


def our_logits(imported: exchange.Imported, tokens_BT: np.ndarray, real_BT: np.ndarray) -> np.ndarray:
    """The same of ours."""
    module = build(imported.config)
    tokens, real = jnp.asarray(tokens_BT), jnp.asarray(real_BT)
    if imported.config.model.network == "encoder_decoder":
        source = Source.of(tokens, jnp.sum(real, axis=1, dtype=jnp.int32))
        forward = jax.jit(
            lambda params: module.apply({"params": params}, tokens[::-1], None, real[::-1], source=source)
        )
    else:
        forward = jax.jit(lambda params: module.apply({"params": params}, tokens, None, real))
    return np.asarray(forward(imported.params))


def greedy(network: Any, imported: exchange.Imported, tokens_T: np.ndarray) -> tuple[list[int], list[int]]:
    """NEW_TOKENS tokens after (or as a translation of) `tokens_T`: those of torch, those of ours."""
    tokens = torch.tensor(tokens_T[None], dtype=torch.long)
    # Without a cache: T5's has as many layers as the encoder there, and LongRoPE's is wrong beyond the original length.
    generation = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "use_cache": False}
    with torch.no_grad():
        out = network.generate(tokens, attention_mask=torch.ones_like(tokens), **generation)[0].tolist()
    theirs = out[-NEW_TOKENS:]
    prompt, sources = [int(token) for token in tokens_T], None
    if imported.start is not None:
        prompt, sources = [imported.start], [prompt]
    module, sampling = build(imported.config), Sampling(temperature=0.0)
    chunks = generate(
        module, imported.params, [prompt], sampling, max_tokens=NEW_TOKENS, seeds=[0], ends=[-1], sources=sources
    )
    return theirs, [int(token) for chunk in chunks for token in chunk.tokens_BC[0]]


def compare(case: Case, folder: Path) -> Figures:
    """Make the network, save it, read it, compare; write it, load that in `transformers`, compare."""
    network = make(case)
    network.save_pretrained(folder / "theirs")
    imported = exchange.read(str(folder / "theirs"))
    # One compiled block instead of three.
    imported = dataclasses.replace(imported, config=override(imported.config, {"model.layers": "scan"}))
    tokens_BT, real_BT = texts(network.config)
    reference = their_logits(network, tokens_BT, real_BT)
    # Of a translator it is the target's padding that counts, which is that of the rows in reverse order.
    counted = (real_BT[::-1] if network.config.is_encoder_decoder else real_BT) == 1
    exchange.write(folder / "ours", imported.config, imported.params, None, start=imported.start, ends=imported.ends)
    # By default experts are computed by a function that wants rows of 16 bytes.
    eager = {"experts_implementation": "eager"} if imported.config.model.num_experts else {}
    again = type(network).from_pretrained(folder / "ours", **eager).eval()
    theirs, ours = greedy(network, imported, tokens_BT[1][: LENGTHS_B[1]])
    return Figures(
        logits=float(np.abs(our_logits(imported, tokens_BT, real_BT) - reference)[counted].max()),
        largest_logit=float(np.abs(reference)[counted].max()),
        exported=float(np.abs(their_logits(again, tokens_BT, real_BT) - reference)[counted].max()),
        same_text=theirs == ours,
    )


def main(write: Callable[[str], Any] = sys.stdout.write) -> None:
    """Print the table."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    write("| network | shapes | logits | of at most | exported | greedy text |\n|---|---|---|---|---|---|\n")
    for case in CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            found = compare(case, Path(folder))
        text = "same" if found.same_text else "DIFFERS"
        write(
            f"| {case.name} | {case.shapes} | {found.logits:.1e} | {found.largest_logit:.1f} | {found.exported:.1e} "
            f"| {text} |\n"
        )


if __name__ == "__main__":
    main()
