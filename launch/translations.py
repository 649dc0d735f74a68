"""What a finished translator shows: its scores beside those of simple baselines, and translations beside references."""

from __future__ import annotations

import json
from typing import Any, TextIO

from launch.look import look_at_translation, shown_pair
from launch.views.report import Translations
from train.data.pairs import languages
from train.data.sections import Section
from train.run import Run
from train.storage import write_atomically
from train.translation import baselines, held_out_pairs, score
from train.writing import harmless, translate

LEAST_SENTENCES = 200  # Fewer would make the final scores a matter of luck.
BEAMS = 4
NUM_SHOWN = 8


def held_out_translations(run: Run, module: Any, params: Any) -> Translations:
    """Translate held-out sentences greedily and by beam search, and compare them with the references."""
    config, tokenizer = run.config, run.tokenizer
    pairs = held_out_pairs(run.corpus, max(LEAST_SENTENCES, config.train.score_sentences))
    sources, references = [pair.source for pair in pairs], [pair.text for pair in pairs]
    scores = _baselines(run, pairs)
    for beams, name in ((1, "greedy"), (BEAMS, f"beam {BEAMS}")):
        texts = translate(module, params, tokenizer, sources, max_tokens=config.data.length, beams=beams)
        scores[name] = score(texts, references, languages(config.data))
    shown = shown_pair(run)
    every = max(1, len(pairs) // NUM_SHOWN)
    return Translations(
        languages=languages(config.data),
        sentences=len(pairs),
        scores=scores,
        best=f"beam {BEAMS}",
        shown=[
            {"source": pair.source, "translation": text, "reference": pair.text}
            for pair, text in list(zip(pairs, texts, strict=True))[::every][:NUM_SHOWN]
        ],
        view=look_at_translation(module, params, tokenizer, shown.source, max_tokens=config.data.length),
        reference=shown.text,
    )


def tell(translations: Translations, terminal: TextIO) -> None:
    """Print some translations, and the scores."""
    for pair in translations.shown[:3]:
        print(harmless(f"\n{pair['source']}\n  translated: {pair['translation']}\n  reference:  {pair['reference']}"),
              file=terminal)  # fmt: skip
    print(f"\n{translations.sentences} held-out sentences, more is better:", file=terminal)
    for name, values in translations.scores.items():
        print(f"  {name:<10} BLEU {values['bleu']:5.1f}  chrF {values['chrf']:5.1f}", file=terminal)


def _baselines(run: Run, pairs: list[Section]) -> dict[str, dict[str, Any]]:
    """Scores of baselines.json; computed once, since they depend on the text and the tokens only."""
    path = run.folder / "baselines.json"
    if not path.exists():
        scores = baselines(run.corpus, run.tokenizer, pairs, languages(run.config.data))
        write_atomically(path, json.dumps(scores))
    return json.loads(path.read_text("utf-8"))
