"""Learners from a preset, or from the settings of a run."""

import contextlib
import random
from collections.abc import Sequence

import keras
import numpy as np

from jest_tf import config as config_lib
from jest_tf.config import checks
from jest_tf.models import layers, parts, towers, two_tower


def build_two_tower(
    preset: str,
    *,
    image_size: int,
    vocabulary_size: int,
    text_length: int,
    patch_size: int | None = None,
    patch_sizes: Sequence[int] = (),
    dtype: str = "float32",
    temperature: float = 10.0,
    bias: float = -10.0,
    seed: int | None = None,
) -> two_tower.TwoTower:
    """Builds a learner of a named size, with all its weights.

    Args:
        preset: a key of `config.PRESETS`: "tiny", "s16", "b16" or "l16".
        image_size: height and width of the images in pixels.
        vocabulary_size: number of token ids.
        text_length: number of tokens in a text.
        patch_size: side of a patch in pixels; None takes the preset's.
        patch_sizes: further patch sizes of views, see `towers.ImageTower`.
        dtype: dtype policy of the towers, such as "mixed_bfloat16".
        temperature: initial scale of the logits.
        bias: initial bias of the logits.
        seed: integer seed of the initial weights, or None.

    Raises:
        ValueError: if the preset is unknown or sizes do not fit.

    Example:
        >>> model = build_two_tower(
        ...     "tiny", image_size=32, vocabulary_size=1000, text_length=16
        ... )
        >>> import tensorflow as tf
        >>> model.encode_text(tf.zeros([2, 16], tf.int32)).shape
        TensorShape([2, 64])
    """
    checks.check("preset", preset, checks.one_of(*sorted(config_lib.PRESETS)))
    sizes = config_lib.PRESETS[preset]
    shared = {
        "width": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "embedding_dim": sizes.width,
        "dtype": dtype,
    }
    image_tower = towers.ImageTower(
        image_size=image_size,
        patch_size=sizes.patch_size if patch_size is None else patch_size,
        patch_sizes=patch_sizes,
        seed=layers.child_seed(seed, "image_tower"),
        name="image_tower",
        **shared,
    )
    text_tower = towers.TextTower(
        vocabulary_size=vocabulary_size,
        length=text_length,
        seed=layers.child_seed(seed, "text_tower"),
        name="text_tower",
        **shared,
    )
    model = two_tower.TwoTower(
        image_tower, text_tower, temperature=temperature, bias=bias
    )
    _build(model, image_size, text_length)
    return model


def build_learner(
    config: config_lib.TrainConfig,
    vocabulary_size: int,
    patch_sizes: Sequence[int] = (),
) -> two_tower.TwoTower:
    """Builds the learner of a run, its weights a function of the seed.

    Args:
        config: the settings of the run.
        vocabulary_size: number of token ids of the run's tokenizer.
        patch_sizes: further patch sizes of views, for the towers of a preset.

    Raises:
        ValueError: if `model.towers` cannot be imported or does not build two
            towers, or `model.frozen` matches nothing.
    """
    settings, data = config.model, config.data
    scalars = {"temperature": settings.temperature, "bias": settings.bias}
    if not settings.towers:
        model = build_two_tower(
            settings.preset,
            image_size=data.image_size,
            vocabulary_size=vocabulary_size,
            text_length=data.text_length,
            patch_size=settings.patch_size,
            patch_sizes=(*config.patch_sizes, *patch_sizes),
            dtype=settings.dtype_policy,
            seed=config.seed,
            **scalars,
        )
        parts.freeze(model, settings.frozen)
        return model
    build = checks.load_function("model.towers", settings.towers)
    # Seeds unseeded Keras layers. A run seeds TensorFlow before its tokenizer
    # exists, because that clears the kernels of SentencePiece.
    random.seed(config.seed)
    np.random.seed(config.seed)
    with _default_dtype(settings.dtype_policy):
        built = build(config, vocabulary_size)
        if not isinstance(built, (tuple, list)) or len(built) != 2:
            raise ValueError(
                f"`model.towers={settings.towers!r}` must return two Keras "
                f"layers, the image and the text tower. Received: {built!r}"
            )
        model = two_tower.TwoTower(*built, **scalars)
        # Under the policy too: layers may create others in `build`.
        _build(model, data.image_size, data.text_length)
    parts.freeze(model, settings.frozen)
    return model


def _build(model, image_size, text_length):
    model.build(
        {
            "image": (None, image_size, image_size, 3),
            "text": (None, text_length),
        }
    )


@contextlib.contextmanager
def _default_dtype(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
