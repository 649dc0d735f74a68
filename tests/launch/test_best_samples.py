"""Of several texts, the likeliest are shown: launch.sample --best_of."""

from __future__ import annotations

import numpy as np
from absl import flags
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from launch import choosing, guessing, sample
from model import build
from model.generate import Sampling
from train.checkpoint import Restored
from train.data.sections import Corpus
from train.data.tokenizer import make_tokenizer
from train.writing import write


def test_the_likeliest_texts_of_each_prompt_are_kept_best_first(monkeypatch):
    tokenizer = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
    config = override(tiny(logit_scale=0.3), {"tokenizer.vocab_size": tokenizer.size})
    module, sampling = build(config), Sampling(temperature=1.5)
    params = random_params(module)
    values = flags.FlagValues()
    settings = {"best_of": 4, "num_samples": 2, "max_tokens": 6, "seed": 7, "table": 0, "lookup": 0}
    for name, value in settings.items():
        flags.DEFINE_integer(name, value, "", flag_values=values)
    for name in ("draft", "regex", "json_schema"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "", flag_values=values)
    values(["sample"])
    for program in (sample, choosing, guessing):
        monkeypatch.setattr(program, "FLAGS", values)
    prompts = ["one", "one", "three", "three"]  # As many of each as are to be shown.
    found = sample.best_samples(module, Restored(config, params, tokenizer, 0), prompts, sampling, None)

    expected = []
    for prompt in ("one", "three"):
        texts = write(module, params, tokenizer, [prompt] * 4, sampling, max_tokens=6, seeds=[7, 8, 9, 10])
        means = [np.mean([token.logprob for token in text.tokens]) for text in texts]
        assert len(set(means)) == 4
        expected += [(texts[n].text, means[n]) for n in np.argsort(means)[:-3:-1]]
    assert [sampled.prompt for sampled in found] == prompts
    assert [sampled.text for sampled in found] == [text for text, _ in expected]
    np.testing.assert_allclose([sampled.score for sampled in found], [mean for _, mean in expected], atol=1e-4)
