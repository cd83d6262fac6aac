"""Turns image patches into tokens, for any view.

A `config.View` approximates images for scoring: larger patches with one set of
weights, as in FlexiViT (Beyer et al., 2023, arXiv 2212.08013) and Flexi-JEST
(Evans et al., 2024, arXiv 2406.17711), or fewer pixels. Sizes are Python
integers, so each view has its own trace with static shapes. Images and weights
are resized by small matrices, computed once by NumPy in float64.
"""

# Classes document build, call and get_config.
# ruff: noqa: D102

import functools
import inspect

import keras
import numpy as np
from keras import ops

from jest_tf import config, embeddings
from jest_tf.embeddings import Tensor
from jest_tf.models import layers


def check_view(model: keras.layers.Layer, view: config.View) -> None:
    """Checks that a Keras layer or model can be called with `view`.

    The model's `call` must have an argument `view`. If the model has a method
    `check_view(view)`, it is called.
    """
    if "view" not in inspect.signature(model.call).parameters:
        raise ValueError(
            "`view` needs a model whose `call` takes a `view`, such as "
            "`ImageTower` or a `TwoTower` with an `ImageTower`. "
            f"Received: {view} for a {type(model).__name__}"
        )
    if hasattr(model, "check_view"):
        model.check_view(view)


@keras.saving.register_keras_serializable(package="jest_tf")
class PatchEmbedding(layers.Configured):
    """Cuts images into square patches, projects them and adds positions.

    Patches are numbered row by row. Weights: `kernel`
    [patch_size, patch_size, channels, width], `bias` [width] and
    `positions` [rows, columns, width]. For another patch size, kernel and
    positions are resized (`kernel_matrix`, `resize_matrix`).

    Call arguments:
        images: float [B, H, W, channels].
        patch_size: side of a patch in pixels; must divide H and W. None means
            the layer's patch size.

    Returns:
        Tokens [B, T, width], T = (H / patch_size) * (W / patch_size).
    """

    def __init__(
        self, patch_size: int, width: int, *, seed: int | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        layers.check_positive(patch_size=patch_size, width=width)
        self.patch_size = patch_size
        self.width = width
        self.seed = seed

    def build(self, input_shape):
        size = self.patch_size
        rows, columns = _grid(input_shape, size)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, size, input_shape[-1], self.width),
            # Flax's default for a convolution.
            initializer=keras.initializers.LecunNormal(
                layers.child_seed(self.seed, "kernel")
            ),
            autocast=False,  # resized before it is rounded
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.width,), initializer="zeros"
        )
        self.positions = self.add_weight(
            name="positions",
            shape=(rows, columns, self.width),
            initializer=self.token_initializer("positions"),
            autocast=False,
        )
        self.built = True

    def call(self, images, patch_size=None):
        size = self.patch_size if patch_size is None else patch_size
        channels = images.shape[-1]
        rows, columns = _grid(images.shape, size)
        # [B, H, W, channels] -> [B, rows, columns, size, size * channels]
        patches = ops.transpose(
            ops.reshape(images, [-1, rows, size, columns, size * channels]),
            [0, 1, 3, 2, 4],
        )
        # A matrix product. The equivalent convolution takes 1.0-1.2 times as
        # long, forward and backward on two CPU cores.
        patches = ops.reshape(patches, [-1, size * size * channels])
        kernel = ops.reshape(self._kernel_at(size), [-1, self.width])
        tokens = ops.matmul(patches, kernel) + self.bias
        tokens = ops.reshape(tokens, [-1, rows * columns, self.width])
        return tokens + self._positions_at(rows, columns)

    def _kernel_at(self, size):
        """Resizes the kernel to [size, size, channels, width]."""
        kernel = embeddings.read(self.kernel)
        if size != self.patch_size:
            matrix = kernel_matrix(self.patch_size, size)
            kernel = _resize(kernel, matrix, matrix, "hwcd")
        return ops.cast(kernel, self.compute_dtype)

    def _positions_at(self, rows, columns):
        """Resizes the positions to a grid, [rows * columns, width]."""
        positions = embeddings.read(self.positions)
        stored_rows, stored_columns, _ = positions.shape
        if (rows, columns) != (stored_rows, stored_columns):
            positions = _resize(
                positions,
                resize_matrix(stored_rows, rows, antialias=True),
                resize_matrix(stored_columns, columns, antialias=True),
                "hwd",
            )
        positions = ops.cast(positions, self.compute_dtype)
        return ops.reshape(positions, [-1, self.width])


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resizes images [B, H, W, channels] bilinearly to a side of `size` pixels.

    Equals `tf.image.resize(..., "bilinear", antialias=True)`, but compiles
    under XLA and keeps the floating-point dtype.
    """
    height, width = images.shape[1:3]
    return _resize(
        images,
        resize_matrix(height, size, antialias=True),
        resize_matrix(width, size, antialias=True),
        "bhwc",
    )


@functools.cache
def resize_matrix(source: int, target: int, *, antialias: bool) -> np.ndarray:
    """Computes the matrix of linear resizing along one axis.

    Target pixel i lies at x = (i + 1/2) source / target - 1/2 in the source.
    Source pixel j has the weight max(0, 1 - |j - x| / r), normalised. With
    `antialias` r = max(1, source / target), else r = 1.

    Returns:
        float64 [target, source], read-only; every row sums to 1.
    """
    step = source / target
    radius = max(step, 1.0) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * step - 0.5
    distances = np.abs(np.arange(source) - centres[:, np.newaxis])
    weights = np.maximum(0.0, 1.0 - distances / radius)
    return _frozen(weights / weights.sum(axis=1, keepdims=True))


@functools.cache
def kernel_matrix(source: int, target: int) -> np.ndarray:
    """Computes FlexiViT's pseudo-inverse resize (PI-resize) along one axis.

    It is pinv(B^T), with B the matrix of bilinear resizing between two patch
    sizes. Over white-noise patches x, the kernel w' = pinv(B^T) w minimises the
    distance between <B x, w'> and <x, w>, which are equal if patches grow.

    Returns:
        float64 [target, source], read-only.

    Reference: Beyer et al., FlexiViT, 2023, section 3.4; B is not antialiased.
    """
    resize = resize_matrix(source, target, antialias=False)
    return _frozen(np.linalg.pinv(resize.T))


def _resize(values, rows, columns, axes):
    """Applies one matrix along "h" of `axes` and another along "w"."""
    rows = ops.convert_to_tensor(rows, values.dtype)
    columns = ops.convert_to_tensor(columns, values.dtype)
    tall = axes.replace("h", "y")
    values = ops.einsum(f"yh,{axes}->{tall}", rows, values)
    return ops.einsum(f"xw,{tall}->{tall.replace('w', 'x')}", columns, values)


def _grid(shape, patch_size):
    _, height, width, _ = shape
    if None in (height, width) or height % patch_size or width % patch_size:
        raise ValueError(
            f"`patch_size` must divide the image's height and width. "
            f"Received: patch_size={patch_size}, images of shape "
            f"{tuple(shape)}"
        )
    return height // patch_size, width // patch_size


def _frozen(array):
    array.flags.writeable = False  # caches share the array
    return array
