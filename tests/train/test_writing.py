"""From tokens to text: whole characters, stop strings wherever tokens end, and the probabilities behind them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from model import build
from model.generate import Chunk, Sampling
from train import writing
from train.data.sections import Corpus, Section
from train.data.tokenizer import Tokenizer, make_tokenizer
from train.writing import reads, search, translate, translate_each, write

BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
GREEDY = Sampling(temperature=0)
CHARACTERS = "aé中文😀👩‍👧"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer with whole words as tokens."""
    text = [Section("say hello hello hello goodbye goodbye goodbye ", last=True)]
    return make_tokenizer(schema.Tokenizer(source="bpe", vocab_size=300), Corpus(text, text, "", ""))


def dictate(tokenizer, rows, chunk=4, prompts=None, max_tokens=100, **options):
    """What `write` makes of a network that writes these tokens; and what it told on the way, row by row."""
    told = [[] for _ in rows]

    def generate(module, params, prompt_ids, sampling, *, max_tokens, seeds, ends, top, sources):
        length = max(map(len, rows))
        tokens_BC = np.array([row + [ends[0]] * (length - len(row)) for row in rows])[:, :max_tokens]
        logprobs_BC = -0.01 * np.arange(tokens_BC.size, dtype=np.float32).reshape(tokens_BC.shape)
        top_BCK = np.stack([tokens_BC, tokens_BC * 0], -1)[..., :top]
        for start in range(0, tokens_BC.shape[1], chunk):
            part = np.s_[:, start : start + chunk]
            yield Chunk(tokens_BC[part], logprobs_BC[part], top_BCK[part], top_BCK[part] * -0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "generate", generate)
        prompts = prompts or [""] * len(rows)
        tell = lambda row, token, text: told[row].append((token, text))  # noqa: E731
        options = {"max_tokens": max_tokens, "seeds": range(len(rows)), "on_token": tell, **options}
        samples = write(build(tiny()), None, tokenizer, prompts, Sampling(), **options)
    for sample, tokens in zip(samples, told, strict=True):
        assert "".join(text for _, text in tokens) == sample.text, "what was told is not what was written"
    return samples, told


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_characters_come_whole_however_their_bytes_are_split(chunk):
    ids = [*BYTES.encode(CHARACTERS), BYTES.end_of_text]
    (sample,), (told,) = dictate(BYTES, [ids], chunk)
    assert sample.text == CHARACTERS
    assert [text for _, text in told if text] == list(CHARACTERS)
    assert [token.id for token in sample.tokens] == ids


@given(st.text(max_size=12), st.integers(1, 50))
def test_a_text_that_is_cut_off_ends_with_a_whole_character(text, max_tokens):
    (sample,), _ = dictate(BYTES, [[*BYTES.encode(text), BYTES.end_of_text]], max_tokens=max_tokens)
    whole = text.encode()[:max_tokens].decode(errors="ignore")
    assert sample.text == whole
    assert sample.text == whole or len(whole.encode()) < max_tokens


def test_bytes_that_are_no_character_are_shown_as_such():
    (sample,), _ = dictate(BYTES, [[0x61, 0xE4, 0xB8, 0x62, 0xFF, 0x63, BYTES.end_of_text]])
    assert sample.text == "a\ufffdb\ufffdc"
    assert [token.text for token in sample.tokens[:3]] == ["a", r"\xe4", r"\xb8"]


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("one EN ENEND two", ["END"], "one EN EN"),
        ("aaab", ["aab"], "a"),
        ("one two", ["three", "two", "tw"], "one "),
        ("abc", ["bcd", "c"], "ab"),
        ("abcd", ["bcd", "c"], "ab"),  # c is there before bcd is.
        ("no stop", ["END", ""], "no stop"),
        ("ends in EN", ["END"], "ends in EN"),
        ("中文。完", ["。"], "中文"),
        ("END", ["END"], ""),
        ("x\n\ny", ["\n\n"], "x"),
    ],
)
def test_text_ends_before_a_stop_string_wherever_tokens_end(text, stop, expected, chunk):
    (sample,), (told,) = dictate(BYTES, [[*BYTES.encode(text), BYTES.end_of_text]], chunk, stop=stop)
    assert sample.text == expected
    shown = ""
    for _, news in told:
        shown += news
        assert expected.startswith(shown), "a part of a stop string was shown"


def test_text_is_told_as_soon_as_it_cannot_begin_a_stop_string():
    _, (told,) = dictate(BYTES, [[*BYTES.encode("xE yEND"), BYTES.end_of_text]], stop=["END"])
    assert [text for _, text in told] == ["x", "", "E ", "y", "", "", ""]


def test_a_stop_string_inside_of_a_token_cuts_it(words):
    ids = words.encode("say hello goodbye")
    assert len(ids) < 10
    (sample,), _ = dictate(words, [[*ids, words.end_of_text]], stop=["llo"])
    assert sample.text == "say he"
    (sample,), _ = dictate(words, [[*ids, words.end_of_text]], stop=["o g"])  # Over the border of two.
    assert sample.text == "say hell"


def test_of_two_stop_strings_in_one_token_the_first_counts(words):
    ids = words.encode("say hello")
    assert b"hello" in words.token_bytes(ids[-1])
    (sample,), _ = dictate(words, [[*ids, words.end_of_text]], stop=["lo", "el", "o"])
    assert sample.text == "say h"


def test_nothing_is_read_after_a_stop_string_or_the_end():
    ids = BYTES.encode("ab.cd")
    samples, _ = dictate(BYTES, [ids, [*ids[:2], BYTES.end_of_text, *ids]], stop=["."])
    assert [len(sample.tokens) for sample in samples] == [3, 3]
    assert [sample.text for sample in samples] == ["ab", "ab"]


def test_rows_do_not_mix():
    texts = ["first 中", "second😀 and longer", ""]
    rows = [[*BYTES.encode(text), BYTES.end_of_text] for text in texts]
    samples, _ = dictate(BYTES, rows, chunk=3, prompts=["a", "b", "c"])
    assert [sample.text for sample in samples] == texts
    assert [sample.prompt for sample in samples] == ["a", "b", "c"]


def test_a_sample_as_json_has_the_promised_form():
    (sample,), _ = dictate(BYTES, [[*BYTES.encode("é"), BYTES.end_of_text]], prompts=["p"], top=2)
    found = json.loads(json.dumps(sample.to_dict()))
    assert found["prompt"] == "p"
    assert found["text"] == "é"
    assert [token["text"] for token in found["tokens"]] == [r"\xc3", r"\xa9", "<|endoftext|>"]
    token = found["tokens"][1]
    assert {name: type(value) for name, value in token.items()} == {
        "id": int,
        "text": str,
        "logprob": float,
        "top": list,
    }
    assert token["logprob"] == pytest.approx(-0.01)
    assert token["top"][0] == {"id": 0xA9, "text": r"\xa9", "logprob": -0.5 * 0xA9}
    assert [other["id"] for other in token["top"]] == [0xA9, 0]


def test_a_network_writes_as_many_tokens_as_asked_with_their_probabilities():
    module = build(override(tiny(), {"tokenizer.vocab_size": 257}))
    params = random_params(module)
    forward = jax.jit(lambda tokens_BT: jax.nn.log_softmax(module.apply({"params": params}, tokens_BT)))
    told = []
    tell = lambda row, token, text: told.append((row, token))  # noqa: E731
    prompts = ["中", ""]
    samples = write(module, params, BYTES, prompts, Sampling(), max_tokens=17, seeds=[0, 1], top=3, on_token=tell)
    for row, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        ids = [token.id for token in sample.tokens]
        assert len(ids) == 17 or ids[-1] == BYTES.end_of_text
        assert [token for of, token in told if of == row][: len(ids)] == sample.tokens
        # Read as the beginning of a document, which is where training puts an end of text.
        read = [BYTES.end_of_text, *BYTES.encode(prompt), *ids]
        logprobs_TV = np.asarray(forward(np.pad([read], ((0, 0), (0, 24 - len(read)))))[0])
        for place, token in enumerate(sample.tokens, start=len(read) - len(ids) - 1):
            assert token.logprob == pytest.approx(logprobs_TV[place, token.id], abs=1e-3)
            likeliest = np.argsort(-logprobs_TV[place])[:3]
            assert [other.id for other in token.top] == likeliest.tolist()
            assert [other.logprob for other in token.top] == pytest.approx(logprobs_TV[place, likeliest], abs=1e-3)


@pytest.fixture(scope="module")
def translator():
    # At full scale random networks repeat one token for ever; so few tokens that texts end now and then.
    module = build(override(tiny(network="encoder_decoder", logit_scale=0.3), {"tokenizer.vocab_size": 257}))
    params = random_params(module)
    params["embedding"]["embedding"] = params["embedding"]["embedding"].at[BYTES.end_of_text].multiply(3.0)
    return module, params


TEXTS = ["one two", "a longer sentence than all", "", "中文", "five"]


def test_a_translator_reads_the_text_as_its_source_and_begins_with_the_start(translator):
    config = translator[0].config
    prompts, sources = reads(config, BYTES, ["ab", ""])
    assert prompts == [[BYTES.start_of_target]] * 2
    assert sources == [[*b"ab", BYTES.end_of_text], [BYTES.end_of_text]]
    assert reads(tiny(), BYTES, ["ab"]) == ([[BYTES.end_of_text, *b"ab"]], None)


@pytest.mark.parametrize("beams", [1, 3])
def test_translations_stand_in_the_order_of_the_texts_whatever_the_batch(translator, beams):
    settings = {"max_tokens": 8, "beams": beams}
    together = translate(*translator, BYTES, TEXTS, **settings)
    assert len(set(together)) == len(TEXTS)
    assert translate(*translator, BYTES, TEXTS[::-1], batch=2 * beams, **settings) == together[::-1]


def test_a_translation_is_the_text_that_is_written_greedily_or_drawn_or_found_by_beam_search(translator):
    for sampling in (GREEDY, Sampling(temperature=2.0)):
        written = write(*translator, BYTES, TEXTS, sampling, max_tokens=8, seeds=range(5))
        whole = [BYTES.decode([token.id for token in sample.tokens]) for sample in written]
        assert translate(*translator, BYTES, TEXTS, max_tokens=8, sampling=sampling) == whole
    found = search(*translator, BYTES, TEXTS, beams=3, max_tokens=8, length_penalty=0.5)
    whole = [BYTES.decode([token.id for token in best.tokens]) for (best,) in found]
    assert translate(*translator, BYTES, TEXTS, max_tokens=8, beams=3, length_penalty=0.5) == whole


def test_short_texts_are_translated_first_and_none_is_endless(translator):
    module, params = translator
    params = {**params, "embedding": {"embedding": params["embedding"]["embedding"].at[BYTES.end_of_text].set(0.0)}}
    done = list(translate_each(module, params, BYTES, ["abcd", "", "ab"], max_tokens=1000, batch=1))
    assert [index for index, _ in done] == [1, 2, 0]
    assert 8 < max(len(text) for _, text in done) <= 64  # A character is one token at least.


def test_translating_is_refused_where_it_cannot_be(translator):
    with pytest.raises(ConfigError, match=r"--beams=2 contradicts --temperature=1"):
        translate(*translator, BYTES, TEXTS, max_tokens=8, beams=2, sampling=Sampling())
    with pytest.raises(ConfigError, match=r"--model\.network=decoder does not translate"):
        translate(build(tiny()), None, BYTES, TEXTS, max_tokens=8)
    assert translate(*translator, BYTES, [], max_tokens=8) == []


@pytest.mark.parametrize("network", ["decoder", "encoder_decoder"])
def test_a_search_tells_the_probability_of_each_token_and_their_score(network):
    module = build(override(tiny(network=network, logit_scale=0.3), {"tokenizer.vocab_size": 257}))
    (samples,) = search(
        module, random_params(module), BYTES, ["ab"], beams=3, max_tokens=6, length_penalty=2.0, num_best=3, top=4
    )
    assert len(samples) == 3
    assert samples == sorted(samples, key=lambda sample: -sample.score)
    for sample in samples:
        logprobs = [token.logprob for token in sample.tokens]
        assert sample.score == pytest.approx(sum(logprobs) / len(logprobs) ** 2, abs=1e-4)
        assert sample.to_dict()["score"] == sample.score
        for token in sample.tokens:
            assert len(token.top) == 4
            assert token.top[0].logprob >= token.logprob - 1e-6
    (cut,) = search(
        module,
        random_params(module),
        BYTES,
        ["ab"],
        beams=3,
        max_tokens=6,
        length_penalty=2.0,
        stop=[samples[0].text[1]],
    )
    assert cut[0].text == samples[0].text[:1]
