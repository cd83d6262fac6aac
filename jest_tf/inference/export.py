"""Exports of a learner, for programs without `jest_tf`.

A SavedModel needs TensorFlow and TensorFlow Text to run, an ONNX file any ONNX
runtime. `jest-tf export` is the command.
"""

import contextlib
import functools
import os

import numpy as np
import tensorflow as tf

from jest_tf import embeddings, files
from jest_tf.data import images as images_lib
from jest_tf.data import tokenizers
from jest_tf.inference import embedder as embedder_lib
from jest_tf.models import building

_FUNCTIONS = ("embed_images", "embed_pixels", "embed_texts", "embed_tokens")
_OPSET = 18  # the newest that tf2onnx writes


def saved_model(embedder: embedder_lib.Embedder, path: str) -> tuple[str, ...]:
    """Writes a SavedModel with images, pixels, strings and tokens as inputs.

    Functions, also as signatures whose output is named `embeddings`:

        embed_images(images)   encoded images, string [n] -> float32 [n, D]
        embed_pixels(pixels)   uint8 [n, S, S, 3] -> float32 [n, D]
        embed_texts(texts)     UTF-8, string [m] -> float32 [m, D]
        embed_tokens(tokens)   int32 [m, L] -> float32 [m, D]

    Attributes `scale` and `bias` are float32 scalars: the logits are scale
    image text^T + bias. See `images.decode_all` for the formats of images.

    Args:
        embedder: the learner, with its tokenizer, if any.
        path: a folder that does not exist yet.

    Returns:
        The names of the functions. `embed_texts` is missing if there is no
        tokenizer, or if it runs in Python, as KerasHub's for CLIP does.
    """
    embeddings.check_backend("An export")
    module = _Module(embedder)
    signatures = {
        name: getattr(module, name)
        for name in _FUNCTIONS
        if hasattr(module, name)
    }
    with _written_folder(path) as partial:
        tf.saved_model.save(module, partial, signatures)
    return tuple(signatures)


def onnx(embedder: embedder_lib.Embedder, path: str) -> None:
    """Writes both towers as ONNX, `image_tower.onnx` and `text_tower.onnx`.

    The image tower maps `pixels`, uint8 [n, S, S, 3], the text tower `tokens`,
    int32 [n, L], to `embeddings`, float32 [n, D] of unit norm. The metadata of
    both have `scale` and `bias`. The tokenizer's file is written beside them.
    Towers compute in float32, whatever the dtype policy of training.

    Args:
        embedder: the learner, with its tokenizer, if any.
        path: a folder that does not exist yet.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise ValueError(
            "ONNX needs tf2onnx: pip install '.[onnx]' in a clone"
        ) from error
    embeddings.check_backend("An export")
    # Eager tables, such as that of CLIP's tokenizer, leave Nones there, about
    # which TensorFlow would warn.
    tf.compat.v1.get_default_graph().clear_collection("table_initializer")
    learner = building.in_float32(embedder.learner)
    about = {"scale": str(embedder.scale), "bias": str(embedder.bias)}
    pixels, tokens = _specs(embedder)
    towers = {
        "image_tower.onnx": (learner.encode_image, pixels),
        "text_tower.onnx": (learner.encode_text, tokens),
    }
    with _written_folder(path) as partial:
        for name, (encode, spec) in towers.items():
            model, _ = tf2onnx.convert.from_function(
                tf.function(functools.partial(_named, encode), [spec]),
                [spec],
                opset=_OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
            )
            for key, value in about.items():
                model.metadata_props.add(key=key, value=value)
            files.write_whole(
                os.path.join(partial, name), model.SerializeToString()
            )
        if embedder.tokenizer is not None:
            embedder.tokenizer.save(partial)


class _Module(tf.Module):
    """The learner's variables and the functions that use them."""

    def __init__(self, embedder):
        super().__init__()
        learner = embedder.learner
        self.stored = [variable.value for variable in learner.variables]
        self.scale = tf.Variable(embedder.scale, name="scale")
        self.bias = tf.Variable(embedder.bias, name="bias")

        pixels, tokens = _specs(embedder)
        self.embed_pixels = tf.function(
            lambda pixels: _named(learner.encode_image, pixels), [pixels]
        )
        self.embed_images = tf.function(
            lambda images: _named(
                learner.encode_image,
                images_lib.decode_all(images, embedder.image_form),
            ),
            [tf.TensorSpec([None], tf.string, "images")],
        )
        self.embed_tokens = tf.function(
            lambda tokens: _named(learner.encode_text, tokens), [tokens]
        )
        tokenize = _in_graph(embedder.tokenizer)
        if tokenize is not None:
            self.embed_texts = tf.function(
                lambda texts: _named(learner.encode_text, tokenize(texts)),
                [tf.TensorSpec([None], tf.string, "texts")],
            )


def _named(encode, values):
    return {"embeddings": encode(values, training=False)}


def _in_graph(tokenizer):
    """The tokenizer, for any bytes, as a `tf.function`; None if in Python."""
    if tokenizer is None:
        return None
    function = tf.function(
        lambda texts: tokenizer(tokenizers.sanitize_captions(texts)[0]),
        [tf.TensorSpec([None], tf.string)],
    )
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node]
    for called in graph.library.function:
        nodes += called.node_def
    return None if any("PyFunc" in node.op for node in nodes) else function


def _specs(embedder):
    """The inputs of both towers."""
    image_form = embedder.image_form
    length = getattr(embedder.tokenizer, "length", None)
    if length is None:
        length = embedder.learner.input_shapes["text"][1]
    return (
        tf.TensorSpec([None, *image_form.shape], image_form.dtype, "pixels"),
        tf.TensorSpec([None, length], tf.int32, "tokens"),
    )


def _erfc(graph, node, name, arguments):
    """Writes Erfc, which exact GELUs use and ONNX lacks, as 1 - Erf."""
    (output,) = node.output
    form = {
        "shapes": [graph.get_shape(output)],
        "dtypes": [graph.get_dtype(output)],
    }
    erf = graph.make_node("Erf", node.input, **form)
    unit = graph.make_const(f"{name}/one", np.float32(1.0))
    graph.remove_node(node.name)
    graph.make_node(
        "Sub",
        [unit.output[0], erf.output[0]],
        outputs=[output],
        name=name,
        **form,
    )


@contextlib.contextmanager
def _written_folder(path):
    """Yields a name that becomes `path` on success; deletes it on an error."""
    if files.is_file(path) or files.is_folder(path):
        raise ValueError(
            f"The output must not exist yet: delete it, or take another name. "
            f"Received: {path!r}"
        )
    with files.written_folder(path) as partial:
        yield partial
