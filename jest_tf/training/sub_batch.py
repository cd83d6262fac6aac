"""The sub-batch of a training step: the chosen rows, ready to train on.

Arguments and shapes are those of `step.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config, embeddings, selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings, Tensor

# Salts make the noise of views, augmentation and draws independent.
_VIEWS_SALT = 0x0715
_AUGMENT_SALT = 0x0A06

# Keys of the counters and of the reference, which are dropped before training.
_COUNTED = ("caption_replaced", "record_replaced")
FOR_REFERENCE = ("image_for_reference", "text_for_reference")
FROM_REFERENCE = ("reference_image", "reference_text")
# The number of images whose range is checked.
_LOOKED_AT = 1024
# The key of the curated rows.
CURATED = "curated"


def extract_super_batch(
    data, num_replicas: int, may_vary: bool = False
) -> dict[str, Tensor]:
    """Extracts the super-batch from Keras' step data."""
    batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(batch, dict) or not {"image", "text"} <= set(batch):
        raise ValueError(
            'A batch must be a dict with "image" and "text". Received: '
            f"{sorted(batch) if isinstance(batch, dict) else type(data)}; "
            "rename its keys with `dataset.map`"
        )
    shapes = {
        name: tuple(batch[name].shape)
        for name in ("image", "text", "id", "caption_id")
        if name in batch
    }
    rows = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(rows - {None}) > 1:
        shown = (f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            "The entries of a batch must have its B rows each: batch the "
            "dataset, `.batch(B, drop_remainder=True)`. Received: "
            f"{', '.join(shown)}"
        )
    if batch["image"].shape[0] is None and not may_vary:
        # TensorFlow also makes a replica's size unknown if R does not divide B.
        raise ValueError(
            "The size of a super-batch (B) must be static and a multiple of "
            "the number of replicas (R): batch with `drop_remainder=True`; "
            "with several workers, also `repeat()` the dataset. "
            f"Received: images {batch['image'].shape}, R={num_replicas}"
        )
    return batch


def first_images(data) -> np.ndarray | None:
    """Returns the first images of the data of `fit` if floats, else None.

    A data set with other images is not read, because its spec has the dtype.
    """
    spec = _extract_batch(getattr(data, "element_spec", data))
    parts = tf.nest.flatten(spec.get("image"), expand_composites=True)
    if not parts or not hasattr(parts[0], "dtype"):
        return None
    if not tf.as_dtype(parts[0].dtype).is_floating:
        return None
    if spec is not data:
        data = next(iter(data), {})
    images = _extract_batch(data).get("image")
    # A distributed batch has images for each replica; take the first's.
    images = getattr(images, "values", (images,))[0]
    return np.asarray(images)[:_LOOKED_AT]


def _extract_batch(data):
    batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    return batch if isinstance(batch, dict) else {}


def check_sizes(
    step, rows: Mapping[str, Tensor], curated: Mapping[str, Tensor] | None
) -> tuple[int, ...]:
    """Counts all replicas' rows into each live stage, and out of the last."""
    count, num_curated = rows["image"].shape[0] * step.num_replicas, 0
    if curated is not None:
        num_curated = curated["image"].shape[0] * step.num_replicas
    segment = step.segment
    if segment is None or not segment.chooses:
        every = config.SelectionConfig(count + num_curated)
        segment = config.Segment(every)
    segment = dataclasses.replace(segment, curated_rows=num_curated)
    settings, sizes = segment.selection, segment.sizes[len(segment.stored) :]
    if count != sizes[0]:
        raise ValueError(
            f"A super-batch must have {sizes[0]:,} rows to choose from: "
            "`selection.batch_size` (b), less the curated rows (c), times the "
            "`candidates` of the live stages. Received: "
            f"{count:,} rows, b={settings.batch_size:,}, c={num_curated:,}, "
            f"candidates={[stage.candidates for stage in settings.live]}"
        )
    check_shares(
        segment,
        step.num_replicas,
        step.options.micro_batch_size,
        len(step.options.views),
    )
    return sizes


def check_shares(
    segment: config.Segment,
    num_replicas: int,
    micro_batch_size: int | None = None,
    num_views: int = 0,
) -> None:
    """Raises ValueError unless all rows of a step can be shared out evenly.

    They are shared out over the replicas, and on each of them over the scoring
    batches of a stage, the training views and the micro-batches.
    """
    sizes = segment.sizes[len(segment.stored) :]
    b = segment.selection.batch_size
    for size in (*sizes, b):
        placement.share(
            size, num_replicas, "The rows into and out of every stage"
        )
    for (number, stage), size in zip(segment.live, sizes, strict=False):
        batch, rows = stage.scoring_batch_size, size // num_replicas
        if number in segment.scoring and rows % (batch or rows):
            raise ValueError(
                f"`selection.stages.{number}.scoring_batch_size` must divide "
                "the rows into its stage on a replica. Received: "
                f"{batch}, {rows} rows, R={num_replicas}"
            )
    rows, views = b // num_replicas, max(num_views, 1)
    if sizes[-1] // num_replicas % views:
        raise ValueError(
            "`views` must cut a replica's share of the chosen rows into equal "
            f"parts. Received: {views} views, {sizes[-1]} rows, "
            f"R={num_replicas}"
        )
    if rows % (micro_batch_size or rows) or (micro_batch_size or 0) % views:
        raise ValueError(
            "`micro_batch_size` must divide a replica's share of the "
            "sub-batch, b/R, and be a multiple of the number of training "
            f"views. Received: {micro_batch_size}, b/R={rows}, "
            f"R={num_replicas}, {views} views"
        )


def with_reference(
    rows: Mapping[str, Tensor], reference: Embeddings | None
) -> Mapping[str, Tensor]:
    """Adds the reference's embeddings to the rows, to save later passes."""
    if reference is None or is_embedded(rows):
        return rows
    return dict(rows) | dict(zip(FROM_REFERENCE, reference[:2], strict=True))


def needed(
    step,
    rows: Mapping[str, Tensor],
    curated: Mapping[str, Tensor] | None,
    is_last: bool,
) -> dict[str, Tensor]:
    """Drops the keys that neither a later stage nor training uses."""
    unused = set(_COUNTED)
    if is_last and not step.options.loss_needs_reference:
        unused.update(FOR_REFERENCE + FROM_REFERENCE)
    elif is_last and curated is not None and not is_embedded(curated):
        unused.update(FROM_REFERENCE)  # all rows are embedded together
    elif is_embedded(rows):
        unused.update(FOR_REFERENCE)
    return {name: value for name, value in rows.items() if name not in unused}


def gather(
    step,
    batch: Mapping[str, Tensor],
    indices: Tensor | None,
    views: Sequence = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """Brings the rows that pass a stage to their replicas.

    With P training views, the sub-batch is split randomly into P equal parts,
    and every micro-batch has equally many rows of each part. Without `indices`
    every row passes.

    Returns:
        Tensors `[m/R, ...]`, and int32 `[m/R]`, the rows' places in the draw.
    """
    rows = batch["image"].shape[0]
    if indices is None and not views:
        return dict(batch), placement.number_rows(rows, step.replicas)

    num_rows = rows * step.num_replicas
    if indices is None:
        indices = ops.arange(num_rows, dtype="int32")
    order = None
    if views:
        size = indices.shape[0]
        size //= config.QUOTAS[step.quota].parts(step.num_replicas)
        order = selection.uniform_rows(
            selection.salted(step.seed, _VIEWS_SALT), size, size
        )
    parts = placement.deal_parts(
        indices,
        num_rows,
        order,
        len(views),
        quota=step.quota,
        replicas=step.replicas,
    )
    moved = [placement.move(batch, part, step.replicas) for part in parts]
    batch = {
        name: ops.concatenate([part[name] for part in moved], 0)
        for name in batch
    }
    places = ops.concatenate([part.places for part in parts], 0)
    micro_batch_size = step.options.micro_batch_size
    if not views or micro_batch_size is None:
        return batch, places
    mixed = _interleaved(places.shape[0], len(views), micro_batch_size)
    batch = {
        name: embeddings.take(value, mixed) for name, value in batch.items()
    }
    return batch, embeddings.take(places, mixed)


def add_curated(
    step,
    batch: dict[str, Tensor],
    places: Tensor,
    curated: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Appends the curated rows to the chosen rows; returns as `gather` does."""
    if curated is None:
        return batch, places
    if missing := sorted(batch.keys() - curated.keys()):
        raise ValueError(
            f"The {CURATED!r} rows of a batch must have the keys of the "
            f"others. Received: none of {missing}"
        )
    rows = curated["image"].shape[0]
    own = placement.number_rows(rows, step.replicas)
    chosen = places.shape[0] * step.num_replicas
    batch = {
        name: ops.concatenate([value, curated[name]], 0)
        for name, value in batch.items()
    }
    return batch, ops.concatenate([places, chosen + own], 0)


def augment(
    step, batch: dict[str, Tensor], places: Tensor
) -> dict[str, Tensor]:
    """Augments the images of the sub-batch, if the step has `augment`."""
    if step.options.augment is None:
        return batch
    images = step.options.augment(
        batch["image"],
        selection.salted(step.seed, _AUGMENT_SALT),
        places,
        places.shape[0] * step.num_replicas,
    )
    return batch | {"image": images}


def is_embedded(batch: Mapping[str, Tensor]) -> bool:
    """Returns whether a batch has the reference's embeddings."""
    return set(FROM_REFERENCE) <= set(batch)


def _interleaved(size, num_views, micro_batch_size):
    """Returns an order that mixes rows, sorted by view, evenly."""
    # int32, as TPUs have no 64-bit integers.
    rows = np.arange(size, dtype=np.int32).reshape([num_views, -1])
    rows = rows.reshape([num_views, -1, micro_batch_size // num_views])
    return rows.transpose([1, 0, 2]).reshape(-1)
