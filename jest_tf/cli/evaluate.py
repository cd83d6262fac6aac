"""Measure the learner of a run on held-out data.

Settings, vocabulary and weights come from the run directory; `--step` takes
the weights of a checkpoint. Prints a measure a line, or JSON with `--json`.

With `--selection` the command measures the run's draws instead of its learner,
on super-batches of the run's data: how they compare with draws of other
samplers, on other noise, and through other views of the images. Prints tables,
and writes `selection.json` into the run directory.
"""

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence

from jest_tf.cli import flags as flags_lib

_SUPER_BATCHES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--data",
        **flags_lib.SEVERAL,
        metavar="GLOB",
        help="shards or tables, each a data set; shards of one set, as the "
        "shell lists them, are joined (default: the run's `evaluation.data`)",
    )
    flags_lib.add_format(parser, from_run=True)
    parser.add_argument(
        "--step", type=int, help="of a checkpoint (default: the final weights)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--selection",
        action="store_true",
        help="measure the draws instead of the learner",
    )
    group = parser.add_argument_group("with --selection")
    group.add_argument(
        "--super-batches",
        type=int,
        metavar="N",
        help=f"super-batches to draw from (default: {_SUPER_BATCHES})",
    )
    group.add_argument(
        "--views",
        **flags_lib.SEVERAL,
        metavar="A=B,C=D",
        help="views to compare, such as patch_size=32 keep_tokens=0.5, or of "
        "augmented images, min_crop_area=0.6,flip=true",
    )


def run(flags: argparse.Namespace) -> None:
    """Measures and prints."""
    unused, reason = ("super_batches", "views"), "needs --selection"
    if flags.selection:
        unused = ("data", *flags_lib.FORMAT_FIELDS)
        reason = "is not for --selection, which draws from the run's own data"
    for name in unused:
        if getattr(flags, name) is not None:
            raise ValueError(f"{flags_lib.name(name)} {reason}")
    if flags.selection:
        from jest_tf.runs import draw_comparison

        count = flags.super_batches
        results = draw_comparison.measure(
            flags.workdir,
            step=flags.step,
            num_super_batches=_SUPER_BATCHES if count is None else count,
            views=flags.views or (),
        )
        text = draw_comparison.tables(results)
    else:
        reading = {
            name: getattr(flags, name) for name in flags_lib.FORMAT_FIELDS
        }
        results = evaluate(
            flags.workdir, flags.data, step=flags.step, reading=reading
        )
        text = "\n".join(f"{results[name]:8.4f}  {name}" for name in results)
    print(json.dumps(results, indent=2) if flags.json else text)


def evaluate(
    workdir: str,
    data: Sequence[str] | None = None,
    *,
    step: int | None = None,
    reading: Mapping[str, str | Sequence[str]] | None = None,
) -> dict[str, float]:
    """Measures the learner of a run, as in training.

    Args:
        workdir: the run directory.
        data: paths or globs; None takes the run's `evaluation.data`.
        step: of the checkpoint to measure; None is the end of the run.
        reading: fields of `DataConfig` that replace those of the run's
            evaluation, unless None.

    Returns:
        The measures by name.

    Raises:
        ValueError: the run has not finished, or there is no such checkpoint or
            no data.
    """
    from jest_tf import evaluation, runs
    from jest_tf.runs import evaluations

    trained = runs.load_run(workdir, step)
    settings = trained.config.evaluation
    if data:
        settings = dataclasses.replace(settings, data=tuple(data))
    if not settings.data:
        raise ValueError(
            "There is nothing to evaluate on: expected `--data`, or a run with "
            f"`evaluation.data`. Received: {workdir!r} without either"
        )
    given = {
        name: value if isinstance(value, str) else tuple(value)
        for name, value in (reading or {}).items()
        if value is not None
    }
    stores = evaluation.open_stores(
        together(settings.data),
        dataclasses.replace(trained.config.evaluation_data, **given),
    )
    return evaluations.measure(
        evaluations.of_run(
            trained.config,
            stores,
            trained.learner,
            trained.tokenizer,
            trained.picture,
        )
    )


def together(patterns: Sequence[str]) -> list[str | list[str]]:
    """Joins the shards of a data set that a shell has listed.

    Paths that differ only in the first number of `-00000-of-00002` are one
    list, at the first of them.
    """
    sets: dict[str, list[str]] = {}
    for pattern in patterns:
        shards = re.sub(r"-\d+(-of-\d+)", r"\1", os.path.basename(pattern))
        key = os.path.join(os.path.dirname(pattern), shards)
        sets.setdefault(key, []).append(pattern)
    return [found if len(found) > 1 else found[0] for found in sets.values()]
