"""Exports of a learner, for programs without `jest_tf`.

`saved_model` needs TensorFlow and TensorFlow Text to run, `onnx` any runtime
of ONNX, `weights` any reader of safetensors. `jest-tf export` is the command.
"""

import contextlib
import json
import os
import re
import shutil

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from jest_tf import files
from jest_tf.config import checks
from jest_tf.data import pictures, tokenizers
from jest_tf.inference import embedder as embedder_lib
from jest_tf.runs import checkpoints

DTYPES = ("float32", "float16")
_OPSET = 18  # the newest that tf2onnx writes


def saved_model(
    embedder: embedder_lib.Embedder, path: str, *, dtype: str = "float32"
) -> None:
    """Writes a SavedModel with pictures, pixels and strings as inputs.

    Functions, also as signatures whose output is named `embeddings`:

        embed_images(images)   encoded pictures, string [n] -> float32 [n, D]
        embed_pixels(pixels)   uint8 [n, S, S, 3] -> float32 [n, D]
        embed_texts(texts)     UTF-8, string [m] -> float32 [m, D]

    Attributes `scale` and `bias` are float32 scalars: the logits are scale
    image text^T + bias. See `pictures.decode_all` for the formats of pictures.

    Args:
        embedder: of the learner, with its tokenizer, if any; `embed_texts` is
            left out without one.
        path: of a folder that does not exist.
        dtype: of the stored weights. Computation keeps the learner's own dtype
            policy, so "float16" halves the size and rounds the weights.

    Raises:
        ValueError: `path` exists, or `dtype` is neither.
    """
    checks.check("dtype", dtype, checks.one_of(*DTYPES))
    module = _Module(embedder, dtype)
    signatures = {
        name: getattr(module, name)
        for name in ("embed_images", "embed_pixels", "embed_texts")
        if hasattr(module, name)
    }
    with _written_folder(path) as partial:
        tf.saved_model.save(module, partial, signatures)


def onnx(embedder: embedder_lib.Embedder, path: str) -> None:
    """Writes both towers as ONNX, `image_tower.onnx` and `text_tower.onnx`.

    The image tower maps `pixels`, uint8 [n, S, S, 3], the text tower `tokens`,
    int32 [n, L], to `embeddings`, float32 [n, D] of unit norm. The metadata of
    both have `scale` and `bias`. The vocabulary is written beside them.

    Args:
        embedder: of the learner.
        path: of a folder that does not exist.

    Raises:
        ValueError: `path` exists, tf2onnx is missing, or a tower computes in
            another dtype than float32, which many runtimes cannot.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise ValueError(
            "ONNX needs tf2onnx: pip install 'jest-tf[onnx]'"
        ) from error
    learner = embedder.learner
    about = {"scale": str(embedder.scale), "bias": str(embedder.bias)}
    shapes = learner.input_shapes
    towers = {
        "image_tower.onnx": (
            learner.encode_image,
            tf.TensorSpec(shapes["image"], tf.uint8, "pixels"),
        ),
        "text_tower.onnx": (
            learner.encode_text,
            tf.TensorSpec(shapes["text"], tf.int32, "tokens"),
        ),
    }
    with _written_folder(path) as partial:
        os.makedirs(partial)
        for name, (encode, spec) in towers.items():
            function = _named_output(encode, spec)
            _check_float32(function)
            model, _ = tf2onnx.convert.from_function(
                function, [spec], opset=_OPSET
            )
            for key, value in about.items():
                model.metadata_props.add(key=key, value=value)
            files.write_whole(
                os.path.join(partial, name), model.SerializeToString()
            )
        if embedder.tokenizer is not None:
            embedder.tokenizer.save(partial)


def weights(embedder: embedder_lib.Embedder, path: str) -> None:
    """Writes all weights as one safetensors file of NumPy arrays.

    `safetensors.numpy.load_file` reads it. Names are paths in the learner, such
    as `image_tower/encoder/attention_qkv_kernel`. The metadata has the image
    size, the scale and the bias.

    Raises:
        ValueError: `path` exists.
    """
    _check_free(path)
    learner = embedder.learner
    arrays = {
        name: np.asarray(getattr(learner, name).numpy())
        for name in ("log_temperature", "bias")
    }
    for role in ("image_tower", "text_tower"):
        arrays |= _arrays(learner, role)
    about = {
        "image_size": str(embedder.image_size),
        "scale": str(embedder.scale),
        "bias": str(embedder.bias),
        "config": json.dumps(keras.saving.serialize_keras_object(learner)),
    }
    files.write_whole(path, safetensors.numpy.save(arrays, about))


class _Module(tf.Module):
    """Variables of a dtype and the functions that use them."""

    def __init__(self, embedder, dtype):
        super().__init__()
        learner, size = embedder.learner, embedder.image_size
        variables = checkpoints.named(learner.variables)
        self.stored = [
            tf.Variable(
                tf.cast(one.value, dtype) if _is_float(one) else one.value,
                name=name,
            )
            for name, one in variables.items()
        ]
        self.scale = tf.Variable(embedder.scale, name="scale")
        self.bias = tf.Variable(embedder.bias, name="bias")

        def encode(function, values):
            mapping = [
                (variable, tf.cast(stored, variable.dtype))
                for variable, stored in zip(
                    variables.values(), self.stored, strict=True
                )
            ]
            with keras.StatelessScope(mapping):
                return {"embeddings": function(values, training=False)}

        pixels = tf.TensorSpec([None, size, size, 3], tf.uint8, "pixels")
        self.embed_pixels = tf.function(
            lambda pixels: encode(learner.encode_image, pixels), [pixels]
        )
        self.embed_images = tf.function(
            lambda images: encode(
                learner.encode_image, pictures.decode_all(images, size)
            ),
            [tf.TensorSpec([None], tf.string, "images")],
        )
        if embedder.tokenizer is not None:
            self.embed_texts = tf.function(
                lambda texts: encode(
                    learner.encode_text,
                    embedder.tokenizer(tokenizers.sanitize_captions(texts)[0]),
                ),
                [tf.TensorSpec([None], tf.string, "texts")],
            )


def _is_float(variable):
    return tf.as_dtype(variable.dtype).is_floating


def _named_output(encode, spec):
    return tf.function(
        lambda values: {"embeddings": encode(values, training=False)}, [spec]
    )


def _check_float32(function):
    graph = str(function.get_concrete_function().graph.as_graph_def())
    for dtype in ("bfloat16", "half"):
        if f"DT_{dtype.upper()}" in graph:
            raise ValueError(
                "ONNX is written of towers that compute in float32. Received: "
                f"towers with {dtype}"
            )


def _arrays(learner, role):
    """The weights of a tower by name, as NumPy arrays."""
    tower = getattr(learner, role)
    arrays = {}
    for name, variable in checkpoints.named(tower.weights).items():
        for prefix in (learner.name, tower.name):
            name = name.removeprefix(re.sub(r"_\d+$", "", prefix) + "/")
        arrays[f"{role}/{name}"] = np.asarray(variable.numpy(), order="C")
    return arrays


def _check_free(path):
    if os.path.exists(path):
        raise ValueError(
            f"The output must not exist yet: delete it, or take another name. "
            f"Received: {path!r}"
        )


@contextlib.contextmanager
def _written_folder(path):
    """Yields a name that becomes `path` on success; deletes it on an error."""
    _check_free(path)
    partial = f"{path.rstrip(os.sep)}{files.PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
