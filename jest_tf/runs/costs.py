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
        "examples/scored": _num_scored(config, step, stopped_at),
        "examples/trained": step * config.batch_size,
    }
    if config.cascade.hyper_batch_size:
        # The positions from which the drawn examples were chosen.
        counts["examples/cascaded"] = (
            config.num_cascaded(step) * config.cascade.hyper_batch_size
        )
    return counts


def _num_scored(config, step, stopped_at):
    """The curated rows, which are not scored, change at the first renewal."""

    def scored(steps, at):
        rows = config.data.super_batch_size - config.curated_rows(at)
        return config.selection.num_scored(steps, rows, stopped_at)

    first = min([step, *config.bootstrap.renew_at])
    return scored(first, 0) + scored(step, step) - scored(first, step)


class StepFlops:
    """FLOPs of the steps of a run, by kind of step.

    They are known once a step of each kind is traced, and kept in `flops.json`
    for a process that continues the run. A renewed reference changes them.

    Args:
        selection: settings of the run.
        workdir: the run directory.
        start: steps done when the reference was last renewed.
    """

    def __init__(
        self,
        selection: config_lib.SelectionConfig,
        workdir: str,
        start: int = 0,
    ):
        self._selection = selection
        self._workdir = workdir
        self._start = start
        self._columns = {}  # by the steps done before them and by kind
        if directory.has(workdir, directory.FLOPS_FILE):
            found = directory.read(workdir, directory.FLOPS_FILE)
            self._columns = {
                int(first): dict(zip(selection.kinds, columns, strict=True))
                for first, columns in found.items()
            }

    def take(self, found: dict) -> None:
        """Stores the result of `JESTModel.step_flops`."""
        before = self._columns.get(self._start, {})
        columns = {
            kind: found.get(kind, before.get(kind))
            for kind in self._selection.kinds
        }
        if columns != before:
            self._columns[self._start] = columns
            known = {  # None where unknown
                str(first): list(columns.values())
                for first, columns in sorted(self._columns.items())
            }
            directory.write(self._workdir, directory.FLOPS_FILE, known)

    def at(self, step: int, stopped_at: int | None = None) -> dict[str, int]:
        """Returns `flops/...` of the first `step` steps; {} if unknown."""
        totals = collections.Counter()
        starts = sorted({0, self._start, *self._columns})
        for start, stop in zip(starts, [*starts[1:], step], strict=True):
            before, after = (
                self._selection.steps_by_kind(min(one, step), stopped_at)
                for one in (start, stop)
            )
            for kind, number in after.items():
                number -= before.get(kind, 0)
                if not number:
                    continue
                columns = self._columns.get(start, {}).get(kind)
                if columns is None:
                    return {}
                for name, value in columns.items():
                    totals[f"flops/{name}"] += number * value
        return dict(totals)
