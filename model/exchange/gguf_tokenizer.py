"""The tokenizer in a GGUF file, as the JSON of Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.exchange.source import ExchangeError

# What `tokenizer.ggml.token_type` says of a token.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
METASPACE = "▁"

# How text is cut into pieces, which no token crosses, by `tokenizer.ggml.pre`: each pattern cuts what the one before
# left. A file has the name only; these are the patterns of the tokenizers that the names stand for.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2 = (_WORDS + r"|\s+",)
_DIGITS = (r"\p{N}", *_GPT2)
_AFTER_NUMBER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = (_ANY_CASE + r"|\p{N}" + _AFTER_NUMBER,)
_LLAMA3 = (_ANY_CASE + r"|\p{N}{1,3}" + _AFTER_NUMBER,)
PIECES = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3", "pixtral"), _LLAMA3),
}
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # A piece that is a token stays one, whatever the merges say.
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # Text is put into Unicode's composed form (NFC) first.


def tokenizer_json(get: Callable[..., Any], name: str) -> str:
    """The tokenizer that a file describes, as a `tokenizer.json`.

    Args:
      get: gives the value of a metadata key, or the default that follows, by default None.
      name: of the file, for messages.

    Raises:
      ExchangeError: it is of a kind that is not known here.
    """
    import tokenizers
    from tokenizers import AddedToken, processors

    kind, tokens = get("tokenizer.ggml.model"), get("tokenizer.ggml.tokens")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders or not tokens:
        raise ExchangeError(f"{name} has a tokenizer of kind {kind!r}, and {' and '.join(builders)} are known here.")
    types = get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    tokenizer: tokenizers.Tokenizer = builders[kind](get, name, tokens, types)

    added = {number: type for number, type in enumerate(types) if type in (UNKNOWN, CONTROL, USER_DEFINED)}
    tokenizer.add_tokens(
        [AddedToken(tokens[n], special=type != USER_DEFINED, normalized=False) for n, type in added.items()]
    )
    end = get("tokenizer.ggml.eos_token_id")
    # Files of Llama 2's kind may leave it unsaid that texts begin with a token.
    begins = get("tokenizer.ggml.add_bos_token", kind == "llama" or get("tokenizer.ggml.pre") in WHOLE_WORDS_FIRST)
    first = [get("tokenizer.ggml.bos_token_id")] if begins else []
    last = [end] if get("tokenizer.ggml.add_eos_token", False) else []
    special = [(tokens[number], number) for number in (*first, *last) if number is not None]
    if special:
        words = [tokens[n] for n in first if n is not None] + ["$A"] + [tokens[n] for n in last]
        template = processors.TemplateProcessing(single=words, special_tokens=list(dict.fromkeys(special)))
        tokenizer.post_processor = template  # type: ignore[assignment]
    return tokenizer.to_str()


def chat_of(get: Callable[..., Any]) -> dict[str, str]:
    """The chat template in a file and the names of the tokens that it may use; empty where there is none."""
    template, tokens = get("tokenizer.chat_template"), get("tokenizer.ggml.tokens", [])
    if not template:
        return {}
    numbers = {name: get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}
    return {"chat_template": template, **named}


def _byte_level(get: Callable[..., Any], name: str, tokens: list[str], types: list[int]) -> Any:
    """Byte-level BPE, whose merges are in the file."""
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    pre = get("tokenizer.ggml.pre", "default")
    if pre not in PIECES:
        raise ExchangeError(
            f"{name} cuts text into pieces by the rule tokenizer.ggml.pre={pre!r}; known here are {', '.join(PIECES)}."
        )
    merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS_FIRST)  # type: ignore[arg-type]
    )
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PIECES[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _sentencepiece(get: Callable[..., Any], name: str, tokens: list[str], types: list[int]) -> Any:
    """SentencePiece's BPE (Kudo and Richardson 2018): tokens with scores; characters without a token are bytes."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    scores = get("tokenizer.ggml.scores")
    if not scores:
        raise ExchangeError(f"{name} has no tokenizer.ggml.scores, which say in what order its tokens are merged.")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = types.index(UNKNOWN) if UNKNOWN in types else get("tokenizer.ggml.unknown_token_id")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores, types),
            unk_token=None if unknown is None else tokens[unknown],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", METASPACE)]
    together = [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(METASPACE))
        together.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(together)  # type: ignore[assignment]
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Which pairs become one token, best first: those that make the token of the highest score."""
    normal = {token for token, number in vocabulary.items() if types[number] == NORMAL}
    ranked = []
    for token in normal:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((-scores[vocabulary[token]], vocabulary[left], vocabulary[right], (left, right)))
    return [pair for *_, pair in sorted(ranked)]
