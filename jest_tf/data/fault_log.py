"""What becomes known of records that cannot be had: counts, a log, a limit.

A run goes on without a few records, which `data/reader.py` replaces, but not
without many: above a set rate it stops.
"""

import array
import collections
import json
import os
import re
import threading

import numpy as np

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
            self._error = ""
            self.num_drawn = num_drawn
            self._reasons = collections.Counter()
            positions = array.array("q")

            def keep(line):
                if line["step"] >= step:
                    return False
                positions.append(line["position"])
                self._count(line["reason"])
                return True

            self._rewrite(text for _, text, line in self._read() if keep(line))
            self.num_replaced = len(np.unique(positions))

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
            self._count(reason)
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
            # Numbers alone are held: a log of a long run may be large.
            starts, positions, places = (array.array("q") for _ in range(3))
            for start, _, line in self._read():
                if stop_step is None or line["step"] < stop_step:
                    starts.append(start)
                    positions.append(line["position"])
                    places.append(hash(line["place"]))
            # Of a fault that was met twice the first line; those of a position
            # stay as they were written.
            told = np.stack([positions, places], axis=1)
            _, firsts = np.unique(told, axis=0, return_index=True)
            firsts.sort()
            order = firsts[np.argsort(told[firsts, 0], kind="stable")]
            self._rewrite(self._lines_at(starts[line] for line in order))

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

    def _count(self, reason):
        kind = _kind(reason)
        if kind in self._reasons or len(self._reasons) < _MAX_REASONS:
            self._reasons[kind] += 1

    def _read(self):
        """Where each line starts, its bytes, and what it says."""
        if not self._path or not os.path.isfile(self._path):
            return
        start = 0
        with open(self._path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    return  # cut off by a kill
                yield start, text, line
                start += len(text)

    def _lines_at(self, starts):
        with open(self._path, "rb") as file:
            for start in starts:
                file.seek(start)
                yield file.readline()

    def _rewrite(self, lines):
        """Puts lines, read from the log until then, in its place."""
        if not self._path or not os.path.isfile(self._path):
            return
        temporary = f"{self._path}.tmp"
        with open(temporary, "wb") as file:
            for line in lines:
                file.write(line.removesuffix(b"\n") + b"\n")
        os.replace(temporary, self._path)


def _kind(reason):
    """A reason without its numbers."""
    return re.sub(r"\d[\d,]*", "N", reason)
