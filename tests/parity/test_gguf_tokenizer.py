"""A tokenizer of Llama 2's kind out of a GGUF file cuts text as the SentencePiece model that it was made from."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("torch")  # As all parity tests: these are installed together.
sentencepiece = pytest.importorskip("sentencepiece")

from gguf_files import Writer  # noqa: E402

from model.exchange.gguf import open_gguf  # noqa: E402
from train.data.tokenizer import Tokenizer  # noqa: E402

LEARNT_FROM = ["The quick brown fox jumps over the lazy dog.", "def f(x): return x * 2", "Größe, naïve, 中文文本"] * 30
TEXTS = [
    "The quick brown fox",
    " leading,  two  and trailing ",
    "12345 dogs, 3.14",
    "def area(w, h):\n    return w * h\n\tx",
    "中文文本，日本語 😀 é e\u0301",
    "<s> is text, <0x41> too",
    "",
    " ",
]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


@pytest.mark.parametrize("prefix", [True, False], ids=["llama", "gemma"])
def test_tokens_and_text_are_those_of_sentencepiece(tmp_path, prefix):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNT_FROM), model_writer=written, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = range(theirs.get_piece_size())
    kinds = [
        UNKNOWN if theirs.is_unknown(n) else CONTROL if theirs.is_control(n) else BYTE if theirs.is_byte(n) else NORMAL
        for n in pieces
    ]
    settings = {
        "llama.block_count": 1, "llama.context_length": 8, "llama.embedding_length": 8, "llama.feed_forward_length": 8,
        "llama.attention.head_count": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": theirs.bos_id(),
        "tokenizer.ggml.eos_token_id": theirs.eos_id(), "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip
    writer = Writer(tmp_path / "a.gguf", settings)
    writer.add_array("tokenizer.ggml.tokens", [theirs.id_to_piece(n) for n in pieces])
    writer.add_array("tokenizer.ggml.scores", [theirs.get_score(n) for n in pieces])
    writer.add_array("tokenizer.ggml.token_type", kinds)
    writer.add_tensor("token_embd.weight", np.zeros((len(pieces), 8), np.float32))
    writer.close()

    foreign = open_gguf(tmp_path / "a.gguf")
    ours = Tokenizer.from_json(foreign.tokenizer_json or "", ends=foreign.config["eos_token_id"])
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.prompt(text) == [theirs.bos_id(), *ids]
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.end_of_text == theirs.eos_id()
