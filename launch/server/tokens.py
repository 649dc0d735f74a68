"""/tokenize, /detokenize and /tokenizer_info, by which programs count tokens without having the tokenizer.

They are not OpenAI's but vLLM's, in whose form evaluation harnesses ask for them.
"""

from __future__ import annotations

import asyncio

import pydantic
from starlette.requests import Request
from starlette.responses import Response

from launch.server.answers import Detokenized, TokenizerInfo, Tokens
from launch.server.asked import DetokenizeRequest, TokenizeRequest
from launch.server.errors import wrong
from launch.server.reading import parsed
from launch.server.serving import Serving


async def tokenize(request: Request) -> Response:
    """The tokens of a text as /v1/completions reads it, or, without what begins a text, as the library cuts it.

    There the names of special tokens stand for them: such clients ask for the number of a token by its name.
    """
    serving: Serving = request.app.state.serving
    asked = await parsed(request, TokenizeRequest, serving.limits.max_body)
    serving.check_name(asked.model)
    tokenizer = serving.tokenizer
    encode = tokenizer.encode_named if asked.add_special_tokens is False else tokenizer.prompt
    tokens = await asyncio.to_thread(encode, asked.prompt)
    return _answer(Tokens(tokens=tokens, count=len(tokens), max_model_len=serving.limits.length))


async def detokenize(request: Request) -> Response:
    """The text of some tokens."""
    serving: Serving = request.app.state.serving
    asked = await parsed(request, DetokenizeRequest, serving.limits.max_body)
    serving.check_name(asked.model)
    known = serving.config.tokenizer.vocab_size
    if max(asked.tokens, default=0) >= known:
        raise wrong("tokens", f"{max(asked.tokens)} is no token: {serving.name} has {known}.")
    return _answer(Detokenized(prompt=serving.tokenizer.decode(asked.tokens)))


async def tokenizer_info(request: Request) -> Response:
    """The names of tokens that a client may need, and the chat template."""
    tokenizer = request.app.state.serving.tokenizer
    chat, first = tokenizer.chat, tokenizer.token_text(tokenizer.beginning[0])
    return _answer(
        TokenizerInfo(
            eos_token=tokenizer.token_text(tokenizer.end_of_text),
            bos_token=chat.bos_token or first if chat else first,
            chat_template=chat.chat_template if chat else None,
        )
    )


def _answer(value: pydantic.BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")
