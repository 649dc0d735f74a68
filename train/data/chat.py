"""How the messages of a chat become one text: by the template that came with a checkpoint.

A template is a program in Jinja's language. It runs in Jinja's sandbox, which lets it compute text and nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HIDES = "\ufdd0"  # Unicode keeps it for a program's own use: it is in no text.


class ChatError(ValueError):
    """Messages that a template does not take; says why, in the template's own words where it has some."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and the names of the tokens that it may put around a text.

    Attributes:
      chat_template: in Jinja's language, as `transformers` runs it.
      bos_token: the name of the token before a text, or "".
      eos_token: that of the token behind it.
    """

    chat_template: str
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: Sequence[Mapping[str, str]], special: Iterable[str] = ()) -> str:
        """The text that a network reads before it answers.

        Args:
          messages: each with `role` and `content`.
          special: names of special tokens. Where one stands in a message, HIDES is put into it: what people write is
            text, and only the template begins and ends a turn.

        Raises:
          ChatError: the template refuses the messages, or it is wrong itself.
        """
        import jinja2

        hidden = [{name: _hidden(text, special) for name, text in message.items()} for message in messages]
        try:
            return _compiled(self.chat_template).render(
                messages=hidden, add_generation_prompt=True, bos_token=self.bos_token, eos_token=self.eos_token
            )
        # What a template does with messages that it did not expect is any of Python's errors.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ChatError(f"The chat template does not take these messages: {error}") from error


def _hidden(text: str, special: Iterable[str]) -> str:
    text = text.replace(HIDES, "")
    for name in special:
        text = text.replace(name, name[:1] + HIDES + name[1:])
    return text


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template as `transformers` compiles it: its settings, and the functions that templates count on."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`generation` marks what an assistant wrote, for training; the text is the same with it and without."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own way.

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment.from_string(template)
