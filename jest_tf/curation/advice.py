"""Advice on a pool: whether selection will pay, how to select, what to expect.

The first row of `decision_table.ROWS` that applies is the advice, unless the
runs on IconText expect it to lose.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jest_tf import config as config_lib
from jest_tf.config import overrides
from jest_tf.curation import decision_table, evidence
from jest_tf.curation.estimates import Estimate

# Cautions: curated sets narrower than this, of the pool's breadth; more
# near-duplicates; wider intervals of the matched share.
_NARROW, _REPEATED, _UNSURE = 0.5, 0.1, 0.3
ORACLE = "oracle"
_TARGET = "over_target"

# What the user should know of the estimates, and when.
_CAUTIONS: tuple[tuple[Callable[[decision_table.Facts], bool], str], ...] = (
    (
        lambda facts: facts.is_apart and facts.covered is None,
        "the curated set is of another kind than the pool: if your tests are "
        "of its kind, train on half curated rows; name them with --tests",
    ),
    (
        lambda facts: facts.is_apart,
        "the curated set is of another kind than the pool, whose matched pairs "
        "may be harder for the reference: the matched share may be too low",
    ),
    (
        lambda facts: facts.may_be_covered,
        "whether the curated set covers the tests is uncertain: more test "
        "pictures would tell; if it does, train on half curated rows, and "
        "otherwise follow the next row of the table",
    ),
    (
        lambda facts: facts.knows_pool,
        "the reference was trained on this pool, and may have learned what is "
        "wrong in it: prefer one of curated pairs alone",
    ),
    (
        lambda facts: facts.matched.high - facts.matched.low > _UNSURE,
        "the matched share is uncertain: more curated pairs would narrow it",
    ),
    (
        lambda facts: facts.breadth < _NARROW,
        "the curated set is narrow: a choice by its reference would be, too; "
        "cascade.uniform_share=0.5 keeps half of the breadth",
    ),
    (
        lambda facts: facts.duplicates > _REPEATED,
        "the pool repeats pictures, or the reference finds different ones "
        "alike: look at the pairs on the page",
    ),
)


class Advice(NamedTuple):
    """The advice for a pool.

    Attributes:
        row: of `decision_table.ROWS`.
        settings: for `jest-tf train --set`.
        first: the same, of a learner to train before, in
            `decision_table.FIRST`; maybe none.
        before: the words of commands of `jest-tf` to run before the others.
        cautions: on the estimates, in words.
        expected: of the row's method and, if it selects, of an oracle without
            noise, for the shortest and the longest runs; nothing that was not
            measured around this share of noise. Intervals cover those of the
            matched share.
    """

    row: decision_table.Row
    settings: list[str]
    first: list[str]
    before: list[list[str]]
    cautions: list[str]
    expected: list[evidence.Expectation]


def advise(
    facts: decision_table.Facts,
    recipe: config_lib.TrainConfig,
    cells: Sequence[evidence.Cell] | None = None,
) -> Advice:
    """Decides by the first row that applies.

    A row that selects gives way to the next one that applies, and at last to
    "clean", where its method is expected below uniform training at this share
    of noise.

    Args:
        facts: of the pool.
        recipe: of the learner, for its batch and its steps.
        cells: to expect by; None takes those of evidence.json.
    """
    cells = evidence.cells() if cells is None else cells
    row = _decide(facts, cells)
    cautions = [words for applies, words in _CAUTIONS if applies(facts)]
    if _turns(facts, cells, row):
        cautions.append(
            "the verdict changes within the interval of the matched share"
        )
    expected = [
        one
        for method in (row.method, *[ORACLE] * row.selects)
        for measure in (
            row.gain if method == row.method else decision_table.GAIN,
            _TARGET,
        )
        for one in _ends(cells, method, facts.matched, measure)
    ]
    hyper_batch = facts.factor * recipe.batch_size
    if row.selects and 0 < facts.size < hyper_batch:
        cautions.append(
            f"the pool has fewer records than a hyper-batch, {hyper_batch:,}, "
            "so this command will be refused: take a smaller batch"
        )
    if row.selects and any(
        one.measure == row.gain and one.value.low < 1.0
        for one in expected
        if one.method == row.method
    ):
        cautions.append("the interval of the expected score ratio goes below 1")
    settings = _complete(recipe, row.settings(facts, recipe))
    first = row.first(facts, recipe)
    if first:
        first = _complete(recipe, first)
    error = _error(recipe, first) or _error(recipe, settings)
    if error:
        cautions.append(f"this command is invalid for the recipe: {error}")
    return Advice(row, settings, first, row.before(facts), cautions, expected)


def _complete(recipe, wanted):
    """The settings that are wanted, and those that undo a recipe's choice."""
    settings = (*decision_table.without_selection(recipe), *wanted)
    return [*{text.split("=")[0]: text for text in settings}.values()]


def _error(recipe, settings):
    """Why a recipe cannot have these settings; None if it can."""
    values = dataclasses.asdict(recipe)
    try:
        for text in settings:
            overrides.override(config_lib.TrainConfig, values, text)
        overrides.build(config_lib.TrainConfig, values)
    except ValueError as error:
        return error
    return None


def _decide(facts, cells):
    for row in decision_table.ROWS:
        if row.applies(facts) and (
            not row.selects or _pays(cells, row, facts.matched.mean)
        ):
            return row
    return next(
        row
        for row in decision_table.ROWS
        if row.name == decision_table.CLEAN_ROW
    )


def _turns(facts, cells, row):
    """True if the other verdict holds at an end of the matched share."""
    ends = facts.matched.low, facts.matched.high
    if not row.selects and row.name != decision_table.CLEAN_ROW:
        return False
    others = [
        one for one in decision_table.ROWS if one.selects and one.applies(facts)
    ]
    selects = [
        share < decision_table.CLEAN
        and any(_pays(cells, one, share) for one in others)
        for share in ends
    ]
    return any(one != row.selects for one in selects)


def _pays(cells, row, matched):
    """False if a row, or what it begins with, is expected to lose.

    A method that was not measured around this share of noise is expected to do
    as a bootstrapped run.
    """

    def expect(method):
        return _inside(evidence.expect(cells, method, matched, row.gain))

    alone = expect(decision_table.BOOTSTRAPPED)
    found = [expect(row.method) or alone]
    if row.first is not decision_table.nothing:
        found.append(alone)
    return all(
        not some or any(one.value.mean >= 1.0 for one in some) for some in found
    )


def _ends(cells, method, matched, measure):
    """What to expect of the shortest and of the longest runs.

    Intervals are over that of the matched share. Of the target, which does not
    depend on the steps, the longest runs alone speak.
    """
    found = _inside(evidence.expect(cells, method, matched.mean, measure))
    if measure == _TARGET:
        found = found[-1:]
    expected = []
    for one in dict.fromkeys((*found[:1], *found[-1:])):
        values = [one.value]
        for share in (matched.low, matched.high):
            values += [
                other.value
                for other in evidence.expect(cells, method, share, measure)
                if other.steps == one.steps
            ]
        value = Estimate(
            one.value.mean,
            min(value.low for value in values),
            max(value.high for value in values),
        )
        expected.append(one._replace(value=value))
    return expected


def _inside(expectations):
    return [one for one in expectations if one.is_inside]
