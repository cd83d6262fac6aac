"""How far a long piece of work is, on one line: a bar, a rate, the time left.

On a terminal the line overwrites itself; in a file a new one comes now and
then. The progress of training is in `runs/log.py`.
"""

import sys
import time
from typing import TextIO

# Seconds between two lines on a terminal, and in a file.
_TERMINAL_SECONDS, _FILE_SECONDS = 0.5, 15.0
_BAR_WIDTH = 20


class Progress:
    """Shows `done` of `total` whenever it is called with them.

    The rate is that since the first call, so that what an earlier process did
    is not counted.

    Args:
        what: what is being done, in front of the line.
        unit: what is counted, in the plural.
        stream: where to; None is standard error.
    """

    def __init__(self, what: str, unit: str, stream: TextIO | None = None):
        self._what = what
        self._unit = unit
        self._stream = stream or sys.stderr
        self._first = None
        self._shown = None
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Writes the line if it is due; the last one always is."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        on_terminal = self._stream.isatty()
        pause = _TERMINAL_SECONDS if on_terminal else _FILE_SECONDS
        if (
            self._shown is not None
            and now - self._shown < pause
            and done < total
        ):
            return
        self._shown = now
        start, end = ("\r\033[K", "") if on_terminal else ("", "\n")
        if on_terminal and done >= total:
            end = "\n"
        self._stream.write(start + self._line(done, total, now) + end)
        self._stream.flush()

    def _line(self, done, total, now):
        share = min(1.0, done / total) if total else 1.0
        filled = round(_BAR_WIDTH * share)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        line = f"{self._what} [{bar}] {done:,} of {total:,} {self._unit}"
        rate = (done - self._first) / max(now - self._started, 1e-9)
        if done > self._first:
            line += f"  {rate:,.0f}/s  {clock((total - done) / rate)} left"
        return line


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
