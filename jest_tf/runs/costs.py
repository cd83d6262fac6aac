"""Examples and FLOPs of a number of steps, from the settings alone.

Examples are counted as *drawn* by the stream, *scored* by the selection and
*trained* on.
"""

from jest_tf import config as config_lib
from jest_tf.runs import directory


def examples_at(
    config: config_lib.TrainConfig, step: int, stopped_at: int | None = None
) -> dict[str, int]:
    """Counts examples drawn, scored and trained in the first `step` steps.

    `stopped_at` is `JESTModel.stopped_at`.
    """
    size = config.data.super_batch_size
    counts = {
        "examples/drawn": step * size,
        "examples/scored": config.selection.num_scored(step, size, stopped_at),
        "examples/trained": step * config.batch_size,
    }
    if config.cascade.hyper_batch_size:
        # The positions from which the drawn examples were chosen.
        counts["examples/cascaded"] = step * config.cascade.hyper_batch_size
    return counts


class StepFlops:
    """FLOPs of the steps of a run, by kind of step.

    They are known once a step of each kind is traced, and kept in `flops.json`
    for a process that continues the run.
    """

    def __init__(self, selection: config_lib.SelectionConfig, workdir: str):
        self._kinds = selection.kinds
        self._selection = selection
        self._workdir = workdir
        # In the order of the kinds; None where unknown.
        self._columns = [None] * len(self._kinds)
        if directory.has(workdir, directory.FLOPS_FILE):
            self._columns = directory.read(workdir, directory.FLOPS_FILE)

    def take(self, found: dict) -> None:
        """Stores the result of `JESTModel.step_flops`."""
        columns = [
            # A model without a sub-batch has one kind, None.
            found.get(kind if kind.batch_size else None, known)
            for kind, known in zip(self._kinds, self._columns, strict=True)
        ]
        if columns != self._columns:
            self._columns = columns
            directory.write(self._workdir, directory.FLOPS_FILE, columns)

    def at(self, step: int, stopped_at: int | None = None) -> dict[str, int]:
        """Returns `flops/...` of the first `step` steps; {} if unknown."""
        totals = {}
        steps = self._selection.steps_by_kind(step, stopped_at)
        for kind, number in steps.items():
            columns = self._columns[self._kinds.index(kind)]
            if columns is None:
                return {}
            for name, value in columns.items():
                name = f"flops/{name}"
                totals[name] = totals.get(name, 0) + number * value
        return totals
