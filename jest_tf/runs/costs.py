"""Examples and FLOPs of a number of steps, from the settings alone.

Examples are counted as *drawn* by the stream, *scored* by the selection and
*trained* on.
"""

import collections

from jest_tf import config as config_lib
from jest_tf.runs import directory


def examples_at(
    config: config_lib.TrainConfig,
    step: int,
    stopped_at: int | None = None,
) -> dict[str, int]:
    """Counts examples drawn, scored and trained in the first `step` steps.

    `stopped_at` is `JESTModel.stopped_at`.
    """
    size = config.data.super_batch_size
    counts = {
        "examples/drawn": step * size,
        "examples/scored": config.selection.num_scored(
            step, size - config.data.curated_rows, stopped_at
        ),
        "examples/trained": step * config.batch_size,
    }
    if config.cascade.hyper_batch_size:
        # The positions from which the drawn examples were chosen.
        counts["examples/cascaded"] = (
            config.num_cascaded(step) * config.cascade.hyper_batch_size
        )
    return counts


class StepFlops:
    """FLOPs of the steps of a run, by kind of step.

    They are known once a step of each kind is traced, and kept in `flops.json`
    for a process that continues the run.
    """

    def __init__(self, selection: config_lib.SelectionConfig, workdir: str):
        self._selection = selection
        self._workdir = workdir
        self._columns = {}  # by kind
        if directory.has(workdir, directory.FLOPS_FILE):
            columns = directory.read(workdir, directory.FLOPS_FILE)
            self._columns = dict(zip(selection.kinds, columns, strict=True))

    def take(self, found: dict) -> None:
        """Stores the result of `JESTModel.step_flops`."""
        columns = {
            kind: found.get(kind, self._columns.get(kind))
            for kind in self._selection.kinds
        }
        if columns != self._columns:
            self._columns = columns
            known = list(columns.values())  # None where unknown
            directory.write(self._workdir, directory.FLOPS_FILE, known)

    def at(self, step: int, stopped_at: int | None = None) -> dict[str, int]:
        """Returns `flops/...` of the first `step` steps; {} if unknown."""
        totals = collections.Counter()
        steps = self._selection.steps_by_kind(step, stopped_at)
        for kind, number in steps.items():
            columns = self._columns.get(kind)
            if columns is None:
                return {}
            for name, value in columns.items():
                totals[f"flops/{name}"] += number * value
        return dict(totals)
