"""Loading models by name: the learner of a run, or a pretrained model.

Also the start of a run: its learner and its tokenizer.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files, models, training
from jest_tf.config import checks, imports
from jest_tf.data import images, tokenizers, vocabularies
from jest_tf.data import stores as stores_lib
from jest_tf.models import parts, pretrained, reference
from jest_tf.runs import checkpoints, directory, progress

# Records whose captions are tokenised to see whether they are cut.
_LOOKED_AT = 64


def load(
    name: str, step: int | None = None, *, trust: bool = False, mix: float = 1.0
) -> reference.Run | reference.Pretrained:
    """Loads a model by name: the learner of a run, or a pretrained model.

    Args:
        name: a run directory (with `mix`, `model.init_from` is read as well,
            else nothing outside of the directory), or a name that
            `pretrained.load` takes.
        step: step of a checkpoint of the run; None takes the final weights.
        trust: whether functions that the run names may be called.
        mix: share of the run's weights; the rest is of `model.init_from`.
    """
    checks.check("mix", mix, checks.within("[0, 1]"))
    if step is None:
        check_model(name, "name", "step")
    elif pretrained.is_name(name):
        raise ValueError(
            "`step` selects a checkpoint of a run: expected a run directory. "
            f"Received: {name!r}, step={step}"
        )
    with imports.trusting(trust):
        is_run = not pretrained.is_name(name)
        if mix < 1.0 and not (
            is_run and directory.load_config(name).model.init_from
        ):
            raise ValueError(
                "`mix` needs a run that started from another model: expected "
                f"a run directory with `model.init_from`. Received: {name!r}"
            )
        if mix < 1.0 and step is not None:
            raise ValueError(
                "`mix` takes the final weights of a run: expected no `step`. "
                f"Received: step={step}"
            )
        if not is_run:
            return pretrained.load(name)
        run = _load_run(name, step)
        if mix < 1.0:
            _mix_with_start(run, mix)
        return run


def _mix_with_start(run, share):
    """Moves the weights of a run towards those that it started from.

    They become share * own + (1 - share) * start, without training. A tower
    that `model.init_tower` did not take, and then the temperature and the bias,
    keep their own.

    Reference: Wortsman et al. 2022, arXiv 2109.01903 (WiSE-FT).
    """
    config, learner = run.config, run.learner
    name = config.model.init_from
    check_model(name, "model.init_from")
    start = load(name).learner
    now = reference.fingerprint(start)
    about = directory.read(run.name, directory.LEARNER_FILE)
    if about.get("start", now) != now:
        raise ValueError(
            f"`mix` needs the weights that {run.name!r} started from. "
            f"Received: other weights in `model.init_from` {name!r}; put the "
            "first ones back, or leave out `mix`"
        )
    start = models.adapted(start, config)
    taken = config.model.init_tower
    own, first = (
        getattr(model, taken) if taken else model for model in (learner, start)
    )
    for variable, before in zip(own.variables, first.variables, strict=True):
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(share * variable + (1.0 - share) * before)


def _load_run(workdir, step):
    config = directory.load_config(workdir)
    if step is None:
        _check_positions(workdir, config)
    tokenizer = load_tokenizer(workdir, config)
    if config.model.init_from:
        learner, image_form = _read_learner(
            workdir, config, has_adapters=step is not None
        )
    else:
        learner = models.build_learner(config, tokenizer.vocabulary_size)
        image_form = None
    if step is None:
        path = directory.path(workdir, directory.WEIGHTS_FILE)
        with (
            files.staged(path) as local,
            # Keras and HDF5 raise almost any exception.
            directory.as_written(workdir, directory.WEIGHTS_FILE, Exception),
        ):
            _check_arrays(local)
            directory.check_weights(workdir, local)
            learner.load_weights(local)
    else:
        # A checkpoint has exactly the weights of the whole model.
        model = training.build_model(config, learner)
        checkpoints.load(model, workdir, step)
        # With `optimizer.ema`, takes the average, as evaluations do.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return reference.Run(config, tokenizer, learner, workdir, image_form)


def _check_positions(workdir, config):
    """Refuses a learner that needs more memory than its weights could fill."""
    model, data = config.model, config.data
    if model.towers or model.init_from:
        return
    preset = config_lib.PRESETS[model.preset]
    positions = data.text_length + (data.image_size // preset.patch_size) ** 2
    path = directory.path(workdir, directory.WEIGHTS_FILE)
    size, _ = files.stat(path)
    if positions * preset.width > size:  # a number takes at least one byte
        raise ValueError(
            f"`data.text_length={data.text_length}` and `data.image_size="
            f"{data.image_size}` must be those of the run's weights. Received: "
            f"{path} of {size:,} bytes"
        )


def _check_arrays(path):
    """Refuses HDF5 whose arrays, compressed or empty, exceed the file size."""
    sizes = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, item: sizes.append(getattr(item, "nbytes", 0))
        )
    if sum(sizes) > os.path.getsize(path):
        raise ValueError(
            f"{sum(sizes):,} bytes in a file of {os.path.getsize(path):,}"
        )


def check_model(name: str, setting: str, step: str = "") -> None:
    """Raises ValueError unless `load` can load `name`, a `setting`'s value.

    `step` names the setting that may select a checkpoint instead, if any does.
    """
    checks.check(setting, name, checks.MODEL)
    if pretrained.is_name(name):
        return pretrained.check(name, setting)
    meant = pretrained.in_folder(name)
    if not directory.has(name, directory.CONFIG_FILE):
        meant = pretrained.similar(name)
    if meant or "/" not in name and not files.is_folder(name):
        kinds, _ = checks.MODEL
        hint = f". Did you mean {meant!r}?" if meant else ""
        raise ValueError(
            f"`{setting}` must be {kinds}. Received: {name!r}, which is not a "
            f"run directory{hint}"
        )
    check_finished(name, setting, step)


class Start(NamedTuple):
    """The start of a run's learner, built from the size of its vocabulary.

    `tokenizer` is that of `model.init_from` or `data.vocabulary`; None without
    both, or if the run directory has a tokenizer. `fingerprint` is that of
    `model.init_from`. With it, both are empty once a checkpoint is saved.
    """

    build: Callable[[int], models.TwoTower]
    image_form: images.Form
    tokenizer: Callable | None
    fingerprint: str = ""


def open_start(config: config_lib.TrainConfig, workdir: str) -> Start:
    """Opens `data.vocabulary` and `model.init_from`, if the run is new."""
    _check_reference(config, workdir)
    name, data = config.model.init_from, config.data
    taken, tokenizer = config.model.init_tower, None
    has_begun = directory.has(workdir, directory.CONFIG_FILE)
    if data.vocabulary and not (
        has_begun and tokenizers.has_tokenizer(workdir)
    ):
        tokenizer = tokenizers.read_tokenizer(data.vocabulary, data.text_length)
    if not name:
        return Start(
            functools.partial(models.build_learner, config),
            images.Resizing(data.image_size),
            tokenizer,
        )
    if has_begun and checkpoints.saved_steps(workdir):
        return Start(
            lambda vocabulary_size: _read_learner(workdir, config)[0],
            _read_learner(workdir, config)[1],
            None,
        )
    check_model(name, "model.init_from")
    initial = load(name)
    _check_fits(initial, config)
    with keras.StatelessScope(initialize_variables=False):
        learner = models.start_from(
            initial.learner, config, data.vocabulary_size
        )
    parts.rate_factors(learner, config.optimizer)
    image_form = images.Resizing(data.image_size)
    if taken != "text_tower":
        old, new = initial.image_form.size, data.image_size
        image_form = dataclasses.replace(initial.image_form, size=new)
        if new != old:
            progress.say(
                f"{name}: positions of images are resized, from "
                f"{old} x {old} to {new} x {new}"
            )
    return Start(
        functools.partial(models.start_from, initial.learner, config),
        image_form,
        tokenizer if taken == "image_tower" else initial.tokenizer,
        reference.fingerprint(initial.learner),
    )


def _check_reference(config, workdir):
    name = config.reference.model
    if not name or not config.uses_reference:
        return
    if os.path.abspath(name) == os.path.abspath(workdir):
        unused = "selection.stages=none"
        for weight in ("distillation_weight", "similarity_weight"):
            if getattr(config.reference, weight):
                unused += f" reference.{weight}=0"
        if config.model.false_negatives == "reference":
            unused += " model.false_negatives=equal_captions"
            if config.model.false_negative_margin:
                unused += " model.false_negative_margin=0"
        raise ValueError(
            "`reference.model` must be another run than that of `--workdir`. "
            f"To train the reference itself, add `--set {unused}`. Received: "
            f"{name!r} for both"
        )


def make_tokenizer(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    workdir: str,
    output: str,
    initial: Callable | None = None,
) -> Callable:
    """Returns the run's tokenizer.

    It is that of the run directory; or else `initial`, from a model or a file;
    or else built from the store's captions. If new, it is saved in `output`.
    """
    length = config.data.text_length
    tokenizer = find_tokenizer(config, workdir, initial)
    if tokenizer is None:
        progress.say(
            f"{workdir}: building a vocabulary from {len(store):,} records"
        )
        vocabulary = vocabularies.build_wordpiece_vocabulary(
            store.captions(), config.data.vocabulary_size
        )
        tokenizer = tokenizers.WordPieceTokenizer(vocabulary, length)
    if not tokenizers.has_tokenizer(workdir):
        tokenizer.save(output)
    warn_of_cut_captions(store, tokenizer)
    return tokenizer


def load_tokenizer(workdir: str, config: config_lib.TrainConfig) -> Callable:
    """Loads the tokenizer of a run directory.

    It may be the function that `config` names, which the user has named too.
    """
    return tokenizers.load_tokenizer(
        workdir, config.data.text_length, config.data.vocabulary
    )


def find_tokenizer(
    config: config_lib.TrainConfig, workdir: str, initial: Callable | None
) -> Callable | None:
    """Returns the tokenizer of the run directory, or else `initial`."""
    if tokenizers.has_tokenizer(workdir):
        return load_tokenizer(workdir, config)
    return initial


def warn_of_cut_captions(store: stores_lib.Store, tokenizer: Callable) -> None:
    """Warns if some captions have more tokens than a row."""
    rows = np.linspace(0, len(store) - 1, _LOOKED_AT).astype(np.int64)
    texts = [
        re.sub(r"\W+$", "", caption.decode("utf-8", "replace"))
        for record in store.read(np.unique(rows))
        for caption in getattr(record, "captions", ())
    ]
    texts = [text for text in texts if text]
    # A caption is cut if its tokens are the same without its last word.
    heads = [
        text.rpartition(" ")[0] or text[: len(text) // 2] for text in texts
    ]
    if not texts:
        return
    whole, less = (tokenizer(tf.constant(part)) for part in (texts, heads))
    count = int(tf.reduce_all(whole == less, 1).numpy().sum())
    if count:
        progress.say(
            f"warning: {count:,} of {len(texts):,} sampled captions are longer "
            f"than `data.text_length`={tokenizer.length} tokens, and are cut"
        )


def write_learner(workdir: str, learner: models.TwoTower, start: Start) -> None:
    """Writes the architecture of a learner that began as `model.init_from`."""
    content = json.loads(models.to_json(learner))
    content["image_form"] = dataclasses.asdict(start.image_form)
    content["start"] = start.fingerprint
    directory.write(workdir, directory.LEARNER_FILE, content)


def _read_learner(workdir, config, *, has_adapters=True):
    """Builds a run's learner; its final weights have adapters merged."""
    with directory.as_written(workdir, directory.LEARNER_FILE, Exception):
        content = directory.read(workdir, directory.LEARNER_FILE)
        content.pop("start", None)  # `_mix_with_start` reads it
        form = content.pop("picture", None)  # until 0.3.0
        image_form = images.Resizing(**(form or content.pop("image_form")))
    text = json.dumps(content)
    imports.import_classes(
        directory.path(workdir, directory.LEARNER_FILE), content
    )
    if "keras_hub" in text:  # Keras must know its classes
        tokenizers.import_keras_hub(workdir)
    with directory.as_written(workdir, directory.LEARNER_FILE, Exception):
        learner = models.from_json(text)
    if config.model.lora_rank and not has_adapters:
        return learner, image_form  # patterns may name adapters
    if config.model.lora_rank:
        parts.add_adapters(learner, config.model.lora_rank, config.seed)
    parts.freeze(learner, config.model.frozen)
    return learner, image_form


def _check_fits(initial, config):
    name, data = config.model.init_from, config.data
    if config.model.init_tower == "image_tower":
        return
    if initial.tokenizer is None:
        raise ValueError(
            "`model.init_from` needs its tokenizer beside it. "
            f"Received: {name!r}"
        )
    if initial.tokenizer.length != data.text_length:
        raise ValueError(
            f"`data.text_length` must be that of `model.init_from`, "
            f"{initial.tokenizer.length} tokens for {name!r}. Received: "
            f"{data.text_length}"
        )


def check_finished(workdir: str, setting: str, step: str = "") -> None:
    """Raises ValueError unless `workdir`, from `setting`, is a finished run.

    `step` is as in `check_model`.
    """
    expected = f"`{setting}` must be the directory of a finished run"
    if not directory.has(workdir, directory.CONFIG_FILE):
        raise ValueError(
            f"{expected}, with {directory.CONFIG_FILE}. Received: "
            f"{directory.received(workdir)}"
        )
    if not directory.has(workdir, directory.WEIGHTS_FILE):
        saved = checkpoints.saved_steps(workdir)
        instead = ""
        if step and saved:
            instead = f", and `{step}` takes a checkpoint, of {saved}"
        raise ValueError(
            f"{expected}, with {directory.WEIGHTS_FILE}: "
            f"`{directory.command('train', workdir)}` finishes it{instead}. "
            f"Received: {workdir!r}"
        )
