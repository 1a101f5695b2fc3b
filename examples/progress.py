"""A progress line for long steps: redrawn in place on a terminal, else a plain line now and then."""

import sys
import time

WIDTH = 30
# How often a plain line is written where nothing can be redrawn, in seconds.
PLAIN_INTERVAL = 15.0
# How often the line is redrawn on a terminal, in seconds.
DRAW_INTERVAL = 0.1


class Progress:
    """Shows how far a step of `total` parts is, with a note that changes, such as the loss."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._shown = self._start
        self._finished = False

    def show(self, done: int, note: str = "") -> None:
        """Says that `done` parts are done. The last one is always shown, once."""
        now = time.monotonic()
        early = now - self._shown < (DRAW_INTERVAL if self._terminal else PLAIN_INTERVAL)
        if self._finished or (early and done < self._total):
            return
        self._shown = now
        self._finished = done >= self._total
        line = f"{self._title} {done}/{self._total} {now - self._start:.0f} s {note}".rstrip()
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        bar = ("█" * (WIDTH * done // self._total)).ljust(WIDTH, "░")
        print(f"\r\033[K{bar} {line}", end="\n" if self._finished else "", file=sys.stderr, flush=True)
