"""Curation: a whole data set chosen from once, into a manifest.

The choice of a step, made beforehand: the records of every shard are dealt by
chance into windows, and from each window a share is chosen jointly, by
easy-reference or by the learnability between a learner and a reference that are
both finished. Embeddings come from sidecars; where there are none yet, they are
written first, and nothing else looks at a picture.

What becomes of a shard is a function of the shard, the models and the settings,
so shards may be done in any order, again after a kill, or on many machines, as
an Apache Beam pipeline. Sets that are inferred from tasks are in
`curation/by_similarity.py`, the format of a manifest is in `data/manifest.py`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files, runs, selection
from jest_tf.config import checks
from jest_tf.data import cascade, reader, stores, stream
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.data.stores import manifest, shards
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference
from jest_tf.runs import directory as directory_lib

CRITERIA = ("easy_reference", "learnability")

# Rows of sidecars that are looked at together.
_ROWS = 2**16


@dataclass(frozen=True)
class Settings:
    """How records are chosen.

    Attributes:
        criterion: "easy_reference", or "learnability", which needs a learner.
        share: of the records that have embeddings, in (0, 1]; of each shard
            to within one record, up or down by chance of shard and seed.
        window: records that are chosen from jointly, about; a shard is dealt
            into windows of equal size.
        passes: times that everything is dealt and chosen from anew, each time
            with one caption of each record. The weight of a record is how
            often it was chosen, its score the mean.
        loss: pair loss of the scores, "sigmoid" or "softmax"; None is the one
            that the models' runs were trained with.
        num_chunks: N, chunks that a joint draw is made in.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: multiplies every score, the inverse of a temperature; 0 is
            uniform.
        uniform_share: of what is chosen, in [0, 1): drawn uniformly from what
            the joint draw of the others has left. Of each shard to within one
            record, as `share`; one of each window at least is drawn jointly.
        seed: of windows, captions and draws.
    """

    criterion: str = "easy_reference"
    share: float = 0.2  # the filter ratio 0.8 of arXiv 2406.17711
    window: int = 8192
    passes: int = 1
    loss: str | None = None
    num_chunks: int = 16  # arXiv 2406.17711, algorithm 1
    first_chunk: str = "diagonal"
    gain: float = 1.0
    uniform_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        checks.check(
            self,
            "",
            criterion=checks.one_of(*CRITERIA),
            share=checks.within("(0, 1]"),
            window=checks.at_least(1),
            passes=checks.at_least(1),
            loss=checks.one_of(*config_lib.LOSSES, None),
            num_chunks=checks.at_least(1),
            first_chunk=checks.one_of(*config_lib.FIRST_CHUNKS),
            uniform_share=checks.within("[0, 1)"),
        )
        if not 0 <= self.seed < 2**31:
            raise ValueError(
                f"`seed` must be in [0, 2^31). Received: {self.seed}"
            )


class Model(NamedTuple):
    """Where the embeddings of a model come from.

    Attributes:
        workdir: the directory of its run, finished unless there is a `step`;
            "" takes what the sidecars are of.
        sidecar_dir: folder of its sidecars; "" is beside each shard.
        step: of the checkpoint to take the weights from; None takes those that
            the run ended with.
    """

    workdir: str = ""
    sidecar_dir: str = ""
    step: int | None = None

    def description(self, store: stores.Store) -> file_format.Description:
        """What its embeddings are of.

        Raises:
            ValueError: there is no such run, or no sidecars without one.
        """
        if self.workdir:
            return _loaded(self.workdir, self.step, _written(self.workdir))[1]
        return sidecars_lib.Sidecars(store, self.sidecar_dir).description

    def loss(self) -> str | None:
        """The pair loss of its run; None where there is none.

        Raises:
            ValueError: there is no such run.
        """
        if not self.workdir:
            return None
        run, _ = _loaded(self.workdir, self.step, _written(self.workdir))
        return run.config.model.loss

    def sidecars(
        self,
        store: stores.Store,
        progress: Callable[[int, int], None] | None = None,
    ) -> sidecars_lib.Sidecars:
        """The sidecars of a store, written first if they are not there.

        Args:
            store: the records.
            progress: as of `embed.write`.

        Raises:
            ValueError: as of `embed.write` and `sidecars.Sidecars`.
        """
        if not self.workdir:
            return sidecars_lib.Sidecars(store, self.sidecar_dir)
        run, description = _loaded(
            self.workdir, self.step, _written(self.workdir)
        )
        embed.write(
            store,
            reference.encoder(run),
            description,
            self.sidecar_dir,
            image_size=run.config.data.image_size,
            dtype=_dtype(store, self.sidecar_dir),
            progress=progress,
        )
        return sidecars_lib.Sidecars(store, self.sidecar_dir, description)


def curate(
    store: stores.Store,
    directory: str,
    chosen_by: Settings,
    models: Sequence[Model],
    *,
    overwrite: bool = False,
    embedding: Callable[[int, int], None] | None = None,
    scoring: Callable[[int, int], None] | None = None,
) -> manifest.Manifest:
    """Writes the manifest of a store; goes on where it was stopped.

    Args:
        store: the records.
        directory: of the manifest, local.
        chosen_by: the settings.
        models: the reference, and the learner if the criterion needs one.
        overwrite: write all anew, whatever is there.
        embedding: told the records embedded and to embed.
        scoring: told the records scored and to score.

    Raises:
        ValueError: models and settings do not fit, embeddings cannot be had,
            two shards are one, or the folder holds another manifest, or is
            being written to.
    """
    chosen_by = for_models(chosen_by, models)
    manifest.check_distinct(store)
    sidecars = [model.sidecars(store, embedding) for model in models]
    made_by = describe(chosen_by, [one.description for one in sidecars])
    done = 0
    with claimed(directory):
        for shard, length in enumerate(store.shards.lengths.tolist()):
            path = manifest.part_path(store, shard, directory)
            header = manifest.describe(store, shard, made_by)
            if overwrite or not manifest.is_there(path, header):
                part = choose(store.of_shard(shard), chosen_by, models)
                manifest.write_part(path, header, part)
            done += length
            if scoring is not None:
                scoring(done, len(store))
        return manifest.finish(store, directory, made_by, {})


def curate_with_beam(
    data: config_lib.DataConfig,
    directory: str,
    chosen_by: Settings,
    models: Sequence[Model],
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> manifest.Manifest:
    """As `curate`, the shards spread by Apache Beam over its workers.

    Every worker reads the shards, the runs and the sidecars by the same paths,
    and writes to the same folder. Sidecars that are not there are written by
    the worker that comes to the shard, in `Model.sidecar_dir`, which may be a
    folder of each worker's own.

    Args:
        data: the store, in `train`; and how it is read.
        directory: of the manifest; may be remote.
        chosen_by: as of `curate`, like `models` and `overwrite`.
        models: the reference, and the learner if the criterion needs one.
        options: Beam's own flags, `--runner=DataflowRunner` and the like.
        overwrite: write all anew, whatever is there.

    Raises:
        ValueError: as of `curate`, Beam is not installed or lacks what its
            runner needs, or it knows no such flag.
    """
    beam, flags = _beam_options(options)
    chosen_by = for_models(chosen_by, models)
    _opened.cache_clear()  # of a pipeline before, in this process
    store = stores.open_stores(data)
    manifest.check_distinct(store)
    made_by = describe(
        chosen_by, [model.description(store) for model in models]
    )
    work = functools.partial(
        _curate_shard, data, directory, chosen_by, tuple(models), overwrite
    )
    try:
        with beam.Pipeline(options=flags) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(range(len(store.shards.paths)))
                | "Spread" >> beam.Reshuffle()
                | "Choose" >> beam.Map(work)
            )
    except ImportError as error:
        # A runner's own packages are looked for when it is made or started.
        raise ValueError(
            "Apache Beam must be installed with what its runner needs, as "
            "apache-beam[gcp] for Dataflow. Received: "
            f"{shards.one_line(error)}"
        ) from error
    return manifest.finish(store, directory, made_by, {})


def choose(
    store: stores.Store, chosen_by: Settings, models: Sequence[Model]
) -> manifest.Part:
    """The weights and scores of a store of one shard.

    Records that could not be read, or have no caption, are not scored.

    Raises:
        ValueError: embeddings cannot be had, or the loss is not known.
    """
    chosen_by = for_models(chosen_by, models)
    sidecars = [model.sidecars(store) for model in models]
    rows, key = usable(store, sidecars), _key(store, chosen_by.seed)
    ids = store.ids(np.arange(len(store)))
    weights = np.zeros(len(store), np.float32)
    totals = np.full(len(store), np.nan, np.float32)
    totals[rows] = 0.0
    if not len(rows):
        return manifest.Part(ids, weights, totals)
    order = stream.Order(len(rows), key)
    num_windows = max(1, round(len(rows) / chosen_by.window))
    windows = np.array_split(np.arange(len(rows)), num_windows)
    counts = _counts(
        chosen_by.share, [len(one) for one in windows] * chosen_by.passes, key
    )
    uniform = _counts(chosen_by.uniform_share, counts, key)
    for turn in range(chosen_by.passes):
        positions = np.arange(len(rows)) + turn * len(rows)
        line = rows[order.rows(positions)]
        numbers = reader.caption_numbers(key, positions)
        for number, places in enumerate(windows, turn * num_windows):
            window = line[places]
            chosen, scores = _choose_from(
                _embedded(sidecars, window, numbers[places], ids[window]),
                counts[number],
                min(uniform[number], max(0, counts[number] - 1)),
                chosen_by,
                (key, number),
            )
            weights[window[chosen]] += 1.0
            totals[window] += scores
    return manifest.Part(ids, weights, totals / np.float32(chosen_by.passes))


def usable(
    store: stores.Store, sidecars: Sequence[sidecars_lib.Sidecars]
) -> np.ndarray:
    """The rows that all sidecars have an embedding and a caption of; int64."""
    found = []
    for start in range(0, len(store), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(store)))
        for one in sidecars:
            numbers = np.zeros(len(rows), np.int64)
            captions, _, _ = one.read_numbered(rows, numbers, store.ids(rows))
            rows = rows[captions >= 0]
        found.append(rows)
    return np.concatenate(found)


def describe(
    chosen_by: Settings, descriptions: Sequence[file_format.Description]
) -> dict:
    """What a manifest says that it was made by."""
    made_by = {"choice": "joint", **dataclasses.asdict(chosen_by)}
    for name, one in zip(("reference", "learner"), descriptions, strict=False):
        made_by[name] = one._asdict()
    return made_by


def for_models(chosen_by: Settings, models: Sequence[Model]) -> Settings:
    """The settings with the loss that models' runs were trained with.

    Raises:
        ValueError: the criterion needs other models, there is no such run, or
            no loss is set and the runs have none, or not the same.
    """
    wanted = 2 if chosen_by.criterion == "learnability" else 1
    if len(models) != wanted:
        raise ValueError(
            f"`criterion` {chosen_by.criterion!r} needs "
            f"{'a reference and a learner' if wanted == 2 else 'a reference'}. "
            f"Received: {len(models)} models"
        )
    if wanted == 2 and models[0].sidecar_dir == models[1].sidecar_dir:
        raise ValueError(
            "The sidecars of reference and learner have the same names, so "
            "they need folders of their own. Received: "
            f"{models[0].sidecar_dir!r} for both"
        )
    if chosen_by.loss is not None:
        return chosen_by
    found = {model.loss() for model in models}
    if len(found) > 1 or None in found:
        names = [
            f"{one.loss()!r} of {one.workdir!r}"
            if one.workdir
            else "sidecars without a run"
            for one in models
        ]
        raise ValueError(
            "`loss` must be 'sigmoid' or 'softmax', as what scores was "
            "trained, unless it is a run, or two of one loss. Received: none, "
            f"with {' and '.join(names)}"
        )
    return dataclasses.replace(chosen_by, loss=found.pop())


@contextlib.contextmanager
def claimed(directory: str) -> Iterator[None]:
    """Locks the folder of a manifest.

    Raises:
        ValueError: another process holds it, or it is not local.
    """
    if files.is_remote(directory):
        raise ValueError(
            "The folder of a manifest must be local where one machine writes "
            f"it: copy it afterwards. Received: {directory!r}"
        )
    with contextlib.ExitStack() as stack:
        try:
            lock = os.path.join(directory, ".lock")
            stack.enter_context(files.locked(lock))
        except BlockingIOError:
            raise ValueError(
                f"Another process is writing the manifest {directory!r}; "
                "expected a folder that nobody else writes to"
            ) from None
        yield


def _written(workdir):
    """When a run was written, so that another one is not taken for it."""
    try:
        path = directory_lib.path(workdir, directory_lib.WEIGHTS_FILE)
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _dtype(store, directory):
    """That of the first sidecar that is there, or float16."""
    for shard in range(len(store.shards.paths)):
        path = sidecars_lib.sidecar_path(store, shard, directory)
        if os.path.isfile(path):
            return file_format.read(path)[0].dtype
    return "float16"


@functools.lru_cache(maxsize=2)
def _loaded(workdir, step, written):
    """A run and what its embeddings are of."""
    del written
    run = runs.load_run(workdir, step)
    return run, reference.describe(run)


@functools.lru_cache(maxsize=1)
def _opened(data):
    return stores.open_stores(data)


def _curate_shard(data, directory, chosen_by, models, overwrite, shard):
    """What a worker of Beam does; returns the file's name."""
    store = _opened(data)
    alone = store.of_shard(shard)
    path = manifest.part_path(store, shard, directory)
    sidecars = [model.sidecars(alone) for model in models]
    made_by = describe(chosen_by, [one.description for one in sidecars])
    header = manifest.describe(store, shard, made_by)
    if overwrite or not manifest.is_there(path, header):
        manifest.write_part(path, header, choose(alone, chosen_by, models))
    return path


def _beam_options(options):
    """Apache Beam, and its flags, all of which it knows."""
    try:
        import apache_beam as beam
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise ValueError(
            "`beam` needs Apache Beam: pip install apache-beam. "
            f"Received: {shards.one_line(error)}"
        ) from error
    flags = pipeline_options.PipelineOptions(list(options))
    # Beam passes over what it does not know. Only here does it hand out the
    # parser of all its options.
    parsers: list = []
    flags.get_all_options(add_extra_args_fn=parsers.append)
    unknown = parsers[0].parse_known_args(list(options))[1]
    if unknown:
        raise ValueError(
            "Flags must be of this command or of Apache Beam. Received: "
            f"{' '.join(unknown)}"
        )
    return beam, flags


def _key(store, seed):
    """An integer in [0, 2^31) of a shard's version and the seed."""
    text = f"{seed} {store.stamp(0)}".encode()
    digest = hashlib.blake2b(text, digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _embedded(sidecars, rows, numbers, ids):
    """`Embeddings` of rows by each model, with the same captions."""
    # Sorted ones are read fastest.
    order = np.argsort(rows)
    back = np.argsort(order)
    rows, numbers, ids = rows[order], numbers[order], ids[order]
    captions, *found = sidecars[0].read_numbered(rows, numbers, ids)
    every = [found]
    every += [one.read(rows, captions, ids) for one in sidecars[1:]]
    return [
        Embeddings(
            image[back].astype(np.float32),
            text[back].astype(np.float32),
            np.float32(one.scale),
            np.float32(one.bias),
        )
        for one, (image, text) in zip(sidecars, every, strict=True)
    ]


def _counts(share, sizes, key):
    """How many are chosen of windows of these sizes, one after another.

    What rounding takes from a window is given to a later one: so many are
    chosen of the first k as their share, to within one. Where the line of them
    begins is by chance for each shard, so that many small shards come to their
    share of all on average.
    """
    # In fractions: a sum of floats may come out below a whole number.
    start = Fraction(key, 2**31)
    ends = [start]
    for size in sizes:
        ends.append(ends[-1] + Fraction(share) * size)
    return np.diff([math.floor(end) for end in ends]).tolist()


def _choose_from(every, count, num_uniform, chosen_by, seed):
    """Rows chosen from a window, and the scores of all; NumPy."""
    dims = tuple(one.image.shape[1] for one in every)
    size = len(every[0].image)
    # Scores are of records beside those chosen: without any, beside one.
    draw = _drawer(chosen_by, size, max(1, count), num_uniform, dims)
    models = [tf.nest.map_structure(tf.constant, one) for one in every]
    chosen, scores = draw(tf.constant(seed, tf.int32), *models)
    return chosen.numpy()[:count], scores.numpy()


# Shards are about equally large, so sizes of windows are few.
@functools.lru_cache(maxsize=32)
def _drawer(chosen_by, size, count, num_uniform, dims):
    """A graph: seed, reference, learner -> rows chosen, scores of all."""

    def draw(seed, reference, *learners):
        learner = learners[0] if learners else None
        drawn = selection.select_jointly(
            learner,
            reference,
            batch_size=count - num_uniform,
            num_chunks=min(chosen_by.num_chunks, count - num_uniform),
            seed=cascade.joint_seed(seed),
            criterion=chosen_by.criterion,
            loss=chosen_by.loss,
            first_chunk=chosen_by.first_chunk,
            gain=chosen_by.gain,
        )
        scores = -drawn.reference_loss
        if learner is not None:
            scores += drawn.learner_loss
        return cascade.with_uniform(drawn, num_uniform, seed), scores

    scalar = tf.TensorSpec([], tf.float32)
    models = [
        Embeddings(
            *[tf.TensorSpec([size, dim], tf.float32)] * 2, scalar, scalar
        )
        for dim in dims
    ]
    return tf.function(draw, autograph=False).get_concrete_function(
        tf.TensorSpec([2], tf.int32), *models
    )
