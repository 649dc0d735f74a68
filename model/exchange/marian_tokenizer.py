"""Marian's tokenizer, which is a SentencePiece model per language and one list of numbers, as one tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

from model.exchange.source import ExchangeError

# A piece that only the target language's model has needs its number, but source text is not to be cut into it. (What is
# left to it are characters that the source language's model does not know: Marian has no word for those.)
NEVER = -1e4
NORMAL = 1  # SentencePiece's type of pieces that stand for text.


def marian_tokenizer(folder: Path) -> str | None:
    """The JSON of a tokenizer that cuts text as `source.spm` does and numbers pieces as `vocab.json` does.

    It reads source texts and decodes target texts. A target text it cuts with the source language's model, which gives
    the same text back, in other pieces than Marian's own training had. None where the package sentencepiece is missing.

    Raises:
      ExchangeError: the files cannot be read or do not belong together.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2  # type: ignore[import-not-found]
    except ImportError:
        return None
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString((folder / "source.spm").read_bytes())
        numbers: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    except Exception as error:  # protobuf has classes of its own
        raise ExchangeError(f"source.spm or vocab.json in {folder} cannot be read: {error}") from error
    pieces = sorted(numbers, key=lambda piece: numbers[piece])
    if [numbers[piece] for piece in pieces] != list(range(len(pieces))) or not {"<unk>", "</s>"} <= set(pieces):
        raise ExchangeError(
            f"{folder / 'vocab.json'} is not a list of numbers from 0 on with <unk> and </s> among them."
        )
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    tokenizer = Tokenizer(
        models.Unigram([(piece, scores.get(piece, NEVER)) for piece in pieces], unk_id=numbers["<unk>"])
    )
    charsmap = model.normalizer_spec.precompiled_charsmap
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = [piece for piece in ("<unk>", "</s>", "<pad>") if piece in numbers]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", numbers["</s>"])]
    )
    return tokenizer.to_str()
