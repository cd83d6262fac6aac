"""Pretrained models by name.

`keras_hub:NAME` is a preset of KerasHub with two towers: SigLIP, SigLIP 2, CLIP
or MetaCLIP 2. NAME is a built-in preset, a folder that `save_to_preset` wrote,
or a handle such as `hf://keras/siglip2_base_patch16_224`. The preset's own
preprocessor makes tokens and pixels.

`NAME.keras` is a file of a `TwoTower` or a `JESTModel`, with the files of its
tokenizer beside it, as in a run directory.
"""

import contextlib
import json
import os
import re
import zipfile

import keras
import tensorflow as tf

from jest_tf import files
from jest_tf.config import checks, imports
from jest_tf.data import images, tokenizers
from jest_tf.models import reference, two_tower

KERAS_HUB = "keras_hub:"
KERAS = ".keras"


def is_name(name: str) -> bool:
    """Returns whether `name` is a `.keras` file or a preset of KerasHub."""
    return name.startswith(KERAS_HUB) or name.endswith(KERAS)


def check(name: str, setting: str = "model") -> None:
    """Checks a name without loading weights."""
    if name.endswith(KERAS):
        if not files.is_file(name):
            raise ValueError(f"`{setting}`: no file at {name!r}")
        return
    preset = name.removeprefix(KERAS_HUB)
    scheme, separator, _ = preset.partition("://")
    if separator and scheme not in _schemes():
        raise ValueError(
            f"`{setting}` must name a preset of KerasHub by a name, a local "
            f"folder or a path of {', '.join(_schemes())}: copy the preset "
            f"there. Received: {name!r}"
        )
    hub = tokenizers.import_keras_hub(name)
    if os.path.isdir(preset):
        inside = (os.path.join(preset, file) for file in files.tree(preset))
        return files.check_links(inside, preset)
    if separator:
        return
    known = _presets(hub)
    if preset not in known:
        close = checks.nearest(preset, known)
        hint = f"Did you mean {KERAS_HUB + close!r}? " if close else ""
        raise ValueError(
            f"`{setting}` must name a preset of KerasHub with two towers, a "
            f"folder or a handle. {hint}Known: {', '.join(known)}. "
            f"Received: {name!r}"
        )


def similar(name: str) -> str:
    """Returns the likely full name if `name` lacks its prefix, or ""."""
    if re.search("clip|siglip", name) and "/" not in name:
        with contextlib.suppress(ValueError):
            known = _presets(tokenizers.import_keras_hub(name))
            if close := checks.nearest(name, known):
                return KERAS_HUB + close
    return ""


def in_folder(path: str) -> str:
    """Returns the full name of the model in a folder, or ""."""
    try:
        content = json.loads(
            files.read_whole(files.inside(path, "config.json"))
        )
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    # The config.json of a run has no such key.
    return KERAS_HUB + path if "registered_name" in content else ""


def load(name: str) -> reference.Pretrained:
    """Loads a pretrained model.

    Example:
        ```python
        model = pretrained.load("keras_hub:siglip2_base_patch16_224")
        tokens = model.tokenizer(tf.constant(["a photo of a dog"]))
        model.learner.encode_text(tokens)  # [1, 768], of unit length
        ```
    """
    check(name)
    if name.endswith(KERAS):
        return _read_keras_file(name)
    hub = tokenizers.import_keras_hub(name)
    backbone = _load_part(hub, name, hub.models.Backbone)
    if not hasattr(backbone, "get_vision_embeddings"):
        raise ValueError(
            "A pretrained model must have two towers, like SigLIP and CLIP. "
            f"Received: {name!r}, a {type(backbone).__name__}"
        )
    preprocessor = _load_part(hub, name, hub.models.CausalLMPreprocessor)
    tokenizer = tokenizers.KerasHubTokenizer.of(
        preprocessor,
        min(
            preprocessor.sequence_length,
            backbone.text_encoder.max_sequence_length,
        ),
    )
    rows = backbone.text_encoder.vocabulary_size
    if tokenizer.vocabulary_size > rows:
        raise ValueError(
            f"The tokenizer of {name!r} does not belong to its towers: "
            f"expected token ids below {rows:,}. Received: "
            f"{tokenizer.vocabulary_size:,} tokens"
        )
    learner, loss = _two_tower(
        backbone, preprocessor.image_converter, tokenizer.length
    )
    return reference.Pretrained(
        name,
        learner,
        tokenizer,
        _resizing(name, backbone, preprocessor.image_converter),
        loss,
        (type(backbone).__name__, learner.pixels),
    )


def _load_part(hub, name, kind):
    preset = name.removeprefix(KERAS_HUB)
    try:
        return kind.from_preset(preset)
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        way_out = ""
        if not os.path.isdir(preset):
            source = _presets(hub).get(preset, {}).get("kaggle_handle", preset)
            way_out = (
                f"It comes from {source}: without a network, download it "
                "elsewhere, copy its folder here, and name it by "
                f"'{KERAS_HUB}/path/to/folder' (docs/models.md). "
            )
        raise ValueError(
            f"{name!r} cannot be loaded by KerasHub. {way_out}Received: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _read_keras_file(path):
    with files.staged(path) as local:
        serialized = {}
        # A damaged file is Keras' to refuse.
        with contextlib.suppress(KeyError, ValueError, zipfile.BadZipFile):
            with zipfile.ZipFile(local) as archive:
                serialized = json.loads(archive.read("config.json"))
        imports.import_classes(path, serialized)
        model = keras.models.load_model(local, compile=False)
    learner = getattr(model, "learner", model)
    if not isinstance(learner, two_tower.TwoTower):
        raise ValueError(
            "A .keras file must hold a `TwoTower` or a `JESTModel`. Received: "
            f"{path!r}, a {type(learner).__name__}"
        )
    loss = None if learner is model else model.step.loss
    tokenizer, folder = None, os.path.dirname(path) or "."
    if tokenizers.has_tokenizer(folder):
        length = learner.input_shapes["text"][1]
        tokenizer = tokenizers.load_tokenizer(folder, length)
    return reference.Pretrained(
        path,
        learner,
        tokenizer,
        images.Resizing(learner.input_shapes["image"][1]),
        loss,
        (learner.image_tower.compute_dtype, learner.pixels),
    )


def _schemes():
    """Returns the schemes that KerasHub opens: its hosts' and TensorFlow's."""
    registered = filter(None, tf.io.gfile.get_registered_schemes())
    return sorted({"kaggle", "hf", "modelscope", *registered})


def _presets(hub):
    """Returns what KerasHub knows of its two-tower presets, by name."""
    names = ("SigLIPBackbone", "CLIPBackbone", "MetaCLIP2Backbone")
    kinds = (getattr(hub.models, name) for name in names)
    return {name: kind.presets[name] for kind in kinds for name in kind.presets}


def _two_tower(backbone, converter, length):
    """Returns a `TwoTower` of the backbone, with its weights, and its loss."""
    image = keras.Input(backbone.vision_encoder.image_shape)
    tokens = keras.Input([length], dtype="int32")
    # The layer with the scale and the bias of the logits.
    (head,) = (
        layer for layer in backbone.layers if hasattr(layer, "logit_scale")
    )
    scale, offset = (
        getattr(converter, name, None) for name in ("scale", "offset")
    )
    has_bias = hasattr(head, "logit_bias")
    learner = two_tower.TwoTower(
        keras.Model(
            image, backbone.get_vision_embeddings(image), name="image_tower"
        ),
        keras.Model(
            tokens, backbone.get_text_embeddings(tokens), name="text_tower"
        ),
        bias=0.0,
        learn_bias=has_bias,
        pixels=(
            1.0 if scale is None else scale,
            0.0 if offset is None else offset,
        ),
    )
    learner.build({"image": image.shape, "text": tokens.shape})
    learner.log_temperature.assign(head.logit_scale)
    if has_bias:
        learner.bias.assign(head.logit_bias)
    return learner, "sigmoid" if has_bias else "softmax"


def _resizing(name, backbone, converter):
    size = backbone.vision_encoder.image_shape[0]
    if converter is None:
        raise ValueError(
            f"{name!r} must have an image converter, as KerasHub's presets do: "
            "add it to the preset with its `save_to_preset`. Received: none"
        )
    if converter.image_size != (size, size):
        raise ValueError(
            f"The image converter of {name!r} must give images of the "
            f"tower's size, {size} x {size}. Received: {converter.image_size}"
        )
    if converter.pad_to_aspect_ratio:
        raise ValueError(
            f"The image converter of {name!r} must not pad: Keras cannot pad "
            "8-bit images. Received: pad_to_aspect_ratio=True"
        )
    return images.Resizing(
        size,
        converter.interpolation,
        converter.antialias,
        converter.crop_to_aspect_ratio,
    )
