"""How much of the machine one request, and all of them, may take."""

from __future__ import annotations

import dataclasses

from configs.schema import ConfigError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The server's limits; each is a flag of `launch.serve`.

    Attributes:
      slots: texts that are written at the same time.
      queue: texts that may wait besides; beyond them the answer is 429.
      length: tokens of one text, prompt and answer together.
      max_prompt: tokens of a prompt.
      max_tokens: tokens of an answer.
      max_body: bytes of a request.
      seconds: that a request may take, waiting included.
      grace: seconds that requests have to end in when the server is stopped.
    """

    slots: int = 8
    queue: int = 64
    length: int = 1024
    max_prompt: int = 1023
    max_tokens: int = 1023
    max_body: int = 2**20
    seconds: float = 300.0
    grace: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what nothing could be served with."""
        for name, least in (("slots", 1), ("queue", 0), ("length", 2), ("max_prompt", 1), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}={getattr(self, name)}: it must be at least {least}.")
        if self.max_prompt >= self.length:
            raise ConfigError(
                f"--max_prompt={self.max_prompt}: with --length={self.length} no room is left for an answer; "
                f"{self.length - 1} is the most."
            )
        for name, least in (("max_body", 1), ("seconds", 0.001), ("grace", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}={getattr(self, name):g}: it must be at least {least:g}.")

    @property
    def room(self) -> int:
        """Texts that may be running or waiting."""
        return self.slots + self.queue
