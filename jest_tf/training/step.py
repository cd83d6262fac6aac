"""One training step of JEST: score, select, gather, gradient, update.

`train_step` is Algorithm 1 of the paper on one page. R replicas run it on B/R
rows each, and together make the step of one replica.

Shapes: B rows in a super-batch, n of them candidates, b in the sub-batch; D
and Dr are the embedding widths of learner and reference. `pool` has the local
candidates, `[n/R, ...]`, and `batch` the local sub-batch, `[b/R, ...]`.

Reference: Evans et al. 2024, arXiv 2406.17711, algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import losses, selection
from jest_tf.config import checks
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings, of_model
from jest_tf.models import two_tower
from jest_tf.training import finite, micro_batches, row_outputs, sub_batch


@dataclasses.dataclass(frozen=True)
class Step:
    """Components and settings of a training step.

    Attributes:
        learner: maps a batch to `Embeddings`; its weights are updated.
        reference: likewise, a frozen callable; may be None if neither scores
            nor distillation need it.
        optimizer: built for the trained `variables`.
        projection: a built `two_tower.Projection` of the learner's embeddings
            to the reference's width, for distillation; None if it is equal.
        selection: a `config.SelectionConfig` without a schedule; without a
            `batch_size`, the step trains on the whole super-batch.
        curated_rows: c, rows of the super-batch, at every B/c-th place, that
            are in every sub-batch; only the others are scored. 0 without a
            selection.
        seed: int32 `[2]`, (run seed, step).
        replicas: the collectives, `distribution.current()`; None on one
            replica.

    The other attributes are arguments of `JESTModel`.
    """

    learner: keras.Model
    reference: Callable | None = None
    optimizer: keras.optimizers.Optimizer | None = None
    projection: two_tower.Projection | None = None
    selection: config_lib.SelectionConfig = config_lib.SelectionConfig()
    loss: str = "sigmoid"
    loss_function: Callable | None = None
    equal_captions: str = "negative"
    loss_block_size: int | None = None
    views: tuple[config_lib.View, ...] = ()
    micro_batch_size: int | None = None
    distillation_weight: float = 0.0
    distillation_steps: int | None = None
    augment: Callable | None = None
    curated_rows: int = 0
    seed: Any = (0, 0)
    replicas: Any = None

    def __post_init__(self):
        for name, rule in (
            ("loss", checks.one_of(*losses.BY_NAME)),
            ("equal_captions", checks.one_of(*config_lib.EQUAL_CAPTIONS)),
            ("distillation_weight", checks.within("[0, inf)")),
        ):
            checks.check(name, getattr(self, name), rule)

    @property
    def quota(self) -> str:
        """Quota of the draw; without a draw no row changes its replica."""
        draws = self.selection.batch_size is not None
        return self.selection.quota if draws else "per_replica"

    @property
    def distils(self) -> bool:
        """True if the loss includes feature distillation."""
        return self.distillation_weight > 0.0

    @property
    def variables(self) -> list[keras.Variable]:
        """The trained variables: the learner's, then the projection's."""
        return [
            *self.learner.trainable_variables,
            *(self.projection.trainable_variables if self.projection else ()),
        ]

    @property
    def num_replicas(self) -> int:
        """R."""
        return placement.count(self.replicas)

    def check_reference(self, setting: str) -> None:
        """Raises ValueError if there is no reference, which `setting` needs."""
        if self.reference is None:
            raise ValueError(
                f"`{setting}` needs a reference: pass `reference` to "
                "JESTModel, or call `attach_reference` after loading. "
                "Received: reference=None"
            )


class Outputs(NamedTuple):
    """Results of a step.

    Attributes:
        metrics: scalars by name, equal on every replica.
        draw: the draw of a step that scored; None otherwise.
        drawn: int32 `[b]`, drawn rows of the super-batch, in order; None
            without a selection.
        rows: per-row results of this replica, see `row_outputs.py`.
    """

    metrics: dict[str, tf.Tensor]
    draw: selection.Draw | None
    drawn: tf.Tensor | None
    rows: dict[str, dict[str, tf.Tensor]]


def train_step(step: Step, super_batch: Mapping[str, tf.Tensor]) -> Outputs:
    """Trains the learner on the sub-batch chosen from one super-batch.

    `super_batch` has the local rows, `[B/R, ...]`.

    Raises:
        ValueError: if settings do not fit each other or the batch.
    """
    pool, row_of = candidates(step, super_batch)  # [n/R, ...]

    # Score: both models embed every candidate, without a gradient.
    learner, reference = score(step, pool)  # [n/R, D], [n/R, Dr]
    learner, learner_is_finite = finite.cleaned(learner)
    reference, reference_is_finite = finite.cleaned(reference)

    # Select: the rows that are most learnable together.
    indices, draw = select(step, pool, learner, reference)

    # Gather: the sub-batch, b/R rows on each replica.
    pool = sub_batch.with_reference(step, pool, reference)
    batch, places = sub_batch.gather(step, pool, indices)  # [b/R, ...]
    batch, places = sub_batch.add_curated(step, super_batch, batch, places)
    batch, targets = sub_batch.distillation_targets(step, batch)  # [b/R, Dr]
    batch = sub_batch.augment(step, batch, places)

    # Gradient: of one loss over all b rows, in micro-batches.
    gradient = micro_batches.gradients(
        step.learner,
        batch,
        lambda embeddings: objective(step, embeddings, batch, targets),
        micro_batch_size=step.micro_batch_size,
        scale_loss=step.optimizer.scale_loss,
        num_replicas=step.num_replicas,
        views=step.views,
        projection=step.projection,
    )

    # Update: the optimizer sums over replicas, clips and steps.
    step.optimizer.apply_gradients(
        zip(gradient.by_variable, step.variables, strict=True)
    )

    metrics = {
        **gradient.terms,
        "scale": gradient.embeddings.scale,
        "bias": gradient.embeddings.bias,
        **_of_draw(step, draw, learner_is_finite, reference_is_finite),
    }
    drawn = sub_batch.drawn_rows(step, super_batch, indices, row_of)
    rows = row_outputs.of_trained(batch, places)
    rows |= row_outputs.of_scored(pool, draw, row_of, step.replicas)
    return Outputs(metrics, draw, drawn, rows)


def candidates(
    step: Step, super_batch: Mapping[str, tf.Tensor]
) -> tuple[Mapping[str, tf.Tensor], Callable]:
    """Takes the rows to choose from: every k-th, or all but the curated ones.

    Returns:
        Tensors `[n/R, ...]`, and a function that maps the number of a
        candidate, of all n, to its row of the super-batch.

    Raises:
        ValueError: if sizes do not fit each other or R.
    """
    settings = step.selection
    if settings.batch_size is None:
        return super_batch, lambda number: number
    size = super_batch["image"].shape[0] * step.num_replicas
    settings.check_super_batch(size, step.curated_rows)
    for name, number in (
        ("`selection.batch_size` (b)", settings.batch_size),
        ("`selection.candidates`", settings.candidates or size),
    ):
        placement.share(number, step.num_replicas, name)
    if step.curated_rows:
        return sub_batch.without_curated(step, super_batch)
    stride = size // (settings.candidates or size)
    if stride == 1:
        return super_batch, lambda number: number
    pool = {name: value[::stride] for name, value in super_batch.items()}
    return pool, lambda number: stride * number


def score(
    step: Step, pool: Mapping[str, tf.Tensor]
) -> tuple[Embeddings | None, Embeddings | None]:
    """Embeds the candidates, `[n/R, ...]`, for scoring in evaluation mode.

    Returns the learner's and the reference's embeddings, `[n/R, D]` and
    `[n/R, Dr]`; None if the criterion does not use the model.

    Raises:
        ValueError: if `scoring_batch_size` does not divide the rows, or the
            reference is missing.
    """
    settings, learner, reference = step.selection, None, None
    if not settings.scores:
        return None, None
    rows, size = pool["image"].shape[0], settings.scoring_batch_size
    if rows % (size or rows):
        raise ValueError(
            "`selection.scoring_batch_size` must divide the rows that a "
            "replica scores, B/R, or its share of the candidates. "
            f"Received: {size}, B/R={rows}, R={step.num_replicas}"
        )
    if settings.needs_reference:
        step.check_reference(f"selection.criterion={settings.criterion!r}")
        reference = micro_batches.embed(step.reference, pool, size)
    if settings.needs_learner:
        options = {"training": False, **view_options(settings.view)}
        learner = micro_batches.embed(
            lambda part: of_model("learner", step.learner(part, **options)),
            pool,
            size,
        )
    return learner, reference


def view_options(view: config_lib.View) -> dict[str, config_lib.View]:
    """Arguments of a learner's call; none for the tower's default view."""
    return {} if view == config_lib.View() else {"view": view}


def select(
    step: Step,
    pool: Mapping[str, tf.Tensor],
    learner: Embeddings | None,
    reference: Embeddings | None,
) -> tuple[tf.Tensor | None, selection.Draw | None]:
    """Draws the sub-batch from the `pool`; all replicas compute the same draw.

    `learner` and `reference` are the results of `score`.

    Returns:
        int32 `[b - c]`, candidates in the order drawn, None without a
        selection; and the `Draw` of a step that scored.
    """
    settings = step.selection
    if settings.batch_size is None:
        return None, None
    settings = dataclasses.replace(
        settings,
        batch_size=settings.batch_size - step.curated_rows,
        loss=settings.loss or step.loss,
    )
    if not settings.scores:
        indices = selection.uniform_rows(
            step.seed,
            settings.batch_size,
            pool["image"].shape[0] * step.num_replicas,
            num_quotas=1 if settings.quota == "global" else step.num_replicas,
        )
        return indices, None
    draw = selection.draw(
        learner, reference, step.seed, settings, step.replicas
    )
    return draw.indices, draw


def objective(
    step: Step,
    embeddings: Embeddings,
    batch: Mapping[str, tf.Tensor],
    targets: Embeddings | None,
) -> dict[str, tf.Tensor]:
    """The minimised `loss` and its terms by name; scalars.

    `embeddings` are the learner's, `[b/R, D]`; `targets` come from
    `sub_batch.distillation_targets`.
    """
    loss = contrastive_loss(step, embeddings, batch)
    if targets is None:
        return {"loss": loss}
    weight = step.distillation_weight
    if step.distillation_steps:
        done = tf.cast(step.seed[1], tf.float32) / step.distillation_steps
        weight *= tf.maximum(1.0 - done, 0.0)
    if step.projection is not None:
        embeddings = step.projection.project(embeddings)
    distance = losses.feature_distillation(
        embeddings, targets, replicas=step.replicas
    )
    return {"loss": loss + weight * distance, "distillation": distance}


def contrastive_loss(
    step: Step, embeddings: Embeddings, batch: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """The contrastive loss over all b rows, a scalar.

    Raises:
        ValueError: if `equal_captions` needs a missing `caption_id`.
    """
    ids = None
    if step.equal_captions != "negative":
        if "caption_id" not in batch:
            raise ValueError(
                f"`equal_captions={step.equal_captions!r}` needs "
                f"`caption_id` in the batch. Received: {sorted(batch)}"
            )
        ids = batch["caption_id"]
    loss = step.loss_function or losses.BY_NAME[step.loss]
    return loss(
        embeddings,
        ids=ids,
        equal_ids=step.equal_captions,
        block_size=step.loss_block_size,
        replicas=step.replicas,
    )


def _of_draw(step, draw, learner_is_finite, reference_is_finite):
    """Metrics of a draw; NaN for scores by embeddings that are not finite."""
    if draw is None:
        return {}
    by_model = {"learner": learner_is_finite, "reference": reference_is_finite}
    of_both = learner_is_finite & reference_is_finite
    metrics = {}
    for name, value in selection.summarize(draw, step.replicas).items():
        is_finite = by_model.get(name.split("_")[0], of_both)
        metrics[f"select/{name}"] = tf.where(is_finite, value, np.nan)
    return metrics
