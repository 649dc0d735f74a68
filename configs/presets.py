"""Whole configs by name: `--config=quickstart`. Each docstring says what it is for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from configs.schema import Config, ConfigError, Data, Model, Optimizer, Tokenizer, Train


def quickstart() -> Config:
    """The default: a laptop, no download, under four minutes on two cores; `uv run -m launch.train`.

    Reaches 1.65 bits per byte on held-out text of the Python 3.11 standard library, where a Kneser-Ney trigram needs
    1.77 and `xz -9` 1.73 (1.63, 1.75 and 1.67 on 3.13's). What makes it learn that much in so little time: Muon,
    squared ReLU without a gate (no exponentials, and fewer numbers to move than SwiGLU), and short rows.
    """
    return Config(
        name="quickstart",
        model=Model(
            num_layers=4,
            width=192,
            num_heads=3,
            num_kv_heads=1,
            activation="relu2",
            gated=False,
        ),
        data=Data(length=128),
        optimizer=Optimizer(
            name="muon", learning_rate=0.01, schedule="linear", warmup_steps=20, end_fraction=0.0, weight_decay=0.0
        ),
        train=Train(steps=560, batch_size=32, eval_every=280, checkpoint_every=280, sample_every=140),
    )


def smoke() -> Config:
    """A few seconds: does everything run? `uv run -m launch.train --config=smoke`."""
    return Config(
        name="smoke",
        model=Model(num_layers=2, width=32, num_heads=4, num_kv_heads=2),
        tokenizer=Tokenizer(source="bytes", vocab_size=257),
        data=Data(length=64),
        optimizer=Optimizer(warmup_steps=2),
        train=Train(
            steps=20,
            batch_size=8,
            log_every=5,
            eval_every=10,
            eval_batches=4,
            checkpoint_every=10,
            sample_every=10,
            sample_tokens=16,
        ),
    )


def encoder() -> Config:
    """Masked tokens of Python's standard library, filled in; `uv run -m launch.train --config=encoder`."""
    base = quickstart()
    return dataclasses.replace(
        base,
        name="encoder",
        model=dataclasses.replace(base.model, network="encoder"),
        train=dataclasses.replace(base.train, sample_prompt="def <|mask|>(self, <|mask|>):\n    return self.<|mask|>"),
    )


def coreference() -> Config:
    """What does *it* stand for? `uv run -m launch.train --config=coreference`, then `uv run -m launch.coreference`.

    Half a minute on two cores; P(right noun) 0.994-0.995 on average over pairs of nouns that were never trained.
    """
    return Config(
        name="coreference",
        model=Model(network="encoder", num_layers=2, width=64, num_heads=1, attention="mha"),
        tokenizer=Tokenizer(source="words"),
        # One masked noun in ten becomes another one: with many, no sentence could be trusted.
        data=Data(source="coreference", length=64, held_out=0.1, masked=0.02),
        # Strong decay forgets what is read and not needed. Without it some seeds read one noun by default and overrule
        # that in the second layer, so that attention no longer tells what the answer is.
        optimizer=Optimizer(
            name="muon", learning_rate=0.02, schedule="linear", warmup_steps=20, end_fraction=0.0, weight_decay=0.5
        ),
        train=Train(
            steps=700,
            batch_size=32,
            eval_every=350,
            checkpoint_every=700,
            sample_every=350,
            sample_prompt="The animal didn't cross the street because it was too <|mask|>.",
        ),
    )


def induction() -> Config:
    """Two layers of attention alone learn to go on with what repeats itself: `--config=induction`.

    Half a minute on two cores. All at once, between two of the checkpoints that are kept every 50 steps, heads of the
    second layer find the word behind the last occurrence of this one, by what heads of the first have noted there.
    """
    return Config(
        name="induction",
        model=Model(num_layers=2, width=64, num_heads=4, attention="mha", feed_forward=False),
        tokenizer=Tokenizer(source="words"),
        data=Data(source="induction", length=64),
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=50, weight_decay=0.0),
        train=Train(
            steps=800,
            batch_size=32,
            eval_every=100,
            checkpoint_every=50,
            keep=16,
            sample_every=400,
            sample_prompt=" ba de fi go hu ja ke li ba de",
            sample_tokens=16,
        ),
    )


def recall() -> Config:
    """Which value stood behind this key, of 8? `uv run -m launch.train --config=recall`.

    Half a minute on two cores; right in all cases from step 200 on. `launch.claims --only=reach` sets an LSTM beside
    it, which has to keep all of them in a state of fixed size.
    """
    base = induction()
    return dataclasses.replace(
        base,
        name="recall",
        # Only the second layer sees everything: what stands before a value, its key, the first has not to search for.
        model=dataclasses.replace(base.model, window=2, window_pattern="LG"),
        data=Data(source="recall:8", length=32),
        train=dataclasses.replace(base.train, steps=750, keep=2, checkpoint_every=250, sample_prompt=" ba 1 de 2 ba"),
    )


def lags() -> Config:
    """Words that follow from two others, at different distances: `--config=lags`; `launch.claims --only=heads`.

    One layer of four heads comes to be right in all cases, one of a single head (`--model.num_heads=1`) in 10 to 25%.
    """
    base = induction()
    return dataclasses.replace(
        base,
        name="lags",
        model=dataclasses.replace(base.model, num_layers=1, feed_forward=True),
        data=Data(source="lags", length=64),
        optimizer=Optimizer(
            name="muon", learning_rate=0.02, schedule="linear", warmup_steps=20, end_fraction=0.0, weight_decay=0.0
        ),
        train=dataclasses.replace(
            base.train, steps=300, keep=2, checkpoint_every=300, sample_every=0, sample_prompt=" ba de fi go hu"
        ),
    )


def regression() -> Config:
    """Lines, one for each row, to be found out from points with noise: `--config=regression`.

    `launch.claims --only=in_context` holds it against least squares.
    """
    base = lags()
    return dataclasses.replace(
        base,
        name="regression",
        model=dataclasses.replace(base.model, num_layers=2),
        data=Data(source="regression", length=32),
        train=dataclasses.replace(base.train, batch_size=64, eval_every=150, sample_prompt=" 4 120 3"),
    )


def reversal() -> Config:
    """An encoder-decoder that writes words down backwards: its alignment is known; `--config=reversal`.

    A minute on two cores.
    """
    base = translate()
    return dataclasses.replace(
        base,
        name="reversal",
        model=dataclasses.replace(base.model, num_layers=2, width=64, dropout=0.0),
        tokenizer=Tokenizer(source="words"),
        data=Data(source="reversal", languages="forwards-backwards", length=32, source_length=32),
        train=dataclasses.replace(
            base.train, steps=600, label_smoothing=0.0, eval_every=300, checkpoint_every=300, score_sentences=64
        ),
    )


def translate() -> Config:
    """English to German on 2 cores, in under 25 minutes: `uv run -m launch.train --config=translate`.

    The Transformer of the 2017 paper on the help pages of LibreOffice, with today's norms and optimizer;
    `--data.languages=en-zh --run=runs/translate_zh` for Chinese. The scores that it reaches: docs/translation.md.
    """
    return Config(
        name="translate",
        model=Model(
            network="encoder_decoder",
            num_layers=3,
            width=256,
            num_heads=4,
            attention="mha",
            activation="relu2",
            gated=False,
            dropout=0.1,
        ),
        tokenizer=Tokenizer(vocab_size=6144),
        data=Data(source="libreoffice", languages="en-de", length=128, source_length=128),
        optimizer=Optimizer(
            name="muon", learning_rate=0.01, schedule="linear", warmup_steps=50, end_fraction=0.0, weight_decay=0.0
        ),
        train=Train(
            steps=900,
            batch_size=32,
            label_smoothing=0.1,
            eval_every=150,
            checkpoint_every=300,
            sample_every=300,
        ),
    )


def lstm() -> Config:
    """An LSTM with the quickstart's number of parameters, data and optimizer (within 1%)."""
    base = quickstart()
    return dataclasses.replace(base, name="lstm", model=Model(network="lstm", num_layers=3, width=240))


def translate_lstm() -> Config:
    """LSTMs with attention (Luong et al. 2015) and the parameters, data and optimizer of `translate` (within 1%)."""
    base = translate()
    model = Model(network="lstm_encoder_decoder", num_layers=2, width=388, dropout=0.1)
    return dataclasses.replace(base, name="translate_lstm", model=model)


def experts() -> Config:
    """The quickstart with 8 experts of half its feed-forward width, 2 for each token: the same work per token."""
    base = quickstart()
    model = dataclasses.replace(base.model, num_experts=8, experts_per_token=2, feed_forward_width=384)
    return dataclasses.replace(base, name="experts", model=model)


def finetune() -> Config:
    """Go on from weights that exist, on your text: add `--data.source=text:'notes/*.txt'`.

    Network and tokenizer are those of the checkpoint that `--init_from` names. With `--model.lora_rank=8
    --optimizer.learning_rate=1e-3` small matrices beside the frozen ones are trained instead.
    """
    return Config(
        name="finetune",
        init_from="smollm2",
        tokenizer=Tokenizer(source="checkpoint"),
        data=Data(length=256),
        optimizer=Optimizer(learning_rate=5e-5, warmup_steps=10, weight_decay=0.0),
        train=Train(steps=200, batch_size=4, eval_every=50, eval_batches=20, checkpoint_every=100, sample_every=50),
    )


def gpt2_small() -> Config:
    """GPT-2's 124M shape, for one accelerator."""
    return Config(
        name="gpt2_small",
        model=Model(
            num_layers=12,
            width=768,
            num_heads=12,
            attention="mha",
            position="learned",
            norm="layer",
            norm_epsilon=1e-5,
            activation="gelu",
            gated=False,
            biases=True,
            dtype="bfloat16",
            layers="scan",
        ),
        tokenizer=Tokenizer(vocab_size=50_257),
        data=Data(length=1024),
        optimizer=Optimizer(learning_rate=6e-4, warmup_steps=2000),
        train=Train(
            steps=600_000,
            batch_size=480,
            microbatches=15,
            eval_every=1000,
            eval_batches=100,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )


def llama3_8b() -> Config:
    """Llama 3's 8B shape, for a pod."""
    return Config(
        name="llama3_8b",
        model=Model(
            num_layers=32,
            width=4096,
            num_heads=32,
            num_kv_heads=8,
            feed_forward_width=14_336,
            rope_base=500_000.0,
            norm_epsilon=1e-5,
            tied_embeddings=False,
            dtype="bfloat16",
            layers="scan",
            remat="full",
        ),
        tokenizer=Tokenizer(vocab_size=128_256),
        data=Data(length=8192),
        optimizer=Optimizer(learning_rate=3e-4, warmup_steps=2000),
        train=Train(
            steps=100_000, batch_size=512, eval_every=1000, eval_batches=50, checkpoint_every=1000, sample_every=0
        ),
    )


def llama2_7b() -> Config:
    """Llama 2's 7B shape, for a pod; what `launch.plan` is compared with MaxText on."""
    return _llama(
        "llama2_7b", Model(num_layers=32, width=4096, num_heads=32, num_kv_heads=32, feed_forward_width=11_008)
    )


def llama2_70b() -> Config:
    """Llama 2's 70B shape, for several hundred chips."""
    return _llama(
        "llama2_70b", Model(num_layers=80, width=8192, num_heads=64, num_kv_heads=8, feed_forward_width=28_672)
    )


def llama_16b() -> Config:
    """MaxText's shape with `global_parameter_scale=16`, for which it has published the time of a step."""
    return _llama(
        "llama_16b", Model(num_layers=16, width=8192, num_heads=64, num_kv_heads=64, feed_forward_width=28_672)
    )


def llama_32b() -> Config:
    """MaxText's shape with `global_parameter_scale=32`, for which it has published the time of a step."""
    return _llama(
        "llama_32b", Model(num_layers=32, width=8192, num_heads=64, num_kv_heads=64, feed_forward_width=28_672)
    )


def _llama(name: str, shape: Model) -> Config:
    """A network of that shape with everything else as in `llama3_8b`, but with Llama 2's vocabulary and lengths."""
    base = llama3_8b()
    same = {part: getattr(base.model, part) for part in ("norm_epsilon", "tied_embeddings", "dtype", "layers", "remat")}
    return dataclasses.replace(
        base,
        name=name,
        model=dataclasses.replace(shape, **same),
        tokenizer=Tokenizer(vocab_size=32_000),
        data=Data(length=4096),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        quickstart, smoke, lstm, experts, encoder, coreference, induction, recall, lags, regression, reversal,
        translate, translate_lstm,
        finetune, gpt2_small,
        llama3_8b, llama2_7b, llama2_70b, llama_16b, llama_32b,
    )
}  # fmt: skip


def preset(name: str) -> Config:
    """The preset of that name.

    Raises:
      ConfigError: there is none; the message names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--config={name} is neither a preset ({', '.join(PRESETS)}) nor a run folder with a config.json.{hint}"
        )
    return PRESETS[name]()
