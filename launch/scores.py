"""What a text is worth to a network, on a terminal: `launch.sample --score`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.checkpoint import Restored


def print_scores(
    module: Any, restored: Restored, texts: Sequence[str], prompts: Sequence[str], *, top: int, as_json: bool
) -> None:
    """The log-probability of every token of the texts, each behind its prompt, and the perplexity.

    Args:
      prompts: none, one for all texts, or one for each.

    Raises:
      ConfigError: another number of prompts, or a text that cannot be scored.
    """
    from configs.schema import ConfigError
    from train.scoring import score

    if len(prompts) not in (0, 1, len(texts)):
        raise ConfigError(f"--score: {len(texts)} texts and {len(prompts)} of --prompt; give one for all, or for each.")
    before = list(prompts) * (len(texts) if len(prompts) == 1 else 1) or [""] * len(texts)
    for text, prompt in zip(texts, before, strict=True):
        scored = score(module, restored.params, restored.tokenizer, text, prompt=prompt, top=top)
        if as_json:
            print(json.dumps(scored.to_dict()))
            continue
        for token in scored.tokens:
            others = "  ".join(f"{other.text!r} {other.logprob:.3f}" for other in token.top)
            print(f"{token.logprob:9.4f}  {token.text!r:16}  {others}".rstrip())
        print(
            f"{scored.logprob:9.4f}  in all, of {len(scored.tokens)} tokens: perplexity {scored.perplexity:.3f}, "
            f"{scored.bits_per_byte:.3f} bits per byte"
        )
