"""Checks a recipe and its data without training, and describes the run."""

import math
from collections.abc import Iterator

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.data import tokenizers
from jest_tf.runs import (
    bootstrap,
    costs,
    directory,
    evaluations,
    inputs,
    loading,
)


def report(config: config_lib.TrainConfig, workdir: str) -> str:
    """Describes a run, after all checks that need no training.

    Opens the data, the reference and its sidecars, and builds the learner.
    Writes only indexes that are missing, as the run would.

    Raises:
        ValueError: `jest-tf train` would refuse the run.
    """
    return "\n".join(
        f"{name:<12}{text}" for name, text in _lines(config, workdir)
    )


def _lines(config, workdir) -> Iterator[tuple[str, str]]:
    start = loading.open_start(config, workdir)
    sources = inputs.open_sources(config, tf.distribute.get_strategy())
    store, teacher, sidecars = sources.store, sources.teacher, sources.sidecars
    shards = len(store.shards.paths)
    yield "data", f"{len(store):,} records in {shards:,} shards"
    if teacher is not None:
        size = _count(teacher.learner)
        yield "reference", f"{config.reference.model}, {size:,} parameters"
    if sidecars is not None:
        yield "sidecars", f"all fit, embeddings of {sidecars.dim}"
    evaluated = evaluations.open_data(config)
    for name, one in evaluated.stores.items():
        yield "evaluation", f"{len(one):,} records, {name}"
    for name, one in evaluated.entries.items():
        tasks = ", ".join(one.entry.task)
        yield "evaluation", f"{len(one.data.store):,} records, {name}: {tasks}"
    if start.tokenizer is not None:
        vocabulary = start.tokenizer.vocabulary_size
    else:
        vocabulary = _vocabulary_size(config, workdir)
    learner = start.build(vocabulary)
    inputs.check_widths(config, sources, learner)
    size = _count(learner)
    yield (
        "learner",
        f"{size:,} parameters, vocabulary of at most {vocabulary:,}",
    )

    data, selection, steps = config.data, config.selection, config.steps
    drawn, trained = data.super_batch_size, config.batch_size
    if config.bootstrap.renew_at:
        renewals = []
        for step in config.bootstrap.renew_at:
            rows = bootstrap.embedded_rows(config, store, step)
            number = len(store) if rows is None else int(rows.sum())
            renewals.append(f"{number:,} records after step {step:,}")
        yield "bootstrap", f"the learner embeds {', '.join(renewals)}"
    curated = data.curated_rows
    if data.curated:
        early = config.curated_rows(0)
        yield (
            "curated",
            f"{curated:,} rows of every sub-batch"
            + (f", {early:,} before the first renewal" * (early != curated)),
        )
    if config.cascade.hyper_batch_size:
        offered = config.cascade.hyper_batch_size - curated
        yield (
            "cascade",
            f"{drawn - curated:,} of {offered:,} positions by sidecars",
        )
    if selection.scores:
        yield (
            "selection",
            f"{selection.method} by {selection.criterion}, "
            f"{trained - curated:,} of "
            f"{selection.candidates or drawn - curated:,} rows",
        )
    side = data.image_size
    yield (
        "step",
        f"image uint8 [{drawn}, {side}, {side}, 3], text int32 [{drawn}, "
        f"{data.text_length}]; trains on {trained:,}",
    )
    counts = costs.examples_at(config, steps)
    yield (
        "steps",
        f"{steps:,}: {counts['examples/drawn']:,} examples drawn, "
        f"{counts['examples/scored']:,} scored, "
        f"{counts['examples/trained']:,} trained",
    )
    if directory.has(workdir, directory.CONFIG_FILE):
        yield "writes", f"{workdir}, which holds a run that would be continued"
    else:
        yield "writes", f"a new run directory, {workdir}"


def _vocabulary_size(config, workdir):
    if tokenizers.has_tokenizer(workdir):
        length = config.data.text_length
        return tokenizers.load_tokenizer(workdir, length).vocabulary_size
    return config.data.vocabulary_size


def _count(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)
