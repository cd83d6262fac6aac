"""Measure the learner of a run, or a public model, on held-out data.

Settings, vocabulary and weights come from the run directory; `--step` takes
the weights of a checkpoint. Every store of `evaluation.data` and
`evaluation.stores` is measured by retrieval, zero-shot classification or both
(docs/evaluation.md). Prints one measure per line, or JSON with `--json`. With
`--by`, it also measures the records that share a value of a field. With
`--output`, it also writes `evaluation.json`, the same measures, and the page
`evaluation.html`.
"""

import argparse
import contextlib
import dataclasses
import json

from jest_tf import config
from jest_tf.cli import flags as flags_lib

_SHOWN = 10  # slices on the console; files have all
_READ = "image_field", "caption_fields", "index_dir"  # of `data`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", help="the run directory")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a .keras file or a public model, such as "
        "keras_hub:siglip2_base_patch16_224",
    )
    add = parser.add_argument
    add(
        "--data",
        **flags_lib.SEVERAL,
        metavar="GLOB",
        help="shards or tables, each a store; quote globs (default: the run's "
        "`evaluation.data` and `evaluation.stores`)",
    )
    add(
        "--set",
        **flags_lib.SETTINGS,
        help="settings to override: data.image_field, data.caption_fields, "
        "data.index_dir and, without --data, those of evaluation",
    )
    flags_lib.add_by(parser, "measure each value")
    add(
        "--output", metavar="DIR", help="where files go (default: none written)"
    )
    add(
        "--step",
        type=int,
        help="step of a checkpoint (default: the final weights)",
    )
    flags_lib.add_mix(parser)
    flags_lib.add_trust(parser)
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(settings=config.TrainConfig)


def run(flags: argparse.Namespace) -> None:
    """Measures the model and prints the measures."""
    results, slices = _measured(flags)
    if flags.json:
        print(json.dumps(_as_json(results, slices), indent=2))
        return
    for name, value in results.items():
        print(f"{value:8.4f}  {name}")
    for store, found in slices.items():
        _print_slices(store, found)


def _print_slices(store, slices):
    from jest_tf.runs import evaluations

    name, weakest = evaluations.weakest(slices)
    if not weakest:
        return
    print(f"\n{store} by slice, the weakest of {len(weakest)} first:")
    for some, (value, low, high, _) in weakest[:_SHOWN]:
        print(
            f"{value:8.4f}  [{low:.4f}, {high:.4f}]  {name}  "
            f"{some.field}={some.value}, {len(some.rows):,} records"
        )


def _as_json(results, slices):
    """Measures by name; with slices, a list of them under "slices"."""
    if not slices:
        return results
    return results | {
        "slices": [
            {
                "store": store,
                "field": some.field,
                "value": some.value,
                "records": len(some.rows),
                "measures": {
                    name: estimate._asdict()
                    for name, estimate in some.measures.items()
                },
            }
            for store, found in slices.items()
            for some in found
        ]
    }


def _measured(flags):
    """The measures by name, and slices by store."""
    from jest_tf import evaluation
    from jest_tf.reports import evaluation_page
    from jest_tf.runs import directory, evaluations, loading

    recipe = config.TrainConfig()
    if flags.workdir:
        recipe = directory.load_config(flags.workdir)
    settings = flags_lib.settings(
        config.TrainConfig, flags, **dataclasses.asdict(recipe)
    )
    _check_read(flags, recipe, settings)
    named = settings.evaluation.named
    if flags.data:
        named = [
            ("--data", config.EvaluationStore(data=(shards,)))
            for shards in flags.data
        ]
    if not named:
        raise ValueError(
            "There is nothing to evaluate on: expected `--data`, "
            "`evaluation.data` or `evaluation.stores`. Received: none of them"
        )
    name = flags.workdir or flags.model
    if flags.step is None:
        flag = "--workdir" if flags.workdir else "--model"
        loading.check_model(name, flag, "--step")
    model = loading.load(name, flags.step, mix=flags.mix)
    with _indexes(flags, recipe, settings):
        stores = evaluation.open_stores(named, settings.data)
        encoder = evaluation.Encoder(
            model.learner, model.tokenizer, model.image_form
        )
        with encoder.fixed():
            slices = {}
            if flags.by:  # first, as it may lack a field
                slices = evaluations.measure_slices(stores, encoder, flags.by)
            results = evaluations.measure(stores, encoder)
            if flags.output:
                directory.write(
                    flags.output,
                    directory.RESULTS_FILE,
                    _as_json(results, slices),
                )
                evaluation_page.write(
                    directory.path(flags.output, directory.RESULTS_PAGE_FILE),
                    _title(name, flags),
                    stores,
                    encoder,
                    results,
                    slices,
                )
    return results, slices


def _check_read(flags, recipe, settings):
    """Refuses `--set` of a setting that measures nothing here."""
    read = {name: getattr(recipe.data, name) for name in _READ}
    others = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, **read),
        evaluation=settings.evaluation if flags.data else recipe.evaluation,
    )
    if others != recipe:
        raise ValueError(
            "`--set` must be of settings that `evaluate` reads: "
            + ", ".join(f"`data.{name}`" for name in _READ)
            + " and, without `--data`, those of `evaluation`. The others are "
            f"the model's. Received: {' '.join(flags.set)}"
        )


def _title(name, flags):
    if flags.step is not None:
        name += f", step {flags.step:,}"
    if flags.mix < 1:
        name += f", mixed with its start, {flags.mix:g} to {1 - flags.mix:g}"
    return name


def _indexes(flags, recipe, settings):
    """Keeps missing indexes in memory where the run's settings place them."""
    from jest_tf.data import stores

    places_them = settings.data.index_dir == recipe.data.index_dir and (
        recipe.data.index_dir or not flags.data
    )
    if flags.workdir and places_them and not flags.trust:
        return stores.indexes_in_memory()
    return contextlib.nullcontext()
