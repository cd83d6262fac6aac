"""The inputs of a run: its examples, its reference, and its stream."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files, models, training
from jest_tf.config import checks
from jest_tf.data import cascade as cascade_lib
from jest_tf.data import (
    ops_reader,
    pictures,
    pipeline,
    reader,
    stream,
    tokenizers,
)
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.data.stores import shards
from jest_tf.models import reference
from jest_tf.runs import bootstrap, interruptions, loading, progress


class Sources(NamedTuple):
    """The inputs of a run: examples, the reference, sidecars and cascade.

    Missing ones of teacher, sidecars and cascade are None; with sidecars the
    reference does not run. `rows` are those drawn, bool [n]; None draws all.
    `curated_rows` are c.
    """

    store: stores_lib.Store
    teacher: reference.Run | reference.Pretrained | None
    sidecars: sidecars_lib.Sidecars | None
    cascade: cascade_lib.Cascade | None
    rows: np.ndarray | None = None
    curated_rows: int = 0

    @property
    def reference(self) -> Callable | None:
        """Returns the reference in `JESTModel`'s form."""
        if self.sidecars is not None:
            return reference.cached(self.sidecars.scale, self.sidecars.bias)
        return self.teacher and self.teacher.learner

    @property
    def dim(self) -> int | None:
        """Returns the width of the reference's embeddings, if it is known."""
        if self.sidecars is not None:
            return self.sidecars.dim
        learner = self.teacher and self.teacher.learner
        return getattr(learner, "embedding_dim", None)

    @property
    def fingerprint(self) -> str:
        """Identifies the reference; "" without one."""
        if self.sidecars is not None:
            return self.sidecars.fingerprint
        if self.teacher is None:
            return ""
        return reference.describe(self.teacher).fingerprint


def open_sources(
    config: config_lib.TrainConfig, strategy: tf.distribute.Strategy
) -> Sources:
    """Opens the inputs of a run, with the reference under a strategy.

    Raises:
        ValueError: data is unreadable, or the reference does not fit.
    """
    _check_functions(config)
    if not config.model.init_from:  # which `loading.open_start` checks
        training.check_parts(config)
    settings = config.reference
    needs_reference = config.has_first_reference and (
        config.steps_need_reference or config.cascade.hyper_batch_size
    )
    if needs_reference and settings.model:
        loading.check_model(settings.model, "reference.model")
    if config.data.reader == "ops":
        ops_reader.check_schemes(
            (*config.data.train, *config.data.curated, config.data.index_dir)
        )
    store = stores_lib.open_stores(
        config.data, progress.Progress("indexing", "bytes")
    )
    stores_lib.check_captions(store)
    reader.check_pictures(store)
    if config.data.reader == "ops":
        ops_reader.check(store)
    _warn_of_repeats(config, store)
    teacher = sidecars = None
    if needs_reference:
        if settings.model:
            with strategy.scope():
                teacher = loading.load(settings.model)
            _warn_of_losses(config, teacher.loss)
            _warn_of_seen_records(config, teacher)
        if settings.sidecars:
            expected = reference.describe(teacher) if teacher else None
            sidecars = sidecars_lib.Sidecars(
                store, settings.sidecar_dir, expected
            )
    cascade_lib.check_uniform_share(config)
    cascade = sidecars and cascade_lib.of_run(config, sidecars)
    sources = Sources(
        store, teacher, sidecars, cascade, curated_rows=config.curated_rows(0)
    )
    _check_renewals(config, sources)
    return sources


def _check_renewals(config, sources):
    """Refuses renewals that embed too little to draw from.

    A part of the pool with a weight needs a record, a hyper-batch as many as it
    offers.
    """
    size, store = config.cascade.hyper_batch_size, sources.store
    lengths = store.parts[: len(config.data.train)]
    num_pool = sum(lengths)
    for step in config.bootstrap.renew_at if config.data.weights else ():
        rows = bootstrap.embedded_rows(config, store, step)
        parts = [] if rows is None else np.split(rows, np.cumsum(lengths))
        for number, part in enumerate(parts[: len(lengths)]):
            if not part.any():
                raise ValueError(
                    "`bootstrap.shares` must embed a record of each pattern of "
                    "`data.train`, since `data.weights` draw from all of them. "
                    f"Received: none of the {len(part):,} of "
                    f"`data.train[{number}]` for the renewal after {step:,} "
                    "steps; take a larger share"
                )
    for step in config.bootstrap.renew_at if size else ():
        offered = size - config.curated_rows(step)
        number = config.bootstrap.share(step) * num_pool
        if number > 2 * offered and not store.manifest:
            continue  # enough, whatever the draw of the rows is
        rows = bootstrap.embedded_rows(config, store, step)
        embedded = num_pool if rows is None else int(rows[:num_pool].sum())
        if offered > embedded:
            raise ValueError(
                "`cascade.hyper_batch_size` (K B), less the curated rows, must "
                "be at most the records of the pool that the renewal after "
                f"{step:,} steps embeds, {embedded:,}, or it would offer some "
                "of them twice: take a smaller one, or larger "
                f"`bootstrap.shares`. Received: {offered:,}"
            )


def at_step(
    config: config_lib.TrainConfig,
    sources: Sources,
    workdir: str,
    step: int,
) -> Sources:
    """Returns the inputs of the steps after `step` steps.

    These are the first `sources` until the reference is renewed.

    Raises:
        ValueError: as `bootstrap.sidecars_at`.
    """
    found = bootstrap.sidecars_at(config, sources.store, workdir, step)
    if found is None:
        curated_rows = config.curated_rows(step)
        return sources._replace(curated_rows=curated_rows)
    sidecars, rows = found
    if config.bootstrap.renews == "learner":
        return sources._replace(
            cascade=cascade_lib.of_run(config, sources.sidecars, sidecars),
            rows=rows,
            curated_rows=config.curated_rows(step),
        )
    return sources._replace(
        teacher=None,
        sidecars=sidecars,
        cascade=cascade_lib.of_run(config, sidecars),
        rows=rows,
        curated_rows=config.curated_rows(step),
    )


def options_of(
    config: config_lib.TrainConfig, sources: Sources
) -> pipeline.Options:
    """Returns the options of a run's stream that say what is drawn."""
    return pipeline.Options(
        weights=config.data.weights,
        shuffle_block_size=config.data.shuffle_block_size,
        sidecars=sources.sidecars if config.steps_need_reference else None,
        rows=sources.rows,
        num_curated=len(config.data.curated),
        curated_rows=sources.curated_rows,
        cascade=sources.cascade,
        reader=config.data.reader,
        token_field=config.data.token_field,
    )


def check_widths(
    config: config_lib.TrainConfig, sources: Sources, learner: models.TwoTower
) -> None:
    """Checks that the reference can be distilled into the learner.

    Raises:
        ValueError: `reference.projection`, or without it the learner's width,
            differs from the reference's width.
    """
    settings, dim = config.reference, sources.dim
    width = settings.projection or learner.embedding_dim
    if settings.distillation_weight and dim not in (None, width):
        raise ValueError(
            "`reference.distillation_weight` needs embeddings as wide as the "
            f"reference's: set `reference.projection={dim}`, for a learned "
            f"projection. Received: a learner of width "
            f"{learner.embedding_dim}, reference.projection="
            f"{settings.projection}"
        )


def order_of(
    config: config_lib.TrainConfig, sources: Sources
) -> stream.AnyOrder:
    """Returns the order of a run's stream."""
    return pipeline.order(
        sources.store,
        config.seed,
        config.data.super_batch_size,
        options_of(config, sources),
    )


class Stream:
    """The super-batches of a run, except the skipped ones.

    Raises:
        ValueError: `data.token_field` is not of the tokenizer.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        sources: Sources,
        tokenizer: Callable,
        picture: pictures.Form,
        skipped: interruptions.Skipped,
    ):
        self._config = config
        self._sources = sources
        self._tokenizer = tokenizer
        self._picture = picture
        self._skipped = skipped
        if config.data.token_field:
            ops_reader.check_tokens(
                sources.store, tokenizer, config.data.token_field
            )

    def from_step(
        self,
        step: int,
        faults: pipeline.FaultLog,
        host: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns the super-batches of the steps after `step` steps."""
        first = self._skipped.at(step)
        starts = [first, *(n + 1 for n in self._skipped.numbers if n > first)]
        stops = [*(start - 1 for start in starts[1:]), None]
        whole = None
        # From the end, so that the fault log starts before the first.
        for start, stop in zip(reversed(starts), reversed(stops), strict=True):
            part = self.super_batches(start, faults, host, num_hosts)
            if stop is not None:
                part = part.take(stop - start).concatenate(whole)
            whole = part
        return whole

    def super_batches(
        self,
        first: int,
        faults: pipeline.FaultLog | None = None,
        host: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns all super-batches from number `first`, leaving none out."""
        config, sources = self._config, self._sources
        reference_view = {}
        if sources.sidecars is None and sources.teacher is not None:
            reference_view = {
                "reference_tokenizer": sources.teacher.tokenizer,
                "reference_image": sources.teacher.picture,
            }
        if faults is None:
            faults = pipeline.FaultLog(None, config.data.max_fault_rate)
        return pipeline.super_batches(
            sources.store,
            super_batch_size=config.data.super_batch_size,
            seed=config.seed,
            tokenizer=self._tokenizer,
            image_size=self._picture,
            start_step=first,
            options=dataclasses.replace(
                options_of(config, sources),
                host=host,
                num_hosts=num_hosts,
                faults=faults,
                **reference_view,
            ),
        )

    def read(self, number: int) -> dict[str, tf.Tensor]:
        """Reads one super-batch by number, apart from the stream of `fit`."""
        uncounted = pipeline.FaultLog(None, 1.0)
        return next(iter(self.super_batches(number, uncounted).take(1)))


def tokenizer_of(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    workdir: str,
    output: str,
    initial: Callable | None = None,
) -> Callable:
    """Returns the run's tokenizer.

    It comes from the run directory, is `initial`, that of a model or a file, or
    is built from the store's captions. A new one is saved in `output`.
    """
    length = config.data.text_length
    if tokenizers.has_tokenizer(workdir):
        return tokenizers.load_tokenizer(workdir, length)
    if initial is not None:
        tokenizer = initial
    else:
        progress.say(
            f"{workdir}: building a vocabulary from {len(store):,} records"
        )
        vocabulary = tokenizers.build_wordpiece_vocabulary(
            store.captions(), config.data.vocabulary_size
        )
        tokenizer = tokenizers.WordPieceTokenizer(vocabulary, length)
    tokenizer.save(output)
    return tokenizer


def _check_functions(config):
    """Imports what settings name, before data is read."""
    for setting, name in (
        ("data.augment", config.data.augment),
        ("data.vocabulary", config.data.vocabulary),
        ("model.towers", config.model.towers),
        ("model.loss_function", config.model.loss_function),
        ("optimizer.name", config.optimizer.name),
        ("optimizer.schedule", config.optimizer.schedule),
        *(("callbacks", name) for name in config.callbacks),
    ):
        if ":" in name and checks.FUNCTION[1](name):
            checks.load_function(setting, name)


def _warn_of_losses(config, learned):
    """Warns if a score uses a loss that the reference was not trained with.

    Its scale and bias are for its loss only; by another, its part of a score
    may drown the learner's.
    """
    asked = {}
    if config.selection.needs_reference:
        asked["selection.loss"] = config.selection.loss
    if config.cascade.hyper_batch_size:
        asked["cascade.loss"] = config.cascade.loss
    for setting, loss in asked.items():
        loss = loss or config.model.loss
        if loss != learned:
            progress.say(
                f"warning: scores are of the {loss} loss, and the reference in "
                f"{config.reference.model} has learned by the {learned} loss:"
                f" `{setting}={learned}` scores by that"
            )


def _warn_of_seen_records(config, teacher):
    """Warns if the reference has learned the records that it chooses from."""
    seen = seen_shards(teacher, config.data.train)
    if seen:
        own = shards_of(config.data.train)
        progress.say(
            f"warning: the reference, {config.reference.model}, was trained on "
            f"{len(seen):,} of the {len(own):,} shards of `data.train`, on "
            "every record: what is wrong in them it may have learned, too; "
            "one of curated records alone has not (docs/bootstrap.md)"
        )


def seen_shards(model, patterns: Sequence[str]) -> set[str]:
    """Returns the files of a pool that a model was trained on, as a whole.

    None for a model that is no run, or that was trained on chosen records.
    """
    if not isinstance(model, reference.Run):
        return set()
    theirs = model.config
    if theirs.selection.scores or theirs.cascade.hyper_batch_size:
        return set()
    return shards_of(patterns) & shards_of(theirs.data.train)


def shards_of(patterns: Sequence[str]) -> set[str]:
    """Returns the files of `data.train`; other patterns stay as they are."""
    found = set()
    for pattern in patterns:
        try:
            found |= {files.absolute(one) for one in shards.expand(pattern)}
        except ValueError:  # such as a data set of TFDS, or shards now gone
            found.add(pattern)
    return found


def _warn_of_repeats(config, store):
    """Warns if records repeat in a super-batch, or in its curated rows."""
    size = config.data.super_batch_size
    sources = Sources(
        store, None, None, None, curated_rows=config.curated_rows(0)
    )
    num_drawn = order_of(config, sources).num_drawn
    if size > num_drawn:
        progress.say(
            f"warning: `data.super_batch_size`={size:,} is more than the "
            f"{num_drawn:,} records to draw from, so that every super-batch "
            "holds some of them several times"
        )
    num_curated = sum(store.parts[len(config.data.train) :])
    rows = max(config.curated_rows(step) for step in (0, config.steps - 1))
    if rows > num_curated:
        progress.say(
            f"warning: {rows:,} curated rows in a batch are more than the "
            f"{num_curated:,} records of `data.curated`, so that a batch holds "
            "some of them several times"
        )
