"""From a super-batch to the sub-batch: score, choose, and deal the rows out.

The parts of a step that `training.JESTModel` is made of, as functions of the
rows that a replica holds. The collectives are handed in, as to `exchange.py`;
None is one replica.

Not here: the scores and the samplers (selection.py), who holds which rows
(exchange.py), what a step does with its sub-batch (training.py).
"""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings
from jest_tf.training import flops, micro_batches

# Keeps the noise of which row gets which view apart from that of the draw.
_VIEWS_SALT = 0x0715

# What of a super-batch is for its scores and counts; a step leaves it behind.
_NOT_TRAINED_ON = ("caption_replaced", "record_replaced")
_FOR_REFERENCE = ("image_for_reference", "text_for_reference")
_OF_REFERENCE = ("reference_image", "reference_text")


def super_batch_of(data, num_replicas: int) -> dict[str, tf.Tensor]:
    """The super-batch of what `fit` hands to a step.

    Args:
        data: as Keras hands it over.
        num_replicas: R.

    Raises:
        ValueError: if it is none, or several replicas can't share it.
    """
    batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(batch, dict) or not {"image", "text"} <= set(batch):
        raise ValueError(
            'A batch must be a dict with "image" and "text". Received: '
            f"{sorted(batch) if isinstance(batch, dict) else type(batch)}"
        )
    if num_replicas > 1 and batch["image"].shape[0] is None:
        raise ValueError(
            "Several replicas take batches of static size, equal shares of "
            "it each: a multiple of R rows with `drop_remainder=True`, and "
            "with several workers from an endless dataset. "
            f"Received: {batch['image'].shape}, R={num_replicas}"
        )
    return batch


def candidates(
    super_batch: dict, settings: config_lib.SelectionConfig, replicas=None
) -> tuple[dict, int]:
    """What of a super-batch is scored and drawn from: every n-th row.

    They are the same on any number of replicas.

    Args:
        super_batch: tensors of B/R rows, those held here.
        settings: to choose by, without a schedule.
        replicas: the collectives, or None.

    Returns:
        The candidates among the rows held here, and n.

    Raises:
        ValueError: on sizes that do not fit to each other or to R.
    """
    rows = super_batch["image"].shape[0]
    num_replicas = placement.count(replicas)
    size, stride = rows * num_replicas, 1
    if settings.candidates:
        stride, rest = divmod(size, settings.candidates)
        if rest or rows % stride:
            raise ValueError(
                "`selection.candidates` must divide the super-batch (B), and R "
                f"the candidates. Received: {settings.candidates}, B={size}, "
                f"R={num_replicas}"
            )
        super_batch = {
            name: value[::stride] for name, value in super_batch.items()
        }
    # What was said of B has been seen to.
    plain = dataclasses.replace(settings, candidates=None)
    plain.check_super_batch(size // stride)
    placement.share(
        settings.batch_size, num_replicas, "`selection.batch_size` (b)"
    )
    return super_batch, stride


def score(
    super_batch: dict,
    settings: config_lib.SelectionConfig,
    *,
    learner: keras.Model,
    reference: Callable | None,
    replicas=None,
) -> tuple[Embeddings | None, Embeddings | None]:
    """The embeddings that rows are scored by, in micro-batches.

    Args:
        super_batch: tensors of the rows held here, all of which are scored.
        settings: to choose by, one that scores; `view` is how the learner
            looks.
        learner: maps a batch to `Embeddings`; run in evaluation mode.
        reference: likewise, of any make; None will do for a criterion without.
        replicas: the collectives, or None.

    Returns:
        The learner's and the reference's; None for one that the criterion does
        without.

    Raises:
        ValueError: on a `scoring_batch_size` that does not divide the rows, or
            a reference that is missing.
    """
    rows = super_batch["image"].shape[0]
    size = settings.scoring_batch_size
    if rows % (size or rows):
        raise ValueError(
            "`selection.scoring_batch_size` must divide the rows that a "
            "replica scores, B/R, or its share of the candidates. "
            f"Received: {size}, B/R={rows}, R={placement.count(replicas)}"
        )
    if settings.needs_reference and reference is None:
        raise ValueError(
            f"`selection.criterion={settings.criterion!r}` needs a "
            "reference: pass `reference` to JESTModel, or call "
            "`attach_reference` after loading. Received: reference=None"
        )
    # A learner that knows no views is given none.
    is_own = settings.view == config_lib.View()
    options = {} if is_own else {"view": settings.view}
    # What the criterion doesn't need isn't paid for.
    of_learner, of_reference = None, None
    if settings.needs_learner:
        with flops.stage("score"):
            of_learner = micro_batches.embed(
                lambda part: learner(part, training=False, **options),
                super_batch,
                size,
            )
    if settings.needs_reference:
        with flops.stage("reference"):
            of_reference = micro_batches.embed(reference, super_batch, size)
    return of_learner, of_reference


def choose(
    embeddings: tuple[Embeddings | None, Embeddings | None],
    seed: tf.Tensor,
    settings: config_lib.SelectionConfig,
    *,
    loss: str,
    replicas=None,
) -> selection.Draw:
    """The draw that settings ask for.

    Args:
        embeddings: of `score`.
        seed: int32 `[2]`, (run seed, step).
        settings: to choose by, one that scores.
        loss: of the pairs, where the settings name none.
        replicas: the collectives, or None.
    """
    with flops.stage("select"):
        return selection.SAMPLERS[settings.method](
            *embeddings,
            batch_size=settings.batch_size,
            num_chunks=settings.num_chunks,
            seed=seed,
            criterion=settings.criterion,
            loss=settings.loss or loss,
            first_chunk=settings.first_chunk,
            gain=settings.gain,
            quota=settings.quota,
            replicas=replicas,
        )


def choose_uniformly(
    num_rows: int,
    seed: tf.Tensor,
    settings: config_lib.SelectionConfig,
    replicas=None,
) -> tf.Tensor:
    """A uniform draw, of which nothing is told: int32 `[b]`, rows of all.

    Args:
        num_rows: candidates held here.
        seed: int32 `[2]`, (run seed, step).
        settings: to choose by.
        replicas: the collectives, or None.
    """
    num_replicas = placement.count(replicas)
    return selection.uniform_rows(
        seed,
        settings.batch_size,
        num_rows * num_replicas,
        num_quotas=num_replicas if settings.quota == "per_replica" else 1,
    )


def take(
    super_batch: Mapping[str, tf.Tensor],
    indices: tf.Tensor | None,
    seed: tf.Tensor,
    *,
    quota: str = "global",
    num_views: int = 0,
    micro_batch_size: int | None = None,
    distils: bool = False,
    replicas=None,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """The rows to train on here, without what is for scores and counts alone.

    Args:
        super_batch: tensors of the rows held here.
        indices: int32 `[b]`, the draw, equal on every replica; None takes all
            rows, each where it is but for `num_views`.
        seed: int32 `[2]`, (run seed, step).
        quota: what the rows were drawn with.
        num_views: P, equal parts that chance cuts the sub-batch into, for as
            many views; 0 leaves it in one.
        micro_batch_size: rows that are trained on at a time, of each part as
            many; None takes all at once.
        distils: whether what `targets` needs comes along.
        replicas: the collectives, or None.

    Returns:
        Tensors of b/R rows, part by part within a micro-batch, and int32
        `[b/R]`, their places in the sub-batch.

    Raises:
        ValueError: where the parts, the micro-batches or the replicas' shares
            can't be equal.
    """
    rows = super_batch["image"].shape[0]
    left = set(_NOT_TRAINED_ON)
    if not distils:
        left.update(_FOR_REFERENCE + _OF_REFERENCE)
    elif set(_OF_REFERENCE) <= set(super_batch):
        left.update(_FOR_REFERENCE)
    batch = {
        name: value for name, value in super_batch.items() if name not in left
    }
    super_batch_size = rows * placement.count(replicas)
    if indices is None:
        if not num_views:
            number = 0 if replicas is None else replicas.replica_id
            return batch, rows * number + tf.range(rows)
        indices = tf.range(super_batch_size)
    options = {"quota": quota, "replicas": replicas}
    if not num_views:
        dealt = placement.deal(indices, super_batch_size, **options)
        return placement.move(batch, dealt, replicas), dealt.places
    size = indices.shape[0]
    if quota == "per_replica":
        size //= placement.count(replicas)
    order = selection.uniform_rows(
        tf.bitwise.bitwise_xor(seed, [_VIEWS_SALT, 0]), size, size
    )
    parts = placement.deal_parts(
        indices, super_batch_size, order, num_views, **options
    )
    moved = [placement.move(batch, part, replicas) for part in parts]
    together = {
        name: tf.concat([part[name] for part in moved], 0) for name in batch
    }
    places = tf.concat([part.places for part in parts], 0)
    if micro_batch_size is None:
        return together, places
    mixed = _mixed(places.shape[0], num_views, micro_batch_size)
    return (
        {name: tf.gather(value, mixed) for name, value in together.items()},
        tf.gather(places, mixed),
    )


def with_embeddings(super_batch: dict, of_reference: Embeddings | None) -> dict:
    """A super-batch with what the reference has said of it, for `targets`.

    Args:
        super_batch: tensors of the rows held here.
        of_reference: of `score`; None where it was not asked.
    """
    if of_reference is None or set(_OF_REFERENCE) <= set(super_batch):
        return super_batch
    found = zip(_OF_REFERENCE, of_reference[:2], strict=True)
    return super_batch | dict(found)


def targets(
    batch: dict, reference: Callable | None, size: int | None = None
) -> tuple[dict, Embeddings]:
    """What the reference makes of the rows to train on.

    Args:
        batch: of `take`, with `distils`.
        reference: as of `score`, run on rows whose embeddings did not come
            along.
        size: rows a forward pass of it, None all.

    Returns:
        The batch without what is the reference's, and the embeddings.

    Raises:
        ValueError: if there is no reference.
    """
    if reference is None:
        raise ValueError(
            "`distillation_weight` needs a reference: pass `reference` to "
            "JESTModel, or call `attach_reference` after loading. Received: "
            "reference=None"
        )
    if set(_OF_REFERENCE) <= set(batch):
        nothing = tf.constant(0.0)
        found = Embeddings(
            *(batch[name] for name in _OF_REFERENCE), nothing, nothing
        )
    else:
        with flops.stage("reference"):
            found = micro_batches.embed(reference, batch, size)
    rest = {
        name: value
        for name, value in batch.items()
        if name not in _FOR_REFERENCE + _OF_REFERENCE
    }
    return rest, found


def _mixed(size, num_views, micro_batch_size):
    """An order of rows part by part, in which micro-batches have all parts."""
    # TPUs have no numbers of 64 bits.
    rows = np.arange(size, dtype=np.int32).reshape([num_views, -1])
    per_view, rest = divmod(micro_batch_size, num_views)
    if rest or rows.shape[1] % max(1, per_view):
        raise ValueError(
            "`micro_batch_size` must be a multiple of the number of "
            "`views`, and divide a replica's share of the sub-batch, b/R. "
            f"Received: {micro_batch_size}, {num_views} views, b/R={size}"
        )
    rows = rows.reshape([num_views, -1, per_view])
    return rows.transpose([1, 0, 2]).reshape(-1)
