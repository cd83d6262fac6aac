"""Surveys a pool: embeds samples of it, and measures them for advice.

The reference is a model by name, or a quick reference, trained here on three
quarters of the curated set. The other quarter is then a sample of matched pairs
that the reference has not seen.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf import runs
from jest_tf.config import checks
from jest_tf.curation import advice, estimates
from jest_tf.data import stores as stores_lib
from jest_tf.data.sidecars import embed
from jest_tf.data.stores import manifest
from jest_tf.models import reference as reference_lib

# Training of the quick reference, as in docs/advise.md.
_STEPS, _WARMUP = 300, 50
_HELD_OUT = 1 / 4
# Without the salt, a sample could repeat the random choice that made a data set
# with the same seed.
_SAMPLE_SALT = 0x73616D706C65
_BATCH = 256
_LEAST_CURATED = 64
_LEAST_BREADTH = 64
# Records of the same picture are often neighbours, so blocks are held out.
_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Settings(checks.Checked):
    """Sizes of the samples of a survey, and its thresholds.

    Attributes:
        sample: random records of the pool to embed.
        curated_sample: most curated records to embed.
        tests_sample: most records of the tests to embed.
        near: least cosine of near-duplicates. The value depends on the
            reference: a weak model has all cosines near 1.
        seed: seed of all samples.
    """

    sample: checks.Count = 8_192
    curated_sample: checks.Count = 4_096
    tests_sample: checks.Count = 2_048
    near: float = 0.999
    seed: int = 0


class Data(NamedTuple):
    """The stores of a survey; `tests` may be None."""

    pool: stores_lib.Store
    curated: stores_lib.Store
    tests: stores_lib.Store | None = None


class Survey(NamedTuple):
    """Measurements of a survey.

    Attributes:
        facts: the numbers that the rules of the advice read.
        sizes: records of the pool, of the curated set, and of the sample.
        duplicates: near-duplicates in the sample.
        breadth: effective clusters of the pool, the curated set and the tests,
            by name.
        rows: int64 [n], rows of the pool in the sample, ascending.
        similarity: standardised similarities of these pairs.
        curated: float32 [m], similarity of the curated pairs that the
            reference has not seen.
        posterior: float64 [n], probability that a pair matches.
    """

    facts: advice.Facts
    sizes: dict[str, int]
    duplicates: estimates.Duplicates
    breadth: dict[str, float]
    rows: np.ndarray
    similarity: estimates.Similarities
    curated: np.ndarray
    posterior: np.ndarray


def quick_reference(
    recipe: config_lib.TrainConfig,
    curated: stores_lib.Store,
    patterns: tuple[str, ...],
    workdir: str,
) -> str:
    """Trains a reference on three quarters of a curated set, or continues.

    Args:
        recipe: the learner's, for towers, pictures, texts and optimizer.
        curated: the set.
        patterns: patterns of its shards.
        workdir: directory of the run.

    Returns:
        `workdir`, with the run finished.

    Raises:
        ValueError: the set is too small, or as in `runs.train`.
    """
    is_held_out = held_out(curated)
    if len(curated) < _LEAST_CURATED:
        raise ValueError(
            f"`--curated` must have at least {_LEAST_CURATED} records to train "
            f"a reference on. Received: {len(curated)}; name a public model, "
            "`--reference`"
        )
    folder = os.path.join(workdir, "manifest")
    manifest.write(
        curated,
        folder,
        {"choice": "not held out"},
        weights=~is_held_out,
        scores=np.full(len(curated), np.nan),
    )
    size = min(recipe.selection.batch_size, int((~is_held_out).sum()))
    runs.train(
        dataclasses.replace(
            recipe,
            steps=_STEPS,
            data=recipe.data.reading(patterns, manifest=folder),
            optimizer=dataclasses.replace(
                recipe.optimizer,
                # The best schedule for so short a run.
                schedule="cosine",
                warmup_steps=_WARMUP,
                ema=None,
            ),
            # So small a batch might not divide into parts.
            model=dataclasses.replace(
                recipe.model, train_views=False, micro_batch_size=None
            ),
            selection=config_lib.SelectionConfig(size),
            reference=config_lib.ReferenceConfig(),
            bootstrap=config_lib.BootstrapConfig(),
            evaluation=config_lib.EvaluationConfig(),
            checkpoint=config_lib.CheckpointConfig(),
            distribution=config_lib.DistributionConfig(),
            callbacks=(),
        ),
        workdir,
    )
    return workdir


def held_out(curated: stores_lib.Store) -> np.ndarray:
    """Marks the records that a quick reference is not trained on, bool [n].

    These are every fourth block of eight records, so that few pictures with
    several records are on both sides. Captions may be on both.
    """
    return np.arange(len(curated)) // _BLOCK % round(1 / _HELD_OUT) == 0


def survey(
    data: Data,
    model: reference_lib.Run | reference_lib.Pretrained,
    settings: Settings,
    *,
    unseen: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Embeds samples with a reference, and measures them.

    Args:
        data: the stores.
        model: the reference.
        settings: see `Settings`.
        unseen: bool [n], the curated records that the reference has not seen;
            None is all of them.
        progress: called with the records embedded so far and in all.

    Raises:
        ValueError: too few records have embeddings, or the reference cannot
            tell curated pairs from mismatched pairs.
    """
    if unseen is None:
        unseen = np.ones(len(data.curated), bool)
    found = _embed_samples(data, model, settings, unseen, progress)
    pool, curated = found["pool"], found["curated"]
    similarity = estimates.similarities(pool.image, pool.text)
    of_curated = estimates.similarities_to(
        curated.image, curated.text, pool.image, pool.text
    )
    share = estimates.matched_share(similarity.matched, of_curated)
    posterior = estimates.posterior(similarity, of_curated, share.mean)
    precision = {
        count: estimates.precision(similarity.matched, posterior, count)
        for count in advice.CANDIDATES
    }
    duplicates = estimates.duplicates(pool.image, len(data.pool), settings.near)
    kinds = {
        "pool": pool.image,
        "curated": np.concatenate([curated.image, found["seen"].image]),
        "tests": found["tests"].image,
    }
    kinds = {name: image for name, image in kinds.items() if len(image)}
    # `breadth` uses as many pictures of each group as the smallest has.
    broad = {
        name: image
        for name, image in kinds.items()
        if name != "tests" or len(image) >= _LEAST_BREADTH
    }
    breadth = dict(
        zip(broad, estimates.breadth([*broad.values()]), strict=True)
    )
    count = len(kinds["curated"])
    size = min(_BLOCK, max(1, count // 2))
    is_other = np.arange(count) // size % 2 == 1
    halves = [kinds["curated"][rows] for rows in (~is_other, is_other)]
    covered = None
    if "tests" in kinds:
        covered = estimates.nearer(
            kinds["tests"], kinds["curated"], kinds["pool"]
        )
    facts = advice.Facts(
        share,
        precision,
        apart=estimates.nearer(*halves, kinds["pool"]),
        covered=covered,
        num_tests=len(kinds.get("tests", ())),
        breadth=breadth["curated"] / breadth["pool"],
    )
    sizes = {
        "pool": len(data.pool),
        "sampled": len(pool.rows),
        "curated": len(data.curated),
        "curated pairs compared": len(curated.rows),
    }
    return Survey(
        facts,
        sizes,
        duplicates,
        breadth,
        pool.rows,
        similarity,
        of_curated,
        posterior,
    )


class _Embedded(NamedTuple):
    """Records with the embeddings of pictures and of first captions.

    Attributes:
        rows: int64 [k], rows of the store.
        image: float32 [k, D].
        text: float32 [k, D].
    """

    rows: np.ndarray
    image: np.ndarray
    text: np.ndarray


def _embed_samples(data, model, settings, unseen, progress):
    """`_Embedded` of pool, curated, seen and tests, by name."""
    random = np.random.default_rng([settings.seed, _SAMPLE_SALT])

    def some(rows, count):
        size = rows if isinstance(rows, int) else len(rows)
        count = min(count, size)
        found = random.choice(rows, count, replace=False) if count else []
        return np.sort(np.array(found, np.int64))

    unseen, seen = np.flatnonzero(unseen), np.flatnonzero(~unseen)
    samples = {
        "pool": (data.pool, some(len(data.pool), settings.sample)),
        "curated": (data.curated, some(unseen, settings.curated_sample)),
        "seen": (data.curated, some(seen, settings.curated_sample)),
    }
    tests = len(data.tests) if data.tests is not None else 0
    samples["tests"] = data.tests, some(tests, settings.tests_sample)
    encode, form = reference_lib.encoder(model, _BATCH), model.picture
    total, done = sum(len(rows) for _, rows in samples.values()), 0
    found = {}
    for name, (store, rows) in samples.items():
        parts = [_no_rows(model)]
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            parts.append(_embed(store, part, encode, form))
            done += len(part)
            if progress is not None:
                progress(done, total)
        found[name] = _Embedded(
            *(np.concatenate(column) for column in zip(*parts, strict=True))
        )
    return found


def _embed(store, rows, encode, form):
    """Embeds records, each with its first caption that is not blank.

    Records whose embeddings are not finite are left out.
    """
    batch = embed.load(store, rows, form)
    owners = np.searchsorted(np.cumsum(batch.captions), batch.places, "right")
    good, first = np.unique(owners, return_index=True)
    images = batch.images[np.cumsum(batch.valid)[good] - 1]
    image, text = encode(images, [batch.texts[place] for place in first])
    finite = np.isfinite(image).all(1) & np.isfinite(text).all(1)
    good = good[finite]
    return _Embedded(rows[good], image[finite], text[finite])


def _no_rows(model):
    none = np.zeros([0, reference_lib.describe(model).dim], np.float32)
    return _Embedded(np.zeros(0, np.int64), none, none)
