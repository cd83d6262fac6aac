"""`Embeddings`, the type in which models, losses and selection meet."""

from typing import NamedTuple

import tensorflow as tf


class Embeddings(NamedTuple):
    """A two-tower model's embeddings of `n` image-text pairs.

    The logit of image i with text j is `scale * image[i] @ text[j] + bias`.

    Attributes:
        image: float32 `[n, dim]`, unit-norm rows.
        text: float32 `[n, dim]`, unit-norm rows.
        scale: float32 scalar, the temperature as a multiplier (SigLIP's t).
        bias: float32 scalar (SigLIP's b; the softmax loss ignores it).
    """

    image: tf.Tensor
    text: tf.Tensor
    scale: tf.Tensor
    bias: tf.Tensor
