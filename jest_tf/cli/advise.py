"""Measure a pool, and advise whether and how to select from it.

Estimates from a reference's embeddings, without labels, how many pairs of the
pool match and would match after a stage, and finds near-duplicates in the pool
and in the tests. Missing sidecars are written first, as by `jest-tf embed`.
Prints a few sentences, and writes advice.html, with images of pairs that a
stage would choose and drop (docs/advise.md).
"""

import argparse
import os

from jest_tf.cli import flags as flags_lib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add, shards = parser.add_argument, {**flags_lib.SEVERAL, "metavar": "GLOB"}
    add("--pool", required=True, **shards, help="shards of the pool")
    add(
        "--curated",
        required=True,
        **shards,
        help="shards of matched pairs that the reference was not trained on",
    )
    add("--tests", **shards, help="shards of tests, to find copies of them")
    add("--output", required=True, metavar="DIR", help="folder of the advice")
    add(
        "--near",
        type=float,
        default=0.999,
        help="least cosine of near-duplicates, which depends on the reference "
        "(default: 0.999)",
    )
    flags_lib.add_reference(parser, "--reference")
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Surveys the pool, writes the page and prints the advice."""
    from jest_tf.curation import advice, survey
    from jest_tf.reports import advice_page
    from jest_tf.runs import progress

    model = flags_lib.load_reference(flags.reference, "--reference")
    _check_unseen(model, flags)

    pool, curated, tests = (
        flags_lib.open_store(flags, name)
        for name in ("pool", "curated", "tests")
    )

    def embedded(store, like=None):
        return flags_lib.open_sidecars(store, model, flags.sidecar_dir, like)

    sidecars = embedded(pool)
    findings = survey.survey(
        sidecars,
        embedded(curated, sidecars),
        embedded(tests, sidecars) if tests else None,
        near=flags.near,
        progress=progress.Progress("comparing", "records"),
    )
    sentences = advice.advise(findings)
    page = os.path.join(flags.output, "advice.html")
    advice_page.write(page, findings, sentences, pool, tests)
    print("\n".join(f"- {sentence}" for sentence in sentences))
    print(page)


def _check_unseen(model, flags):
    """Refuses a reference that was trained on the curated shards."""
    from jest_tf.models import reference
    from jest_tf.runs import inputs

    if not isinstance(model, reference.Run):
        return
    data = model.config.data
    seen = inputs.list_shards((*data.train, *data.curated))
    if both := seen & inputs.list_shards(flags.curated):
        raise ValueError(
            "`--reference` must not have been trained on the curated pairs: "
            "it would find them more similar than pool pairs that match "
            f"equally well. Received: {flags.reference!r}, trained on "
            f"{min(both)}; give `--curated` pairs that it has not seen"
        )
