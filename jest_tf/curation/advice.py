"""Advice on a pool, in sentences, from a survey of it."""

from jest_tf.curation import survey

# Rounded lower end of the estimate for a pool without noise (docs/advise.md).
CLEAN = 0.8
# From `MOST` to `CLEAN`, selection gained nothing where it was measured.
MOST = 0.5
# Least gain in matched share of a reference that a stage may choose by, as a
# share of the gain of a choice without an avoidable mismatch.
LEAST_POWER = 0.1


def advise(found: survey.Survey) -> list[str]:
    """Returns sentences on the selection, repeats and leaks."""
    return [*_on_selection(found), *_on_copies(found)]


def _on_selection(found):
    share, count = found.matched.mean, found.candidates
    yield "{:.0%} of the pairs match (95 % interval {:.0%} to {:.0%}).".format(
        *found.matched
    )
    if share >= CLEAN:
        yield (
            f"From {CLEAN:.0%} on there is little noise to remove: train "
            "without a stage."
        )
        return
    perfect = min(1.0, count * share)
    if found.chosen - share < LEAST_POWER * (perfect - share):
        yield (
            f"The reference {found.reference} hardly tells matched pairs from "
            f"mismatched pairs, so do not choose by it: with {count} "
            f"candidates, {found.chosen:.0%} of the chosen pairs would match, "
            f"and {perfect:.0%} by a perfect choice. Name another with "
            "`--reference`."
        )
        return
    yield (
        f'Add `Stage(candidates={count}, embeddings="stored", '
        'criterion="easy_reference")`, about one candidate per matched pair. '
        f"It raises the matched share from {share:.0%} to {found.chosen:.0%}."
    )
    if share >= MOST:
        yield (
            f"From {MOST:.0%} on, plain training may do as well: compare the "
            "two."
        )


def _on_copies(found):
    near = f"(cosine {found.near:g} or more)"
    yield (
        f"{found.repeats.share(found.near):.1%} of the pool's images have a "
        f"near-duplicate in the pool {near}."
    )
    if found.leaks is None:
        yield "Name your tests with `--tests` to find copies of them."
        return
    leaked = found.leaks.share(found.near)
    if not leaked:
        yield "None of the tests' images has a near-duplicate in the pool."
        return
    yield (
        f"{leaked:.1%} of the tests' images have a near-duplicate in the "
        "pool. If the page shows copies, leave those records out of the pool, "
        "or test results will be too high."
    )
