"""Advice on a pool: the facts measured on it, and the rules that apply."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jest_tf.curation.estimates import Estimate

# Rounded lower end of the estimate for a pool without noise (docs/advise.md).
CLEAN = 0.8
# From `MOST` to `CLEAN`, selection gained nothing where it was measured.
MOST = 0.5
# If at least this share of pictures is nearer to the curated set than to the
# pool, they are of another kind than the pool; 0.5 is no difference.
APART = 2 / 3
# Least `Facts.power` of a reference that a stage may choose by.
LEAST_POWER = 0.1
# Numbers of candidates that the survey estimates and the advice may name.
CANDIDATES = range(2, 11)
# A curated set is narrow if its breadth is below this share of the pool's.
NARROW = 0.5


class Facts(NamedTuple):
    """The numbers that the rules read.

    Attributes:
        matched: share of the pool's pairs that match.
        precision: by number of candidates c, the expected matched share of the
            1/c of the pairs that the reference finds most similar.
        apart: share of the curated pictures that are nearer to other curated
            pictures than to the same number of the pool's.
        covered: the same share of the tests' pictures; None without tests.
        num_tests: number of the tests' pictures.
        breadth: effective clusters of the curated pictures, over the pool's.
        reference: name of the reference.
        is_given: whether the user named it; else it was trained quickly.
        knows_pool: whether the reference was trained on the pool.
    """

    matched: Estimate
    precision: Mapping[int, float]
    apart: float = 0.5
    covered: float | None = None
    num_tests: int = 0
    breadth: float = 1.0
    reference: str = ""
    is_given: bool = False
    knows_pool: bool = False

    @property
    def candidates(self) -> int:
        """Returns the number of candidates per matched pair, from 2 to 10."""
        wanted = round(1.0 / max(self.matched.mean, 1e-9))
        return min(max(wanted, CANDIDATES[0]), CANDIDATES[-1])

    @property
    def chosen(self) -> float:
        """Returns the expected matched share of the choice."""
        return self.precision[self.candidates]

    @property
    def perfect(self) -> float:
        """Returns the matched share of a choice that makes no mistake."""
        return min(1.0, self.candidates * self.matched.mean)

    @property
    def power(self) -> float:
        """Returns the gain in matched share, as a share of a perfect choice's.

        0 is a choice by chance, 1 a choice without an avoidable mismatch.
        """
        room = self.perfect - self.matched.mean
        gain = self.chosen - self.matched.mean
        return gain / room if room > 0.01 else 0.0

    @property
    def is_covered(self) -> bool:
        """Returns whether the tests are like the curated set, not the pool."""
        return self.covered is not None and self.covered >= APART

    @property
    def covered_error(self) -> float | None:
        """Returns two standard errors of `covered`; None without tests."""
        if self.covered is None:
            return None
        spread = self.covered * (1 - self.covered)
        return 2 * math.sqrt(spread / self.num_tests)


class Rule(NamedTuple):
    """A rule of the advice.

    Attributes:
        name: name of the rule.
        condition: the condition in words.
        applies: the condition as a function.
        sentence: the advice, with the numbers of the facts.
    """

    name: str
    condition: str
    applies: Callable[[Facts], bool]
    sentence: Callable[[Facts], str]


def advise(facts: Facts) -> dict[str, str]:
    """Returns the sentences of the rules that apply, by the rules' names."""
    return {
        rule.name: f"{rule.sentence(facts)} (rule: {rule.condition})."
        for rule in RULES
        if rule.applies(facts)
    }


def _is_clean(facts):
    return facts.matched.mean >= CLEAN


def _is_weak(facts):
    return not _is_clean(facts) and facts.power < LEAST_POWER


def _needs_stage(facts):
    """True if the pool has noise that the reference can tell from the rest.

    False for a quick reference if the tests are like the curated set: curated
    rows then do as well as its choice.
    """
    is_replaced = facts.is_covered and not facts.is_given
    return not (_is_clean(facts) or _is_weak(facts) or is_replaced)


RULES = (
    Rule(
        "clean",
        f"at least {CLEAN:.0%} matched",
        _is_clean,
        lambda facts: (
            f"{facts.matched.mean:.0%} of the pairs match: there is little "
            "noise to remove, so train without a stage"
        ),
    ),
    Rule(
        "weak",
        f"a stage gains less than {LEAST_POWER:.0%} of what a perfect choice "
        "would",
        _is_weak,
        lambda facts: (
            f"The reference `{facts.reference}` hardly tells matched pairs "
            "from mismatched pairs, so do not choose by it: with "
            f"{facts.candidates} candidates, {facts.chosen:.0%} of the chosen "
            "pairs would match, and by a perfect choice "
            f"{facts.perfect:.0%}. Name another with `--reference`"
        ),
    ),
    Rule(
        "stage",
        "candidates = 1 / matched share, between "
        f"{CANDIDATES[0]} and {CANDIDATES[-1]}",
        _needs_stage,
        lambda facts: (
            f'Add `Stage(candidates={facts.candidates}, embeddings="stored", '
            'criterion="easy_reference")`: it raises the matched share from '
            f"{facts.matched.mean:.0%} to {facts.chosen:.0%}, by the "
            f"embeddings of `reference.model`, here `{facts.reference}`, that "
            "`jest-tf embed` writes"
        ),
    ),
    Rule(
        "mild",
        f"at least {MOST:.0%} matched",
        lambda facts: _needs_stage(facts) and facts.matched.mean >= MOST,
        lambda facts: (
            f"{facts.matched.mean:.0%} of the pairs match without the stage: "
            "compare it with plain training before you rely on it"
        ),
    ),
    Rule(
        "covered",
        f"at least {APART:.0%} of the tests' pictures are nearer to the "
        "curated set than to the pool",
        lambda facts: facts.is_covered,
        lambda facts: (
            "Your tests are like the curated set, not like the pool: "
            f"{facts.covered:.0%} of their pictures are nearer to it (give or "
            f"take {facts.covered_error:.0%}). Mix curated rows into every "
            "batch, `data.curated_rows`, up to half of it"
        ),
    ),
    Rule(
        "distillation",
        "a trained reference was given",
        lambda facts: facts.is_given and not _is_weak(facts),
        lambda facts: (
            f"Try distillation from `{facts.reference}`, "
            "`reference.distillation_weight`"
        ),
    ),
    Rule(
        "renewal",
        "no trained reference was given",
        lambda facts: _needs_stage(facts) and not facts.is_given,
        lambda facts: (
            "The quick reference trained for few steps: let the learner "
            "replace it when it recognises more pairs, `bootstrap.renew_at`"
        ),
    ),
    Rule(
        "narrow",
        f"less than {NARROW:.0%} of the pool's clusters",
        lambda facts: _needs_stage(facts) and facts.breadth < NARROW,
        lambda facts: (
            "The curated set is narrow, with "
            f"{facts.breadth:.0%} of the pool's effective clusters, and the "
            "stage's choice would be, too: give it `uniform_share=0.5`"
        ),
    ),
    Rule(
        "known_pool",
        "the reference was trained on the pool",
        lambda facts: facts.knows_pool,
        lambda facts: (
            f"`{facts.reference}` may have learned what is wrong in the pool: "
            "prefer a reference of curated pairs alone"
        ),
    ),
    Rule(
        "apart",
        f"at least {APART:.0%} of the curated pictures are nearer to their own "
        "set than to the pool",
        lambda facts: facts.apart >= APART,
        lambda facts: (
            "The curated set is of another kind than the pool: "
            f"{facts.apart:.0%} of its pictures are nearer to their own set. "
            "The estimated matched share may be too low"
            + "; are your tests of that kind? Name them with `--tests`"
            * (facts.covered is None)
        ),
    ),
)
