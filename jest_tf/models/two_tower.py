"""The model that joins an image and a text tower.

`TwoTower` turns the outputs of any two Keras layers into unit-norm embeddings
with a scale and a bias, as in SigLIP (Zhai et al., 2023).
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf.config import checks
from jest_tf.embeddings import Embeddings, Tensor, read
from jest_tf.models import layers, towers

_TOWERS = ("image_tower", "text_tower")

# The message of TensorFlow's error about a token id.
_NO_ID = re.compile(r"indices\[.*?\] = (-?\d+) is not in \[0, (\d+)\)")

# Added to the norm before the division, as in big_vision's two_towers.py.
_NORM_EPSILON = 1e-8


def unit_norm(vectors: Tensor) -> Tensor:
    """Scales vectors [..., D] to unit length: x / (|x| + 1e-8), in float32.

    A zero vector stays zero and has a finite gradient.
    """
    vectors = ops.cast(vectors, "float32")
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    # The root has no gradient at 0; the bound is far below epsilon.
    norm = ops.sqrt(ops.maximum(squares, 1e-30))
    return vectors / (norm + _NORM_EPSILON)


@keras.saving.register_keras_serializable(package="jest_tf")
class TwoTower(keras.Model):
    """Joins an image and a text tower: logits = scale image text^T + bias.

    `scale` is exp(`log_temperature`); it and the bias are float32 variables
    under any policy.

    Args:
        image_tower: Keras layer or model, images [B, ...] -> [B, D].
        text_tower: Keras layer or model, texts [B, ...] -> [B, D]. A tower with
            a float input, such as a `Sequential` without an `Input`, is
            refused: mixed precision would round token ids.
        temperature: initial scale, above 0; the default is SigLIP's.
        bias: initial bias; the default is SigLIP's.
        learn_bias: train the bias. Turn this off for the softmax loss, which
            ignores the bias.
        pixels: pair of a scale and an offset, each a number, or a number for
            each channel: uint8 images become `image * scale + offset`. None
            maps [0, 255] to [-1, 1], as `image / 127.5 - 1`.

    Call arguments:
        batch: dict with "image" and "text"; other keys are ignored. uint8
            images are mapped by `pixels`, in float32; floating-point images are
            not changed.
        training: passed on to the towers.
        view: a `config.View` of the images; None changes nothing. A tuple of n
            views splits the batch into n equal consecutive parts, one per
            view. Texts have no view.

    Returns:
        `Embeddings`, with image and text [B, D] in float32.

    Example:
        >>> image = [keras.layers.Flatten(), keras.layers.Dense(8)]
        >>> text = [
        ...     keras.Input([None], dtype="int32"),
        ...     keras.layers.Embedding(100, 8),
        ...     keras.layers.GlobalAveragePooling1D(),
        ... ]
        >>> model = TwoTower(keras.Sequential(image), keras.Sequential(text))
        >>> batch = {
        ...     "image": np.zeros([2, 4, 4, 3], "uint8"),
        ...     "text": np.zeros([2, 5], "int32"),
        ... }
        >>> tuple(model(batch).image.shape)
        (2, 8)
    """

    def __init__(
        self,
        image_tower: keras.layers.Layer,
        text_tower: keras.layers.Layer,
        *,
        temperature: float = 10.0,
        bias: float = -10.0,
        learn_bias: bool = True,
        pixels: tuple | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_tower = image_tower
        self.text_tower = text_tower
        for name in _TOWERS:
            if not isinstance(getattr(self, name), keras.layers.Layer):
                raise TypeError(
                    f"`{name}` must be a Keras layer or model. "
                    f"Received: {getattr(self, name)!r}"
                )
        checks.check("temperature", temperature, checks.above(0))
        self.temperature = temperature
        self.initial_bias = bias
        self.learn_bias = learn_bias
        self.pixels = pixels
        self.log_temperature = self._add_scalar(
            "log_temperature", math.log(temperature), trainable=True
        )
        self.bias = self._add_scalar("bias", bias, trainable=learn_bias)

    def build(self, input_shape):
        _check_keys(input_shape)
        image = self.image_tower(
            keras.KerasTensor(
                input_shape["image"], self.image_tower.compute_dtype
            )
        )
        text = self.text_tower(keras.KerasTensor(input_shape["text"], "int32"))
        _check_takes_ids(self.text_tower)
        _check_embeddings(image.shape, text.shape)
        self._image_shape, self._text_shape = (
            (None, *input_shape[name][1:]) for name in ("image", "text")
        )
        self.embedding_dim = image.shape[-1]
        self.built = True

    def call(self, batch, training=None, view=None) -> Embeddings:
        _check_keys(batch)
        image = self.encode_image(batch["image"], training, view)
        text = self.encode_text(batch["text"], training)
        _check_embeddings(image.shape, text.shape)
        return Embeddings(
            image=image,
            text=text,
            scale=ops.exp(self.log_temperature.value),
            bias=read(self.bias.value),
        )

    def encode_image(
        self,
        images: Tensor,
        training: bool | None = None,
        view: config_lib.View | Sequence[config_lib.View] | None = None,
    ) -> Tensor:
        """Embeds images, of a shape that the image tower takes.

        Arguments are as in a call of the model. Returns unit-norm embeddings,
        float32 [B, D].
        """
        images = ops.convert_to_tensor(images)
        dtype = keras.backend.standardize_dtype(images.dtype)
        if dtype == "uint8":
            images = ops.cast(images, "float32")  # under any policy
            if self.pixels is None:
                images = images / 127.5 - 1.0  # 127.5 maps to 0
            else:
                # KerasHub's scale or offset may be an integer.
                scale, offset = (
                    ops.convert_to_tensor(x, "float32") for x in self.pixels
                )
                images = images * scale + offset
        elif not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"`image` must be uint8 in [0, 255] or floating point. "
                f"Received: dtype={dtype}"
            )
        images = ops.cast(images, self.image_tower.compute_dtype)
        self.check_view(view)
        parts = [
            # The default view needs no `view` argument in towers.
            self.image_tower(
                rows,
                training=training,
                **({} if seen == config_lib.View() else {"view": seen}),
            )
            for seen, rows in _parts(_views(view), images)
        ]
        return unit_norm(
            parts[0] if len(parts) == 1 else ops.concatenate(parts, 0)
        )

    def encode_text(
        self, tokens: Tensor, training: bool | None = None
    ) -> Tensor:
        """Embeds integer tokens [B, L] to unit norm, float32 [B, D]."""
        tokens = ops.convert_to_tensor(tokens)
        dtype = keras.backend.standardize_dtype(tokens.dtype)
        if not keras.backend.is_int_dtype(dtype):
            raise ValueError(
                f"`text` must be token ids; tokenise in the data pipeline. "
                f"Received: dtype={dtype}"
            )
        tokens = ops.cast(tokens, "int32")
        return unit_norm(self.text_tower(tokens, training=training))

    def check_view(
        self, view: config_lib.View | Sequence[config_lib.View] | None
    ) -> None:
        """Checks that the image tower can be called with `view`."""
        for seen in _views(view):
            if seen != config_lib.View():
                towers.check_view(self.image_tower, seen)

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Exports the model as `keras.Model.export` does.

        Inputs are uint8 images in [0, 255] and int32 token ids, unless
        `input_signature` says otherwise. `jest-tf export` writes a SavedModel
        that takes encoded images and strings.
        """
        if input_signature is None:
            input_signature = [self._input_specs()]
        super().export(filepath, format, verbose, input_signature, **kwargs)

    @property
    def _default_save_signature(self):
        # Keras assumes that all inputs of a subclassed model are floats.
        specs = [self._input_specs()]
        return tf.function(lambda batch: self(batch)._asdict(), specs)

    def _input_specs(self):
        dtypes = {"image": tf.uint8, "text": tf.int32}
        return {
            name: tf.TensorSpec(shape, dtypes[name], name)
            for name, shape in self.input_shapes.items()
        }

    @property
    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of `image` and `text` that the model was built for."""
        if not self.built:
            raise ValueError(
                "The model must be built first: call it on a batch, or `build` "
                "it."
            )
        return {"image": self._image_shape, "text": self._text_shape}

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: serialize(getattr(self, name)) for name in _TOWERS},
            "temperature": self.temperature,
            "bias": self.initial_bias,
            "learn_bias": self.learn_bias,
            "pixels": self.pixels,
        }

    def build_from_config(self, config):
        """Builds the model; Keras' own method hides errors of `build`."""
        self.build(config["input_shape"])

    @classmethod
    def from_config(cls, config):
        """Builds the model from the result of `get_config`."""
        deserialize = keras.saving.deserialize_keras_object
        towers = {name: deserialize(config[name]) for name in _TOWERS}
        return cls(**config | towers)

    def _add_scalar(self, name, value, trainable):
        return self.add_weight(
            name=name,
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(float(value)),
            trainable=trainable,
            autocast=False,
        )


def pixel_fault(pixels: np.ndarray, learner: TwoTower | None = None) -> str:
    """Describes the fault of images, [..., 3]; "" if there is none.

    uint8 is valid. Floats need a learner, and must lie in the range to which
    its `pixels` map [0, 255]. Some excess is allowed, because filters
    overshoot. One pixel must be dark, unless all are equal: without this,
    [0, 1] passes for [-1, 1].
    """
    expected = "pixels must be uint8 in [0, 255]"
    if pixels.dtype == np.uint8:
        return ""
    if learner is None:
        return f"{expected}, not {pixels.dtype}"
    scale, offset = learner.pixels or (1 / 127.5, -1.0)
    ends = np.outer([0, 255], scale) + offset
    low, high = ends.min(), ends.max()
    least, most = float(pixels.min()), float(pixels.max())
    quarter = (high - low) / 4
    is_dark = least < low + quarter or least == most
    if is_dark and low - quarter <= least and most <= high + quarter:
        return ""
    return (
        f"{expected}, or floats that fill [{low:.3g}, {high:.3g}], not "
        f"{pixels.dtype} in [{least:.3g}, {most:.3g}]"
    )


@contextlib.contextmanager
def plain_id_errors() -> Iterator[None]:
    """Explains TensorFlow's error about a token id that the table lacks."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        match = _NO_ID.search(error.message)
        if not match:
            raise
        number, rows = match.groups()
        raise ValueError(
            f"`text` must hold token ids in [0, {rows}), the rows of the text "
            "tower's table: build the tower for the tokenizer's "
            f"`vocabulary_size`. Received: {number}"
        ) from None


def _views(view):
    if view is None:
        return (config_lib.View(),)
    views = view if isinstance(view, (tuple, list)) else (view,)
    if not views or not all(
        isinstance(view, config_lib.View) for view in views
    ):
        raise TypeError(
            f"`view` must be a `View`, a tuple of them or None. "
            f"Received: {view!r}"
        )
    return tuple(views)


def _parts(views, images):
    """Pairs views with their rows; equal neighbouring views share a call."""
    if len(views) == 1:
        return [(views[0], images)]
    num_rows = images.shape[0]
    if num_rows is None or num_rows % len(views):
        raise ValueError(
            "The number of views in `view` must divide the number of rows in "
            f"the batch. Received: {len(views)} views for {num_rows} rows"
        )
    parts, end = [], 0
    for view, equal in itertools.groupby(views):
        start, end = end, end + num_rows // len(views) * len(list(equal))
        parts.append((view, images[start:end]))
    return parts


def _check_keys(batch):
    if not {"image", "text"} <= set(batch):
        raise ValueError(
            f'`batch` must have the keys "image" and "text". '
            f"Received: {sorted(batch)}"
        )


def _check_takes_ids(tower):
    """Refuses a built text tower that takes token ids as floats.

    Keras gives a `Sequential` without an `Input` an input of the compute dtype.
    Such a `Sequential` may be within a tower, before an `Embedding`.
    """
    inputs = list(getattr(tower, "inputs", None) or ())
    for layer in tower._flatten_layers():
        if isinstance(layer, keras.layers.Embedding):
            for node in layer._inbound_nodes:
                inputs += node.input_tensors
    for value in inputs:
        if keras.backend.is_float_dtype(value.dtype):
            raise ValueError(
                "`text_tower` must take token ids as integers: begin its "
                'layers with `keras.Input((length,), dtype="int32")`. '
                f"Received: an input of dtype {value.dtype}; floats round "
                "ids, bfloat16 those above 256"
            )


def _check_embeddings(image_shape, text_shape):
    if len(image_shape) != 2 or text_shape[1:] != image_shape[1:]:
        raise ValueError(
            f"`image_tower` and `text_tower` must both map to [B, D] with the "
            f"same D. Received: image {tuple(image_shape)}, text "
            f"{tuple(text_shape)}"
        )
    rows = image_shape[0], text_shape[0]
    if None not in rows and rows[0] != rows[1]:
        raise ValueError(
            f"`image` and `text` must have equally many rows. Received: {rows}"
        )


@keras.saving.register_keras_serializable(package="jest_tf")
class Projection(layers.Configured):
    """Maps embeddings linearly to another width, and normalises them again.

    Weights: `image_kernel` and `text_kernel`, [D, dim] in float32. Maps
    `Embeddings` of width D to width `dim`.
    """

    def __init__(self, dim: int, *, seed: int | None = None, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        layers.check_positive(dim=dim)
        self.dim = dim
        self.seed = seed

    def build(self, input_shape):
        self.kernels = [
            self.add_weight(
                name=f"{name}_kernel",
                shape=(input_shape[-1], self.dim),
                initializer=keras.initializers.GlorotUniform(
                    layers.child_seed(self.seed, f"projection/{name}")
                ),
            )
            for name in ("image", "text")
        ]
        self.built = True

    def project(self, embeddings: Embeddings) -> Embeddings:
        """Projects embeddings [b, D] to [b, dim]; the layer must be built."""
        image, text = (
            unit_norm(ops.matmul(ops.cast(values, "float32"), kernel))
            for values, kernel in zip(embeddings[:2], self.kernels, strict=True)
        )
        return embeddings._replace(image=image, text=text)
