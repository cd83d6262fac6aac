"""Accounting for unreadable records: counts, a log and a limit.

`data/reader.py` replaces unreadable records; above a set rate the run stops.
"""

import collections
import json
import re
import threading
from collections.abc import Mapping

from jest_tf import files

# Until this many positions are drawn, the limit is a share of this number, so
# that a single early fault does not exceed it.
MIN_DRAWN = 1024
# Distinct reasons counted.
_MAX_REASONS = 1000


class FaultLog:
    """Counts faults and logs a line for each; thread-safe.

    A line is {"step", "setting", "position", "id", "place", "reason"}. The
    setting is "data.train" or "data.curated", which number their positions
    separately; id and place are those of the unreadable record. An unreadable
    replacement adds another line for the same position.

    Args:
        path: file of the log, in JSON lines; None writes no log.
        max_rate: share of the drawn positions that may be replaced, in [0, 1];
            until 1,024 positions are drawn, a share of 1,024.
        lost_share: share of the records that damaged shards have lost; it
            counts like an equal share of replaced positions.

    Attributes:
        max_rate, lost_share: as given.
        num_drawn: positions drawn so far.
        num_replaced: positions replaced so far.
    """

    def __init__(
        self, path: str | None, max_rate: float, lost_share: float = 0.0
    ):
        self._path = path
        self.max_rate = max_rate
        self.lost_share = lost_share
        self._lock = threading.Lock()
        self._error = ""
        self._reasons = collections.Counter()
        self.num_drawn = 0
        self.num_replaced = 0

    def start(self, step: int, num_drawn: int) -> None:
        """Drops the faults from `step` on, whose positions are drawn again.

        `num_drawn` is the number of positions in all steps before `step`.
        """
        with self._lock:
            self._error = ""
            self._reasons = collections.Counter()
            self.num_drawn = num_drawn
            self.num_replaced = len(set(self._sort(step)))

    def add(self, line: Mapping) -> None:
        """Logs an unreadable record."""
        with self._lock:
            self._count(line["reason"])
            if self._path:
                # Faults are rare, so the file is not kept open.
                log = files.appendable(self._path)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def count(self, num_drawn: int, num_replaced: int) -> None:
        """Adds to the counts of drawn and replaced positions.

        Raises:
            ValueError: the rate is above the limit.
        """
        with self._lock:
            self.num_drawn += num_drawn
            self.num_replaced += num_replaced
            limit = self.max_rate - self.lost_share
            limit *= max(self.num_drawn, MIN_DRAWN)
            if self.num_replaced > limit and not self._error:
                self._error = self._describe()
        self.check()

    def check(self) -> None:
        """Raises again the ValueError of `count`, which `tf.data` wraps."""
        if self._error:
            raise ValueError(self._error)

    def close(self, stop_step: int | None = None) -> None:
        """Sorts the lines by step and position.

        With `stop_step`, drops the faults from this step on, whose records were
        only read ahead.
        """
        with self._lock:
            self._sort(stop_step)

    def _describe(self):
        found = []
        if self.num_drawn:
            found.append(
                f"{self.num_replaced:,} of {self.num_drawn:,} drawn, "
                f"{self.num_replaced / self.num_drawn:.2%}"
            )
        if self.lost_share:
            found.append(
                f"{self.lost_share:.2%} are lost in damaged shards, which "
                "warnings have named: copy those again"
            )
        reasons = "; ".join(
            f"{count} x {reason}"
            for reason, count in self._reasons.most_common(3)
        )
        if reasons:
            reasons = f". The commonest reasons: {reasons}"
            if self._path:
                reasons += f"; all of them are in {self._path}"
        return (
            f"Too many records cannot be read: {', and '.join(found)}. "
            f"Expected at most `data.max_fault_rate`={self.max_rate}{reasons}"
        )

    def _count(self, reason):
        kind = re.sub(r"\d[\d,]*", "N", reason)
        if kind in self._reasons or len(self._reasons) < _MAX_REASONS:
            self._reasons[kind] += 1

    def _sort(self, stop_step):
        """Sorts the log's lines; returns their places in the stream.

        Keeps only the first line of a fault that was logged twice.
        """
        if not self._path or not files.is_file(self._path):
            return []
        # The log of a long run may be large, so no lines stay in memory.
        starts: dict = {}
        start = 0
        with (
            # Bytes, as a power cut may leave text that is not UTF-8.
            files.staged(self._path) as local,
            open(local, "rb") as log,
            files.written_whole(self._path) as partial,
            open(partial, "wb") as out,
        ):
            for text in log:
                try:
                    line = json.loads(text)
                except ValueError:
                    break  # cut off when the run was killed
                if stop_step is None or line["step"] < stop_step:
                    place = line["step"], line["setting"], line["position"]
                    fault = place, hash(line["place"])
                    starts.setdefault(fault, start)
                    self._count(line["reason"])
                start += len(text)
            # Lines of the same place keep their order.
            order = sorted((fault[0], start) for fault, start in starts.items())
            for _, start in order:
                log.seek(start)
                # The last line may lack only its newline.
                out.write(log.readline().rstrip(b"\n") + b"\n")
        return [place for place, _ in order]
