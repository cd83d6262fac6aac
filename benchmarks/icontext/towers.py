"""The benchmark's towers: a convolutional network and a bag of tokens.

The recipes configs/icontext_*.py name them by the setting
`model.towers=benchmarks.icontext.towers:build_small`. In the few steps that two
cores can make they learn far more of drawings of 32 x 32 pixels and names of
three words than transformers of the same cost.
"""

# `build`, `call` and `get_config` are described by their class.
# ruff: noqa: D102

import keras
from keras import ops

from jest_tf.models import layers
from jest_tf.models import towers as towers_lib

WIDTHS = (16, 32, 64, 128)
EMBEDDING_DIM = 128


def build_small(config, vocabulary_size):
    """Returns the image and the text tower, see `config.ModelConfig`."""
    return _build(config, vocabulary_size, WIDTHS, EMBEDDING_DIM)


def build_narrow(config, vocabulary_size):
    """Returns towers of half the width of `build_small`'s."""
    widths = [width // 2 for width in WIDTHS]
    return _build(config, vocabulary_size, widths, EMBEDDING_DIM // 2)


def _build(config, vocabulary_size, widths, dim):
    image_seed, text_seed = (
        layers.child_seed(config.seed, name)
        for name in ("image_tower", "text_tower")
    )
    return (
        StridedTower(widths, dim, seed=image_seed),
        BagTower(vocabulary_size, dim, seed=text_seed),
    )


class ConvolutionalTower(layers.Configured):
    """Blocks of convolutions, then an MLP on the last grid.

    The grid of a smaller picture is stretched. A subclass makes its blocks and
    calls `_begin`.

    Call arguments:
        images: float [B, H, W, 3] in [-1, 1].
        view: `config.View` with an `image_size` to resize images to, or None.

    Returns:
        Embeddings [B, embedding_dim], not normalised.
    """

    def _begin(self, blocks, embedding_dim, seed):
        self.blocks = blocks
        self.embedding_dim = embedding_dim
        self.seed = seed
        self.hidden = dense(
            2 * embedding_dim, layers.child_seed(seed, "hidden"), "gelu"
        )
        self.head = dense(embedding_dim, layers.child_seed(seed, "head"))

    def build(self, input_shape):
        _, height, width, channels = input_shape
        for block in self.blocks:
            block.build((None, height, width, channels))
            height, width, channels = (
                -(-height // block.stride),
                -(-width // block.stride),
                block.width,
            )
        self.grid = height, width
        self.hidden.build((None, height * width * channels))
        self.head.build((None, 2 * self.embedding_dim))
        self.built = True

    def check_view(self, view):
        """Raises ValueError if a view has more than an image size."""
        if view.image_size is None or view.patch_size is not None:
            raise ValueError(
                "a convolutional tower's `view` must have an `image_size` and "
                f"nothing else. Received: {view}"
            )

    def seen(self, images, view):
        """Returns images as a view, `config.View` or None, shows them."""
        if view is None:
            return images
        self.check_view(view)
        return towers_lib.resize_images(images, view.image_size)

    def call(self, images, training=None, view=None):
        features = self.seen(images, view)
        for block in self.blocks:
            features = block(features)
        _, height, width, channels = features.shape
        if (height, width) != self.grid:
            height, width = self.grid
            features = ops.image.resize(features, self.grid, "nearest")
        features = ops.reshape(features, [-1, height * width * channels])
        return self.head(self.hidden(features))


@keras.saving.register_keras_serializable(package="icontext")
class StridedTower(ConvolutionalTower):
    """A `ConvolutionalTower` with a stride of 2 in every convolution.

    Args:
        widths: channels of each convolution.
        embedding_dim: size of an embedding.
        seed: integer that sets the initial weights.
    """

    def __init__(self, widths, embedding_dim, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.widths = tuple(widths)
        blocks = [
            ConvolutionBlock(
                width, 2, seed=layers.child_seed(seed, f"block{place}")
            )
            for place, width in enumerate(self.widths)
        ]
        self._begin(blocks, embedding_dim, seed)


@keras.saving.register_keras_serializable(package="icontext")
class BagTower(layers.Configured):
    """An MLP on the mean of a text's token vectors.

    The padding, [EOS], counts in the mean; unknown tokens, id 0, do not.

    Args:
        vocabulary_size: number of token ids.
        embedding_dim: size of an embedding and of a token vector.
        seed: integer that sets the initial weights.

    Call arguments:
        tokens: integer [B, L].

    Returns:
        Embeddings [B, embedding_dim], not normalised.
    """

    def __init__(self, vocabulary_size, embedding_dim, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        self.seed = seed
        self.tokens = keras.layers.Embedding(
            vocabulary_size,
            embedding_dim,
            embeddings_initializer=keras.initializers.RandomNormal(
                stddev=embedding_dim**-0.5,
                seed=layers.child_seed(seed, "tokens"),
            ),
        )
        self.normalisation = keras.layers.LayerNormalization()
        self.hidden = dense(
            2 * embedding_dim, layers.child_seed(seed, "hidden"), "gelu"
        )
        self.head = dense(embedding_dim, layers.child_seed(seed, "head"))

    def build(self, input_shape):
        self.tokens.build(input_shape)
        self.normalisation.build((None, self.embedding_dim))
        self.hidden.build((None, self.embedding_dim))
        self.head.build((None, 2 * self.embedding_dim))
        self.built = True

    def vectors(self, tokens, is_word):
        """The vectors of tokens [B, L], of which `is_word` [B, L] count."""
        del is_word
        return self.tokens(tokens)

    def call(self, tokens, training=None):
        is_word = ops.cast(ops.not_equal(tokens, 0), self.compute_dtype)
        # A text without a token has the mean 0.
        vectors = self.vectors(tokens, is_word)
        summed = ops.einsum("bld,bl->bd", vectors, is_word)
        count = ops.sum(is_word, axis=1, keepdims=True)
        mean = self.normalisation(summed / ops.maximum(count, 1.0))
        return self.head(self.hidden(mean))


class ConvolutionBlock(keras.layers.Layer):
    """A convolution, layer normalisation and a ReLU."""

    def __init__(self, width, stride, *, seed, size=3, **kwargs):
        super().__init__(**kwargs)
        self.width, self.stride = width, stride
        self.convolution = keras.layers.Conv2D(
            width,
            size,
            strides=stride,
            padding="same",
            kernel_initializer=keras.initializers.HeNormal(seed),
        )
        self.normalisation = keras.layers.LayerNormalization()

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalisation.build((*input_shape[:-1], self.width))
        self.built = True

    def call(self, features):
        return ops.relu(self.normalisation(self.convolution(features)))


def dense(width, seed, activation=None):
    """A dense layer with Glorot's initial weights."""
    return keras.layers.Dense(
        width,
        activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
    )
