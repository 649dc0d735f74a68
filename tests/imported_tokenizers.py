"""Tokenizers of the kinds that come with checkpoints, learnt from a few lines."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "def f(x):\n    return x * 2\n", "Größe, naïve, 中文\n"] * 20
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_bpe(prepend: bool, metaspace: bool = False) -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral (a space is put before the text) and as Gemma (none): unknown characters are bytes."""
    special = ["<unk>", "<s>", "</s>"]
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prepend else "never")
    learnt.train_from_iterator(TEXTS[:40], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    tokens = [*special, *BYTES, *sorted(model["vocab"], key=model["vocab"].get)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in model["merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace, strip = normalizers.Replace(" ", "▁"), [decoders.Strip(" ", 1, 0)] if prepend else []
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram() -> tokenizers.Tokenizer:
    """As T5: text is normalized, spaces are one, and what is read ends with a token."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def byte_level() -> tokenizers.Tokenizer:
    """As Qwen: byte-level, but text is composed first; one token that is not special has been added."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False)
    made._tokenizer.normalizer = normalizers.NFC()
    made.add_tokens(["<tool>"])
    return made._tokenizer
