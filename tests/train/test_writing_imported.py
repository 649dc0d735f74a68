"""Text written with a tokenizer that puts a space before every text: it is there inside of a text, and only there."""

from __future__ import annotations

import pytest
from imported_tokenizers import sentencepiece_bpe
from tiny import random_params, tiny

from configs.convert import override
from model import build
from model.generate import Sampling
from train.data.tokenizer import Tokenizer
from train.writing import write


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(sentencepiece_bpe(prepend=True), ends=[2])


@pytest.fixture(scope="module")
def network(tokenizer):
    module = build(override(tiny(), {"tokenizer.vocab_size": tokenizer.size}))
    return module, random_params(module)


@pytest.mark.parametrize("prompt", ["", "The", "The quick "])
def test_what_is_written_continues_the_prompt_as_if_it_were_one_text(tokenizer, network, prompt):
    told: list[list[str]] = [[] for _ in range(64)]
    samples = write(
        *network, tokenizer, [prompt] * len(told), Sampling(temperature=50.0), max_tokens=4, seeds=range(len(told)),
        on_token=lambda row, token, text: told[row].append(text),
    )  # fmt: skip
    spaces = 0
    for sample, texts in zip(samples, told, strict=True):
        ids = [token.id for token in sample.tokens]
        whole = tokenizer.decode([*tokenizer.prompt(prompt), *ids])
        written = prompt + sample.text
        assert "".join(texts) == sample.text
        # A character that was begun last is left out.
        assert whole.startswith(written)
        assert set(whole[len(written) :]) <= {"\N{REPLACEMENT CHARACTER}"}
        spaces += tokenizer.token_bytes(ids[0]).startswith(b" ")
    assert spaces, "no text began with a space: the test sees nothing"
