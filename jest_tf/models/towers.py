"""The image and the text tower.

Architecture and sizes are SigLIP's (Zhai et al., 2023, section 4): a ViT with
attention pooling over patches, and an unmasked text transformer read at its
last token, an end-of-text id. The image tower takes several views with one set
of weights (FlexiViT, Beyer et al., 2023); see `config.View`.
"""

import functools
import inspect
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from jest_tf import config, embeddings
from jest_tf.embeddings import Tensor
from jest_tf.models import layers


class _Tower(layers.Configured):
    def _set_sizes(
        self, width, depth, num_heads, embedding_dim, mlp_ratio, seed
    ):
        layers.check_positive(embedding_dim=embedding_dim)
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.embedding_dim = embedding_dim
        self.mlp_ratio = mlp_ratio
        self.seed = seed

    @classmethod
    def from_config(cls, config):
        """Rebuilds the tower; 0.3.0 saved a `dropout`, by default 0."""
        settings = dict(config)
        if dropout := settings.pop("dropout", 0.0):
            raise ValueError(
                "`dropout` must be 0: towers have none any longer. "
                f"Received: {dropout}"
            )
        return super().from_config(settings)

    def _transformer(self, kind, role, *arguments):
        return kind(
            *arguments,
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            **self.part(role),
        )

    def _dense(self):
        """Returns a Glorot-uniform dense layer to `embedding_dim`."""
        return keras.layers.Dense(
            self.embedding_dim,
            kernel_initializer=keras.initializers.GlorotUniform(
                layers.child_seed(self.seed, "head")
            ),
            dtype=self.dtype_policy,
            name="head",
        )

    def _check_shape(self, name, shape, *expected):
        if len(shape) != 1 + len(expected) or tuple(shape[1:]) != expected:
            raise ValueError(
                f"`{name}` must be [B, {', '.join(map(str, expected))}]. "
                f"Received: shape={tuple(shape)}"
            )


@keras.saving.register_keras_serializable(package="jest_tf")
class ImageTower(_Tower):
    """A ViT with attention pooling.

    A final dense layer maps to `embedding_dim`; it is omitted if
    `embedding_dim` equals `width`, as in SigLIP.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels; must divide `image_size`.
        patch_sizes: further patch sizes of views; each must divide
            `image_size`. They use the weights of `patch_size`, resized.
        width: size of a token.
        depth: number of transformer blocks.
        num_heads: number of attention heads; must divide `width`.
        embedding_dim: size of an embedding.
        mlp_ratio: hidden width of the MLPs over `width`.
        seed: integer seed of the initial weights, or None.

    Call arguments:
        images: float [B, image_size, image_size, 3] in [-1, 1].
        view: a `config.View`; None takes the images as they are.

    Returns:
        Embeddings [B, embedding_dim], not normalised.

    Example:
        >>> import tensorflow as tf
        >>> sizes = {"width": 8, "depth": 1, "num_heads": 2, "embedding_dim": 8}
        >>> tower = ImageTower(
        ...     image_size=64, patch_size=16, patch_sizes=(32,), **sizes
        ... )
        >>> coarse = config.View(patch_size=32)
        >>> tower(tf.zeros([1, 64, 64, 3]), view=coarse).shape
        TensorShape([1, 8])

    Reference: Beyer et al., FlexiViT, 2023, arXiv 2212.08013.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        patch_sizes: Sequence[int] = (),
        width: int,
        depth: int,
        num_heads: int,
        embedding_dim: int,
        mlp_ratio: int = 4,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._set_sizes(width, depth, num_heads, embedding_dim, mlp_ratio, seed)
        layers.check_positive(image_size=image_size)
        _check_divides("patch_size", patch_size, image_size)
        for size in patch_sizes:
            _check_divides("patch_sizes", size, image_size)
        self._image_shape = (image_size, image_size, 3)
        self.image_size = image_size
        self.patch_size = patch_size
        self.patch_sizes = tuple(patch_sizes)
        self.patches = PatchEmbedding(
            patch_size, self.width, **self.part("patches")
        )
        self.encoder = self._transformer(layers.Encoder, "encoder", self.depth)
        self.pooling = self._transformer(layers.AttentionPooling, "pooling")
        self.head = self._dense() if embedding_dim != width else None

    def build(self, input_shape):
        self._check_shape("images", input_shape, *self._image_shape)
        num_tokens = (self.image_size // self.patch_size) ** 2
        self.patches.build(input_shape)
        self.encoder.build((None, num_tokens, self.width))
        self.pooling.build((None, num_tokens, self.width))
        if self.head is not None:
            self.head.build((None, self.width))
        self.built = True

    def call(self, images, training=None, view=None):
        self._check_shape("images", images.shape, *self._image_shape)
        if not keras.backend.is_float_dtype(images.dtype):
            dtype = keras.backend.standardize_dtype(images.dtype)
            raise ValueError(
                f"`images` must be floating point in [-1, 1]; `TwoTower` maps "
                f"uint8 there. Received: dtype={dtype}"
            )
        view = config.View() if view is None else view
        self.check_view(view)
        if view.image_size not in (None, self.image_size):
            images = resize_images(images, view.image_size)
        tokens = self.patches(images, patch_size=view.patch_size)
        tokens = self.encoder(tokens)
        embeddings = self.pooling(tokens)
        return embeddings if self.head is None else self.head(embeddings)

    def check_view(self, view: config.View) -> None:
        """Checks that the tower can be called with `view`."""
        size = self.patch_size if view.patch_size is None else view.patch_size
        sizes = (self.patch_size, *self.patch_sizes)
        if size not in sizes:
            raise ValueError(
                f"`view.patch_size` must be one that the image tower was built "
                f"for, {sizes}; `patch_sizes` adds to them. Received: {view}"
            )
        if view.image_size is not None and view.image_size % size:
            raise ValueError(
                f"`view.image_size` must be a multiple of the patch size, "
                f"{size}. Received: {view}"
            )


@keras.saving.register_keras_serializable(package="jest_tf")
class TextTower(_Tower):
    """A text transformer without a mask, read at its last token.

    The tokenizer must end every text with an end-of-text id that survives
    truncation (SigLIP's sticky end), and pad to `length`.

    Args:
        vocabulary_size: number of token ids.
        length: number of tokens in a text.
        width, depth, num_heads, embedding_dim, mlp_ratio, seed: as
            for `ImageTower`.

    Call arguments:
        tokens: integer [B, length].

    Returns:
        Embeddings [B, embedding_dim], not normalised.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        length: int,
        width: int,
        depth: int,
        num_heads: int,
        embedding_dim: int,
        mlp_ratio: int = 4,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._set_sizes(width, depth, num_heads, embedding_dim, mlp_ratio, seed)
        layers.check_positive(length=length)
        self.vocabulary_size = vocabulary_size
        self.length = length
        self.tokens = layers.TokenEmbedding(
            vocabulary_size, self.width, **self.part("tokens")
        )
        self.encoder = self._transformer(layers.Encoder, "encoder", self.depth)
        self.head = self._dense()

    def build(self, input_shape):
        self._check_shape("tokens", input_shape, self.length)
        self.tokens.build(input_shape)
        self.encoder.build((None, self.length, self.width))
        self.head.build((None, self.width))
        self.built = True

    def call(self, tokens, training=None):
        self._check_shape("tokens", tokens.shape, self.length)
        if not keras.backend.is_int_dtype(tokens.dtype):
            raise ValueError(
                f"`tokens` must be integers. Received: "
                f"dtype={keras.backend.standardize_dtype(tokens.dtype)}"
            )
        encoded = self.encoder(self.tokens(tokens))
        return self.head(encoded[:, -1])


def _check_divides(name, size, image_size):
    layers.check_positive(**{name: size})
    if image_size % size:
        raise ValueError(
            f"`{name}` must divide `image_size`. Received: {name}={size}, "
            f"image_size={image_size}"
        )


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
            "`patch_size` must divide the image's height and width. Received: "
            f"patch_size={patch_size}, images of shape {tuple(shape)}"
        )
    return height // patch_size, width // patch_size


def _frozen(array):
    array.flags.writeable = False  # caches share the array
    return array
