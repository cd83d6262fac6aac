"""What the selection does, step by step: whom it keeps, drops and repeats.

Everything is made on the host from what a step tells anyway (`row_report.py`),
so the graph of a step is the same with and without; the figures of rows are
fetched and summed up at logged steps alone. All of it is a function of the
settings and the step, the same in a run that was killed and continued.

`comparison.py` measures more on demand; `page.py` shows it.
"""

import json
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from jest_tf import checkpoint, selection
from jest_tf import config as config_lib
from jest_tf.data import stream

# The quantiles of a distribution that `telemetry.jsonl` holds.
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
QUANTITIES = ("learnability", "learner_loss", "reference_loss")
GROUPS = ("kept", "dropped", "uniform")

# Of each logged super-batch, the rows with the highest and the lowest score
# that are written down.
_EXTREMES = 8
_BUCKETS = 30  # of a histogram, TensorBoard's default
_HISTOGRAM = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(
        plugin_name="histograms"
    )
)
# What a checkpoint carries: see `Repeats`.
_SEEN, _COUNTS = "trained_before", "repeats_since_line"


class Repeats:
    """Which records a run has trained on, a bit each, and how often again.

    A record counts as trained before if an earlier step has trained on it. One
    that stands in for another that can't be read counts as that.

    Args:
        order: of the stream.
        super_batch_size: B.
        carried: where the state is kept, `JESTModel.carried`; what it holds
            is gone on from.
    """

    def __init__(
        self,
        order: stream.Order | stream.Mixture,
        super_batch_size: int,
        carried: dict[str, np.ndarray],
    ):
        self._order = order
        self._super_batch_size = super_batch_size
        num_bytes = -(-order.num_records // 8)
        self._seen = carried.setdefault(_SEEN, np.zeros(num_bytes, np.uint8))
        # Trained, and of them trained before, since the last line of the log.
        self._counts = carried.setdefault(_COUNTS, np.zeros(2, np.int64))

    def add(self, number: int, rows: np.ndarray) -> None:
        """Counts what a step has trained on.

        Args:
            number: of the super-batch, from 0 on.
            rows: integers `[b]`, its rows.
        """
        positions = number * self._super_batch_size + np.asarray(rows, np.int64)
        records = self._order.rows(positions)
        places, bits = records >> 3, np.uint8(1) << np.uint8(records & 7)
        before = np.count_nonzero(self._seen[places] & bits)
        np.bitwise_or.at(self._seen, places, bits)
        self._counts += (len(records), before)

    def rate(self) -> float:
        """Share of the examples trained that had been trained before.

        Of those since it was asked for the last time; NaN of none.
        """
        trained, before = self._counts
        self._counts[:] = 0
        return float(before) / trained if trained else np.nan

    def effective_filter_ratio(self, num_super_batches: int) -> float:
        """1 - distinct records trained / distinct records drawn, so far.

        Args:
            num_super_batches: that the stream has given out.
        """
        drawn = self._order.num_distinct(
            num_super_batches * self._super_batch_size
        )
        trained = int(np.bitwise_count(self._seen).sum())
        return 1.0 - trained / drawn


class Telemetry(checkpoint.StepCallback):
    """Follows the draws of a run; `write` is called by the ledger.

    Belongs before the ledger and the checkpoints among the callbacks.

    Args:
        config: the run.
        workdir: the run directory.
        start_step: steps already done.
        order: of the stream; None leaves out what goes by records.
        super_batch_at: from the steps done before a step to the number of its
            super-batch; None is the same number.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        workdir: str,
        *,
        start_step: int = 0,
        order: stream.Order | stream.Mixture | None = None,
        super_batch_at: Callable[[int], int] | None = None,
    ):
        super().__init__(start_step)
        self._config = config
        self._path = os.path.join(workdir, checkpoint.TELEMETRY_FILE)
        self._start_step = start_step
        self._order = order
        self._super_batch_at = super_batch_at or (lambda step: step)
        self._repeats = None

    def on_train_begin(self, logs=None):
        """Takes up what a checkpoint has carried."""
        carried = self.model.carried
        # A run that began without can't know what it had trained on.
        if self._order is None or (self._start_step and _SEEN not in carried):
            return
        self._repeats = Repeats(
            self._order, self._config.data.super_batch_size, carried
        )

    def on_train_batch_end(self, batch, logs=None):
        """Counts the draws of an execution."""
        super().on_train_batch_end(batch, logs)
        if self._repeats is None:
            return
        rows = self.model.drawn_rows
        if rows is None:  # all of them, in every step
            rows = np.arange(self._config.data.super_batch_size)[np.newaxis]
        else:
            rows = rows.numpy()
        for step in range(self.previous, self.step):
            self._repeats.add(
                self._super_batch_at(step), rows[step % len(rows)]
            )

    def write(
        self, step: int, writer: tf.summary.SummaryWriter
    ) -> dict[str, float]:
        """Writes a line of `telemetry.jsonl` and TensorBoard's histograms.

        Args:
            step: steps done, the last of which is written about.
            writer: of TensorBoard.

        Returns:
            What belongs into the log, by name.
        """
        scalars = self._of_records(step)
        values = self.model.row_report()
        if not values:
            return scalars
        settings = self._config.selection
        rows = self.model.drawn_rows.numpy()
        rows = rows[(step - 1) % len(rows)]
        groups = split(values, rows)
        with writer.as_default(step=step):
            for quantity, of_group in groups.items():
                for group, some in of_group.items():
                    _write_histogram(f"select/{quantity}/{group}", some)
        line = {
            "step": step,
            "super_batch": self._super_batch_at(step - 1),
            **{
                quantity: {name: _summary(some) for name, some in group.items()}
                for quantity, group in groups.items()
            },
            **extremes(values, rows, settings.criterion),
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        overlaps = overlaps_of(
            rows,
            values["own_score"],
            settings,
            seed=(self._config.seed, step - 1),
            num_replicas=self.model.distribute_strategy.num_replicas_in_sync,
        )
        return scalars | {
            f"select/overlap_{name}": value for name, value in overlaps.items()
        }

    def _of_records(self, step):
        if self._repeats is None:
            return {}
        scalars = {"train/repeat_rate": self._repeats.rate()}
        if self._config.selection.batch_size is not None:
            number = self._super_batch_at(step - 1) + 1
            ratio = self._repeats.effective_filter_ratio(number)
            scalars["select/effective_filter_ratio"] = ratio
        return scalars


def split(
    values: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """The values of kept, dropped and uniformly drawn rows, by quantity.

    Args:
        values: what `JESTModel.row_report` returns.
        rows: integers `[b]`, the rows kept.

    Returns:
        Those of `QUANTITIES` that there are, each with the values of `GROUPS`:
        losses of kept and dropped rows are given the sub-batch, those of the
        uniform draw given that draw.
    """
    values = dict(values)
    for prefix in ("", "uniform_"):
        both = [f"{prefix}{model}_loss" for model in ("learner", "reference")]
        if all(name in values for name in both):
            learner, reference = (values[name] for name in both)
            values[f"{prefix}learnability"] = learner - reference
    kept = np.zeros(len(values["own_score"]), bool)
    kept[rows] = True
    return {
        name: {
            "kept": values[name][kept],
            "dropped": values[name][~kept],
            "uniform": values[f"uniform_{name}"],
        }
        for name in QUANTITIES
        if name in values
    }


def row_scores(values: dict[str, np.ndarray], criterion: str) -> np.ndarray:
    """The criterion of each row given the sub-batch; float32 `[B]`."""
    if criterion == "learnability":
        return values["learner_loss"] - values["reference_loss"]
    if criterion == "easy_reference":
        return -values["reference_loss"]
    return values["learner_loss"]


def extremes(
    values: dict[str, np.ndarray],
    rows: np.ndarray,
    criterion: str,
    size: int = _EXTREMES,
) -> dict[str, list[dict]]:
    """The rows with the highest and the lowest score, by what they are.

    Args:
        values: what `JESTModel.row_report` returns.
        rows: integers `[b]`, the rows kept.
        criterion: of the selection.
        size: rows of each kind, fewer of a small super-batch.

    Returns:
        `highest` and `lowest`, the most extreme first: of each row its number
        `row`, its `score`, whether it was `kept`, and its `id` if there is one.
    """
    scores = row_scores(values, criterion)
    order = np.argsort(-scores, kind="stable")
    kept = set(np.asarray(rows).tolist())

    def describe(row):
        about = {"row": row, "score": _short(scores[row]), "kept": row in kept}
        if "id" in values:
            about["id"] = int(values["id"][row])
        return about

    return {
        "highest": [describe(row) for row in order[:size].tolist()],
        "lowest": [describe(row) for row in order[::-1][:size].tolist()],
    }


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    """The share of the rows of a draw that another of its size holds too."""
    return len(np.intersect1d(left, right)) / len(left)


def overlaps_of(
    rows: np.ndarray,
    own_score: np.ndarray,
    settings: config_lib.SelectionConfig,
    *,
    seed: tuple[int, int],
    num_replicas: int = 1,
) -> dict[str, float]:
    """Shares of a draw that other samplers draw too, from the same noise.

    Args:
        rows: integers `[b]`, the draw.
        own_score: float32 `[B]`, see `selection.Draw`.
        settings: the draw was made with.
        seed: the draw was made with.
        num_replicas: R.

    Returns:
        By `independent` and `uniform`; two draws without anything in common
        but the super-batch share b/B on average.
    """
    size = len(rows)
    quotas = num_replicas if settings.quota == "per_replica" else 1
    independent = selection.independent_rows(
        own_score, seed, size, gain=settings.gain, num_quotas=quotas
    )
    uniform = selection.uniform_rows(
        seed, size, len(own_score), num_quotas=quotas
    )
    return {
        "independent": overlap(rows, independent.numpy()),
        "uniform": overlap(rows, uniform.numpy()),
    }


def _summary(values):
    """What a line holds of a distribution: count, mean, quantiles."""
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "mean": _short(values.mean(dtype=np.float64)),
        "quantiles": [_short(one) for one in np.quantile(values, LEVELS)],
    }


def _write_histogram(name, values):
    """As `tf.summary.histogram`, which takes ten times as long."""
    if not len(values):
        return
    counts, edges = np.histogram(values, _BUCKETS)
    buckets = np.stack([edges[:-1], edges[1:], counts], 1)
    tf.summary.write(name, buckets, metadata=_HISTOGRAM)


def _short(value):
    """Six digits, which say all that a score is known to."""
    return float(f"{value:.6g}")
