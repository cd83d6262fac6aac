"""The sub-batch of a training step: the chosen rows, ready to train on.

Arguments and shapes are those of `step.py`.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from jest_tf import selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings
from jest_tf.training import micro_batches

# Salts make the noise of views, augmentation and draws independent.
_VIEWS_SALT = 0x0715
_AUGMENT_SALT = 0x0A06

# Keys used only for counters, and by the reference; dropped before training.
_COUNTED = ("caption_replaced", "record_replaced")
_FOR_REFERENCE = ("image_for_reference", "text_for_reference")
_FROM_REFERENCE = ("reference_image", "reference_text")


def super_batch_of(
    data, num_replicas: int, may_vary: bool = False
) -> dict[str, tf.Tensor]:
    """Extracts the super-batch from Keras' step data.

    Raises:
        ValueError: if it is not a super-batch, or of a size that is known only
            when the step runs, unless it `may_vary`.
    """
    batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(batch, dict) or not {"image", "text"} <= set(batch):
        raise ValueError(
            'A batch must be a dict with "image" and "text". Received: '
            f"{sorted(batch) if isinstance(batch, dict) else type(data)}; "
            "`dataset.map` can rename what it holds"
        )
    shapes = {
        name: tf.TensorShape(batch[name].shape)
        for name in ("image", "text", "id", "caption_id")
        if name in batch
    }
    rows = {shape[0] if shape.rank else 0 for shape in shapes.values()}
    if len(rows - {None}) > 1:
        shown = (f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            "The entries of a batch must have its B rows each: batch the "
            "dataset, `.batch(B, drop_remainder=True)`. Received: "
            f"{', '.join(shown)}"
        )
    if batch["image"].shape[0] is None and not may_vary:
        # TensorFlow also cuts into unknown sizes what R does not divide.
        raise ValueError(
            "The size of a super-batch (B) must be static and a multiple of "
            "the number of replicas (R): batch with `drop_remainder=True`, "
            "and take an endless dataset with several workers. "
            f"Received: images {batch['image'].shape}, R={num_replicas}"
        )
    return batch


def with_reference(
    step, pool: Mapping[str, tf.Tensor], reference: Embeddings | None
) -> Mapping[str, tf.Tensor]:
    """Attaches the reference's embeddings for distillation, to save a pass."""
    if not step.distils or reference is None or _is_embedded(pool):
        return pool
    if step.curated_rows:
        return pool  # they were not scored
    return dict(pool) | dict(zip(_FROM_REFERENCE, reference[:2], strict=True))


def gather(
    step,
    pool: Mapping[str, tf.Tensor],
    indices: tf.Tensor | None,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Brings the sub-batch, `indices` of the `pool`, to its replicas.

    With P training views, the sub-batch is split randomly into P equal parts,
    and every micro-batch holds equally many rows of each. Without `indices`
    every row is taken.

    Returns:
        Tensors `[b/R, ...]` without the keys that training does not use, and
        int32 `[b/R]`, the rows' places in the sub-batch.

    Raises:
        ValueError: if parts, micro-batches or shares can't be equal.
    """
    rows = pool["image"].shape[0]
    unused = set(_COUNTED)
    if not step.distils:
        unused.update(_FOR_REFERENCE + _FROM_REFERENCE)
    elif _is_embedded(pool):
        unused.update(_FOR_REFERENCE)
    batch = {name: value for name, value in pool.items() if name not in unused}
    if indices is None and not step.views:
        return batch, placement.rows_of_all(rows, step.replicas)

    num_rows = rows * step.num_replicas
    if indices is None:
        indices = tf.range(num_rows)
    order = None
    if step.views:
        size = indices.shape[0]
        if step.quota == "per_replica":
            size //= step.num_replicas
        order = selection.uniform_rows(_salted(step, _VIEWS_SALT), size, size)
    parts = placement.deal_parts(
        indices,
        num_rows,
        order,
        len(step.views),
        quota=step.quota,
        replicas=step.replicas,
    )
    moved = [placement.move(batch, part, step.replicas) for part in parts]
    batch = {name: tf.concat([one[name] for one in moved], 0) for name in batch}
    places = tf.concat([part.places for part in parts], 0)
    if not step.views or step.micro_batch_size is None:
        return batch, places
    mixed = _interleaved(
        places.shape[0], len(step.views), step.micro_batch_size
    )
    batch = {name: tf.gather(value, mixed) for name, value in batch.items()}
    return batch, tf.gather(places, mixed)


def without_curated(
    step, super_batch: Mapping[str, tf.Tensor]
) -> tuple[dict[str, tf.Tensor], Callable]:
    """Leaves out the curated rows; returns as `step.candidates`.

    Raises:
        ValueError: if R does not divide c.
    """
    every = _every(step, super_batch)

    def others(value):
        kept = tf.reshape(value, [-1, every, *value.shape[1:]])[:, :-1]
        return tf.reshape(kept, [-1, *value.shape[1:]])

    pool = {name: others(value) for name, value in super_batch.items()}
    return pool, lambda number: number + number // (every - 1)


def add_curated(
    step,
    super_batch: Mapping[str, tf.Tensor],
    batch: dict[str, tf.Tensor],
    places: tf.Tensor,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Appends the curated rows to the chosen ones; returns as `gather`."""
    if not step.curated_rows or step.selection.batch_size is None:
        return batch, places
    every = _every(step, super_batch)
    batch = {
        name: tf.concat([value, super_batch[name][every - 1 :: every]], 0)
        for name, value in batch.items()
    }
    own = placement.rows_of_all(
        step.curated_rows // step.num_replicas, step.replicas
    )
    chosen = step.selection.batch_size - step.curated_rows
    return batch, tf.concat([places, chosen + own], 0)


def drawn_rows(
    step,
    super_batch: Mapping[str, tf.Tensor],
    indices: tf.Tensor | None,
    row_of: Callable,
) -> tf.Tensor | None:
    """Rows of the super-batch that are in the sub-batch, int32 `[b]`.

    `indices` are the chosen candidates; None without a selection.
    """
    if indices is None or not step.curated_rows:
        return indices if indices is None else row_of(indices)
    every = _every(step, super_batch)
    curated = tf.range(step.curated_rows) * every + every - 1
    return tf.concat([row_of(indices), curated], 0)


def distillation_targets(
    step, batch: dict[str, tf.Tensor]
) -> tuple[dict[str, tf.Tensor], Embeddings | None]:
    """Separates the reference's embeddings from the batch, or computes them.

    Returns:
        The batch without the reference's keys, and the embeddings `[b/R, Dr]`;
        None without distillation.

    Raises:
        ValueError: if distillation has no reference.
    """
    if not step.distils:
        return batch, None
    step.check_reference("distillation_weight")
    if _is_embedded(batch):
        image, text = (batch[name] for name in _FROM_REFERENCE)
        targets = Embeddings(image, text, tf.constant(0.0), tf.constant(0.0))
    else:
        targets = micro_batches.embed(
            step.reference, batch, step.micro_batch_size
        )
    rest = {
        name: value
        for name, value in batch.items()
        if name not in _FOR_REFERENCE + _FROM_REFERENCE
    }
    return rest, targets


def augment(
    step, batch: dict[str, tf.Tensor], places: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Augments the images of the sub-batch, if the step does."""
    if step.augment is None:
        return batch
    batch_size = places.shape[0] * step.num_replicas
    images = step.augment(
        batch["image"], _salted(step, _AUGMENT_SALT), places, batch_size
    )
    return batch | {"image": images}


def _every(step, super_batch):
    """B/c: every so many rows one is curated, on each replica."""
    share = placement.share(
        step.curated_rows, step.num_replicas, "`data.curated_rows` (c)"
    )
    return super_batch["image"].shape[0] // share


def _is_embedded(batch):
    return set(_FROM_REFERENCE) <= set(batch)


def _salted(step, salt):
    return tf.bitwise.bitwise_xor(step.seed, [salt, 0])


def _interleaved(size, num_views, micro_batch_size):
    """Reorders places of rows sorted by part, to mix the parts evenly."""
    # int32, as TPUs have no 64-bit integers.
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
