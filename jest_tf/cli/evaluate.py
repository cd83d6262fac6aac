"""Measure the learner of a run, or a public model, on held-out data.

Settings, vocabulary and weights come from the run directory; `--step` takes
the weights of a checkpoint. Every store of `evaluation.data` and
`evaluation.stores` is measured by retrieval, zero-shot classification or both
(docs/evaluation.md). Prints one measure per line, or JSON with `--json`. With
`--output`, also writes `evaluation.json`, the same measures, and the page
`evaluation.html`.
"""

import argparse
import contextlib
import dataclasses
import json

from jest_tf import config
from jest_tf.cli import flags as flags_lib


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
        **flags_lib.SEVERAL,
        default=[],
        metavar="A.B=C",
        help="settings to override, such as data.image_field=png",
    )
    add(
        "--output", metavar="DIR", help="where files go (default: none written)"
    )
    add(
        "--step",
        type=int,
        help="step of a checkpoint (default: the final weights)",
    )
    flags_lib.add_trust(parser)
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(settings=config.TrainConfig)


def run(flags: argparse.Namespace) -> None:
    """Measures the model and prints the measures."""
    results = _measured(flags)
    text = "\n".join(f"{results[name]:8.4f}  {name}" for name in results)
    print(json.dumps(results, indent=2) if flags.json else text)


def _measured(flags):
    from jest_tf import evaluation
    from jest_tf.reports import evaluation_page
    from jest_tf.runs import directory, evaluations, loading

    recipe = config.TrainConfig()
    if flags.workdir:
        recipe = directory.load_config(flags.workdir)
    settings = flags_lib.settings(
        config.TrainConfig, flags, **dataclasses.asdict(recipe)
    )
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
    model = loading.load(name, flags.step)
    with _indexes(flags, recipe, settings):
        stores = evaluation.open_stores(named, settings.data)
        encoder = evaluation.Encoder(
            model.learner, model.tokenizer, model.image_form
        )
        with encoder.fixed():
            results = evaluations.measure(stores, encoder)
            if flags.output:
                directory.write(flags.output, directory.RESULTS_FILE, results)
                evaluation_page.write(
                    directory.path(flags.output, directory.RESULTS_PAGE_FILE),
                    name
                    if flags.step is None
                    else f"{name}, step {flags.step}",
                    stores,
                    encoder,
                    results,
                )
    return results


def _indexes(flags, recipe, settings):
    """Keeps missing indexes in memory where the run's settings place them."""
    from jest_tf.data import stores

    places_them = settings.data.index_dir == recipe.data.index_dir and (
        recipe.data.index_dir or not flags.data
    )
    if flags.workdir and places_them and not flags.trust:
        return stores.indexes_in_memory()
    return contextlib.nullcontext()
