"""The decision table of the advice: what a pool is like, and what to do.

The first row of `ROWS` that applies is the advice. docs/recipes.md shows the
same rows with their evidence.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jest_tf import config as config_lib
from jest_tf.config import overrides
from jest_tf.curation.estimates import Estimate

# The low end of the estimate of a pool without noise (docs/advise.md), rounded.
CLEAN = 0.8
# Pictures that are so often nearer to the curated set than to the pool are of
# another kind than the pool; 0.5 is no difference.
APART = 2 / 3
# Least `Facts.power`: the reference's gain of matched pairs over a uniform
# choice, as a share of the gain of a perfect choice.
LEAST_POWER = 0.1
# From so many learners on, the first becomes the others' reference: on IconText
# a second one then costs less than to bootstrap it, too, and scores higher.
SEVERAL = 2
# Run directory of the learner that becomes the others' reference.
FIRST = "FIRST"
# A measure of what to expect, a row, and a method, of which other code speaks.
GAIN, CLEAN_ROW, BOOTSTRAPPED = "over_uniform", "clean", "bootstrapped"
_LEAST_K, _MOST_K = 2, 10
# Renewals: the first, in shares of a run, but not before so many steps; each
# later one at twice the steps of the one before, up to a share of the run.
_FIRST_RENEWAL, _LEAST_RENEWAL, _LAST_RENEWAL = 1 / 30, 100, 0.6
# What embedding for all renewals may cost, in shares of the run's steps.
_RENEWALS_COST = 1 / 4
# Hyper-batches that a renewal must embed, for a choice among many records.
_LEAST_HYPER_BATCHES = 10
_CURATED_SHARE = 1 / 8


class Facts(NamedTuple):
    """What the decision depends on.

    Attributes:
        matched: share of the pool's pairs that match.
        precision: by K, the expected share of matched pairs among the best
            1 / K of the pool, by the reference.
        apart: share of the curated pictures that are nearer to others of their
            set than to as many of the pool.
        covered: the same of the tests' pictures; None without tests.
        num_tests: these pictures; 0 is not known.
        breadth: effective clusters of the curated pictures, over the pool's.
        duplicates: share of the sample with a near-duplicate in it.
        size: records of the pool.
        num_curated: records of the curated set; 0 is not known.
        pool: patterns of the pool's shards.
        curated: patterns of the curated set's.
        reference: name of the reference.
        is_quick: whether it was trained for this advice only.
        learners: models that will be trained on the pool.
        knows_pool: whether the reference was trained on the pool.
    """

    matched: Estimate
    precision: Mapping[int, float]
    apart: float = 0.5
    covered: float | None = None
    num_tests: int = 0
    breadth: float = 1.0
    duplicates: float = 0.0
    size: int = 0
    num_curated: int = 0
    pool: tuple[str, ...] = ()
    curated: tuple[str, ...] = ()
    reference: str = ""
    is_quick: bool = True
    learners: int = 1
    knows_pool: bool = False

    @property
    def is_apart(self) -> bool:
        """Returns whether curated set and pool differ in kind."""
        return self.apart >= APART

    @property
    def is_covered(self) -> bool:
        """Returns whether the tests are like the curated set, not the pool.

        Without tests it is not known, and False.
        """
        return self.covered is not None and self.covered >= APART

    @property
    def covered_error(self) -> float | None:
        """Returns two standard errors of `covered`; None if not known."""
        if self.covered is None or not self.num_tests:
            return None
        spread = self.covered * (1 - self.covered)
        return 2 * math.sqrt(spread / self.num_tests)

    @property
    def may_be_covered(self) -> bool:
        """Returns whether `is_covered` is within the sampling error."""
        error = self.covered_error
        return error is not None and abs(self.covered - APART) < error

    @property
    def factor(self) -> int:
        """Returns K: as many candidates as hold one matched pair."""
        wanted = round(1.0 / max(self.matched.mean, 1e-9))
        return min(max(wanted, _LEAST_K), _MOST_K)

    @property
    def power(self) -> float:
        """Returns the reference's gain of matched pairs, of a perfect one's.

        0 is a choice by chance, 1 a choice without a mismatched pair.
        """
        perfect = min(1.0, self.factor * self.matched.mean)
        room = perfect - self.matched.mean
        gain = self.precision[self.factor] - self.matched.mean
        return gain / room if room > 0.01 else 0.0


def nothing(facts: Facts, recipe: config_lib.TrainConfig) -> list[str]:
    """Returns no settings."""
    return []


class Row(NamedTuple):
    """A row of the decision table.

    Attributes:
        name: of the row.
        when: the condition in words.
        do: the advice in words; may contain links relative to docs/.
        applies: the condition.
        selects: whether it advises to select.
        method: of evidence.json, what to expect; "" has none.
        settings: for `jest-tf train --set`, of a recipe without selection.
        first: the same, of a learner to train before, in `FIRST`; none of
            most rows.
        before: the words of commands of `jest-tf` to run before the others.
        gain: a field of `evidence.Cell`, over uniform training at equal FLOPs.
    """

    name: str
    when: str
    do: str
    applies: Callable[[Facts], bool]
    selects: bool
    method: str
    settings: Callable[[Facts, config_lib.TrainConfig], list[str]]
    before: Callable[[Facts], list[list[str]]] = lambda facts: []
    gain: str = GAIN
    first: Callable[[Facts, config_lib.TrainConfig], list[str]] = nothing


def _mixture(share):
    def settings(facts, recipe):
        wanted = share * recipe.batch_size
        rows = min(
            _curated_rows(facts, recipe, recipe.batch_size - 1) or [1],
            key=lambda n: abs(n - wanted),
        )
        return [_curated(facts), f"data.curated_rows={rows}"]

    return settings


def _curated_rows(facts, recipe, most):
    """How many rows of a batch may be curated: divisors, none repeated."""
    size = recipe.batch_size
    most = min(most, facts.num_curated or size)
    return [rows for rows in range(1, most + 1) if size % rows == 0]


def _embed(facts):
    return [["embed", "--model", facts.reference, "--data", *facts.pool]]


def _curated(facts):
    return f"data.curated={','.join(facts.curated)}"


def _cascade(facts, recipe):
    size = recipe.batch_size
    found = [
        f"data.super_batch_size={size}",
        f"cascade.hyper_batch_size={facts.factor * size}",
    ]
    if size < config_lib.CascadeConfig().num_chunks:
        found.append(f"cascade.num_chunks={size}")
    if recipe.data.reader == "ops":  # it has no cascade
        found += ["data.reader=numpy", "data.token_field=none"]
    return found


def without_selection(recipe: config_lib.TrainConfig) -> list[str]:
    """Returns the settings that make a recipe train on the pool, uniformly."""
    found = []
    if recipe.data.curated:
        found += ["data.curated=none", "data.curated_rows=0"]
    if recipe.data.manifest:
        found.append("data.manifest=none")
    for group in ("selection", "reference", "cascade", "bootstrap"):
        found += _reset(getattr(recipe, group), group)
    if recipe.data.super_batch_size != recipe.batch_size:
        found.append(f"data.super_batch_size={recipe.batch_size}")
    return found


def _reset(values, path):
    """The settings of a group that are not the defaults, as overrides."""
    found, default = [], type(values)()
    for field in dataclasses.fields(values):
        ours, theirs = (getattr(one, field.name) for one in (values, default))
        place = f"{path}.{field.name}"
        if dataclasses.is_dataclass(ours):
            found += _reset(ours, place)
        elif ours != theirs:
            found.append(f"{place}={overrides.text_of(theirs) or 'none'}")
    return found


def _from_reference(facts, recipe):
    return [
        f"reference.model={facts.reference}",
        "reference.sidecars=true",
        *_cascade(facts, recipe),
        "cascade.captions=best",
    ]


def _renewed(facts, recipe):
    settings = _from_reference(facts, recipe)
    # Only one process can renew a reference.
    if recipe.distribution.strategy in ("default", "mirrored"):
        # At the first step the learner would be the weaker one.
        steps = renewals(recipe.steps)
        settings += _renewals(facts, recipe, steps[1:] or steps)
    return settings


def _renewals(facts, recipe, steps):
    together = recipe.distribution.steps_per_execution
    steps = sorted({-(-step // together) * together for step in steps})
    return [
        f"bootstrap.renew_at={','.join(map(str, steps))}",
        f"bootstrap.shares={_share(facts, recipe, len(steps)):.2g}",
        "optimizer.ema=0.98",
    ]


def _bootstrapped(facts, recipe):
    return [
        _curated(facts),
        *_cascade(facts, recipe),
        "cascade.captions=best",
        *_renewals(facts, recipe, renewals(recipe.steps)),
        "bootstrap.curated_rows="
        f"{_curated_rows(facts, recipe, recipe.batch_size)[-1]}",
    ]


def renewals(steps: int) -> list[int]:
    """Returns the steps at which a run of so many should renew its reference.

    For 4,500 steps they are 150, 300, 600, 1,200 and 2,400.
    """
    found = [round(max(_FIRST_RENEWAL * steps, _LEAST_RENEWAL))]
    while 2 * found[-1] <= _LAST_RENEWAL * steps:
        found.append(2 * found[-1])
    in_time = found[0] <= _LAST_RENEWAL * steps
    return found if in_time else [max(1, steps // 2)]


def _share(facts, recipe, count):
    """The share of the pool that each of `count` renewals can afford.

    Embedding a record is a third of a training step on it.
    """
    records = _RENEWALS_COST * recipe.steps * 3 * recipe.batch_size / count
    least = _LEAST_HYPER_BATCHES * facts.factor * recipe.batch_size
    return min(1.0, max(least, records) / max(1, facts.size))


def _from_first(facts, recipe):
    return _from_reference(facts._replace(reference=FIRST), recipe)


def _embed_by_first(facts):
    return _embed(facts._replace(reference=FIRST))


ROWS = (
    Row(
        "covered",
        "a curated set unlike the pool, and tests like the curated set",
        "do not select: train on half curated rows and half pool, "
        "`data.curated_rows`",
        lambda facts: facts.is_covered,
        False,
        "",
        _mixture(1 / 2),
    ),
    Row(
        CLEAN_ROW,
        "at least 80 % matched pairs in the pool, or an expected score ratio "
        "below 1",
        "do not select: train uniformly; there is little to gain",
        lambda facts: facts.matched.mean >= CLEAN,
        False,
        "bootstrapped",
        nothing,
    ),
    Row(
        "weak",
        "a reference that hardly tells the pool's pairs from mismatched ones",
        "do not select by it: train on batches with an eighth of curated rows, "
        "`data.curated_rows`, or name a [public model](models.md)",
        lambda facts: facts.power < LEAST_POWER,
        False,
        "mixed_8",
        _mixture(_CURATED_SHARE),
    ),
    Row(
        "reference",
        "a noisy pool and a trained reference",
        "[sidecars](data.md#the-references-embeddings) and stage 0 of a "
        "[cascade](cascade.md), K = 1 / matched share; the learner [becomes "
        "the reference](bootstrap.md#a-given-reference) when it recognises "
        "more pairs",
        lambda facts: not facts.is_quick,
        True,
        "renewed",
        _renewed,
        _embed,
        "over_uniform_given_reference",
    ),
    Row(
        "several",
        f"a noisy pool, a curated sample and {SEVERAL} or more learners to "
        "train",
        "[bootstrap](bootstrap.md#several-learners) the first; its last "
        "weights are the reference of the others, which choose by sidecars and "
        "stage 0",
        lambda facts: facts.learners >= SEVERAL,
        True,
        "second",
        _from_first,
        _embed_by_first,
        "over_uniform_given_reference",
        _bootstrapped,
    ),
    Row(
        "bootstrapped",
        "a noisy pool and a curated sample",
        "a cascade that [renews its own reference](bootstrap.md), begun on "
        "the curated set, K = 1 / matched share",
        lambda facts: True,
        True,
        BOOTSTRAPPED,
        _bootstrapped,
    ),
)


def plain(words: str) -> str:
    """Returns the words of a row without Markdown's marks."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", words).replace("`", "")
