"""A progress line for long steps: redrawn in place on a terminal, else a plain line now and then."""

import sys
import time

WIDTH = 30
# How often the line is redrawn on a terminal, and how often it is written anew elsewhere, in seconds.
DRAW_INTERVAL, PLAIN_INTERVAL = 0.1, 15.0


class Progress:
    """Shows how far a step of `total` parts is; without a total, how long it has been going on."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self._title = title
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._shown = self._start
        self._finished = False

    def show(self, done: int = 0, note: str = "") -> None:
        """Says that `done` parts are done. The last of them finishes the step."""
        if done == self._total:
            self.finish(note)
        elif time.monotonic() - self._shown > (DRAW_INTERVAL if self._terminal else PLAIN_INTERVAL):
            self._draw(done, note)

    def finish(self, note: str = "") -> None:
        """Says that the step is over, once."""
        if not self._finished:
            self._finished = True
            self._draw(self._total or 0, note)

    def _draw(self, done: int, note: str) -> None:
        self._shown = time.monotonic()
        parts = [self._title, f"{self._shown - self._start:.0f} s", note]
        if self._total is not None:
            parts.insert(1, f"{done}/{self._total}")
        line = " ".join(part for part in parts if part)
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        bar = ""
        if self._total is not None:
            bar = ("█" * (WIDTH * done // self._total)).ljust(WIDTH, "░") + " "
        print(f"\r\033[K{bar}{line}", end="\n" if self._finished else "", file=sys.stderr, flush=True)
