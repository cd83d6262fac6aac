"""Examples and FLOPs of a number of steps, from the settings alone.

Examples are counted as *offered* to the stored stages, *drawn* by the stream,
*scored* by live stages and *trained* on.
"""

import collections

from jest_tf import config as config_lib
from jest_tf.runs import bootstrap, directory


def examples_at(config: config_lib.TrainConfig, step: int) -> dict[str, int]:
    """Counts examples of the first `step` steps."""
    counts = dict.fromkeys(("drawn", "scored", "trained"), 0)
    if config.selection.stored:
        counts["offered"] = 0
    for piece in config.pieces(step):
        num_steps, settings = piece.num_steps, piece.selection
        counts["trained"] += num_steps * settings.batch_size
        if piece.curated_rows == settings.batch_size:  # no row is chosen
            counts["drawn"] += num_steps * settings.batch_size
            continue
        sizes = settings.sizes(piece.curated_rows)
        stored = len(settings.stored)
        drawn = sizes[stored] + piece.curated_rows
        counts["drawn"] += num_steps * drawn
        counts["scored"] += num_steps * sum(
            size
            for stage, size in zip(settings.live, sizes[stored:], strict=False)
            if stage.scores
        )
        if any(stage.scores for stage in settings.stored):
            counts["offered"] += num_steps * sizes[0]
    return {f"examples/{name}": number for name, number in counts.items()}


class StepFlops:
    """FLOPs of the steps of a run.

    They are known once a step of each kind is traced, and kept in `flops.json`
    for a process that continues the run. A renewed reference changes them.

    Args:
        config: the settings of the run.
        workdir: the run directory.
        start: steps done when the reference was last renewed.
    """

    def __init__(
        self, config: config_lib.TrainConfig, workdir: str, start: int = 0
    ):
        self._config = config
        self._workdir = workdir
        self._start = start
        self._columns = {}  # by the first step of their piece
        if directory.has(workdir, directory.FLOPS_FILE):
            with directory.as_written(workdir, directory.FLOPS_FILE):
                found = directory.read(workdir, directory.FLOPS_FILE)
                self._columns = {
                    int(first): {name: int(n) for name, n in row.items()}
                    for first, row in found.items()
                }

    def take(self, found: dict) -> None:
        """Stores the result of `JESTModel.step_flops`."""
        stop = bootstrap.end_of(self._config, self._start)
        now = {
            piece.first: found[piece.selection.in_step]
            for piece in self._config.pieces(stop)
            if piece.first >= self._start and piece.selection.in_step in found
        }
        if not now.items() <= self._columns.items():
            self._columns |= now
            known = dict(sorted(self._columns.items()))
            directory.write(self._workdir, directory.FLOPS_FILE, known)

    def at(self, step: int) -> dict[str, int]:
        """Returns `flops/...` of the first `step` steps; {} if unknown."""
        totals = collections.Counter()
        for piece in self._config.pieces(step):
            if piece.first not in self._columns:
                return {}
            for name, value in self._columns[piece.first].items():
                totals[f"flops/{name}"] += piece.num_steps * value
        return dict(totals)
