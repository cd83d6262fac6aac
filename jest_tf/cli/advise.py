"""Say whether selection will pay on a pool, and how to select.

Embeds samples of the pool and of curated pairs by a reference, and estimates,
without labels, the share of pairs that match, near-duplicates, breadth, and
what a choice would gain. Without `--reference` a small one is trained on three
quarters of the curated set first, in a minute or two on a CPU. Prints a
verdict, and writes advice.json and advice.html, with pictures of what it calls
noise and of what it would choose (docs/advise.md). Rerun the command to resume.
`--set` takes fields of `curation.survey.Settings`, such as sample=4096.
"""

import argparse
import dataclasses
import json
import os
import shlex

from jest_tf import config, files
from jest_tf.cli import flags as flags_lib
from jest_tf.config import overrides

ADVICE_FILE = "advice.json"
PAGE_FILE = "advice.html"
REFERENCE_FOLDER = "reference"
# Methods of evidence.json in words.
_METHODS = {
    "second": "stage 0",
    "mixed_8": "mixed",
}


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
        help="examples of the tests, to see whether they are of the curated "
        "set's kind",
    )
    add(
        "--reference",
        default="",
        metavar="NAME",
        help="a run directory or a public model (docs/models.md), which must "
        "not have been trained on the curated pairs (default: a quick one)",
    )
    add("--output", required=True, metavar="DIR", help="folder of the advice")
    add("--set", **several, default=[], metavar="A=B", help="settings")
    flags_lib.add_format(parser, from_run=True)


def run(flags: argparse.Namespace) -> None:
    """Surveys, writes the page and prints the verdict."""
    recipe = _recipe(flags)
    from jest_tf.curation import advice as advice_lib
    from jest_tf.curation import survey as survey_lib
    from jest_tf.reports import advice_page
    from jest_tf.runs import inputs, loading, progress

    values: dict = {}
    for text in flags.set:
        overrides.override(survey_lib.Settings, values, text)
    settings = overrides.build(survey_lib.Settings, values)
    if flags.reference:
        loading.check_model(flags.reference, "--reference")
        _check_unseen(flags.reference, flags.curated)
    data = survey_lib.Data(
        _open(
            recipe, recipe.data.train, "--pool" if flags.pool else "data.train"
        ),
        _open(recipe, flags.curated, "--curated"),
        _open(recipe, flags.tests, "--tests") if flags.tests else None,
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
            pool=recipe.data.train,
            curated=tuple(flags.curated),
            reference=name,
            is_quick=not flags.reference,
            knows_pool=bool(inputs.seen_shards(model, recipe.data.train)),
        )
    )
    advice = advice_lib.advise(found.facts, recipe)
    command = _command(flags, recipe, advice)
    page = os.path.join(flags.output, PAGE_FILE)
    advice_page.write(page, data.pool, found, advice, command)
    files.write_whole(
        os.path.join(flags.output, ADVICE_FILE),
        _json(found, advice, command).encode(),
    )
    print(_verdict(found, advice, command))
    print(page)


def _recipe(flags):
    """The recipe, with the data of the flags."""
    if not flags.config and not flags.pool:
        raise ValueError(
            "`--pool` must name the shards of the pool, or `--config` a recipe "
            "with them. Received: neither"
        )
    if flags.config:
        recipe = config.load_config(flags.config)
    else:
        # That of configs/quickstart_reference.py.
        recipe = config.TrainConfig(
            steps=1000,
            data=config.DataConfig(
                train=tuple(flags.pool),
                super_batch_size=128,
                min_crop_area=0.6,
            ),
            model=config.ModelConfig(preset="tiny", equal_captions="ignore"),
            optimizer=config.OptimizerConfig(
                learning_rate=3e-3, warmup_steps=50, weight_decay=0.05
            ),
        )
    given = {}
    if flags.pool:
        given = {"train": flags.pool, "weights": (), "manifest": ""}
    given |= {name: getattr(flags, name) for name in flags_lib.FORMAT_FIELDS}
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, **fields)
    )


def _open(recipe, patterns, setting):
    from jest_tf.data import stores
    from jest_tf.runs import progress

    return stores.open_stores(
        recipe.data.reading(patterns),
        progress.Progress("indexing", "bytes"),
        setting,
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


def _command(flags, recipe, advice):
    """The commands that do what is advised."""
    from jest_tf.curation.decision_table import FIRST

    plain = config.DataConfig()
    form = []
    for name in flags_lib.FORMAT_FIELDS:
        value = getattr(recipe.data, name)
        if value != getattr(plain, name):
            values = value if isinstance(value, tuple) else (value,)
            form += [flags_lib.name(name), *values]
    before = [["jest-tf", *words, *form] for words in advice.before]
    settings = [
        f"data.{name}={overrides.text_of(getattr(recipe.data, name))}"
        for name in flags_lib.FORMAT_FIELDS
        if getattr(flags, name) is not None
    ]
    if flags.pool:
        of_recipe = (
            config.load_config(flags.config).data if flags.config else plain
        )
        settings = [
            f"data.train={','.join(flags.pool)}",
            *["data.weights=none"] * bool(of_recipe.weights),
            *["data.manifest=none"] * bool(of_recipe.manifest),
            *settings,
        ]

    def train(workdir, more):
        words = ["jest-tf", "train", "--config", flags.config or "RECIPE"]
        changes = [*settings, *more]
        changes = ["--set", *changes] if changes else []
        return [*words, "--workdir", workdir, *changes]

    if advice.first:
        before = [train(FIRST, advice.first), *before]
    commands = [*before, train("WORKDIR", advice.settings)]
    return "\n".join(map(shlex.join, commands))


def _json(found, advice, command):
    from jest_tf.curation.decision_table import plain

    facts = found.facts
    return (
        json.dumps(
            {
                "advice": advice.row.name,
                "selects": advice.row.selects,
                "when": advice.row.when,
                "do": plain(advice.row.do),
                "command": command.splitlines(),
                "matched": {
                    name: round(value, 4)
                    for name, value in facts.matched._asdict().items()
                },
                "precision": {
                    str(factor): round(value, 4)
                    for factor, value in facts.precision.items()
                },
                "hyper_batch_factor": facts.factor,
                "filter_ratio": round(1.0 - 1.0 / facts.factor, 3),
                "power": round(facts.power, 4),
                "apart": round(facts.apart, 4),
                "covered": facts.covered,
                "near_duplicates": {
                    "share": round(found.duplicates.share, 5),
                    "copies": round(found.duplicates.copies, 3),
                },
                "breadth": {
                    name: round(value, 2)
                    for name, value in found.breadth.items()
                },
                "sizes": found.sizes,
                "reference": facts.reference,
                "cautions": advice.cautions,
                "expected": [
                    one._asdict() | {"value": one.value._asdict()}
                    for one in advice.expected
                ],
            },
            indent=2,
        )
        + "\n"
    )


def _verdict(found, advice, command):
    from jest_tf.curation.decision_table import plain

    facts, sizes, row = found.facts, found.sizes, advice.row
    share = "{:.0%} [{:.0%}, {:.0%}]".format(*facts.matched)
    best = min(1.0, facts.factor * facts.matched.mean)
    breadth = ", ".join(
        f"{name} {value:.0f}" for name, value in found.breadth.items()
    )
    lines = {
        "matched pairs": f"{share}, of {sizes['sampled']:,} sampled of "
        f"{sizes['pool']:,}",
        "headroom": f"K = {facts.factor}, f = {1 - 1 / facts.factor:.2f}: "
        f"{facts.precision[facts.factor]:.0%} matched by this reference, "
        f"{best:.0%} at best",
        "near-duplicates": f"{found.duplicates.share:.1%} of the sample, about "
        f"{found.duplicates.copies:.2f} a picture in the pool",
        "breadth": f"effective clusters: {breadth}",
        "kind": f"{facts.apart:.0%} of curated pictures are nearer to their "
        "own set than to the pool",
    }
    if facts.covered is not None:
        lines["kind"] += f", {facts.covered:.0%} of the tests'"
    cautions = f"\n{'':19}".join(advice.cautions)
    lines |= {"caution": cautions} if cautions else {}
    lines |= _expectations(advice)
    lines["command"] = command.replace("\n", f"\n{'':19}")
    return "\n".join(
        [
            f"{'SELECT' if row.selects else 'DO NOT SELECT'}: {row.when}",
            f"  {plain(row.do)}",
            *(f"  {name:15}  {text}" for name, text in lines.items()),
        ]
    )


def _expectations(advice):
    """By method, what it gained on IconText."""
    from jest_tf.curation import evidence

    found: dict = {}
    for one in advice.expected:
        value = "{:.1f} [{:.1f}, {:.1f}]".format(*one.value)
        levels = ", ".join(f"{level:.0%}" for level in one.levels)
        words = {
            "over_uniform": f"after {one.steps:,} steps {value} times the "
            "score of uniform training at equal FLOPs",
            "over_uniform_given_reference": f"after {one.steps:,} steps "
            f"{value} times the score of uniform training at equal FLOPs, "
            "excluding the reference's training",
            "over_target": f"{value} times uniform training's best end "
            f"(measured at {levels} of noise)",
        }
        method = f"IconText, {_METHODS.get(one.method, one.method)}"
        found.setdefault(method, []).append(words[one.measure])
    lines = {method: ", ".join(words) for method, words in found.items()}
    is_known = any(one.method == advice.row.method for one in advice.expected)
    if advice.row.method and not is_known:
        lines["IconText"] = "nothing was measured near this share of noise"
    accuracy = evidence.accuracy()
    if lines and accuracy.worst:
        lines["accuracy"] = (
            "in leave-one-level-out checks, the expected score ratio was off "
            f"by up to {accuracy.worst:.1f}x"
        )
        if accuracy.rank_correlation is not None:
            lines["accuracy"] += (
                f", rank correlation {accuracy.rank_correlation:.2f}"
            )
    return lines
