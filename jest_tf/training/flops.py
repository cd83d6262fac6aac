"""Counts the FLOPs of a training step, from traced forward passes of models.

Only matrix products and convolutions count; a multiply-add is two FLOPs. A
forward pass is counted in a model's traced graph, at the size of a micro-batch;
everything else follows by rule:

    score      the learner's forward pass over the rows into live stages
    reference  the live reference's, over the rows into the first stage that
               needs it, or over the distilled rows
    select     rows into a stage x rows that pass it, in both directions
    forward    the learner's forward pass over the sub-batch
    loss       the logits of the sub-batch, distillation's projections, and
               the logits of both models whose similarities are distilled
    backward   2 x `forward` without frozen towers; `forward` again with
               micro-batches; 2 or 3 x the logits, 2 x the projections

The products of augmentation and the optimizer are negligible and left out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.training import step as step_lib
from jest_tf.training import sub_batch

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
    if step.distilled and "reference_image" not in rows:
        if curated is not None or not counts["reference"]:
            counts["reference"] += passes(step.reference, trained, size)[0]
    counts["forward"], width = passes(step.learner, trained, size, views)
    logits = 2 * (num_replicas * trained) ** 2 * width
    # In blocks or on replicas the gradient recomputes the logits.
    is_whole = num_replicas == 1 and not step.options.loss_block_size
    loss, gradient = logits, (2 if is_whole else 3) * logits
    if step.projection is not None:
        of_a_row = 2 * 2 * width * step.options.projection_dim  # image and text
        loss += num_replicas * trained * of_a_row
        gradient += 2 * num_replicas * trained * of_a_row
    if "similarities" in step.distilled:
        if "reference_image" in rows:
            dim = rows["reference_image"].shape[-1]
        else:
            _, dim = passes(step.reference, trained, size)
        theirs = 2 * (num_replicas * trained) ** 2 * dim
        # Once a direction, the reference's twice.
        loss += 2 * logits + 4 * theirs
        gradient += 3 * logits + 2 * theirs
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
    traced = tf.function(function, autograph=False)
    traced = traced.get_concrete_function(*specs)
    first = tf.nest.flatten(traced.structured_outputs)[0]
    return 2 * _multiplications(traced.graph), first.shape[-1]


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


def _multiplications(graph):
    total = 0
    for op in graph.get_operations():
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            # TensorFlow has no public access to the graph of a call.
            callee = graph._get_function(op.get_attr("f").name).graph
            total += _multiplications(callee)
        elif op.type in ("While", "StatelessWhile"):
            body = graph._get_function(op.get_attr("body").name).graph
            total += _iterations(op) * _multiplications(body)
        elif op.type in _PRODUCTS:
            number = _PRODUCTS[op.type](op)
            if number is None:
                raise ValueError(
                    "FLOPs are counted from shapes that are known when the "
                    f"function is traced. Received: {op.type} {op.name!r} of "
                    f"{', '.join(str(operand.shape) for operand in op.inputs)}"
                )
            total += number
        elif _REFUSED.fullmatch(op.type):
            raise ValueError(
                "FLOPs are counted in graphs without branches, of these "
                f"products: {', '.join(sorted(_PRODUCTS))}. "
                f"Received: {op.type} {op.name!r}"
            )
    return total


def _iterations(op):
    """Returns the constant `maximum_iterations` of a `tf.while_loop`.

    The loop's second input has it, or else is -1. A loop may end earlier, but
    the loops of models do not.
    """
    number = tf.get_static_value(op.inputs[1])
    if number is None or number.shape or number < 0:
        raise ValueError(
            "FLOPs are counted in loops with a constant `maximum_iterations`. "
            f"Received: {op.type} {op.name!r}"
        )
    return int(number)


def _product(*shapes):
    if any(shape.rank is None for shape in shapes):
        return None
    sizes = [size for shape in shapes for size in shape]
    return None if None in sizes else math.prod(sizes)


def _matmul(op):
    """Counts a product: each output value is a sum over the inner axis."""
    shape = op.inputs[0].shape
    if shape.rank is None:
        return None
    is_transposed = op.get_attr(
        "transpose_a" if op.type == "MatMul" else "adj_x"
    )
    axis = shape.rank - (2 if is_transposed else 1)
    return _product(op.outputs[0].shape, shape[axis : axis + 1])


def _einsum(op):
    """Counts one loop over all axes; a single input has no multiplication."""
    if len(op.inputs) == 1:
        return 0
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        shape = tensor.shape
        if not shape.is_fully_defined():
            return None
        before, dots, after = term.partition("...")
        between = shape.rank - len(before) - len(after) if dots else 0
        # Broadcast axes are right-aligned.
        labels = [*before, *range(-between, 0), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _convolution(op):
    """Counts a convolution: each output value uses all of its filter.

    Filters are `[..., inputs of a group, outputs]`; depthwise filters have a
    single input channel.
    """
    shape = op.inputs[1].shape
    if shape.rank is None:
        return None
    is_depthwise = op.type.startswith("Depthwise")
    return _product(op.outputs[0].shape, shape[: -2 if is_depthwise else -1])


# Multiplications by type of operation; None if a shape is unknown.
_PRODUCTS = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
}
_REFUSED = re.compile(
    r"(Stateless)?(If|Case)|\w*MatMul\w*|Conv\w*|Quantized\w*|Xla\w*|"
    r"Cudnn\w*|\w*FFT\w*|Cholesky\w*|Svd|Qr|SelfAdjointEig\w*|"
    r"Matrix(Inverse|Solve\w*|TriangularSolve|Determinant)|BlockLSTM\w*"
)
