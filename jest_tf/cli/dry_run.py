"""Checks a recipe and its data without training, and describes the run."""

import functools
import math
from collections.abc import Iterator

from jest_tf import config as config_lib
from jest_tf import distribution
from jest_tf.data import tokenizers
from jest_tf.runs import (
    bootstrap,
    costs,
    directory,
    inputs,
    loading,
    notices,
    provenance,
)


def report(config: config_lib.TrainConfig, workdir: str) -> str:
    """Describes a run, after all checks that need no training.

    Opens the data, the reference and its sidecars, builds the model, and traces
    its steps up to the first renewal, by the functions of a run. Local sidecars
    are read whole, to compare their checksums; sidecars on buckets, up to 256
    MiB. Writes only missing indexes, as the run would. Devices of other
    machines are not looked for, callbacks not made, and a vocabulary not built.
    """
    return "\n".join(
        f"{name:<17}{text}" for name, text in _lines(config, workdir)
    )


def _lines(config, workdir) -> Iterator[tuple[str, str]]:
    yield from config_lib.describe_plan(config.plan)
    strategy = distribution.default()
    if config_lib.STRATEGIES[config.distribution.strategy].is_local:
        strategy = distribution.build_strategy(config.distribution)
    opened = inputs.open_inputs(config, workdir, strategy)
    opened = notices.check_data(config, opened)
    sources = opened.sources
    provenance.check_settings(workdir, config)
    provenance.check_data(workdir, sources)
    store, teacher, sidecars = sources.store, sources.teacher, sources.sidecars
    count = len(store.shards.paths)
    shards = f"{count:,} shard" + "s" * (count != 1)
    lost = f", lost: about {store.num_lost:,}" * bool(store.num_lost)
    yield "data", f"{len(store):,} records in {shards}{lost}"
    if teacher is not None:
        size = _count(teacher.learner)
        yield "reference", f"{config.reference.model}, {size:,} parameters"
    if sidecars is not None:
        sidecars.verify()
        yield "sidecars", f"all fit, embeddings of {sidecars.dim}"
    for name, evaluated in opened.held_out.items():
        size, tasks = len(evaluated.store), ", ".join(evaluated.tasks)
        yield "evaluation", f"{size:,} records, {name}: {tasks}"
    tokenizer = loading.find_tokenizer(config, workdir, opened.start.tokenizer)
    vocabulary = config.data.vocabulary_size
    if tokenizer is None:  # a stand-in, which is as long
        tokenizer = tokenizers.WordPieceTokenizer(
            ["[UNK]", "[EOS]", "a"], config.data.text_length
        )
    else:
        loading.warn_of_cut_captions(store, tokenizer)
        vocabulary = tokenizer.vocabulary_size
    model = inputs.build_model(config, opened, workdir, vocabulary)
    funnel = inputs.funnel_at(config, sources, workdir, 0)
    with strategy.scope():
        model.bind(funnel)
        model.optimizer.build(model.trainable_variables)
    stream = functools.partial(
        funnel.super_batches,
        tokenizer,
        opened.start.image_form,
        seed=config.seed,
    )
    model.trace(
        distribution.distribute(
            strategy,
            lambda host, num_hosts: stream(host=host, num_hosts=num_hosts),
        )
    )
    size = _count(model.learner)
    yield (
        "learner",
        f"{size:,} parameters, vocabulary of at most {vocabulary:,}",
    )

    if config.bootstrap.renew_at:
        renewals = []
        for step in config.bootstrap.renew_at:
            rows = bootstrap.embedded_rows(config, store, step)
            number = len(store) if rows is None else int(rows.sum())
            renewals.append(f"{number:,} records after step {step:,}")
        yield "bootstrap", f"the learner embeds {', '.join(renewals)}"
    data, side = config.data, config.data.image_size
    drawn = config.selection.super_batch_size(data.curated_rows)
    drawn += data.curated_rows
    yield (
        "step",
        f"image uint8 [{drawn}, {side}, {side}, 3], text int32 [{drawn}, "
        f"{data.text_length}]",
    )
    counts = costs.examples_at(config, config.steps)
    yield (
        "steps",
        f"{config.steps:,}: "
        + ", ".join(
            f"{count:,} examples {name.removeprefix('examples/')}"
            for name, count in counts.items()
        ),
    )
    if directory.has(workdir, directory.CONFIG_FILE):
        yield "writes", f"{workdir}, which holds a run that would be continued"
    else:
        yield "writes", f"a new run directory, {workdir}"


def _count(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)
