"""Examples and FLOPs of a number of steps, from the settings alone.

Examples are counted as *offered* to the stored stages, *drawn* by the stream,
*scored* by live stages and *trained* on.
"""

import collections

from jest_tf import config as config_lib
from jest_tf.runs import directory


def examples_at(config: config_lib.TrainConfig, step: int) -> dict[str, int]:
    """Counts examples of the first `step` steps."""
    counts = dict.fromkeys(("drawn", "scored", "trained"), 0)
    if config.selection.stored:
        counts["offered"] = 0
    for segment in config_lib.cut(config.plan, step):
        num_steps, sizes = segment.num_steps, segment.sizes
        drawn = segment.super_batch_size + segment.curated_rows
        counts["trained"] += num_steps * config.selection.batch_size
        counts["drawn"] += num_steps * drawn
        counts["scored"] += num_steps * sum(
            sizes[number]
            for number, _ in segment.live
            if number in segment.scoring
        )
        if segment.scores_by_sidecars:
            counts["offered"] += num_steps * sizes[0]
    return {f"examples/{name}": number for name, number in counts.items()}


class StepFlops:
    """FLOPs of the steps of a run.

    They are known once a step of each kind is traced, and kept in `flops.json`
    for a process that continues the run, after `start` steps. A renewed
    reference changes them.
    """

    def __init__(
        self, config: config_lib.TrainConfig, workdir: str, start: int = 0
    ):
        self._config = config
        self._workdir = workdir
        self._start = start
        self._columns = {}  # by the first step of their segment
        if directory.has(workdir, directory.FLOPS_FILE):
            with directory.as_written(workdir, directory.FLOPS_FILE):
                columns = directory.read(workdir, directory.FLOPS_FILE)
                self._columns = {
                    int(first): {name: int(n) for name, n in row.items()}
                    for first, row in columns.items()
                }

    def take(self, counted: dict) -> None:
        """Stores the result of `JESTModel.step_flops`."""
        plan = self._config.plan
        here = config_lib.segment_at(plan, self._start)
        now = {
            segment.first: counted[segment.step_kind]
            for segment in plan
            if segment.reference == here.reference
            and segment.step_kind in counted
        }
        if not now.items() <= self._columns.items():
            self._columns |= now
            known = dict(sorted(self._columns.items()))
            directory.write(self._workdir, directory.FLOPS_FILE, known)

    def at(self, step: int) -> dict[str, int]:
        """Returns `flops/...` of the first `step` steps; {} if unknown."""
        totals = collections.Counter()
        for segment in config_lib.cut(self._config.plan, step):
            if segment.first not in self._columns:
                return {}
            for name, value in self._columns[segment.first].items():
                totals[f"flops/{name}"] += segment.num_steps * value
        return dict(totals)
