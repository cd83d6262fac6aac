"""FLOPs of a training step, from one traced forward pass of each model.

Only matrix products and convolutions count; a multiply-add is two FLOPs. A
forward pass is counted in a model's traced graph, at the size of a micro-batch;
everything else follows by rule:

    score      the learner's forward pass over the candidates
    reference  the live reference's, over the candidates or distilled rows
    select     all candidates x all chosen rows, in both directions
    forward    the learner's forward pass over the sub-batch
    loss       the logits of the sub-batch
    backward   2 x `forward` without frozen towers; `forward` again with
               micro-batches; 2 or 3 x `loss` for the gradient of the logits

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

STAGES = ("score", "reference", "select", "forward", "loss", "backward")


def of_step(
    step: step_lib.Step,
    super_batch: Mapping[str, tf.TensorSpec],
    num_replicas: int = 1,
) -> dict[str, int]:
    """FLOPs of a step on all R replicas together, by the names of `columns`.

    `super_batch` has the specs `[B/R, ...]` of the rows on one replica.

    Raises:
        ValueError: as `count`.
    """
    settings, held = step.selection, super_batch["image"].shape[0]
    offered = held * num_replicas - step.curated_rows
    pool = (settings.candidates or offered) // num_replicas
    trained = (settings.batch_size or held * num_replicas) // num_replicas

    @functools.cache
    def forward(model, size, view=None):
        options = {} if model is step.reference else {"training": False}
        options |= {"view": view} if view else {}
        specs = {
            name: tf.TensorSpec([size, *spec.shape[1:]], spec.dtype)
            for name, spec in super_batch.items()
        }
        return count(lambda batch: model(batch, **options), specs)

    def passes(model, rows, size, view=None):
        size = size or rows
        flops, width = forward(model, size, view)
        return num_replicas * (rows // size) * flops, width

    counts, widths = dict.fromkeys(STAGES, 0), []
    if settings.scores:
        size = settings.scoring_batch_size
        if settings.needs_learner:
            view = step_lib.view_options(settings.view).get("view")
            counts["score"], width = passes(step.learner, pool, size, view)
            widths.append(width)
        if settings.needs_reference:
            counts["reference"], width = passes(step.reference, pool, size)
            widths.append(width)
        counts["select"] = _of_draw(
            num_replicas * pool,
            settings.batch_size - step.curated_rows,
            sum(widths),
        )
    is_embedded = "reference_image" in super_batch or counts["reference"]
    if step.distils and not is_embedded:
        size = step.micro_batch_size
        counts["reference"], _ = passes(step.reference, trained, size)
    counts["forward"], width = passes(
        step.learner, trained, step.micro_batch_size, step.views
    )
    counts["loss"] = 2 * (num_replicas * trained) ** 2 * width
    # In blocks or on replicas the gradient recomputes the logits.
    is_whole = num_replicas == 1 and not step.loss_block_size
    frozen = sum(
        passes(encode, trained, step.micro_batch_size, step.views)[0]
        for encode in _frozen(step.learner)
    )
    counts["backward"] = 2 * (counts["forward"] - frozen) + (
        (2 if is_whole else 3) * counts["loss"]
    )
    if step.micro_batch_size not in (None, trained):
        counts["backward"] += counts["forward"]
    reused = 0
    if counts["score"]:
        tower = getattr(step.learner, "image_tower", None)
        patch_size = getattr(tower, "patch_size", None)
        reused = num_reused(settings, step.views, patch_size)
    return columns(counts, scored=num_replicas * pool, reused=reused)


def columns(
    counts: Mapping[str, int], *, scored: int, reused: int
) -> dict[str, int]:
    """The stages of a step, their sum, and the paper's two conventions.

    With F the forward pass over the trained rows, S over the scored rows, and T
    the live reference's, 0 if cached:

        no_reuse: 3 F + S + T
        reuse:    3 F + S (1 - reused / scored) + T

    The paper's figure 1 counts without reuse; its table 1 reuses the forward
    passes of the selected rows. `step` is what a step here computes. `counts`
    has the FLOPs of each of `STAGES`; `reused` of the `scored` rows are trained
    on in the same view.

    Reference: Evans et al. 2024, arXiv 2406.17711, figure 1 and table 1.
    """
    score = counts["score"]
    no_reuse = 3 * counts["forward"] + score + counts["reference"]
    return {
        **{name: counts[name] for name in STAGES},
        "step": sum(counts[name] for name in STAGES),
        "no_reuse": no_reuse,
        "reuse": no_reuse - (score * reused // scored if score else 0),
    }


def num_reused(
    settings: config_lib.SelectionConfig,
    views: Sequence[config_lib.View],
    patch_size: int | None,
) -> int:
    """Number of rows scored and trained on in the same view.

    `patch_size` is the tower's default; empty `views` take the default view.
    """
    *trained_in, scored_in = (
        dataclasses.replace(view, patch_size=view.patch_size or patch_size)
        for view in (*(views or [config_lib.View()]), settings.view)
    )
    num_parts = trained_in.count(scored_in)
    return settings.batch_size * num_parts // len(trained_in)


def count(function: Callable, *specs) -> tuple[int, int]:
    """FLOPs of one call of a function, and the last dimension of its result.

    Args:
        function: maps tensors to tensors; it is traced.
        specs: nests of `tf.TensorSpec` of static shape, its arguments.

    Raises:
        ValueError: on a product of unknown shape, a loop without
            `maximum_iterations`, a branch, or a costly operation that can't be
            counted here.

    Example:
        >>> count(tf.matmul, tf.TensorSpec([4, 5]), tf.TensorSpec([5, 6]))
        (240, 6)
    """
    traced = tf.function(function, autograph=False)
    traced = traced.get_concrete_function(*specs)
    first = tf.nest.flatten(traced.structured_outputs)[0]
    return 2 * _multiplications(traced.graph), first.shape[-1]


def _frozen(learner):
    """The forward passes of towers with nothing to train, of a batch."""

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


def _of_draw(candidates, batch_size, width):
    """FLOPs of a draw and its uniform one; `width` sums all models."""
    uniform = min(batch_size, selection.UNIFORM_ROWS)
    return 4 * width * (candidates * batch_size + uniform**2)


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
                    f"{', '.join(str(one.shape) for one in op.inputs)}"
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
    """The constant `maximum_iterations` of a `tf.while_loop`.

    It is the loop's second input, or -1 there. A loop may end earlier, which
    those of models do not.
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
    """Each output value is a sum over the inner axis."""
    shape = op.inputs[0].shape
    if shape.rank is None:
        return None
    is_transposed = op.get_attr(
        "transpose_a" if op.type == "MatMul" else "adj_x"
    )
    axis = shape.rank - (2 if is_transposed else 1)
    return _product(op.outputs[0].shape, shape[axis : axis + 1])


def _einsum(op):
    """One loop over all axes; a single input needs no multiplication."""
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
    """Each output value uses every weight of its filter.

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
