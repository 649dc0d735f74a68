"""The flags that let tokens be guessed ahead, which makes writing faster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import start, weights

if TYPE_CHECKING:
    from configs.schema import Config
    from model.generate import Draft, Lookup, Tally

FLAGS = flags.FLAGS


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string(
        "draft",
        "",
        "Let this smaller checkpoint guess tokens ahead, which the network then reads all at once: the same text if "
        f"greedy, else one as likely as without. {start.CHECKPOINT}",
    )
    flags.DEFINE_integer("guesses", 4, "How many tokens --draft guesses at a time.")
    flags.DEFINE_integer(
        "lookup",
        0,
        "Guess so many tokens ahead from the text itself, which pays where it repeats itself (code, lists, quotes); 0 "
        "guesses nothing.",
    )


def check() -> None:
    """Raises ConfigError for flags that cannot be, or that contradict each other."""
    from configs.schema import ConfigError
    from launch import choosing

    for name, least in (("guesses", 1), ("lookup", 0)):
        if getattr(FLAGS, name) < least:
            raise ConfigError(f"--{name}={getattr(FLAGS, name)}: it must be at least {least}.")
    asked = f"--draft={FLAGS.draft}" if FLAGS.draft else f"--lookup={FLAGS.lookup}" if FLAGS.lookup else ""
    if FLAGS.draft and FLAGS.lookup:
        raise ConfigError(f"{asked} contradicts --lookup={FLAGS.lookup}: give one of the two.")
    if FLAGS["guesses"].present and not FLAGS.draft:
        raise ConfigError(f"--guesses={FLAGS.guesses} is for --draft: give it a checkpoint, or use --lookup.")
    searches = ("beams",) if FLAGS.beams > 1 else ("contrastive",) if FLAGS.contrastive else choosing.GRAMMARS
    others = choosing.present(searches)
    if asked and others:
        raise ConfigError(f"{asked} contradicts {others[0]}: there nothing is guessed ahead; leave one of them out.")


def guess_of(config: Config) -> Draft | Lookup | None:
    """What guesses tokens ahead of this network.

    Raises:
      ConfigError: a draft that reads other tokens.
    """
    from configs.schema import ConfigError
    from model import build, packed
    from model.generate import Draft, Lookup

    if FLAGS.lookup:
        return Lookup(FLAGS.lookup)
    if not FLAGS.draft:
        return None
    restored = weights.restore(FLAGS.draft)
    ours, theirs = config.tokenizer.vocab_size, restored.config.tokenizer.vocab_size
    if ours != theirs:
        raise ConfigError(
            f"--draft={FLAGS.draft}: it has {theirs} tokens, and --checkpoint={FLAGS.checkpoint} {ours}: it must read "
            f"the same ones."
        )
    module: Any = build(restored.config)
    return Draft(module, packed.pack(module, restored.params), FLAGS.guesses)


def report(tally: Tally) -> None:
    """Say on stderr what became of the guesses."""
    if tally.guessed:
        share, each = tally.kept / tally.guessed, 1 + tally.kept / tally.rounds
        line = f"{tally.kept} of {tally.guessed} guesses kept ({share:.0%}): {each:.2f} tokens per pass of the network"
        print(line, file=sys.stderr)
