"""What becomes known of records that cannot be had: counts, a log, a limit.

A run goes on without a few records, which `reading.py` replaces, but not
without many: above a set rate it stops.
"""

import collections
import json
import os
import re
import threading

# The limit is on the faults among so many positions as long as fewer are
# drawn, so that the first fault of a run is not a rate of one.
_MIN_DRAWN = 1024
# Reasons that are told apart, at most.
_MAX_REASONS = 1000
_TOLD_REASONS = 3


class FaultLog:
    """Counts faults and writes a line for each; may be used by threads.

    A line of the log is {"step", "position", "id", "place", "reason"}, where
    id and place are of the record that cannot be had. If a replacement cannot
    be had either, that is a further line of the same position.

    Args:
        path: of the log, JSON lines; None writes none.
        max_rate: share of the positions drawn that may be replaced, in [0, 1];
            of the first 1,024 positions that share of 1,024.
    """

    def __init__(self, path: str | None, max_rate: float):
        self._path = path
        self._max_rate = max_rate
        self._lock = threading.Lock()
        self._error = ""
        self._reasons = collections.Counter()
        self.num_drawn = 0
        self.num_replaced = 0

    def start(self, step: int, num_drawn: int) -> None:
        """Forgets the faults of `step` and later ones, which come again.

        Args:
            step: the first to be drawn from now on.
            num_drawn: positions of the steps before it.
        """
        with self._lock:
            lines = [line for line in self._read() if line["step"] < step]
            self._write(lines)
            self._error = ""
            self.num_drawn = num_drawn
            self.num_replaced = len({line["position"] for line in lines})
            self._reasons = collections.Counter(
                _kind(line["reason"]) for line in lines
            )

    def add(
        self, *, step: int, position: int, id: int, place: str, reason: str
    ) -> None:
        """Writes down a record that cannot be had."""
        line = {
            "step": step,
            "position": position,
            "id": id,
            "place": place,
            "reason": reason,
        }
        with self._lock:
            kind = _kind(reason)
            if kind in self._reasons or len(self._reasons) < _MAX_REASONS:
                self._reasons[kind] += 1
            if self._path:
                # Faults are rare; an open file would have to be closed on
                # every way out of a run.
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def count(self, num_drawn: int, num_replaced: int) -> None:
        """Counts positions, and how many of them were replaced.

        Raises:
            ValueError: too many were.
        """
        with self._lock:
            self.num_drawn += num_drawn
            self.num_replaced += num_replaced
            limit = self._max_rate * max(self.num_drawn, _MIN_DRAWN)
            if self.num_replaced > limit and not self._error:
                self._error = self._describe()
        self.check()

    def check(self) -> None:
        """Raises ValueError if too many records could not be had.

        `tf.data` turns the error of `count` into one of its own; this is to
        have it back.
        """
        if self._error:
            raise ValueError(self._error)

    def close(self, stop_step: int | None = None) -> None:
        """Puts the lines in the order of their positions.

        Args:
            stop_step: faults of this step and later ones are left out: they
                were read ahead, but nothing came of them. None keeps all.
        """
        with self._lock:
            lines = {
                (line["position"], line["place"]): line
                for line in self._read()
                if stop_step is None or line["step"] < stop_step
            }
            # Stable: the lines of a position stay as they were written.
            self._write(sorted(lines.values(), key=lambda one: one["position"]))

    def _describe(self):
        reasons = "; ".join(
            f"{count} x {reason}"
            for reason, count in self._reasons.most_common(_TOLD_REASONS)
        )
        log = f"; all of them are in {self._path}" if self._path else ""
        return (
            f"Too many records cannot be read: {self.num_replaced:,} of "
            f"{self.num_drawn:,} drawn, "
            f"{self.num_replaced / self.num_drawn:.2%}. Expected at most "
            f"`data.max_fault_rate`={self._max_rate}. The commonest reasons: "
            f"{reasons}{log}"
        )

    def _read(self):
        if not self._path or not os.path.isfile(self._path):
            return []
        lines = []
        with open(self._path, encoding="utf-8") as file:
            for text in file:
                try:
                    lines.append(json.loads(text))
                except json.JSONDecodeError:
                    break  # cut off by a kill
        return lines

    def _write(self, lines):
        if not self._path or not os.path.isfile(self._path):
            return
        temporary = f"{self._path}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        os.replace(temporary, self._path)


def _kind(reason):
    """A reason without its numbers."""
    return re.sub(r"\d[\d,]*", "N", reason)
