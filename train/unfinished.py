"""Where runs that are trained together are, saved now and then until they are done, so that a kill costs little."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from configs.convert import override
from configs.schema import Config
from train.checkpoint import FOLDER, CheckpointError, Checkpoints
from train.step import TrainState

SECONDS = 60.0  # Between two saves: so much is trained again after a kill, and short runs are not slowed down.


class Unfinished:
    """The one checkpoint of runs that are trained together: their stacked state, and a place.

    The place, a dictionary for JSON, says how far all else is. There is no folder before something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._saved_at = folder, time.monotonic()
        self._checkpoints: Checkpoints | None = None

    def restore(self, config: Config, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """State and place that were saved last, or None; `like` as in `Checkpoints.restore`.

        Raises CheckpointError if all that was saved is damaged.
        """
        if not (self._folder / FOLDER).exists():
            return None
        step = self._opened(config).newest_good()
        return None if step is None else self._opened(config).restore(step, like)

    def is_due(self) -> bool:
        """Whether it is long enough since the last save, or since the start."""
        return time.monotonic() - self._saved_at >= SECONDS

    def save(self, config: Config, state: TrainState, step: int, place: dict[str, Any]) -> None:
        """Starts to save. Raises CheckpointError if this save or the one before cannot be written."""
        self._opened(config).save(state, step, place, None)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Waits for the last save; whether it could be written matters only to the next one."""
        if self._checkpoints:
            with contextlib.suppress(CheckpointError):
                self._checkpoints.close()
            self._checkpoints = None

    def remove(self) -> None:
        """Deletes what was saved: the runs are done."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # Others are not done.
            self._folder.parent.rmdir()

    def _opened(self, config: Config) -> Checkpoints:
        if self._checkpoints is None:
            # No tokenizer: what is saved is for these runs alone, which have one.
            self._checkpoints = Checkpoints(self._folder, override(config, {"train.keep": 1}), "{}")
        return self._checkpoints
