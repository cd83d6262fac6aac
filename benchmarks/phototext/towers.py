"""The learner's towers: convolutions on patches, and words with neighbours.

The recipe configs/photos.py names them by the setting
`model.towers=benchmarks.phototext.towers:build_full`.
"""

# `build`, `call` and `get_config` are described by their class.
# ruff: noqa: D102

import keras

from benchmarks.icontext import towers
from jest_tf.models import layers

WIDTH = 48
EMBEDDING_DIM = 128
_PATCH = 4


def build_full(config, vocabulary_size):
    """Returns the image and the text tower, see `config.ModelConfig`."""
    return _build(config, vocabulary_size, WIDTH, EMBEDDING_DIM)


def build_narrow(config, vocabulary_size):
    """Returns towers of half the width of `build_full`'s."""
    return _build(config, vocabulary_size, WIDTH // 2, EMBEDDING_DIM // 2)


def _build(config, vocabulary_size, width, dim):
    image_seed, text_seed = (
        layers.child_seed(config.seed, name)
        for name in ("image_tower", "text_tower")
    )
    return (
        PatchTower(width, dim, seed=image_seed),
        OrderedTower(vocabulary_size, dim, seed=text_seed),
    )


@keras.saving.register_keras_serializable(package="phototext")
class PatchTower(towers.ConvolutionalTower):
    """A `ConvolutionalTower` on patches of 4 x 4 pixels.

    Twice, a convolution halves the grid and doubles the channels, and a
    residual one follows.

    Args:
        width: channels of a patch.
        embedding_dim: size of an embedding.
        seed: integer that sets the initial weights.
    """

    def __init__(self, width, embedding_dim, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.width = width

        def seeded(place):
            return layers.child_seed(seed, f"block{place}")

        block, residual = towers.ConvolutionBlock, ResidualBlock
        blocks = [
            block(width, _PATCH, seed=seeded(0), size=_PATCH),
            block(2 * width, 2, seed=seeded(1)),
            residual(2 * width, 1, seed=seeded(2)),
            block(4 * width, 2, seed=seeded(3)),
            residual(4 * width, 1, seed=seeded(4)),
        ]
        self._begin(blocks, embedding_dim, seed)


class ResidualBlock(towers.ConvolutionBlock):
    """A `ConvolutionBlock` that is added to what it reads."""

    def call(self, features):
        return features + super().call(features)


@keras.saving.register_keras_serializable(package="phototext")
class OrderedTower(towers.BagTower):
    """A `BagTower` of tokens that have seen their neighbours.

    A convolution over three tokens adds to each. Tokens after the end and
    unknown ones, id 0, have no vector.
    """

    def __init__(self, vocabulary_size, embedding_dim, *, seed=None, **kwargs):
        super().__init__(vocabulary_size, embedding_dim, seed=seed, **kwargs)
        self.word_normalisation = keras.layers.LayerNormalization()
        self.neighbours = keras.layers.Conv1D(
            embedding_dim,
            3,
            padding="same",
            activation="gelu",
            kernel_initializer=keras.initializers.GlorotUniform(
                layers.child_seed(seed, "neighbours")
            ),
        )

    def build(self, input_shape):
        super().build(input_shape)
        shape = None, input_shape[1], self.embedding_dim
        self.word_normalisation.build(shape)
        self.neighbours.build(shape)

    def vectors(self, tokens, is_word):
        words = super().vectors(tokens, is_word)
        words = self.word_normalisation(words) * is_word[:, :, None]
        return words + self.neighbours(words)
