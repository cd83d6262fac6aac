"""Builds learners from a preset, or from the settings of a run."""

import contextlib
import json
import math
import random
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.config import checks, imports
from jest_tf.models import layers, parts, towers, two_tower


def build_two_tower(
    preset: str,
    *,
    image_size: int,
    vocabulary_size: int,
    text_length: int,
    patch_sizes: Sequence[int] = (),
    dtype: str = "float32",
    temperature: float = 10.0,
    bias: float = -10.0,
    seed: int | None = None,
) -> two_tower.TwoTower:
    """Builds a learner of a named size, with all its weights.

    Args:
        preset: a key of `config.PRESETS`: such as "b16".
        image_size: height and width of the images in pixels.
        vocabulary_size: number of token ids.
        text_length: number of tokens in a text.
        patch_sizes: further patch sizes of views, see `towers.ImageTower`.
        dtype: dtype policy of the towers, such as "mixed_bfloat16".
        temperature: initial scale of the logits.
        bias: initial bias of the logits.
        seed: integer seed of the initial weights, or None.

    Example:
        >>> model = build_two_tower(
        ...     "tiny", image_size=32, vocabulary_size=1000, text_length=16
        ... )
        >>> import tensorflow as tf
        >>> model.encode_text(tf.zeros([2, 16], tf.int32)).shape
        TensorShape([2, 64])
    """
    model = two_tower.TwoTower(
        **_towers(
            preset,
            image_size=image_size,
            vocabulary_size=vocabulary_size,
            text_length=text_length,
            patch_sizes=patch_sizes,
            dtype=dtype,
            seed=seed,
        ),
        temperature=temperature,
        bias=bias,
    )
    _build(model, image_size, text_length)
    return model


def _towers(
    preset,
    *,
    image_size,
    vocabulary_size,
    text_length,
    patch_sizes,
    dtype,
    seed,
    embedding_dim=None,
):
    """Builds a preset's towers, by role; arguments as in `build_two_tower`."""
    checks.check("preset", preset, checks.among(*sorted(config_lib.PRESETS)))
    sizes = config_lib.PRESETS[preset]
    shared = {
        "width": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "embedding_dim": embedding_dim or sizes.width,
        "dtype": dtype,
    }
    return {
        "image_tower": towers.ImageTower(
            image_size=image_size,
            patch_size=sizes.patch_size,
            patch_sizes=patch_sizes,
            seed=layers.child_seed(seed, "image_tower"),
            name="image_tower",
            **shared,
        ),
        "text_tower": towers.TextTower(
            vocabulary_size=vocabulary_size,
            length=text_length,
            seed=layers.child_seed(seed, "text_tower"),
            name="text_tower",
            **shared,
        ),
    }


def _sizes(config, vocabulary_size):
    """Returns the arguments of `_towers`, from the settings of a run."""
    return {
        "preset": config.model.preset,
        "image_size": config.data.image_size,
        "vocabulary_size": vocabulary_size,
        "text_length": config.data.text_length,
        "patch_sizes": config.patch_sizes,
        "dtype": config.model.dtype_policy,
        "seed": config.seed,
    }


def build_learner(
    config: config_lib.TrainConfig, vocabulary_size: int
) -> two_tower.TwoTower:
    """Builds the learner of a run; the run's seed determines the weights."""
    if config.model.init_from:
        raise ValueError(
            "A learner with `model.init_from` is built by `start_from`. "
            f"Received: {config.model.init_from!r}"
        )
    settings, data = config.model, config.data
    if not settings.towers:
        model = build_two_tower(**_sizes(config, vocabulary_size))
        parts.freeze(model, settings.frozen)
        return model
    build = imports.load_function("model.towers", settings.towers)
    # Seeds unseeded Keras layers. A run seeds TensorFlow before its tokenizer
    # exists, because seeding TensorFlow clears the kernels of SentencePiece.
    random.seed(config.seed)
    np.random.seed(config.seed)
    with _default_dtype(settings.dtype_policy):
        built = build(config, vocabulary_size)
        if not isinstance(built, (tuple, list)) or len(built) != 2:
            raise ValueError(
                f"`model.towers={settings.towers!r}` must return two Keras "
                f"layers, the image and the text tower. Received: {built!r}"
            )
        model = two_tower.TwoTower(*built)
        # Also under the policy: layers may create other layers in `build`.
        _build(model, data.image_size, data.text_length)
    parts.freeze(model, settings.frozen)
    return model


def start_from(
    initial: two_tower.TwoTower,
    config: config_lib.TrainConfig,
    vocabulary_size: int,
) -> two_tower.TwoTower:
    """Builds a learner with the weights of another model.

    The learner is that of `adapted`. With `model.init_tower` only that tower
    comes from `initial`. The other tower is a new one of the preset, and
    temperature and bias are new, too. A new text tower has `vocabulary_size`
    token ids.
    """
    learner = adapted(initial, config)
    if config.model.init_tower:
        learner = _with_new_tower(learner, config, vocabulary_size)
    if config.model.lora_rank:
        parts.add_adapters(learner, config.model.lora_rank, config.seed)
    parts.freeze(learner, config.model.frozen)
    return learner


def adapted(
    initial: two_tower.TwoTower, config: config_lib.TrainConfig
) -> two_tower.TwoTower:
    """Copies a model for a run with other images or another dtype policy.

    The copy has the towers, weights, temperature and bias of `initial`, under
    the dtype policy of `config.model`, for images of `data.image_size`. The
    learned positions of patches are resized bilinearly to this size.
    """
    if any(
        getattr(layer, "lora_enabled", False)
        for layer in initial._flatten_layers(include_self=False)
    ):
        raise ValueError(
            "`model.init_from` must have no adapters of its own: load its "
            "merged weights into a model without them. Received: a model with "
            "LoRA enabled"
        )
    before, size = initial.input_shapes["image"][1], config.data.image_size
    if config.model.init_tower == "text_tower":
        size = before
    settings = json.loads(to_json(initial))
    _set_dtype(settings, config.model.dtype_policy)
    if size != before:
        _set_image_size(settings, before, size)
    learner = from_json(json.dumps(settings))
    for old, new in zip(initial.variables, learner.variables, strict=True):
        if old.shape == new.shape:
            new.assign(old.numpy())
        elif not new.path.endswith("position_ids"):  # these are 0, 1, 2, ...
            new.assign(_resized(old.numpy(), new, before, size))
    return learner


def _with_new_tower(learner, config, vocabulary_size):
    """Keeps the tower `init_tower`; builds the other from the preset."""
    taken = config.model.init_tower
    both = _towers(
        **_sizes(config, vocabulary_size), embedding_dim=learner.embedding_dim
    )
    both[taken] = getattr(learner, taken)
    model = two_tower.TwoTower(
        **both, pixels=learner.pixels if taken == "image_tower" else None
    )
    _build(model, config.data.image_size, config.data.text_length)
    return model


def to_json(learner: two_tower.TwoTower) -> str:
    """Returns the architecture of a built learner, without its weights.

    Adapters of LoRA, which are merged where weights are saved, are no part.
    """
    content = _content(learner)
    _drop_adapters(content["learner"])
    return json.dumps(content)


def from_json(text: str) -> two_tower.TwoTower:
    """Builds a learner from the text of `to_json`, with new weights."""
    content = json.loads(text)
    learner = keras.saving.deserialize_keras_object(content["learner"])
    if not isinstance(learner, two_tower.TwoTower):
        raise TypeError(f"a {type(learner).__name__}, not a TwoTower")
    learner.build({k: tuple(v) for k, v in content["input_shapes"].items()})
    return learner


def in_float32(learner: two_tower.TwoTower) -> two_tower.TwoTower:
    """Returns a learner, or a float32 copy if its dtype policy is another."""
    text = json.dumps(_content(learner))
    settings = json.loads(text)
    _set_dtype(settings, "float32")
    if settings == json.loads(text):
        return learner
    twin = from_json(json.dumps(settings))
    twin.set_weights(learner.get_weights())
    return twin


def _content(learner):
    """What `from_json` builds a learner from."""
    config = keras.saving.serialize_keras_object(learner)
    return {"learner": config, "input_shapes": learner.input_shapes}


def _drop_adapters(settings):
    """Drops the ranks of Keras' adapters, in place."""
    if isinstance(settings, dict):
        if str(settings.get("module")).partition(".")[0] == "keras":
            for key in ("lora_rank", "lora_alpha"):
                settings.get("config", {}).pop(key, None)
        settings = settings.values()
    if not isinstance(settings, str | int | float | None):
        for value in settings:
            _drop_adapters(value)


def _set_dtype(settings, policy):
    """Sets the dtype policy of all layers of floats, in place."""
    if isinstance(settings, list):
        for value in settings:
            _set_dtype(value, policy)
    if isinstance(settings, dict):
        if settings.get("class_name") == "DTypePolicy":
            if "float" in settings["config"]["name"]:
                settings["config"]["name"] = policy
        for value in settings.values():
            _set_dtype(value, policy)


def _set_image_size(settings, before, size):
    """Sets the size of images wherever it occurs, in place."""
    if isinstance(settings, dict):
        patch_size = settings.get("patch_size")
        if patch_size and size % patch_size:
            raise ValueError(
                "`data.image_size` must be a multiple of the patch size of "
                f"`model.init_from`, {patch_size}. Received: {size}"
            )
        if settings.get("image_size") == before:
            settings["image_size"] = size
    shape = [before, before, 3]
    is_dict = isinstance(settings, dict)
    for key, value in list(
        settings.items() if is_dict else enumerate(settings)
    ):
        if isinstance(value, list) and value[-3:] == shape:
            settings[key] = [*value[:-3], size, size, 3]
        elif isinstance(value, (dict, list)):
            _set_image_size(value, before, size)


def _resized(positions, variable, before, size):
    """Resizes learned positions, [n, D] or [side, side, D], to another square.

    Positions before those of the patches, such as a class token's, are kept.
    """
    count, new = (math.prod(x.shape[:-1]) for x in (positions, variable))
    for extra in (0, 1):
        sides = [math.isqrt(number - extra) for number in (count, new)]
        if [side * side + extra for side in sides] == [count, new]:
            break
    else:
        raise ValueError(
            f"`model.init_from` cannot take images of another size: expected "
            f"{before}, because {variable.path} of {list(positions.shape)} are "
            f"not positions in a square. Received: data.image_size={size}"
        )
    flat = positions.reshape(count, -1)
    grid = flat[extra:].reshape(1, sides[0], sides[0], -1)
    grid = tf.image.resize(grid, [sides[1]] * 2, antialias=True).numpy()
    resized = np.concatenate([flat[:extra], grid.reshape(sides[1] ** 2, -1)])
    return resized.reshape(variable.shape)


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
