"""The image and the text tower.

Architecture and sizes are SigLIP's (Zhai et al., 2023, section 4): a ViT with
attention pooling over patches, and an unmasked text transformer read at its
last token, an end-of-text id. The image tower takes several views with one set
of weights (FlexiViT, Beyer et al., 2023); see `config.View`.
"""

# Classes document build, call and get_config.
# ruff: noqa: D102

from collections.abc import Sequence

import keras

from jest_tf import config
from jest_tf.models import layers, patches


class _Tower(layers.Configured):
    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        embedding_dim: int,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        layers.check_positive(embedding_dim=embedding_dim)
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.embedding_dim = embedding_dim
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.seed = seed

    def _transformer(self, kind, role, *arguments):
        return kind(
            *arguments,
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
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
        dropout: share of units dropped in training, in [0, 1).
        seed: integer seed of the initial weights, or None.

    Call arguments:
        images: float [B, image_size, image_size, 3] in [-1, 1].
        view: a `config.View`; None takes the images as they are.

    Returns:
        Embeddings [B, embedding_dim], not normalised.

    Example:
        >>> import tensorflow as tf
        >>> tower = ImageTower(
        ...     image_size=64,
        ...     patch_size=16,
        ...     patch_sizes=(32,),
        ...     width=8,
        ...     depth=1,
        ...     num_heads=2,
        ...     embedding_dim=8,
        ... )
        >>> coarse = tower(
        ...     tf.zeros([1, 64, 64, 3]), view=config.View(patch_size=32)
        ... )
        >>> coarse.shape
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
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(
            width=width,
            depth=depth,
            num_heads=num_heads,
            embedding_dim=embedding_dim,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            seed=seed,
            **kwargs,
        )
        layers.check_positive(image_size=image_size)
        _check_divides("patch_size", patch_size, image_size)
        for size in patch_sizes:
            _check_divides("patch_sizes", size, image_size)
        self._image_shape = (image_size, image_size, 3)
        self.image_size = image_size
        self.patch_size = patch_size
        self.patch_sizes = tuple(patch_sizes)
        self.patches = patches.PatchEmbedding(
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
            images = patches.resize_images(images, view.image_size)
        tokens = self.patches(images, patch_size=view.patch_size)
        tokens = self.encoder(tokens, training=training)
        embeddings = self.pooling(tokens, training=training)
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
        width, depth, num_heads, embedding_dim, mlp_ratio, dropout, seed: as
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
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(
            width=width,
            depth=depth,
            num_heads=num_heads,
            embedding_dim=embedding_dim,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            seed=seed,
            **kwargs,
        )
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
        encoded = self.encoder(self.tokens(tokens), training=training)
        return self.head(encoded[:, -1])


def _check_divides(name, size, image_size):
    layers.check_positive(**{name: size})
    if image_size % size:
        raise ValueError(
            f"`{name}` must divide `image_size`. Received: {name}={size}, "
            f"image_size={image_size}"
        )
