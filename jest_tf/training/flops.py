"""Counts the FLOPs of a training step, from traced forward passes of models.

Only matrix products and convolutions count; a multiply-add is two FLOPs. A
forward pass is counted in a model's traced graph, at the size of a micro-batch;
everything else follows by rule:

    score      the learner's forward pass over the rows into live stages
    reference  the live reference's, over the rows into the first stage that
               needs it, and, if the loss needs it, over the trained rows,
               unless a stage has embedded all of them
    select     rows into a stage x rows that pass it, in both directions
    forward    the learner's forward pass over the sub-batch
    loss       the logits of the sub-batch (twice for softmax on replicas), the
               reference's if it marks false negatives, distillation's
               projections, and the logits of both models whose similarities are
               distilled
    backward   2 x `forward` without frozen towers; `forward` again with
               micro-batches; 2 to 4 x the logits, 0 to 2 x the reference's,
               2 x the projections

The products of augmentation and the optimizer are negligible and left out.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.embeddings import ON_TENSORFLOW
from jest_tf.training import step as step_lib
from jest_tf.training import sub_batch

if ON_TENSORFLOW:
    from jest_tf.training import products
else:
    from jest_tf.training import products_jax as products

PARTS = ("score", "reference", "select", "forward", "loss", "backward")


def count_step(
    step: step_lib.Step,
    super_batch: Mapping[str, tf.TensorSpec],
    num_replicas: int = 1,
) -> dict[str, int]:
    """Counts the FLOPs of a step on all R replicas together, see `columns`.

    `super_batch` has the specs `[B/R, ...]` of the rows on one replica.
    """
    rows = dict(super_batch)
    curated = rows.pop(sub_batch.CURATED, None)
    held = rows["image"].shape[0]
    extra = 0 if curated is None else curated["image"].shape[0]
    sizes = [held * num_replicas]
    if step.stages:
        settings = step.segment.selection
        sizes = settings.sizes(extra * num_replicas)[len(settings.stored) :]
    trained = sizes[-1] // num_replicas + extra

    @functools.cache
    def forward(model, size, view=None):
        options = {} if model is step.reference else {"training": False}
        options |= {"view": view} if view else {}
        specs = {
            name: tf.TensorSpec([size, *spec.shape[1:]], spec.dtype)
            for name, spec in rows.items()
        }
        return count(lambda batch: model(batch, **options), specs)

    def passes(model, rows, size, view=None):
        size = size or rows
        flops, width = forward(model, size, view)
        return num_replicas * (rows // size) * flops, width

    counts, reused = dict.fromkeys(PARTS, 0), 0
    for (number, stage), size in zip(step.stages, sizes, strict=False):
        pool, width = size // num_replicas, 0
        micro_batch = stage.scoring_batch_size
        needs = step.scoring_models(number)
        if "learner" in needs:
            view = step_lib.view_options(stage.view).get("view")
            flops, dim = passes(step.learner, pool, micro_batch, view)
            counts["score"] += flops
            width += dim
        if "reference" in needs:
            passed, dim = passes(step.reference, pool, micro_batch)
            counts["reference"] = counts["reference"] or passed
            width += dim
        if needs:
            counts["select"] += selection.draw_flops(
                size, size // stage.candidates, width
            )
        if number == step.stages[-1][0] and "learner" in needs:
            tower = getattr(step.learner, "image_tower", None)
            same = num_reused(
                sizes[-1],
                stage.view,
                step.options.views,
                getattr(tower, "patch_size", None),
            )
            reused = flops * same // size
    size, views = step.options.micro_batch_size, step.options.views
    if step.options.loss_needs_reference and "reference_image" not in rows:
        if curated is not None or not counts["reference"]:
            counts["reference"] += passes(step.reference, trained, size)[0]
    counts["forward"], width = passes(step.learner, trained, size, views)
    logits = 2 * (num_replicas * trained) ** 2 * width
    # A gradient in blocks forms the logits again, on replicas for either side.
    again = 2 if num_replicas > 1 else int(bool(step.options.loss_block_size))
    sides = 2 if num_replicas > 1 and step.loss == "softmax" else 1
    loss, gradient = sides * logits, (2 + again) * logits
    if step.projection is not None:
        of_a_row = 2 * 2 * width * step.options.projection_dim  # image and text
        loss += num_replicas * trained * of_a_row
        gradient += 2 * num_replicas * trained * of_a_row
    theirs, omitted = 0, step.options.omitted
    if omitted.needs_reference or "similarities" in step.distilled:
        if "reference_image" in rows:
            dim = rows["reference_image"].shape[-1]
        else:
            _, dim = passes(step.reference, trained, size)
        theirs = 2 * (num_replicas * trained) ** 2 * dim
    if omitted.needs_reference:
        loss += sides * theirs
        gradient += again * theirs
    if "similarities" in step.distilled:
        # Always in blocks: the normalisers of either side, then the targets.
        again = max(again, 1)
        loss += 2 * logits + 3 * theirs
        gradient += (2 + again) * logits + again * theirs
    counts["loss"] = loss
    frozen = sum(
        passes(encode, trained, size, views)[0]
        for encode in _frozen(step.learner)
    )
    counts["backward"] = 2 * (counts["forward"] - frozen) + gradient
    if size not in (None, trained):
        counts["backward"] += counts["forward"]
    return columns(counts, reused)


def columns(counts: Mapping[str, int], reused: int) -> dict[str, int]:
    """Returns the FLOPs of a step's parts, and three totals.

    `step` is the sum of the parts: what a step here computes. The other totals
    follow the paper. F is the forward pass over the trained rows, S that over
    the scored rows, and T the live reference's pass, 0 if cached. Table 1
    reuses the forward passes of the selected rows:

        no_reuse: 3 F + S + T             (the paper's figure 1)
        reuse:    3 F + S - `reused` + T  (its table 1)

    `counts` has the FLOPs of each of `PARTS`. `reused` are the FLOPs of scoring
    the rows that are trained on in the same view.

    Reference: Evans et al. 2024, arXiv 2406.17711, figure 1 and table 1.
    """
    no_reuse = 3 * counts["forward"] + counts["score"] + counts["reference"]
    return {
        **{name: counts[name] for name in PARTS},
        "step": sum(counts[name] for name in PARTS),
        "no_reuse": no_reuse,
        "reuse": no_reuse - reused,
    }


def num_reused(
    size: int,
    scored_in: config_lib.View,
    trained_in: Sequence[config_lib.View],
    patch_size: int | None,
) -> int:
    """Counts rows, of `size` chosen, that are scored and trained in one view.

    `patch_size` is the tower's default; `trained_in=()` is the default view.
    """
    *trained, scored = (
        dataclasses.replace(view, patch_size=view.patch_size or patch_size)
        for view in (*(trained_in or [config_lib.View()]), scored_in)
    )
    return size * trained.count(scored) // len(trained)


def count(function: Callable, *specs) -> tuple[int, int]:
    """Returns the FLOPs of a function call, and the result's last dimension.

    Args:
        function: maps tensors to tensors; it is traced.
        specs: its arguments, nests of `tf.TensorSpec` of static shape.

    Example:
        >>> count(tf.matmul, tf.TensorSpec([4, 5]), tf.TensorSpec([5, 6]))
        (240, 6)
    """
    multiplications, dim = products.count(function, specs)
    return 2 * multiplications, dim


def _frozen(learner):
    """Yields the forward pass of each tower that has nothing to train."""

    def encode_image(batch, **options):
        return learner.encode_image(batch["image"], **options)

    def encode_text(batch, training, view=None):
        return learner.encode_text(batch["text"], training)

    for name, encode in (
        ("image_tower", encode_image),
        ("text_tower", encode_text),
    ):
        tower = getattr(learner, name, None)
        if tower is not None and not tower.trainable_variables:
            yield encode
