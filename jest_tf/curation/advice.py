"""Advice on a pool, in sentences, from a survey of it."""

from jest_tf.curation import survey

# Rounded lower end of the estimate for a pool without noise (docs/advise.md).
CLEAN = 0.8
# From `MOST` to `CLEAN`, selection gained nothing where it was measured.
MOST = 0.5
# Least gain in matched share of a reference that a stage may choose by, as a
# share of the gain of a choice without an avoidable mismatch.
LEAST_POWER = 0.1


def advise(findings: survey.Survey) -> list[str]:
    """Returns sentences on the selection, repeats and leaks."""
    return [*_on_selection(findings), *_on_copies(findings)]


def _on_selection(findings):
    share, count = findings.matched.mean, findings.candidates
    yield "{:.0%} of the pairs match (95 % interval {:.0%} to {:.0%}).".format(
        *findings.matched
    )
    if share >= CLEAN:
        yield (
            f"From {CLEAN:.0%} on there is little noise to remove: train "
            "without a stage."
        )
        return
    perfect = min(1.0, count * share)
    if findings.chosen - share < LEAST_POWER * (perfect - share):
        yield (
            f"The reference {findings.reference} hardly tells matched pairs "
            f"from mismatched pairs, so do not choose by it: with {count} "
            f"candidates, {findings.chosen:.0%} of the chosen pairs would "
            f"match, and {perfect:.0%} by a perfect choice. Name another with "
            "`--reference`."
        )
        return
    yield (
        f'Add `Stage(candidates={count}, embeddings="stored", '
        'criterion="easy_reference")`, which raises the matched share from '
        f"{share:.0%} to {findings.chosen:.0%}, with a cut near a cosine of "
        f"{findings.cut:.2f}."
    )
    if share >= MOST:
        yield (
            f"From {MOST:.0%} on, plain training may do as well: compare the "
            "two."
        )


def _on_copies(findings):
    near = f"(cosine {findings.near:g} or more)"
    repeated = findings.repeats.share(findings.near)
    yield (
        f"{repeated:.1%} of the pool's images have a near-duplicate in the "
        f"pool {near}."
    )
    if findings.leaks is None:
        yield "Name your tests with `--tests` to find copies of them."
        return
    leaked = findings.leaks.share(findings.near)
    compared = f"of the {len(findings.leaks.rows):,} test images compared"
    if not leaked:
        yield f"None {compared} has a near-duplicate in the pool."
        return
    yield (
        f"{leaked:.1%} {compared} have a near-duplicate in the pool. If the "
        "page shows copies, leave those records out of the pool, or test "
        "results will be too high."
    )
