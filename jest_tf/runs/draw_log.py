"""Telemetry of the selection: what it keeps, drops and repeats, by step.

Computed on the host from a step's outputs (`training/row_outputs.py`), at
logged steps only, so the step's graph is the same without it. All values are
functions of the settings and the step.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorboard.plugins.histogram import summary

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.data import stream
from jest_tf.runs import directory

# Quantiles of the distributions in `telemetry.jsonl`.
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
QUANTITIES = ("learnability", "learner_loss", "reference_loss")
GROUPS = ("kept", "dropped", "uniform")

_EXTREMES = 8  # rows with the highest and with the lowest score
# The quantity that a criterion scores by, and the sign of it.
_SCORES = {
    "learnability": ("learnability", 1),
    "easy_reference": ("reference_loss", -1),
    "hard_learner": ("learner_loss", 1),
}


class Repeats:
    """The records that a run has trained on, a bit each, and repeats.

    A replacement counts as the unreadable record that it replaces. `state`
    comes from an earlier process.
    """

    def __init__(
        self,
        order: stream.AnyOrder,
        super_batch_size: int,
        state: dict[str, np.ndarray] | None = None,
    ):
        self._order = order
        self._super_batch_size = super_batch_size
        num_bytes = -(-order.num_records // 8)
        state = state or {}
        self._seen = state.get("seen", np.zeros(num_bytes, np.uint8))
        # Examples trained on, and repeats, since the last row of the log;
        # distinct records trained on in all.
        self._counts = state.get("counts", np.zeros(3, np.int64))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays to continue from; the next step changes them."""
        return {"seen": self._seen, "counts": self._counts}

    def add(self, number: int, rows: np.ndarray) -> None:
        """Counts the rows `[b]` of super-batch `number` as trained on."""
        positions = number * self._super_batch_size + np.asarray(rows, np.int64)
        records = self._order.rows(positions)
        places, bits = records >> 3, np.uint8(1) << np.uint8(records & 7)
        before = (self._seen[places] & bits) > 0
        np.bitwise_or.at(self._seen, places, bits)
        # A super-batch between two epochs may hold a record twice.
        new = len(np.unique(records[~before]))
        self._counts += (len(records), before.sum(), new)

    def rate(self) -> float:
        """Returns the share of repeats among examples since the last call."""
        trained, before, _ = self._counts
        self._counts[:2] = 0
        return float(before) / trained if trained else np.nan

    def effective_filter_ratio(self, num_super_batches: int) -> float:
        """Returns 1 - distinct records trained / distinct records drawn."""
        drawn = self._order.num_distinct(
            num_super_batches * self._super_batch_size
        )
        return 1.0 - float(self._counts[2]) / drawn


class Telemetry:
    """Follows the draws of a run; the ledger calls it.

    Args:
        config: the run.
        workdir: the run directory.
        start_step: steps already done.
        order: of the stream; None omits counts by record.
        super_batch_at: maps the steps done before a step to the number of its
            super-batch; None is the same number.
        state: of the checkpoint that the run continues from.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        workdir: str,
        *,
        start_step: int = 0,
        order: stream.AnyOrder | None = None,
        super_batch_at: Callable[[int], int] | None = None,
        state: dict[str, np.ndarray] | None = None,
    ):
        self._config = config
        self._workdir = workdir
        self._super_batch_at = super_batch_at or (lambda step: step)
        # Renewals may change what is drawn from.
        self._draws_alike = (
            config.selection.batch_size is not None
            and min(config.bootstrap.shares) == 1.0
            and config.curated_rows(0) == config.data.curated_rows
        )
        state = state or {}
        # Whether a row is owed. Kept here, as some workers have no file.
        self._is_due = bool(state.get("is_due", False))
        self._repeats = None
        # A run begun without telemetry cannot know what it trained on.
        if order is not None and (not start_step or "seen" in state):
            self._repeats = Repeats(order, config.data.super_batch_size, state)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a checkpoint stores."""
        repeats = self._repeats.state() if self._repeats else {}
        return {"is_due": np.array(self._is_due), **repeats}

    def follow(
        self,
        model,
        previous: int,
        step: int,
        is_logged: bool,
        writer: tf.summary.SummaryWriter,
    ) -> dict[str, float]:
        """Follows an execution, and returns numbers for the row of the log.

        The execution made the steps from `previous` to `step`. If a logged
        step scores nothing, the row of `telemetry.jsonl` is that of the next
        step that scores.
        """
        report, repeats, scalars = model.rows, self._repeats, {}
        if repeats is not None:
            for before in range(previous, step):
                rows = report.drawn(before)
                if rows is None:  # nothing is drawn
                    rows = np.arange(self._config.data.super_batch_size)
                repeats.add(self._super_batch_at(before), rows)
        if repeats is not None and is_logged:
            scalars["train/repeat_rate"] = repeats.rate()
            if self._draws_alike:
                ratio = repeats.effective_filter_ratio(
                    self._super_batch_at(step - 1) + 1
                )
                scalars["select/effective_filter_ratio"] = ratio
        self._is_due |= is_logged
        if self._is_due and report.is_scored:
            num_replicas = model.distribute_strategy.num_replicas_in_sync
            scalars |= self._write(report, step, num_replicas, writer)
            self._is_due = False
        return scalars if is_logged else {}

    def _write(self, report, step, num_replicas, writer):
        settings = self._config.selection.at(step - 1)
        scored, drawn = report.scored(), report.drawn(step - 1)
        drawn = drawn[np.isin(drawn, scored["row"])]  # not the curated rows
        overlaps = overlaps_of(
            np.searchsorted(scored["row"], drawn),
            scored["own_score"],
            settings,
            seed=(self._config.seed, step - 1),
            num_replicas=num_replicas,
        )
        kept = np.isin(scored["row"], drawn)
        values, uniform = _quantities(scored), _quantities(report.uniform())
        groups = {
            name: {
                "kept": values[name][kept],
                "dropped": values[name][~kept],
                "uniform": uniform[name],
            }
            for name in values
        }
        with writer.as_default(step=step):
            for name, of_group in groups.items():
                for group in (one for one in GROUPS if len(of_group[one])):
                    # Ten times as fast as `tf.summary.histogram`.
                    histogram = summary.histogram_pb(
                        f"select/{name}/{group}", of_group[group]
                    )
                    tf.summary.experimental.write_raw_pb(
                        histogram.SerializeToString()
                    )
        quantity, sign = _SCORES[settings.criterion]
        line = {
            "step": step,
            "super_batch": self._super_batch_at(step - 1),
            "criterion": settings.criterion,
            "filter_ratio": 1.0 - len(drawn) / len(scored["row"]),
            **{f"overlap_{name}": one for name, one in overlaps.items()},
            **{
                name: {group: _summary(some) for group, some in of.items()}
                for name, of in groups.items()
            },
            **_extremes(sign * values[quantity], kept, scored),
        }
        directory.append(self._workdir, directory.TELEMETRY_FILE, line)
        return {f"select/overlap_{name}": one for name, one in overlaps.items()}


def _quantities(losses):
    """Available `QUANTITIES` of scored rows, or of those drawn uniformly.

    Losses of kept and dropped rows are given the sub-batch, those of the
    uniform draw given that draw.
    """
    losses = {
        name.removeprefix("uniform_"): one for name, one in losses.items()
    }
    found = {name: losses[name] for name in QUANTITIES if name in losses}
    if len(found) < 2:
        return found
    return {"learnability": found["learner_loss"] - found["reference_loss"]} | (
        found
    )


def _extremes(scores, kept, scored):
    """The rows with the highest and lowest scores, most extreme first."""
    order = np.argsort(-scores, kind="stable")

    def describe(place):
        about = {
            "row": int(scored["row"][place]),
            "score": _short(scores[place]),
            "kept": bool(kept[place]),
        }
        if "id" in scored:
            about["id"] = int(scored["id"][place])
        return about

    return {
        "highest": [describe(place) for place in order[:_EXTREMES]],
        "lowest": [describe(place) for place in order[::-1][:_EXTREMES]],
    }


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the share of a draw's rows in another draw of equal size."""
    return len(np.intersect1d(left, right)) / len(left)


def overlaps_of(
    rows: np.ndarray,
    own_score: np.ndarray,
    settings: config_lib.SelectionConfig,
    *,
    seed: tuple[int, int],
    num_replicas: int = 1,
) -> dict[str, float]:
    """Compares a draw with other samplers' draws from the same noise.

    The draw's `rows`, integers `[b]`, index the scored rows, as does
    `own_score`, float32 `[n]`, see `selection.Draw`.

    Returns:
        The shares of rows also drawn by `independent` and `uniform`; unrelated
        draws share b/n on average.
    """
    quotas = num_replicas if settings.quota == "per_replica" else 1
    others = _other_rows(
        tf.constant(own_score),
        tf.constant(seed, tf.int32),
        len(rows),
        settings.gain,
        quotas,
    )
    return {name: overlap(rows, one.numpy()) for name, one in others.items()}


@tf.function(autograph=False)  # many small operations
def _other_rows(own_score, seed, size, gain, num_quotas):
    """The rows of an independent and of a uniform draw, int32 `[size]`."""
    options = {"num_quotas": num_quotas}
    return {
        "independent": selection.independent_rows(
            own_score, seed, size, gain=gain, **options
        ),
        "uniform": selection.uniform_rows(
            seed, size, own_score.shape[0], **options
        ),
    }


def _summary(values):
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "mean": _short(values.mean(dtype=np.float64)),
        "quantiles": [_short(one) for one in np.quantile(values, LEVELS)],
    }


def _short(value):
    return float(f"{value:.6g}")
