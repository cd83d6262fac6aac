"""Checks a recipe and its data without training, and describes the run."""

import dataclasses
import tempfile

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import evaluation, models
from jest_tf.data import tokenizers
from jest_tf.runs import directory, inputs


def report(config: config_lib.TrainConfig, workdir: str) -> str:
    """Describes a run, after all checks that need no training.

    Opens the data, the reference and its sidecars, and builds the learner.
    Writes nothing; indexes go to a temporary folder.

    Raises:
        ValueError: `jest-tf train` would refuse the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = dataclasses.replace(config.data, index_dir=folder)
        config = dataclasses.replace(config, data=data)
        sources = inputs.open_sources(config, tf.distribute.get_strategy())
        lines = [
            f"data        {len(sources.store):,} records in "
            f"{len(sources.store.shards.paths):,} shards",
            *_reference(config, sources),
        ]
        evaluated = evaluation.open_stores(
            config.evaluation.data, config.evaluation_data
        )
        lines += [
            f"evaluation  {len(store):,} records, {name}"
            for name, store in evaluated.items()
        ]
    vocabulary = _vocabulary_size(config, workdir)
    learner = models.build_learner(config, vocabulary)
    lines += [
        f"learner     {_count(learner):,} parameters, "
        f"vocabulary of at most {vocabulary:,}",
        *_steps(config),
        f"writes      {_state(workdir)}",
    ]
    return "\n".join(lines)


def _reference(config, sources):
    if sources.teacher is not None:
        yield (
            f"reference   {config.reference.workdir}, "
            f"{_count(sources.teacher.learner):,} parameters"
        )
    if sources.sidecars is not None:
        yield f"sidecars    all fit, embeddings of {sources.sidecars.dim}"


def _vocabulary_size(config, workdir):
    length = config.data.text_length
    if tokenizers.has_tokenizer(workdir):
        return tokenizers.load_tokenizer(workdir, length).vocabulary_size
    if config.data.vocabulary:
        path = config.data.vocabulary
        return tokenizers.read_tokenizer(path, length).vocabulary_size
    return config.data.vocabulary_size


def _steps(config):
    data, selection, steps = config.data, config.selection, config.steps
    super_batch, sub_batch = data.super_batch_size, config.batch_size
    image = f"{data.image_size}, {data.image_size}, 3"
    scored = selection.num_scored(steps, super_batch)
    lines = [
        f"step        image uint8 [{super_batch}, {image}], "
        f"text int32 [{super_batch}, {data.text_length}]; "
        f"trains on {sub_batch:,}",
        f"steps       {steps:,}: {steps * super_batch:,} examples drawn, "
        f"{scored:,} scored, {steps * sub_batch:,} trained",
    ]
    if selection.scores:
        lines.insert(
            0,
            f"selection   {selection.method} by {selection.criterion}, "
            f"{sub_batch:,} of {selection.candidates or super_batch:,} rows",
        )
    hyper_batch = config.cascade.hyper_batch_size
    if hyper_batch:
        lines.insert(
            0,
            f"cascade     {super_batch:,} of {hyper_batch:,} positions by "
            "sidecars",
        )
    return lines


def _state(workdir):
    if not directory.has(workdir, directory.CONFIG_FILE):
        return f"a new run directory, {workdir}"
    return f"{workdir}, which holds a run that would be continued"


def _count(model):
    return sum(
        tf.size(weight).numpy().item() for weight in model.trainable_weights
    )
