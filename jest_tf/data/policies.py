"""RandAugment and its kin, with the operations of TensorFlow's Model Garden.

`official.vision.ops.augment` has the operations and AutoAugment's policy. It
draws from TensorFlow's stateful generators, which a continued run cannot
repeat; here every choice is a pure function of (seed, step) and of a picture's
place in the sub-batch.

References: Cubuk et al. 2019 (AutoAugment, arXiv 1805.09501) and 2020
(RandAugment, arXiv 1909.13719); Müller and Hutter 2021 (TrivialAugment, arXiv
2103.10158).
"""

import dataclasses
import functools
from typing import Annotated

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config, embeddings
from jest_tf.config import checks
from jest_tf.selection import noise

_GREY = [128, 128, 128]  # fills pixels outside of a moved picture
_SIDE = 224  # picture side for which Model Garden chose its constants
_BLENDED = ("Color", "Brightness", "Sharpness")
_SHEARED, _TRANSLATED = ("ShearX", "ShearY"), ("TranslateX", "TranslateY")
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize"),
    *("Solarize", "SolarizeAdd", "Contrast", *_BLENDED),
    *(*_SHEARED, *_TRANSLATED),
)
_IDENTITY = len(OPERATIONS)


@keras.saving.register_keras_serializable(package="jest_tf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(checks.Checked):
    """Distorts each picture by random operations; keeps size and type.

    Args:
        name: "randaugment" takes `num_layers` operations at a set magnitude,
            "trivialaugment" a single operation at a random magnitude,
            "autoaugment" a pair of operations of Model Garden's policy "v0".
        num_layers: number of operations of RandAugment.
        magnitude: strength of RandAugment's operations, in [0, 10].

    Raises:
        ValueError: a value is out of range.
    """

    name: Annotated[str, checks.one_of(*config.POLICIES)]
    num_layers: checks.Count = 2
    magnitude: Annotated[float, checks.within("[0, 10]")] = 10.0

    def __post_init__(self):
        super().__post_init__()
        embeddings.check_backend("`data.augment`")

    def __call__(
        self,
        images: tf.Tensor,
        seed: tf.Tensor,
        places: tf.Tensor | None = None,
        batch_size: int | None = None,
    ) -> tf.Tensor:
        """Distorts pictures uint8 [b, H, W, 3]; see `Augmentation`."""
        if places is None:
            batch_size = tf.shape(images)[0]
            places = tf.range(batch_size)
        layers = {"randaugment": self.num_layers, "autoaugment": 2}
        count = layers.get(self.name, 1)
        uniform = noise.uniform([4 * count, batch_size], seed)
        uniform = tf.gather(uniform, places, axis=1)
        choice, level, sign, chance = tf.split(uniform, 4)  # [count, b]
        if self.name == "autoaugment":
            # Both operations of a picture come from the same pair.
            table = _pairs()
            pair = tf.cast(choice[0] * len(table), tf.int32)
            number, share, level = tf.unstack(
                tf.transpose(tf.gather(table, pair), [2, 1, 0])
            )
            number = tf.where(chance < share, number, _IDENTITY)
        else:
            number = choice * (len(OPERATIONS) + 1)
            if self.name == "randaugment":
                level = tf.fill(tf.shape(level), self.magnitude / 10.0)
        number = tf.cast(number, tf.int32)
        sign = tf.where(sign < 0.5, -1.0, 1.0)

        @tf.autograph.experimental.do_not_convert
        def distort(inputs):
            image, *choices = inputs
            for layer in range(count):
                image = apply(image, *(choice[layer] for choice in choices))
            return image

        chosen = (tf.transpose(values) for values in (number, level, sign))
        distorted = tf.map_fn(
            distort,
            (images, *chosen),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
        )
        return tf.ensure_shape(distorted, images.shape)

    def get_config(self):
        """Returns the arguments, for `.keras` files."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds the policy from `get_config`."""
        return cls(**config)


def apply(
    image: tf.Tensor, number: tf.Tensor, level: tf.Tensor, sign: tf.Tensor
) -> tf.Tensor:
    """Applies an operation to a picture, uint8 [H, W, 3].

    Args:
        image: the picture.
        number: index in `OPERATIONS`; an index past its end changes nothing.
        level: strength, in [0, 1]; 1 is Model Garden's magnitude 10.
        sign: -1 or 1, the direction of shears, shifts and rotations.
    """
    branches = [
        functools.partial(_apply, name, image, level, sign)
        for name in OPERATIONS
    ]
    return tf.switch_case(number, [*branches, lambda: tf.identity(image)])


def _apply(name, image, level, sign):
    operation = _augment().NAME_TO_FUNC[name]
    arguments = ()
    if name in _BLENDED:
        # Model Garden takes Python numbers only; 0 gives the picture to blend.
        other = tf.cast(operation(image, 0.0), tf.float32)
        blend = other + (1.8 * level + 0.1) * (
            tf.cast(image, tf.float32) - other
        )
        return tf.cast(tf.clip_by_value(blend, 0.0, 255.0), tf.uint8)
    if name == "Rotate":
        arguments = (30.0 * level * sign, _GREY)
    elif name in _SHEARED:
        arguments = (0.3 * level * sign, _GREY)
    elif name in _TRANSLATED:
        side = 100.0 / _SIDE * image.shape[1]
        arguments = (side * level * sign, _GREY)
    elif name == "Contrast":
        # As in Model Garden since 2.20. Before, it took only Python numbers,
        # and used a mean that grew with the picture.
        return tf.image.adjust_contrast(image, 1.8 * level + 0.1)
    elif name == "Posterize":
        arguments = (tf.cast(4.0 * level, tf.uint8),)
    elif name == "Solarize":
        threshold = tf.minimum(tf.floor(256.0 * level), 255.0)
        arguments = (tf.cast(threshold, tf.uint8),)
    elif name == "SolarizeAdd":
        arguments = (tf.cast(110.0 * level, tf.int64),)
    return tf.ensure_shape(operation(image, *arguments), image.shape)


def _augment():
    # Takes seconds to import.
    from official.vision.ops import augment

    return augment


@functools.cache
def _pairs():
    """AutoAugment's pairs of (operation, share, level), float32 [n, 2, 3]."""
    return np.float32(
        [
            [
                (OPERATIONS.index(name), share, level / 10)
                for name, share, level in pair
            ]
            for pair in _augment().AutoAugment.policy_v0()
        ]
    )
