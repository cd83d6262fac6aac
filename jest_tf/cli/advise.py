"""Measure a pool, and advise whether and how to select from it.

Embeds samples of the pool and of curated pairs with a reference. Estimates,
without labels, the share of pairs that match (in the pool, and among the pairs
that a stage would choose), near-duplicates and breadth. Without `--reference` a
small model is trained on three quarters of the curated set first, in a minute
or two on a CPU.
Prints the numbers and a few sentences of advice, and writes advice.json and
advice.html, with pictures of pairs that the reference calls noise, and of pairs
that it would choose (docs/advise.md). Rerun the command to resume. `--set`
takes fields of `curation.survey.Settings`, such as sample=4096.
"""

import argparse
import dataclasses
import json
import os

from jest_tf import config, files
from jest_tf.cli import flags as flags_lib

ADVICE_FILE = "advice.json"
PAGE_FILE = "advice.html"
REFERENCE_FOLDER = "reference"
# Numbers of candidates for which results are printed; advice.json has all.
_SHOWN_CANDIDATES = (2, 3, 5, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add, several = parser.add_argument, flags_lib.SEVERAL
    add(
        "--config",
        metavar="FILE",
        help="recipe of the learner: its pool, towers, batch and steps "
        "(default: small towers for pictures of 32 pixels)",
    )
    add(
        "--pool",
        **several,
        metavar="GLOB",
        help="shards of the pool (default: `data.train` of the recipe)",
    )
    add(
        "--curated",
        required=True,
        **several,
        metavar="GLOB",
        help="shards of curated pairs",
    )
    add(
        "--tests",
        **several,
        metavar="GLOB",
        help="examples of the tests, to see whether they resemble the curated "
        "set",
    )
    add(
        "--reference",
        default="",
        metavar="NAME",
        help="a run directory or a public model (docs/models.md), which must "
        "not have been trained on the curated pairs (default: a new model)",
    )
    add("--output", required=True, metavar="DIR", help="folder of the advice")
    add("--set", **several, default=[], metavar="A=B", help="settings")
    flags_lib.add_trust(parser)
    flags_lib.add_format(parser, from_run=True)


def run(flags: argparse.Namespace) -> None:
    """Surveys, writes the page and prints the numbers and the advice."""
    recipe = _recipe(flags)
    from jest_tf.curation import advice as advice_lib
    from jest_tf.curation import survey as survey_lib
    from jest_tf.reports import advice_page
    from jest_tf.runs import inputs, loading, progress

    settings = flags_lib.settings(survey_lib.Settings, flags)
    if flags.reference:
        loading.check_model(flags.reference, "--reference")
        _check_unseen(flags.reference, flags.curated)

    def opened(patterns, setting):
        return flags_lib.open_store(recipe.data.reading(patterns), setting)

    data = survey_lib.Data(
        opened(recipe.data.train, "--pool" if flags.pool else "data.train"),
        opened(flags.curated, "--curated"),
        opened(flags.tests, "--tests") if flags.tests else None,
    )
    name, unseen = flags.reference, None
    if not name:
        unseen = survey_lib.held_out(data.curated)
        name = survey_lib.quick_reference(
            recipe,
            data.curated,
            tuple(flags.curated),
            os.path.join(flags.output, REFERENCE_FOLDER),
        )
    model = loading.load(name)
    found = survey_lib.survey(
        data,
        model,
        settings,
        unseen=unseen,
        progress=progress.Progress("embedding", "records"),
    )
    found = found._replace(
        facts=found.facts._replace(
            reference=name,
            is_given=bool(flags.reference),
            knows_pool=bool(inputs.seen_shards(model, recipe.data.train)),
        )
    )
    advice = advice_lib.advise(found.facts)
    page = os.path.join(flags.output, PAGE_FILE)
    advice_page.write(page, data.pool, found, advice)
    files.write_whole(
        os.path.join(flags.output, ADVICE_FILE), _json(found, advice).encode()
    )
    print(_words(found, advice))
    print(page)


def _recipe(flags):
    """Returns the recipe, with the data that the flags name."""
    if not flags.config and not flags.pool:
        raise ValueError(
            "`--pool` must name the shards of the pool, or `--config` a recipe "
            "with them. Received: neither"
        )
    if flags.config:
        recipe = config.load_config(flags.config)
    else:
        recipe = config.TrainConfig(
            steps=1000,
            data=config.DataConfig(train=tuple(flags.pool), min_crop_area=0.6),
            selection=config.SelectionConfig(128),
            model=config.ModelConfig(preset="tiny", equal_captions="ignore"),
            optimizer=config.OptimizerConfig(
                learning_rate=3e-3, warmup_steps=50, weight_decay=0.05
            ),
        )
    given = flags_lib.format_of(flags)
    if flags.pool:
        given |= {"train": tuple(flags.pool), "weights": (), "manifest": ""}
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, **given)
    )


def _check_unseen(reference, curated):
    """Refuses a run that was trained on the curated shards."""
    from jest_tf.runs import directory, inputs

    if not directory.has(reference, directory.CONFIG_FILE):
        return
    data = directory.load_config(reference).data
    seen = inputs.shards_of((*data.train, *data.curated))
    given = inputs.shards_of(curated)
    if seen & given:
        raise ValueError(
            "`--reference` must not have been trained on the curated pairs: "
            "it would find them more similar than pool pairs that match "
            f"equally well. Received: {reference!r}, trained on "
            f"{min(seen & given)}; leave `--reference` out, or give "
            "`--curated` pairs that it has not seen"
        )


def _json(found, advice):
    facts = found.facts
    covered = facts.covered
    values = {
        "advice": advice,
        "matched": {
            name: round(value, 4)
            for name, value in facts.matched._asdict().items()
        },
        "candidates": facts.candidates,
        "precision": {
            str(count): round(value, 4)
            for count, value in facts.precision.items()
        },
        "power": round(facts.power, 4),
        "near_duplicates": {
            "share": round(found.duplicates.share, 5),
            "copies": round(found.duplicates.copies, 3),
        },
        "breadth": {
            name: round(value, 2) for name, value in found.breadth.items()
        },
        "apart": round(facts.apart, 4),
        "covered": None if covered is None else round(covered, 4),
        "sizes": found.sizes,
        "reference": facts.reference,
    }
    return json.dumps(values, indent=2) + "\n"


def _words(found, advice):
    facts, sizes = found.facts, found.sizes
    shown = sorted({*_SHOWN_CANDIDATES, facts.candidates})
    chosen = ", ".join(
        f"{facts.precision[count]:.0%} for {count}" for count in shown
    )
    breadth = ", ".join(
        f"{name} {value:.0f}" for name, value in found.breadth.items()
    )
    kind = (
        f"{facts.apart:.0%} of curated pictures are nearer to their own set "
        "than to the pool"
    )
    if facts.covered is not None:
        kind += (
            f", {facts.covered:.0%} of the tests' to the curated set (give or "
            f"take {facts.covered_error:.0%})"
        )
    lines = {
        "matched pairs": "{:.0%} [{:.0%}, {:.0%}]".format(*facts.matched)
        + f", of {sizes['sampled']:,} sampled of {sizes['pool']:,}",
        "matched, chosen": f"by number of candidates: {chosen}",
        "near-duplicates": f"{found.duplicates.share:.1%} of the sample, about "
        f"{found.duplicates.copies:.2f} copies per picture in the pool",
        "breadth": f"effective clusters: {breadth}",
        "kind": kind,
    }
    return "\n".join(
        [
            *(f"{name:15}  {text}" for name, text in lines.items()),
            *(f"- {sentence}" for sentence in advice.values()),
        ]
    )
