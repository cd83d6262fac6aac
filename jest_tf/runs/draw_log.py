"""Telemetry of the selection: what it keeps and drops, by step.

Computed on the host from a step's outputs (`training/step_outputs.py`), at
logged steps only, so the step's graph is the same without it. All values are
functions of the settings and the step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf.runs import directory
from jest_tf.selection import summary


class Telemetry:
    """Follows the choices of a run; the ledger calls it.

    `summaries` gets the choices of stored stages. `clean` is as in
    `inputs.Sources`.
    """

    def __init__(
        self,
        workdir: str,
        *,
        summaries: summary.Summaries | None = None,
        clean: Callable[[np.ndarray], np.ndarray] | None = None,
        state: dict[str, np.ndarray] | None = None,
    ):
        self._workdir = workdir
        self._summaries = summaries or summary.Summaries()
        self._clean = clean
        state = state or {}
        # Whether a row is still due. Saved, as some workers have no file.
        self._is_due = bool(state.get("is_due", False))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a checkpoint stores."""
        return {"is_due": np.array(self._is_due)}

    def follow(self, model, step: int, is_logged: bool) -> dict[str, float]:
        """Follows the last of `step` steps; returns numbers for its log row.

        If a logged step scores nothing, `telemetry.jsonl` gets the next step
        that scores.
        """
        stored, scalars = self._summaries.take(step - 1), {}
        self._is_due |= is_logged
        if self._is_due:
            summaries = stored | self._summarize_live(model)
            scalars |= self._write(step, dict(sorted(summaries.items())))
            self._is_due = not summaries
        return scalars if is_logged else {}

    def _summarize_live(self, model):
        """Summarises the live stages of the last step, by stage number."""
        settings, summaries = model.selection, {}
        for number, stage in enumerate(settings.stages if settings else ()):
            rows = {} if stage.is_stored else model.rows.scored(number)
            if not rows:
                continue
            if self._clean is not None and "id" in rows:
                rows["clean"] = self._clean(rows["id"])
            uniform = model.rows.uniform(number)
            summaries[number] = summary.summarize_rows(stage, rows, uniform)
        return summaries

    def _write(self, step, summaries):
        """Writes a line on a step's stages; returns numbers for the log."""
        if not summaries:
            return {}
        line = {
            "step": step,
            "super_batch": step - 1,
            "stages": [
                {"stage": stage} | details
                for stage, details in summaries.items()
            ],
        }
        directory.append(self._workdir, directory.TELEMETRY_FILE, line)
        return {
            f"stages/{stage}/{name}": value
            for stage, details in summaries.items()
            for name, value in _scalars(details).items()
        }


def _scalars(details):
    """Returns the numbers of a stage's summary that go into the log."""
    names = ("clean_in", "clean_out")
    scalars = {name: details[name] for name in names if name in details}
    if "score" in details:  # a stored stage, which has no metrics in the step
        names = ("score", "uniform_score")
        scalars |= {name: details[name] for name in names}
        for group in ("kept", "dropped"):
            loss = details["reference_loss"][group].get("mean", 0.0)
            scalars[f"reference_loss_{group}"] = loss
    return scalars


class StageRow(NamedTuple):
    """A stage of a run, its rows per step, and its latest choice.

    `step` is the last logged step with scores of the stage. It gives the scores
    of the rows that passed and of a uniform draw, and the clean shares of the
    rows that came in and that passed; values that are not known are None.
    """

    number: int
    stage: config_lib.Stage
    rows_in: int
    rows_out: int
    step: int | None = None
    score: float | None = None
    uniform_score: float | None = None
    clean_in: float | None = None
    clean_out: float | None = None

    def __str__(self):
        text = (
            f"stage {self.number}, {self.stage.embeddings}, "
            f"{self.stage.method} by {self.stage.criterion}"
            f"{self.stage.view_and_steps}: {self.rows_in:,} rows -> "
            f"{self.rows_out:,}"
        )
        if self.step is None:
            return f"{text}, unscored"
        text += (
            f"; in step {self.step:,} the chosen rows score {self.score:.3g}, "
            f"uniform rows {self.uniform_score:.3g}"
        )
        if self.clean_in is None:
            return text
        return f"{text}; clean {self.clean_in:.0%} -> {self.clean_out:.0%}"


def funnel(
    config: config_lib.TrainConfig, log: Sequence[dict]
) -> list[StageRow]:
    """Returns the stages of a run, with values of the last rows of its log."""
    sizes = config.selection.sizes(config.data.curated_rows)
    rows = []
    for number, stage in enumerate(config.selection.stages):
        start = f"stages/{number}/"
        scored = (row for row in reversed(log) if f"{start}score" in row)
        last = next(scored, {})
        values = [last.get(f"{start}{name}") for name in StageRow._fields[5:]]
        around = sizes[number : number + 2]
        rows.append(StageRow(number, stage, *around, last.get("step"), *values))
    return rows
