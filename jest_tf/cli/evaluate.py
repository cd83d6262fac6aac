"""Measure the learner of a run, or a public model, on held-out data.

Settings, vocabulary and weights come from the run directory; `--step` takes
the weights of a checkpoint. Prints one measure per line, or JSON with `--json`.

`--suite` takes a file of data sets and tasks (docs/evaluation.md): zero-shot
classification and retrieval. The command then also writes `evaluation.json` and
its parts, `evaluation/`, in the form of CLIP_benchmark, and `evaluation.html`
into the run directory or `--output`.
Embeddings are kept there, for the next evaluation of the same weights.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Sequence

from jest_tf import config
from jest_tf.cli import flags as flags_lib
from jest_tf.config import overrides

# Flags for `--data` only: the entries of a suite set these themselves.
_READING = ("image_field", "caption_fields")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags, and an entry's fields to the help's epilog."""
    parser.epilog = (
        f"{parser.epilog}\nfields of a suite's entry and their defaults:\n"
        f"{overrides.describe(config.Entry)}"
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", help="the run directory")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a .keras file or a public model, such as "
        "keras_hub:siglip2_base_patch16_224; for --suite",
    )
    parser.add_argument(
        "--data",
        **flags_lib.SEVERAL,
        metavar="GLOB",
        help="shards or tables, each a data set; shards of the same set, as "
        "the shell lists them, are joined (default: the run's "
        "`evaluation.data`)",
    )
    parser.add_argument(
        "--suite",
        metavar="FILE",
        help="a .toml or .json file of data sets and tasks (default, without "
        "--data: the run's `evaluation.suite`)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="with a suite, where its files go (default: the run directory)",
    )
    flags_lib.add_format(parser, from_run=True)
    parser.add_argument(
        "--step",
        type=int,
        help="step of a checkpoint (default: the final weights)",
    )
    flags_lib.add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(flags: argparse.Namespace) -> None:
    """Measures the model and prints the measures."""
    for name in ("data", "step", *_READING) if flags.model else ():
        if getattr(flags, name) is not None:
            raise ValueError(
                f"{flags_lib.name(name)} is not for --model, which is measured "
                "on a --suite"
            )
    if flags.model and not (flags.suite and flags.output):
        raise ValueError(
            "`--model` needs `--suite`, and `--output` for its files"
        )
    results = _measured(flags)
    text = "\n".join(f"{results[name]:8.4f}  {name}" for name in results)
    print(json.dumps(results, indent=2) if flags.json else text)


def _measured(flags):
    from jest_tf.data import stores
    from jest_tf.runs import directory, loading

    if flags.model:
        model = loading.load(flags.model)
        return _of_suite(model, flags.suite, flags.output, flags)
    recipe = directory.load_config(flags.workdir)
    settings, index_dir = recipe.evaluation, recipe.data.index_dir
    data, suite = flags.data, flags.suite
    if not data and not suite:
        data, suite = settings.data, settings.suite
    if not data and not suite:
        raise ValueError(
            "There is nothing to evaluate on: expected `--data`, `--suite`, or "
            "a run with `evaluation.data` or `evaluation.suite`. Received: "
            f"{flags.workdir!r} without any"
        )
    unused = [] if data else list(_READING)
    unused += [] if suite else ["output"]
    for name in unused:
        if getattr(flags, name) is not None:
            needed = "--data" if name in _READING else "--suite"
            raise ValueError(f"{flags_lib.name(name)} needs {needed}")
    model = loading.load(flags.workdir, flags.step)
    is_named = (flags.data or flags.suite) and not index_dir
    results, keeping = {}, contextlib.nullcontext()
    if not (is_named or flags.index_dir or flags.trust):
        keeping = stores.indexes_in_memory()
    with keeping:
        if data:
            results = _of_data(model, data, flags)
        if suite:
            output = flags.output or flags.workdir
            results |= _of_suite(model, suite, output, flags)
    return results


def _of_data(model, data, flags):
    """Measures the learner of a run on paths or globs, as in training."""
    from jest_tf import evaluation
    from jest_tf.runs import evaluations

    stores = evaluation.open_stores(
        together(data),
        dataclasses.replace(model.config.data, **flags_lib.format_of(flags)),
        "--data",
    )
    return evaluations.Evaluations(
        model.config,
        evaluations.Opened(stores, {}),
        model.learner,
        model.tokenizer,
        model.picture,
    ).measure()


def _of_suite(model, suite, output, flags):
    """Measures a model on a suite, and writes the files into `output`."""
    from jest_tf import evaluation
    from jest_tf.models import reference
    from jest_tf.reports import evaluation_page
    from jest_tf.runs import directory, evaluations

    recipe, name, pretrained = config.TrainConfig(), model.name, ""
    if isinstance(model, reference.Run):
        recipe, of = model.config, model.config.model
        name, pretrained = of.init_from or of.towers or of.preset, model.name
        if flags.step is not None:
            pretrained += f", step {flags.step}"
    encoder = evaluation.Encoder(model.learner, model.tokenizer, model.picture)
    index_dir = flags.index_dir
    if index_dir is None:
        index_dir = recipe.data.index_dir
    opened = evaluation.open_suite(suite, index_dir)
    for entry in opened.values():
        entry.attach(encoder)
    folder = directory.path(output, directory.EMBEDDINGS_FOLDER)
    with encoder.fixed(folder, keep=True):
        outcomes = {title: entry.outcomes() for title, entry in opened.items()}
        found = evaluation.results(outcomes, name, pretrained)
        evaluations.write_results(output, found)
        evaluation_page.write(
            directory.path(output, directory.RESULTS_PAGE_FILE),
            f"{name} {pretrained}".strip(),
            found,
            opened,
        )
    return {
        f"eval/{title}/{measure}": value
        for title, by_task in outcomes.items()
        for measures in by_task.values()
        for measure, value in measures.items()
    }


def together(patterns: Sequence[str]) -> list[str | list[str]]:
    """Joins the shards of a data set that a shell has listed.

    Paths that differ only in the first number of `-00000-of-00002` form a list,
    which takes the place of the first of them.
    """
    sets: dict[str, list[str]] = {}
    for pattern in patterns:
        shards = re.sub(r"-\d+(-of-\d+)", r"\1", os.path.basename(pattern))
        key = os.path.join(os.path.dirname(pattern), shards)
        sets.setdefault(key, []).append(pattern)
    return [found if len(found) > 1 else found[0] for found in sets.values()]
