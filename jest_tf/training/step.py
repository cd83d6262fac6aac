"""One training step of JEST: score, select, gather, gradient, update.

`train_step` is Algorithm 1 of the paper on one page. R replicas run it on B/R
rows each, and together make the step of one replica.

Shapes: of the B rows of a super-batch, n enter a stage. The sub-batch has b
rows, c of them curated. D and Dr are the embedding widths of learner and
reference. Tensors are local: those of `rows` are `[n/R, ...]`, those of `batch`
`[b/R, ...]`.

Reference: Evans et al. 2024, arXiv 2406.17711, algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from jest_tf import config as config_lib
from jest_tf import embeddings as embeddings_lib
from jest_tf import losses, selection
from jest_tf.config import checks, tables
from jest_tf.embeddings import ON_TENSORFLOW, Embeddings, Tensor, convert_output
from jest_tf.models import two_tower
from jest_tf.training import step_outputs, sub_batch

# A `backend.Backend`: the gradients, and the loop of `fit`, of Keras' backend.
if ON_TENSORFLOW:
    from jest_tf.training import on_tensorflow as backend
else:
    from jest_tf.training import on_jax as backend

# Makes the draws of the live stages independent of each other.
_STAGE_SALT = 0x57A6E5


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of a training step beyond models, selection and loss.

    Attributes:
        false_negatives: pairs that the loss leaves out. This option,
            `false_negative_margin`, `loss_block_size` and `micro_batch_size`
            are as in `config.ModelConfig`; `views`, as
            `TrainConfig.training_views`, need a `call` that takes a `view`.
        distillation_weight: as in `config.ReferenceConfig`. Like false
            negatives by the reference, distillation costs a pass of the
            reference, unless a stage scores with it or the batch has its
            embeddings. The reference's input is not augmented.
        similarity_weight: likewise.
        distillation_steps: steps until the weights are 0, as in
            `config.ReferenceConfig`.
        projection_dim: `projection` of `config.ReferenceConfig`; the learner
            must be a `TwoTower`.
        augment: `(images, seed, places, batch_size) -> images`, applied in the
            graph. `seed` is int32 `[2]`; `places`, int32 `[n]`, are the places
            of the n images among the `batch_size` of the sub-batch.
        seed: seed of the draws and of the augmentation.
    """

    false_negatives: str = "keep"
    false_negative_margin: float = 0.0
    loss_block_size: int | None = None
    views: tuple[config_lib.View, ...] = ()
    micro_batch_size: int | None = None
    distillation_weight: float = 0.0
    similarity_weight: float = 0.0
    distillation_steps: int | None = None
    projection_dim: int | None = None
    augment: Callable | None = None
    seed: int = 0

    def __post_init__(self):
        for name, rule in (
            ("false_negatives", checks.among(*tables.FALSE_NEGATIVES)),
            ("false_negative_margin", checks.within("[0, 2]")),
            ("distillation_weight", checks.within("[0, inf)")),
            ("similarity_weight", checks.within("[0, inf)")),
        ):
            checks.check(name, getattr(self, name), rule)
        if self.false_negative_margin and not self.omitted.needs_reference:
            raise ValueError(
                "`false_negative_margin` needs `false_negatives` to be "
                f"'reference'. Received: {self.false_negatives!r}"
            )

    @property
    def omitted(self) -> tables.FalseNegatives:
        """The rule by which the loss leaves out pairs."""
        return tables.FALSE_NEGATIVES[self.false_negatives]

    @property
    def loss_needs_reference(self) -> bool:
        """True if the loss uses the reference's embeddings of trained rows."""
        distils = self.distillation_weight + self.similarity_weight > 0.0
        return distils or self.omitted.needs_reference


@dataclasses.dataclass(frozen=True)
class Step:
    """Components and settings of a training step.

    Attributes:
        learner: maps a batch to `Embeddings`; its weights are updated.
        reference: likewise, frozen; None if neither scores nor loss need it.
        optimizer: built for the trained `variables`.
        projection: a built `two_tower.Projection` of the learner's embeddings
            to the reference's width, for distillation; None for equal widths.
        segment: a `config.Segment`, whose live stages run here; None trains
            on the whole batch.
        loss: name of the pair loss, see `losses.pair_loss`; scores use it too,
            unless the selection has its own.
        seed: int32 `[2]`, (run seed, step).
        replicas: the collectives, `distribution.current()`; None on one
            replica.
    """

    learner: keras.Model
    reference: Callable | None = None
    optimizer: keras.optimizers.Optimizer | None = None
    projection: two_tower.Projection | None = None
    segment: config_lib.Segment | None = None
    loss: str = "sigmoid"
    options: StepOptions = StepOptions()
    seed: Any = (0, 0)
    replicas: Any = None

    @property
    def stages(self) -> tuple[tuple[int, config_lib.Stage], ...]:
        """The live stages, with their numbers among all stages."""
        return self.segment.live if self.segment is not None else ()

    @property
    def quota(self) -> str:
        """Quota of the draws. Without a draw, rows stay on their replica."""
        return self.segment.selection.quota if self.stages else "per_replica"

    def scoring_models(self, number: int) -> tuple[str, ...]:
        """Returns the models that stage `number` scores with; () if idle."""
        if number not in self.segment.scoring:
            return ()
        return self.segment.selection.stages[number].needs

    @property
    def distilled(self) -> dict[str, float]:
        """The weights of losses by the reference, by their metrics' names."""
        weights = (
            self.options.distillation_weight,
            self.options.similarity_weight,
        )
        named = zip(step_outputs.DISTILLED, weights, strict=True)
        return {name: weight for name, weight in named if weight > 0.0}

    @property
    def variables(self) -> list[keras.Variable]:
        """The trained variables: the learner's, then the projection's."""
        return [
            *self.learner.trainable_variables,
            *(self.projection.trainable_variables if self.projection else ()),
        ]

    @property
    def num_replicas(self) -> int:
        """R, the number of replicas."""
        return 1 if self.replicas is None else self.replicas.num_replicas

    def check_reference(self) -> None:
        """Raises ValueError if a stage or a loss needs a missing reference."""
        needing = [
            name
            for name in ("distillation_weight", "similarity_weight")
            if getattr(self.options, name)
        ]
        if self.options.omitted.needs_reference:
            needing.append("false_negatives='reference'")
        for number, stage in self.stages:
            if "reference" in self.scoring_models(number):
                needing.append(f"criterion={stage.criterion!r}")
        if needing and self.reference is None:
            raise ValueError(
                f"`{needing[-1]}` needs a reference: pass `reference` to the "
                "Funnel or to JESTModel; after loading, call `bind` with a "
                "Funnel that has one. Received: reference=None"
            )


class Outputs(NamedTuple):
    """Results of a step.

    Attributes:
        metrics: scalars by name, equal on every replica.
        draws: the draws of stages that scored, by the stage's number.
        drawn: int32 `[b - c]`, chosen rows of the super-batch, in the order of
            the last draw; None without a live stage.
        rows: per-row results of this replica, see `step_outputs.py`.
    """

    metrics: dict[str, Tensor]
    draws: dict[int, selection.Draw]
    drawn: Tensor | None
    rows: dict[str, dict[str, Tensor]]


def train_step(step: Step, super_batch: Mapping[str, Tensor]) -> Outputs:
    """Trains the learner on the sub-batch chosen from one super-batch.

    `super_batch` has the local rows, `[B/R, ...]`, and under "curated" the
    local curated rows, `[c/R, ...]`.
    """
    step.check_reference()
    rows = dict(super_batch)
    curated = rows.pop(sub_batch.CURATED, None)
    sizes = sub_batch.check_sizes(step, rows, curated)  # [B, ..., b - c]
    # The place in the super-batch of every row, on all replicas.
    numbers = ops.arange(sizes[0], dtype="int32")
    views, reference, drawn, order = step.options.views, None, None, None
    draws, metrics, report = {}, {}, {}

    for (number, _), size in zip(step.stages, sizes[1:], strict=True):
        # Score: both models embed every row, without a gradient.
        learner, reference = score(step, number, rows, reference)
        learner, learner_is_finite = embeddings_lib.cleaned(learner)
        reference, reference_is_finite = embeddings_lib.cleaned(reference)

        # Select: the rows that are most learnable together.
        indices, draw = select(step, number, size, (learner, reference), order)
        if draw is not None:
            draws[number] = draw
            are_finite = {
                "learner": learner_is_finite,
                "reference": reference_is_finite,
            }
            metrics |= _draw_metrics(step, number, draw, are_finite)
            report |= step_outputs.list_scored(
                number, rows, draw, (numbers, order), step.replicas
            )

        # Gather: the rows that pass, equally many on each replica.
        is_last = number == step.stages[-1][0]
        rows = sub_batch.with_reference(rows, reference)
        rows = sub_batch.needed(step, rows, curated, is_last)
        drawn = embeddings_lib.take(numbers, indices)
        rows, places = sub_batch.gather(
            step, rows, indices, views if is_last else ()
        )
        if not is_last:
            order = places
            if step.replicas is not None:
                order = step.replicas.all_gather(places)
            numbers = embeddings_lib.take(drawn, order)
            if not config_lib.QUOTAS[step.quota].exchanges:
                order = None  # each replica draws on its own

    if drawn is None:
        rows = sub_batch.needed(step, rows, curated, True)
        rows, places = sub_batch.gather(step, rows, None, views)
    batch, places = sub_batch.add_curated(step, rows, places, curated)
    batch, reference = reference_embeddings(step, batch, reference)  # or None
    batch = sub_batch.augment(step, batch, places)

    # Gradient: of a single loss over all b rows, in micro-batches.
    gradient = backend.gradients(
        step.learner,
        batch,
        lambda embeddings: objective(step, embeddings, batch, reference),
        micro_batch_size=step.options.micro_batch_size,
        scale_loss=step.optimizer.scale_loss,
        num_replicas=step.num_replicas,
        views=views,
        projection=step.projection,
    )

    # Update: the optimizer clips and steps; on TensorFlow it sums first.
    step.optimizer.apply_gradients(
        zip(gradient.by_variable, step.variables, strict=True)
    )

    metrics |= {
        **gradient.terms,
        "scale": gradient.embeddings.scale,
        "bias": gradient.embeddings.bias,
    }
    if "id" in batch:
        report["trained"] = {"place": places} | {
            name: batch[name] for name in ("id", "caption_id") if name in batch
        }
    return Outputs(metrics, draws, drawn, report)


def score(
    step: Step,
    number: int,
    rows: Mapping[str, Tensor],
    known: Embeddings | None = None,
) -> tuple[Embeddings | None, Embeddings | None]:
    """Embeds the rows into stage `number`, `[n/R, ...]`, in evaluation mode.

    If an earlier stage ran the reference, `known` is what it returned for it.
    The `rows` then carry their reference embeddings, and `known` gives scale
    and bias.

    Returns the learner's and the reference's embeddings, `[n/R, D]` and
    `[n/R, Dr]`; None for a learner that the stage does not score with, `known`
    for such a reference.
    """
    stage, needs = dict(step.stages)[number], step.scoring_models(number)
    learner = reference = None
    size = stage.scoring_batch_size
    if "reference" in needs:
        if known is not None:
            parts = (rows[name] for name in sub_batch.FROM_REFERENCE)
            reference = Embeddings(*parts, known.scale, known.bias)
        else:
            reference = backend.embed(step.reference, rows, size)
    if "learner" in needs:
        options = {"training": False, **view_options(stage.view)}
        learner = backend.embed(
            lambda part: convert_output(
                "learner", step.learner(part, **options)
            ),
            rows,
            size,
        )
    return learner, reference if reference is not None else known


def view_options(view: config_lib.View) -> dict[str, config_lib.View]:
    """Returns arguments for a learner's call; {} for the default view."""
    return {} if view == config_lib.View() else {"view": view}


def select(
    step: Step,
    number: int,
    size: int,
    models: tuple[Embeddings | None, Embeddings | None],
    order: Tensor | None = None,
) -> tuple[Tensor, selection.Draw | None]:
    """Draws the `size` rows that pass stage `number`, equal on all replicas.

    Args:
        models: embeddings by learner and reference, as `score` returns them.
        order: int32 `[n]`, places of the rows in the previous draw. The noise
            follows these places, so that the draw does not depend on R.

    Returns:
        int32 `[size]`, the chosen rows of those into the stage, in the order
        drawn; and the `Draw`, or None if the stage does not score.
    """
    settings, needs = step.segment.selection, step.scoring_models(number)
    stage = settings.stages[number]
    seed = stage_seed(settings, number, step.seed)
    if order is not None:
        seed = selection.Placed(seed, order)
    if not needs:
        indices = selection.uniform_rows(
            seed,
            size,
            size * stage.candidates,
            num_quotas=config_lib.QUOTAS[step.quota].parts(step.num_replicas),
        )
        return indices, None
    learner, reference = models
    draw = selection.draw(
        learner if "learner" in needs else None,
        reference if "reference" in needs else None,
        stage,
        size=size,
        loss=settings.loss or step.loss,
        seed=seed,
        quota=settings.quota,
        replicas=step.replicas,
    )
    return draw.indices, draw


def stage_seed(
    settings: config_lib.SelectionConfig, number: int, seed: Any
) -> Tensor:
    """Returns the seed of the live stage `number`; int32 `[2]`.

    The first live stage has `seed` itself, (run seed, step).
    """
    salt = (number - len(settings.stored)) * _STAGE_SALT
    return selection.salted(seed, salt)


def reference_embeddings(
    step: Step, batch: dict[str, Tensor], known: Embeddings | None = None
) -> tuple[dict[str, Tensor], Embeddings | None]:
    """Separates the reference's embeddings from the batch, or computes them.

    Scale and bias are those of `known`, if the reference has run for a stage.

    Returns:
        The batch without the reference's keys, and the embeddings `[b/R, Dr]`;
        None if the loss needs none.
    """
    if not step.options.loss_needs_reference:
        return batch, None
    if sub_batch.is_embedded(batch):
        image, text = (batch[name] for name in sub_batch.FROM_REFERENCE)
        scale = 0.0  # features have none
        if "similarities" in step.distilled:
            scale = (known or step.reference(batch)).scale
        reference = Embeddings(image, text, scale, 0.0)
    else:
        reference = backend.embed(
            step.reference, batch, step.options.micro_batch_size
        )
    rest = {
        name: value
        for name, value in batch.items()
        if name not in sub_batch.FOR_REFERENCE + sub_batch.FROM_REFERENCE
    }
    return rest, reference


def objective(
    step: Step,
    embeddings: Embeddings,
    batch: Mapping[str, Tensor],
    reference: Embeddings | None,
) -> dict[str, Tensor]:
    """Computes the minimised `loss` and its terms, scalars by name.

    `embeddings` are the learner's, `[b/R, D]`; those of the `reference` come
    from `reference_embeddings`.
    """
    loss = contrastive_loss(step, embeddings, batch, reference)
    fade = 1.0
    if step.options.distillation_steps:
        done = ops.cast(step.seed[1], "float32")
        done /= step.options.distillation_steps
        fade = ops.maximum(1.0 - done, 0.0)
    terms = {}
    if "distillation" in step.distilled:
        projected = embeddings
        if step.projection is not None:
            projected = step.projection.project(embeddings)
        terms["distillation"] = losses.feature_distillation(
            projected, reference, replicas=step.replicas
        )
    if "similarities" in step.distilled:
        terms["similarities"] = losses.similarity_distillation(
            embeddings,
            reference,
            block_size=step.options.loss_block_size,
            replicas=step.replicas,
        )
    for name, weight in step.distilled.items():
        loss += weight * fade * terms[name]
    return {"loss": loss, **terms}


def contrastive_loss(
    step: Step,
    embeddings: Embeddings,
    batch: Mapping[str, Tensor],
    reference: Embeddings | None,
) -> Tensor:
    """Computes the contrastive loss over all b rows, a scalar."""
    marking = {}  # only what is set: a user's own loss may not take it
    if step.options.omitted.needs_ids:
        if "caption_id" not in batch:
            raise ValueError(
                f"`false_negatives={step.options.false_negatives!r}` needs "
                f"`caption_id` in the batch. Received: {sorted(batch)}"
            )
        marking["ids"] = batch["caption_id"]
    if step.options.omitted.needs_reference:
        marking["reference"] = reference
        marking["margin"] = step.options.false_negative_margin
    return losses.pair_loss(step.loss).train(
        embeddings,
        **marking,
        block_size=step.options.loss_block_size,
        replicas=step.replicas,
    )


def _draw_metrics(step, number, draw, are_finite):
    """Returns metrics of a draw, NaN if what they use is not finite.

    `are_finite` has a flag for each model's embeddings.
    """
    flags = dict.fromkeys(
        ("score", "uniform_score"),
        are_finite["learner"] & are_finite["reference"],
    )
    for model, is_finite in are_finite.items():
        flags[f"{model}_loss_kept"] = is_finite
        flags[f"{model}_loss_dropped"] = is_finite
    return {
        f"stages/{number}/{name}": ops.where(flags[name], value, np.nan)
        for name, value in selection.summarize(draw, step.replicas).items()
    }
