"""The flags that say how a token is chosen, and what they mean for a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from model.generate import Grammar, Sampling
    from train.data.tokenizer import Tokenizer

FLAGS = flags.FLAGS
USUAL_TEMPERATURE = 0.8  # Of text that is continued; translations are greedy unless asked otherwise.
CUTS = ("top_k", "top_p", "min_p", "typical_p", "epsilon", "eta")  # They need a draw.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
TOKENS = ("bias", "banned", "forced")
GRAMMARS = ("regex", "json_schema")
DRAWS = ("temperature", *CUTS, *PENALTIES, *TOKENS, *GRAMMARS)  # What beam search has no use for.
NAMED = " A token is told by its text, or by its number as id:317."


def define() -> None:
    """Define the flags."""
    flags.DEFINE_float(
        "temperature",
        None,
        "Logits are divided by it: below 1 safer, above 1 wilder; 0 takes the likeliest. By default 0.8, and 0 for "
        "translations.",
    )
    flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens only; 0 is all.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens whose probabilities add up to p; 1 is all.")
    flags.DEFINE_float("min_p", 0.0, "Draw from tokens at least this times as likely as the likeliest; 0 is all.")
    flags.DEFINE_float(
        "typical_p",
        1.0,
        "Draw from the fewest tokens that add up to p, those first that surprise as much as the network expects to be "
        "surprised; 1 is all.",
    )
    flags.DEFINE_float("epsilon", 0.0, "Draw from tokens of at least this probability; 0 is all.")
    flags.DEFINE_float(
        "eta", 0.0, "The same, but lower where the network is unsure: min(eta, sqrt(eta) exp(-entropy)); 0 is all."
    )
    flags.DEFINE_float(
        "repetition_penalty",
        1.0,
        "Above 1, tokens of the prompt and of the text so far become less likely: positive logits are divided by it, "
        "negative ones multiplied; 1 is off.",
    )
    flags.DEFINE_float("presence_penalty", 0.0, "Taken off the logit of each token that was written; 0 is off.")
    flags.DEFINE_float("frequency_penalty", 0.0, "The same, times how often it was written; 0 is off.")
    flags.DEFINE_multi_string(
        "bias", [], f"TOKEN:NUMBER, added to the token's logit; may be given several times.{NAMED}"
    )
    flags.DEFINE_multi_string("banned", [], f"A token never to write; may be given several times.{NAMED}")
    flags.DEFINE_string("forced", "", "What each text begins with, whatever the network would say.")
    flags.DEFINE_string(
        "regex", "", "Write only what this regular expression matches, all of it (in the syntax of Rust's regex)."
    )
    flags.DEFINE_string(
        "json_schema", "", "Write only JSON of this schema: a file, or the schema itself, which begins with {."
    )


def check() -> None:
    """Raises ConfigError for flags that contradict each other; values are checked by `settings`."""
    from configs.schema import ConfigError

    if FLAGS.temperature == 0:
        for name in CUTS:
            if FLAGS[name].present:
                raise ConfigError(
                    f"--{name}={getattr(FLAGS, name):g} contradicts --temperature=0, which takes the likeliest token "
                    f"and draws nothing: leave one of them out."
                )
    if FLAGS.regex and FLAGS.json_schema:
        raise ConfigError("--regex contradicts --json_schema: give one of the two.")
    if FLAGS.forced and (FLAGS.regex or FLAGS.json_schema):
        raise ConfigError(
            f"--forced={FLAGS.forced} contradicts a grammar, which says itself what may be written: write it into the "
            f"expression or the schema."
        )


def settings(usual_temperature: float = USUAL_TEMPERATURE) -> Sampling:
    """What the flags say, without those that name tokens.

    Raises:
      ConfigError: a value that means nothing.
    """
    from model.generate import Sampling

    temperature = usual_temperature if FLAGS.temperature is None else FLAGS.temperature
    return Sampling(temperature, **{name: getattr(FLAGS, name) for name in (*CUTS, *PENALTIES)})


def sampling_of(tokenizer: Tokenizer, usual_temperature: float = USUAL_TEMPERATURE) -> Sampling:
    """What the flags say, for the tokens of a checkpoint.

    Raises:
      ConfigError: a value that means nothing; a text that is no token.
    """
    from configs.schema import ConfigError

    bias: dict[int, float] = {}
    for item in FLAGS.bias:
        text, _, number = item.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"--bias={item}: it must be TOKEN:NUMBER, such as --bias=' the:-2.5'.") from None
        token = token_of(tokenizer, "bias", text)
        bias[token] = bias.get(token, 0.0) + value
    return dataclasses.replace(
        settings(usual_temperature),
        bias=tuple(bias.items()),
        banned=tuple(token_of(tokenizer, "banned", text) for text in FLAGS.banned),
        forced=tuple(tokenizer.encode(FLAGS.forced)),
    )


def token_of(tokenizer: Tokenizer, flag: str, text: str) -> int:
    """The token with this text, or with the number of `id:NUMBER`.

    Raises:
      ConfigError: there is none; says which tokens the text is made of.
    """
    from configs.schema import ConfigError

    if text.startswith("id:") and text[3:].isdecimal():
        if int(text[3:]) < tokenizer.size:
            return int(text[3:])
        raise ConfigError(f"--{flag}={text}: tokens go from 0 to {tokenizer.size - 1}.")
    tokens = tokenizer.encode(text)
    if len(tokens) != 1:
        parts = ", ".join(f"{tokenizer.token_text(token)!r} (id:{token})" for token in tokens) or "none"
        raise ConfigError(f"--{flag}={text}: this is not one token but {len(tokens)}: {parts}. Give one of them.")
    return tokens[0]


def grammar_of() -> Grammar | None:
    """The grammar of the flags.

    Raises:
      ConfigError: the file of a schema cannot be read.
    """
    from configs.schema import ConfigError
    from model.generate import Grammar

    if not (FLAGS.regex or FLAGS.json_schema):
        return None
    schema = FLAGS.json_schema
    if schema and not schema.lstrip().startswith("{"):
        try:
            schema = Path(schema).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--json_schema={schema}: it cannot be read ({error}).") from None
    return Grammar(FLAGS.regex, schema)


def present(names: Sequence[str] = DRAWS) -> list[str]:
    """Those of the flags that were given, as they were written."""
    found = []
    for name in names:
        if FLAGS[name].present:
            value = getattr(FLAGS, name)
            found.append(f"--{name}={value[0] if isinstance(value, list) else value}")
    return found
