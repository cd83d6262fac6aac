"""Summaries of a stage's draw for logs and pages: the same for every stage.

NumPy computes them on the host, from the rows that a stage scored.
"""

import collections
import threading
from collections.abc import Mapping

import numpy as np

from jest_tf import config
from jest_tf.config import tables

# Quantiles of the distributions.
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
QUANTITIES = ("learnability", "learner_loss", "reference_loss")

# Steps whose summaries are kept for the log: streams run ahead of training.
_STEPS = 1024
_EXTREMES = 8  # rows with the highest and with the lowest score


class Summaries:
    """The choices of stored stages by step, for the logs; thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._by_step: collections.OrderedDict = collections.OrderedDict()

    def put(self, number: int, group: int, summaries: dict[int, dict]) -> None:
        """Keeps a super-batch's summaries by stage, only of its first group."""
        with self._lock:
            before = self._by_step.get(number)
            if before is None or group < before[0]:
                self._by_step[number] = group, summaries
            while len(self._by_step) > _STEPS:
                self._by_step.popitem(last=False)

    def take(self, number: int) -> dict[int, dict]:
        """Returns the summaries of a super-batch by stage, and forgets them."""
        with self._lock:
            return self._by_step.pop(number, (0, {}))[1]


def summarize_rows(
    stage: config.Stage,
    rows: Mapping[str, np.ndarray],
    uniform: Mapping[str, np.ndarray],
) -> dict:
    """Summarises a draw, in values that JSON can hold.

    Args:
        rows: arrays `[n]` of the rows into the stage: `kept`, `learner_loss`
            and `reference_loss` as in `selection.Draw`, if present there; `row`
            or `position`; `id` and `clean`, if known.
        uniform: losses of the uniform draw for comparison, by model.

    Returns:
        `criterion`, its name; `rows_in` and `rows_out`; for each quantity the
        count, mean and quantiles of the kept, the dropped and the uniformly
        drawn rows; `highest` and `lowest`, the rows with the most extreme
        scores; where known, `clean_in` and `clean_out`, the clean shares of the
        rows into the stage and out of it.
    """
    kept = rows["kept"]
    values, of_uniform = _quantities(rows), _quantities(uniform)
    scores = tables.criterion(stage.criterion).score(
        {
            name.removesuffix("_loss"): loss
            for name, loss in values.items()
            if name.endswith("_loss")
        }
    )
    return {
        "criterion": stage.criterion,
        "rows_in": len(kept),
        "rows_out": int(kept.sum()),
        **{
            name: {
                "kept": _distribution(some[kept]),
                "dropped": _distribution(some[~kept]),
                "uniform": _distribution(of_uniform[name]),
            }
            for name, some in values.items()
        },
        **_extremes(scores, rows),
        **_clean_shares(rows),
    }


def _quantities(losses: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the available `QUANTITIES` of rows, from their losses."""
    values = {name: losses[name] for name in QUANTITIES if name in losses}
    if len(values) < 2:
        return values
    learnability = values["learner_loss"] - values["reference_loss"]
    return {"learnability": learnability} | values


def _extremes(scores, rows):
    """Returns the rows with the highest and lowest scores, extremes first."""
    order = np.argsort(-scores, kind="stable")

    def describe(place):
        about = {
            name: int(rows[name][place])
            for name in ("row", "position", "id")
            if name in rows
        }
        return about | {
            "score": _short(scores[place]),
            "kept": bool(rows["kept"][place]),
        }

    return {
        "highest": [describe(place) for place in order[:_EXTREMES]],
        "lowest": [describe(place) for place in order[::-1][:_EXTREMES]],
    }


def _clean_shares(rows):
    if "clean" not in rows:
        return {}
    clean = rows["clean"]
    return {
        "clean_in": _short(clean.mean()),
        "clean_out": _short(clean[rows["kept"]].mean()),
    }


def _distribution(values):
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "mean": _short(values.mean(dtype=np.float64)),
        "quantiles": [_short(value) for value in np.quantile(values, LEVELS)],
    }


def _short(value):
    return float(f"{value:.6g}")
