"""Progress of long work: a bar on a terminal, occasional lines in a file."""

import sys
import time

import tqdm

_TERMINAL_SECONDS, _FILE_SECONDS = 0.5, 15.0  # between two updates


class Progress:
    """Shows progress, rate and remaining time of some work on standard error.

    The rate counts from the first call, excluding an earlier process's work and
    anything before it, such as tracing. The unit "bytes" is scaled.
    """

    def __init__(self, what: str, unit: str):
        self._what = what
        self._unit = {"unit": f" {unit}"}
        if unit == "bytes":
            self._unit = {"unit": "B", "unit_scale": True}
        self._bar = None
        self._initial = None
        self._started = self._shown = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Updates the line if it is due; the last update always is.

        `note` is shown after the rate.
        """
        if sys.stderr.isatty():
            self._show_bar(done, total, note)
        else:
            self._write_line(done, total, note)

    def close(self) -> None:
        """Closes the bar where it stands, when the work ends early."""
        if self._bar is not None:
            self._bar.close()

    def _show_bar(self, done, total, note):
        if self._bar is None:
            self._bar = tqdm.tqdm(
                desc=self._what,
                total=total,
                initial=done,
                mininterval=_TERMINAL_SECONDS,
                dynamic_ncols=True,
                **self._unit,
            )
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def _write_line(self, done, total, note):
        now = time.monotonic()
        if self._initial is None:
            self._initial, self._started = done, now
        elif now - self._shown < _FILE_SECONDS and done < total:
            return
        self._shown = now
        line = tqdm.tqdm.format_meter(
            done,
            total,
            now - self._started,
            prefix=self._what,
            ascii=True,
            postfix=note,
            initial=self._initial,
            bar_format="{desc}: {n_fmt} of {total_fmt}{unit}"
            " [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            **self._unit,
        )
        print(line, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Writes a line to standard error, above the bar if there is one."""
    tqdm.tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
