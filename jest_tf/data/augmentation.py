"""Random crops and flips of images, in the training step.

They run on the device after selection and are a pure function of (seed, step).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import keras
from keras import ops

from jest_tf import embeddings
from jest_tf.config import checks
from jest_tf.embeddings import Tensor
from jest_tf.selection import noise

# Log of a crop's largest aspect relative to the image's, as in Inception's
# training crops (Szegedy et al., 2015).
_MAX_LOG_ASPECT = math.log(4 / 3)

# Makes the noise of the parts of a chain independent.
_SALT = 0x2545F49


@keras.saving.register_keras_serializable(package="jest_tf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(checks.Checked):
    """Flips and crops each image at random; keeps the size.

    A crop's area is uniform in [min_area, 1] of the image's, its aspect
    log-uniform in [3/4, 4/3] of the image's as far as it fits, and its place
    uniform. It is resized bilinearly as `rows @ image @ columns` with two small
    interpolation matrices, which compiles to static matrix products.

    Args:
        flip: mirror half of the images left to right.
        min_area: in (0, 1]; 1 keeps the image whole.
    """

    flip: bool
    min_area: Annotated[float, checks.within("(0, 1]")]

    def __call__(
        self,
        images: Tensor,
        seed: Tensor,
        places: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Augments images.

        Args:
            images: uint8 [b, H, W, 3].
            seed: int32 [2], (run seed, step). Equal seeds give equal views.
            places: int32 [b], indices of these images in a larger batch, to
                give the same views as there; None if they are the whole batch.
            batch_size: size of the larger batch; required with `places`.

        Returns:
            uint8 [b, H, W, 3].
        """
        if not self.flip and self.min_area == 1:
            return images
        height, width = images.shape[1:3]
        if places is None:
            uniform = noise.uniform([5, ops.shape(images)[0]], seed)
        else:
            uniform = noise.uniform([5, batch_size], seed)
            uniform = embeddings.take(uniform, places, axis=1)
        area = self.min_area + (1 - self.min_area) * uniform[0]  # [b]
        limit = ops.minimum(_MAX_LOG_ASPECT, -ops.log(area))
        root_aspect = ops.exp((uniform[1] - 0.5) * limit)
        rows = _sample_points(ops.sqrt(area) / root_aspect, uniform[2], height)
        columns = _sample_points(
            ops.sqrt(area) * root_aspect, uniform[3], width
        )
        if self.flip:
            mirrored = (uniform[4] < 0.5)[:, None]
            columns = ops.where(mirrored, width - 1.0 - columns, columns)
        views = ops.einsum(
            "bij,bjkc,blk->bilc",
            _interpolation(rows, height),
            ops.cast(images, "float32"),
            _interpolation(columns, width),
        )
        return ops.cast(ops.clip(ops.round(views), 0, 255), "uint8")

    def get_config(self):
        """Returns the arguments, for `.keras` files."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds the augmentation from `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="jest_tf")
class Chain:
    """Applies several augmentations in turn, each with independent noise.

    Args:
        parts: callables with the arguments of `Augmentation`.
    """

    def __init__(self, parts: Sequence[Callable]):
        self.parts = list(parts)
        for part in self.parts:
            if not callable(part):
                raise TypeError(
                    "An augmentation must be a callable that takes images, "
                    f"seed, places and batch size. Received: {part!r}"
                )

    def __call__(self, images, seed, places=None, batch_size=None):
        """Augments images; see `Augmentation`."""
        for number, part in enumerate(self.parts):
            salted = ops.bitwise_xor(seed, [number * _SALT, 0])
            images = part(images, salted, places, batch_size)
        return images

    def get_config(self):
        """Returns the arguments, for `.keras` files."""
        return {
            "parts": [*map(keras.saving.serialize_keras_object, self.parts)]
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the chain from `get_config`."""
        return cls(map(keras.saving.deserialize_keras_object, config["parts"]))


def _sample_points(fraction, place, size):
    """Returns a view's pixel coordinates along one side, from 0; [b, size]."""
    centres = ops.arange(size, dtype="float32") + 0.5
    start = place * (1 - fraction) * size
    points = start[:, None] + fraction[:, None] * centres - 0.5
    return ops.clip(points, 0.0, size - 1.0)


def _interpolation(points, size):
    """Returns pixel weights of points on one side; [b, n] -> [b, n, size]."""
    pixels = ops.arange(size, dtype="float32")
    return ops.relu(1 - ops.abs(points[:, :, None] - pixels))
