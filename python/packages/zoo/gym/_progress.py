"""Progress of a training run: a bar in a notebook or a terminal, or a callback of the caller's own."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is. A ``message`` is a line worth keeping; else it is a step of ``phase``."""

    #: "training", "compressing", "measuring the base", …
    phase: str
    #: Steps done, of ``total``.
    done: int
    #: All steps of the phase.
    total: int
    #: What a step is: "steps", "tensors", "batches".
    unit: str
    #: A short status, such as "loss 1.23".
    note: str = ""
    #: A line worth keeping; empty for a step.
    message: str = ""


#: What receives progress. An exception that it raises stops the run, which saves a checkpoint first.
ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Turns a run's reports into :class:`Progress`, and that into a bar or a call."""

    def __init__(self, progress: bool | ProgressCallback | None) -> None:
        #: What takes progress.
        if callable(progress):
            self.show: ProgressCallback = progress
        elif progress or (progress is None and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
            self.show = _Bar().show
        else:
            self.show = lambda progress: None
        self._now = Progress("", 0, 0, "")

    def __call__(self, kind: str, text: str, number: int, unit: str) -> None:
        if kind == "say":
            # Warnings come as Python's own, once the run is over.
            if not text.startswith("warning: "):
                self.show(dataclasses.replace(self._now, message=text))
            return
        if kind == "begin":
            self._now = Progress(text, 0, number, unit)
        elif kind == "advance":
            self._now = dataclasses.replace(self._now, done=self._now.done + number, note=text)
        else:
            return
        self.show(self._now)


class _Bar:
    """A bar on stderr, or a widget where a notebook has them."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = ""

    def show(self, progress: Progress) -> None:
        """Draws where the run is."""
        from tqdm.auto import tqdm

        if progress.message:
            tqdm.write(progress.message, file=sys.stderr)
            return
        if self._bar is None or self._phase != progress.phase:
            if self._bar is not None:
                self._bar.close()
            self._phase = progress.phase
            self._bar = tqdm(total=progress.total, desc=progress.phase, unit=f" {progress.unit}")
        self._bar.set_postfix_str(progress.note, refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if progress.done >= progress.total:
            self._bar.close()
            self._bar = None
