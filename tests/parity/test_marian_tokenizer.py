"""A Marian folder has no tokenizer.json: ours cuts and numbers text as `transformers` does."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

import compare as parity  # noqa: E402

from model import exchange  # noqa: E402
from train.data.tokenizer import Tokenizer  # noqa: E402

ENGLISH = ["the animal did not cross the street because it was too tired", "a man saw two dogs run wide"]
GERMAN = ["das tier hat die strasse nicht überquert weil es zu müde war", "ein mann sah zwei hunde breit laufen"]
TEXTS = ["the animal was too tired", "  two   dogs saw\ta man ", "ﬁne — it's 12½ wide", "", "streets", "q qa 中文"]


def train(sentences, file, size):
    words = " ".join(sentences).split()
    lines = [" ".join(words[k % len(words)] for k in range(n, n + 7)) for n in range(300)]
    (file.parent / "text").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(file.parent / "text"), model_prefix=str(file.with_suffix("")), vocab_size=size,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    file.with_suffix(".model").rename(file)
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


def test_marian_text_has_the_same_numbers(tmp_path):
    network = parity.make(parity.CASES["marian"])
    network.save_pretrained(tmp_path)
    pieces = train(ENGLISH, tmp_path / "source.spm", 60) + train(GERMAN, tmp_path / "target.spm", 60)
    names = [
        "</s>",
        "<unk>",
        *dict.fromkeys(piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")),
        "<pad>",
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path)
    foreign = exchange.open_foreign(str(tmp_path))
    ours = Tokenizer.from_json(foreign.tokenizer_json, "marian", (0,), len(names) - 1)
    for text in TEXTS:
        assert ours.source(text) == theirs(text)["input_ids"], text
    written = theirs(text_target="das tier war müde")["input_ids"]
    assert ours.decode(written[:-1]).strip() == "das tier war müde"
