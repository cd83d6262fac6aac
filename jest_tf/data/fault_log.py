"""Accounting for unreadable records: counts, a log and a limit.

`data/reader.py` replaces unreadable records; above a set rate the run stops.
"""

import array
import collections
import json
import os
import re
import threading

import numpy as np

from jest_tf import files

# Until this many positions are drawn, the limit is a share of this number, so
# that one early fault does not exceed it.
_MIN_DRAWN = 1024
# Distinct reasons counted and named in an error.
_MAX_REASONS = 1000
_NAMED_REASONS = 3


class FaultLog:
    """Counts faults and logs a line for each; thread-safe.

    A line is {"step", "position", "id", "place", "reason"}, with the id and the
    place of the unreadable record. An unreadable replacement adds another line
    for the same position.

    Args:
        path: of the log, JSON lines; None writes none.
        max_rate: share of the drawn positions that may be replaced, in [0, 1];
            of the first 1,024 positions, that share of 1,024.

    Attributes:
        num_drawn: positions drawn so far.
        num_replaced: positions replaced so far.
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
        """Drops the faults from `step` on, which will be drawn again.

        `num_drawn` is the number of positions of the steps before it.
        """
        with self._lock:
            self._error = ""
            self._reasons = collections.Counter()
            positions = array.array("q")

            def kept():
                for _, text, line in self._read():
                    if line["step"] < step:
                        positions.append(line["position"])
                        self._count(line["reason"])
                        yield text

            self._rewrite(kept())
            self.num_drawn = num_drawn
            self.num_replaced = len(np.unique(positions))

    def add(
        self, *, step: int, position: int, id: int, place: str, reason: str
    ) -> None:
        """Logs an unreadable record."""
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
                # Faults are rare, so the file is not kept open.
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def count(self, num_drawn: int, num_replaced: int) -> None:
        """Adds to the counts of drawn and replaced positions.

        Raises:
            ValueError: the rate is above the limit.
        """
        with self._lock:
            self.num_drawn += num_drawn
            self.num_replaced += num_replaced
            limit = self._max_rate * max(self.num_drawn, _MIN_DRAWN)
            if self.num_replaced > limit and not self._error:
                self._error = self._describe()
        self.check()

    def check(self) -> None:
        """Raises the ValueError of `count` again; `tf.data` wraps the first."""
        if self._error:
            raise ValueError(self._error)

    def close(self, stop_step: int | None = None) -> None:
        """Sorts the lines by position.

        A `stop_step` drops the faults from this step on, which were only read
        ahead.
        """
        with self._lock:
            # Numbers alone are held, as the log of a long run may be large.
            starts, positions, places = (array.array("q") for _ in range(3))
            for start, _, line in self._read():
                if stop_step is None or line["step"] < stop_step:
                    starts.append(start)
                    positions.append(line["position"])
                    places.append(hash(line["place"]))
            # The first line of a fault that was met twice.
            faults = np.stack([positions, places], axis=1)
            _, firsts = np.unique(faults, axis=0, return_index=True)
            # The lines of a position stay in their order.
            firsts = firsts[np.lexsort([firsts, faults[firsts, 0]])]
            self._rewrite(self._lines_at(starts[i] for i in firsts))

    def _describe(self):
        reasons = "; ".join(
            f"{count} x {reason}"
            for reason, count in self._reasons.most_common(_NAMED_REASONS)
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
        """The place and bytes of each line, and its content.

        A line that a kill has cut off is dropped.
        """
        if not self._path or not os.path.isfile(self._path):
            return
        start = 0
        # Bytes, as what a power cut leaves need not be UTF-8.
        with open(self._path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    return
                yield start, text, line
                start += len(text)

    def _lines_at(self, starts):
        with open(self._path, "rb") as file:
            for start in starts:
                file.seek(start)
                yield file.readline()

    def _rewrite(self, lines):
        if self._path and os.path.isfile(self._path):
            with (
                files.written_whole(self._path) as partial,
                open(partial, "wb") as file,
            ):
                # The last line may be whole but for its end.
                file.writelines(line.rstrip(b"\n") + b"\n" for line in lines)


def _kind(reason):
    return re.sub(r"\d[\d,]*", "N", reason)
