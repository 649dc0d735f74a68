"""The flags of launch.sample that say how a token is chosen: what they mean, and what contradicts what."""

from __future__ import annotations

import json

import pytest
from absl import flags

from configs import flags as settings
from configs import schema
from configs.schema import ConfigError
from launch import choosing, guessing, sample, weights
from model.generate import Grammar, Sampling
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    text = [Section("say hello hello hello goodbye goodbye goodbye ", last=True)]
    return make_tokenizer(schema.Tokenizer(source="bpe", vocab_size=300), Corpus(text, text, "", ""))


@pytest.fixture
def given(monkeypatch):
    """Parse a command line; nothing of it is left after the test."""
    values = flags.FlagValues()
    for module in (choosing, guessing, sample, settings, weights):
        monkeypatch.setattr(module, "FLAGS", values)
    with monkeypatch.context() as patch:
        for name in dir(flags):
            if name.startswith("DEFINE_") and name[7:] in (
                "string",
                "float",
                "integer",
                "boolean",
                "enum",
                "multi_string",
            ):
                define = getattr(flags, name)
                patch.setattr(flags, name, lambda *a, define=define, **k: define(*a, flag_values=values, **k))
        sample.define([])
    return lambda *arguments: values(["sample", *arguments])


def test_without_flags_the_usual_temperature_and_nothing_else(given, tokenizer):
    given()
    sample.check_flags()
    assert choosing.sampling_of(tokenizer) == Sampling(temperature=0.8)
    assert choosing.sampling_of(tokenizer, 0.0) == Sampling(temperature=0.0)
    assert choosing.grammar_of() is None


def test_each_flag_sets_its_setting(given, tokenizer):
    (hello,) = tokenizer.encode(" hello")
    given(
        "--temperature=0.7", "--top_k=5", "--top_p=0.9", "--min_p=0.1", "--typical_p=0.8", "--epsilon=0.01",
        "--eta=0.02", "--repetition_penalty=1.1", "--presence_penalty=0.3", "--frequency_penalty=0.4",
        "--bias= hello:-2.5", "--bias=id:7:1", "--banned=a", "--banned=id:9", "--forced=hello goodbye",
    )  # fmt: skip
    sample.check_flags()
    assert choosing.sampling_of(tokenizer) == Sampling(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.8, epsilon=0.01, eta=0.02, repetition_penalty=1.1,
        presence_penalty=0.3, frequency_penalty=0.4, bias=((hello, -2.5), (7, 1.0)),
        banned=(*tokenizer.encode("a"), 9), forced=tuple(tokenizer.encode("hello goodbye")),
    )  # fmt: skip


def test_a_schema_is_read_from_a_file_or_stands_in_the_flag(given, tmp_path):
    given('--json_schema={"type": "integer"}')
    assert choosing.grammar_of() == Grammar(json_schema='{"type": "integer"}')
    (tmp_path / "schema.json").write_text(json.dumps({"type": "string"}))
    given(f"--json_schema={tmp_path}/schema.json")
    assert choosing.grammar_of() == Grammar(json_schema='{"type": "string"}')
    given("--json_schema=", "--regex=[ab]+")
    assert choosing.grammar_of() == Grammar(regex="[ab]+")
    given("--json_schema=nowhere.json", "--regex=")
    with pytest.raises(ConfigError, match=r"--json_schema=nowhere.json: it cannot be read"):
        choosing.grammar_of()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature=0", "--top_p=0.9"], r"--top_p=0.9 contradicts --temperature=0"),
        (["--beams=4", "--typical_p=0.9"], r"--typical_p=0.9 contradicts --beams=4"),
        (["--beams=4", "--bias=a:1"], r"--bias=a:1 contradicts --beams=4"),
        (["--beams=4", "--regex=a"], r"--regex=a contradicts --beams=4"),
        (["--early_stopping=never"], r"--early_stopping=never is for beam search: add --beams=4"),
        (["--beams=4", "--best_of=4"], r"--best_of=4 contradicts --beams=4"),
        (["--contrastive=5", "--top_k=3"], r"--top_k=3 contradicts --contrastive=5"),
        (["--contrastive=5", "--beams=3"], r"--beams=3 contradicts --contrastive=5"),
        (["--contrastive=5", "--num_samples=3"], r"--num_samples=3 contradicts --contrastive=5"),
        (["--alpha=0.5"], r"--alpha=0.5 .*add --contrastive=5"),
        (["--best_of=4", "--temperature=0"], r"--best_of=4 contradicts --temperature=0"),
        (["--best_of=2", "--num_samples=3"], r"--num_samples=3 .*--best_of=2"),
        (["--best_of=0"], r"--best_of=0"),
        (["--regex=a", "--json_schema={}"], r"--regex contradicts --json_schema"),
        (["--regex=a", "--forced=b"], r"--forced=b contradicts a grammar"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(given, arguments, message):
    given(*arguments)
    with pytest.raises(ConfigError, match=message):
        sample.check_flags()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--banned= hello goodbye", r"not one token but 2: ' hello' \(id:\d+\), ' goodbye' \(id:\d+\)"),
        ("--banned=", r"--banned=: this is not one token but 0"),
        ("--banned=id:300", r"--banned=id:300: tokens go from 0 to \d+"),
        ("--bias=hello", r"--bias=hello: it must be TOKEN:NUMBER"),
        ("--bias=a:b", r"--bias=a:b: it must be TOKEN:NUMBER"),
        ("--epsilon=2", r"--epsilon=2.0: it must be"),
    ],
)
def test_what_is_no_token_or_no_number_is_refused(given, tokenizer, argument, message):
    given(argument)
    with pytest.raises(ConfigError, match=message):
        choosing.sampling_of(tokenizer)
