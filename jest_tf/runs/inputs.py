"""The inputs of a run: its examples, its reference, and its stream."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from jest_tf import config as config_lib
from jest_tf import evaluation, files, models, training
from jest_tf.config import imports
from jest_tf.data import known_images, pipeline, reader, stored_stages
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.data.stores import shards
from jest_tf.models import first_weights, reference
from jest_tf.runs import bootstrap, directory, loading, progress
from jest_tf.selection import summary

# Bytes of sidecars whose checksums a run compares when it starts; this takes
# less than a second.
_VERIFIED = 2**28
# A noise field with any of these values marks a clean record.
_CLEAN = {b"", b"0", b"0.0", b"false"}


class Sources(NamedTuple):
    """The data and the reference that a run opens before its first step.

    Attributes:
        teacher: the first reference; None if there is none, or if it is known
            by its sidecars alone.
        sidecars: the first reference's embeddings; None if the step runs the
            model.
        clean: maps ids, int64 [k], to whether the records are clean, bool [k];
            None if that is not known.
        known: images to find among the records that are read; None for none.
    """

    store: stores_lib.Store
    teacher: reference.Run | reference.Pretrained | None
    sidecars: sidecars_lib.Sidecars | None
    clean: Callable[[np.ndarray], np.ndarray] | None = None
    known: known_images.KnownImages | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies the reference; "" if there is none."""
        if self.sidecars is not None:
            return self.sidecars.fingerprint
        if self.teacher is None:
            return ""
        return reference.describe(self.teacher).fingerprint


class Inputs(NamedTuple):
    """The inputs of a run, opened and checked; nothing has been written."""

    strategy: Any
    start: loading.Start
    sources: Sources
    held_out: Mapping[str, evaluation.StoreEvaluation]


def open_inputs(
    config: config_lib.TrainConfig, workdir: str, strategy: Any
) -> Inputs:
    """Opens and checks all that a run reads, and writes missing indexes."""
    if config_lib.STRATEGIES[config.distribution.strategy].is_local:
        _check_memory(config)
    for segment in config.plan:
        training.check_shares(
            segment,
            strategy.num_replicas_in_sync,
            config.model.micro_batch_size,
            len(config.training_views),
        )
    start = loading.open_start(config, workdir)
    sources = open_sources(config, strategy)
    if config.reference.distillation_weight and not config.model.towers:
        with keras.StatelessScope(initialize_variables=False):
            learner = start.build(config.data.vocabulary_size)
        check_widths(config, sources, learner)
    held_out = evaluation.open_stores(config.evaluation.named, config.data)
    return Inputs(strategy, start, sources, held_out)


def build_model(
    config: config_lib.TrainConfig,
    opened: Inputs,
    workdir: str,
    vocabulary_size: int,
) -> training.JESTModel:
    """Builds the model of a run, with its first weights."""
    restarts = directory.restarts(workdir)
    with opened.strategy.scope(), first_weights.by_tensorflow():
        learner = opened.start.build(vocabulary_size)
        check_widths(config, opened.sources, learner)
        return training.build_model(config, learner, restarts=restarts)


def _check_memory(config):
    """Refuses rows of a step that this machine could never hold."""
    data, c = config.data, config.data.curated_rows
    image, text = 3 * data.image_size**2, 4 * data.text_length
    rows = config.selection.super_batch_size(c) + c
    needed = rows * (image + text)
    needed += 8 * config.selection.hyper_batch_size(c)  # positions
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(
            "A super-batch must fit the memory of this machine, "
            f"{memory:,} bytes: lower `selection.batch_size`, the `candidates` "
            "of `selection.stages`, `data.image_size` or `data.text_length`. "
            f"Received: {rows:,} rows with {image:,} bytes of image and "
            f"{text:,} of text"
        )


def open_sources(config: config_lib.TrainConfig, strategy: Any) -> Sources:
    """Opens the inputs of a run; loads the reference under `strategy`."""
    for setting, name in config.functions:  # before data is read
        imports.load_function(setting, name)
    training.check_criteria(config.selection)
    if not config.model.init_from:  # else `loading.open_start` checks them
        training.check_parts(config)
    settings = config.reference
    needs_reference = config.has_first_reference and config.uses_reference
    if needs_reference and settings.model:
        loading.check_model(settings.model, "reference.model")
    store = stores_lib.open_stores(
        config.data, progress.Progress("indexing", "bytes")
    )
    lost = pipeline.FaultLog(None, lost_share=store.lost_share)
    lost.count(0, 0)
    stores_lib.check_captions(store)
    reader.check_images(store)
    teacher = sidecars = None
    unused = settings.model or settings.sidecar_dir
    if unused and not config.uses_reference:
        progress.say(
            f"warning: the reference, '{unused}', changes nothing: no stage "
            "scores by it, and the loss does not use it"
        )
    if needs_reference:
        if settings.model:
            with strategy.scope():
                teacher = loading.load(settings.model)
            _warn_of_losses(config, teacher.loss)
            _warn_of_seen_records(config, teacher)
        if config.reads_sidecars:
            sidecars = _checked_sidecars(config, store, teacher)
    sources = Sources(store, teacher, sidecars, _read_clean(config, store))
    funnel = funnel_at(config, sources, "", 0)
    _warn_of_repeats(config, funnel)
    _check_renewals(config, store)
    make_stored_stages(config, funnel)
    return sources


def open_sidecars(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    teacher: reference.Run | reference.Pretrained | None = None,
) -> sidecars_lib.Sidecars:
    """Opens the sidecars of a run; of the pool, unless the loss reads them."""
    expected = reference.describe(teacher) if teacher else None
    if not config.loss_needs_reference:
        store = store.first(len(config.data.train))
    return sidecars_lib.Sidecars(store, config.reference.sidecar_dir, expected)


def _checked_sidecars(config, store, teacher):
    try:
        sidecars = open_sidecars(config, store, teacher)
        # Zeros in a sidecar look like records that could not be read.
        sidecars.verify(_VERIFIED)
        return sidecars
    except ValueError as error:
        if teacher is not None or not str(error).startswith("No sidecar"):
            raise
        raise ValueError(
            f"{error}. To run a reference instead, in live stages or for the "
            "loss (`reference.distillation_weight`, `model.false_negatives`), "
            "set `reference.model`"
        ) from None


def _read_clean(config, store):
    """Makes `Sources.clean`; returns None without `data.noise_field`."""
    field = config.data.noise_field
    if not field:
        return None
    columns = store.columns(["id", field])
    if not any(columns[field]):
        progress.say(
            f"warning: no record has a value of `data.noise_field`={field!r}, "
            "so all of them count as clean"
        )
    ids = np.asarray(columns["id"], np.int64)
    order = np.argsort(ids)
    clean = [value.strip().lower() in _CLEAN for value in columns[field]]
    ids, clean = ids[order], np.array(clean, bool)[order]
    if np.any((ids[1:] == ids[:-1]) & (clean[1:] != clean[:-1])):
        progress.say(
            "warning: records share an `id`, but not their value of "
            f"`data.noise_field`={field!r}, so no clean share is reported"
        )
        return None

    def find_clean(wanted):
        return clean[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)]

    return find_clean


def _check_renewals(config, store):
    """Refuses renewals that embed too few records to draw from.

    Each weighted part of the pool needs an embedded record. A hyper-batch of n
    rows needs n embedded records.
    """
    lengths = store.parts[: len(config.data.train)]
    num_pool = sum(lengths)
    offered = config.selection.hyper_batch_size(config.data.curated_rows)
    for step in config.bootstrap.renew_at:
        number = config.bootstrap.share(step) * num_pool
        if number > 2 * offered and not (store.manifest or config.data.weights):
            continue  # enough, whichever records are embedded
        rows = bootstrap.embedded_rows(config, store, step)
        embedded = num_pool if rows is None else int(rows[:num_pool].sum())
        if config.selection.stored and offered > embedded:
            raise ValueError(
                "A hyper-batch, `selection.batch_size` (b) times the "
                "`candidates` of all stages, must be at most the records of "
                f"the pool that the renewal after {step:,} steps embeds, "
                f"{embedded:,}, or it would offer some of them twice: take "
                "fewer candidates, or larger `bootstrap.shares`. Received: "
                f"{offered:,}"
            )
        if not config.data.weights or rows is None:
            continue
        parts = np.split(rows, np.cumsum(lengths))
        for number, part in enumerate(parts[: len(lengths)]):
            if not part.any():
                raise ValueError(
                    "`bootstrap.shares` must embed a record of each pattern of "
                    "`data.train`, since `data.weights` draw from all of them. "
                    f"Received: none of the {len(part):,} of "
                    f"`data.train[{number}]` for the renewal after {step:,} "
                    "steps; take a larger share"
                )


def funnel_at(
    config: config_lib.TrainConfig,
    sources: Sources,
    workdir: str,
    step: int,
    summaries: summary.Summaries | None = None,
) -> training.Funnel:
    """Returns the funnel of the steps from `step` to the next renewal.

    `summaries` gets what the stored stages choose.
    """
    plan = config_lib.between_renewals(config.plan, step)
    teacher, sidecars, rows = sources.teacher, sources.sidecars, None
    if plan[0].reference:
        renewed = bootstrap.sidecars_at(config, sources.store, workdir, step)
        if renewed is not None:
            teacher, (sidecars, rows) = None, renewed
    return training.Funnel(
        config.selection,
        sources.store,
        reference=teacher,
        loss=config.model.loss,
        sidecars=sidecars,
        loss_needs_reference=config.loss_needs_reference,
        options=pipeline.Options(
            weights=config.data.weights,
            shuffle_block_size=config.data.shuffle_block_size,
            rows=rows,
            num_curated=len(config.data.curated),
            clean=sources.clean,
            summaries=summaries or summary.Summaries(),
            known=sources.known,
        ),
        plan=plan,
    )


def check_widths(
    config: config_lib.TrainConfig, sources: Sources, learner: models.TwoTower
) -> None:
    """Checks that the reference can be distilled into the learner."""
    settings = config.reference
    if sources.sidecars is not None:
        dim = sources.sidecars.dim
    else:  # None if it is not known
        teacher = sources.teacher and sources.teacher.learner
        dim = getattr(teacher, "embedding_dim", None)
    width = settings.projection or learner.embedding_dim
    if settings.distillation_weight and dim not in (None, width):
        raise ValueError(
            "`reference.distillation_weight` needs embeddings as wide as the "
            f"reference's: set `reference.projection={dim}`, for a learned "
            f"projection. Received: a learner of width "
            f"{learner.embedding_dim}, reference.projection="
            f"{settings.projection}"
        )


def make_stored_stages(
    config: config_lib.TrainConfig, funnel: training.Funnel
) -> stored_stages.StoredStages | None:
    """Returns the stored stages of a run; None if it has none."""
    if not funnel.plan[0].stored:
        return None
    return stored_stages.StoredStages(
        funnel.plan,
        funnel.scoring_loss,
        funnel.sidecars,
        funnel.store,
        pipeline.order(funnel.store, config.seed, funnel.options),
        config.seed,
        funnel.options,
    )


def _warn_of_losses(config, learned):
    """Warns if a score uses a loss that the reference was not trained with.

    The reference's scale and bias fit its own loss only; under another loss,
    its part of a score may drown the learner's.
    """
    loss = config.selection.loss or config.model.loss
    is_other = learned not in (loss, None)
    if config.selection.needs("reference") and is_other:
        progress.say(
            f"warning: scores use the {loss} loss, but the reference, "
            f"{config.reference.model}, was trained with the {learned} loss: "
            f"set `selection.loss={learned}`"
        )


def _warn_of_seen_records(config, teacher):
    """Warns if the reference was trained on all records of some shards."""
    # A run with a stage was trained on chosen records.
    if (
        not isinstance(teacher, reference.Run)
        or teacher.config.selection.scores
    ):
        return
    own = list_shards(config.data.train)
    seen = own & list_shards(teacher.config.data.train)
    if seen:
        part = f"{len(seen):,} of {len(own):,} shards of " * (seen != own)
        progress.say(
            f"warning: the reference, {config.reference.model}, was trained on "
            f"every record of {part}`data.train`, and may have learned their "
            "errors; a reference trained on curated records alone has not "
            "(docs/bootstrap.md)"
        )


def list_shards(patterns: Sequence[str]) -> set[str]:
    """Returns the files of `patterns`; keeps patterns that match no files."""
    paths = set()
    for pattern in patterns:
        try:
            paths |= {files.absolute(path) for path in shards.expand(pattern)}
        except ValueError:  # such as shards now gone
            paths.add(pattern)
    return paths


def _warn_of_repeats(config, funnel):
    """Warns if records repeat in a super-batch, or in its curated rows."""
    curated_rows = config.data.curated_rows
    size = config.selection.super_batch_size(curated_rows)
    order = pipeline.order(funnel.store, config.seed, funnel.options)
    if size > order.num_drawn:
        progress.say(
            f"warning: a super-batch of {size:,} rows is larger than the "
            f"{order.num_drawn:,} records to draw from, so every super-batch "
            "repeats records"
        )
    num_curated = sum(funnel.store.parts[len(config.data.train) :])
    rows = max(config.plan[0].curated_rows, curated_rows)
    if rows > num_curated:
        progress.say(
            f"warning: {rows:,} curated rows in a batch are more than the "
            f"{num_curated:,} records of `data.curated`, so every batch "
            "repeats records"
        )
