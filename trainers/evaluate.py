"""Measures the learner of a run on held-out data.

    python -m trainers.evaluate --workdir runs/jest

Settings, vocabulary and weights come from the run directory; `--step` takes
the weights of a checkpoint. Prints one measure a line, or JSON with `--json`.

With `--selection` it measures the run's draws in place of its learner, on
super-batches of the run's own data: how they compare with other samplers', on
other noise, and by other views of the images. Prints tables, and writes
`selection.json` into the run directory.
"""

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Sequence

import trainers
from jest_tf import config as config_lib
from jest_tf import evaluation, runs
from jest_tf.evaluation import draw_comparison

_SUPER_BATCHES = 8
# Flags that say which data the learner is measured on, and which only draws
# have.
_OF_DATA = ("data", "format", "image_field", "caption_fields", "index_dir")
_OF_SELECTION = ("super_batches", "views")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="shards or tables, a set each; shards of one set that the shell "
        "expanded are taken together. By default the run's `evaluation.data`",
    )
    for name, options in (
        ("format", {"choices": config_lib.FORMATS}),
        ("image_field", {}),
        ("caption_fields", {"nargs": "+", "metavar": "FIELD"}),
        ("index_dir", {}),
    ):
        parser.add_argument(
            _flag(name), help=f"`data.{name}` of the data; the run's", **options
        )
    parser.add_argument(
        "--step", type=int, help="of a checkpoint; by default the final weights"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--selection", action="store_true", help="measure the draws instead"
    )
    _add_selection_flags(parser.add_argument_group("with --selection"))
    flags = parser.parse_args(argv)
    for name in _OF_DATA if flags.selection else _OF_SELECTION:
        if getattr(flags, name) is not None:
            parser.error(
                f"{_flag(name)} is not for --selection, which draws from the "
                "run's own data"
                if flags.selection
                else f"{_flag(name)} needs --selection"
            )
    if flags.selection:
        count = flags.super_batches
        results = trainers.run(
            lambda: draw_comparison.measure(
                flags.workdir,
                step=flags.step,
                num_super_batches=_SUPER_BATCHES if count is None else count,
                views=flags.views or (),
            )
        )
        show = json.dumps(results, indent=2)
        print(show if flags.json else draw_comparison.tables(results))
        return
    results = trainers.run(
        lambda: evaluate(
            flags.workdir,
            **{name: getattr(flags, name) for name in ("step", *_OF_DATA)},
        )
    )
    if flags.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{value:8.4f}  {name}")


def _flag(name):
    return f"--{name.replace('_', '-')}"


def _add_selection_flags(group):
    group.add_argument(
        "--super-batches", type=int, help=f"to draw from ({_SUPER_BATCHES})"
    )
    group.add_argument(
        "--views",
        nargs="+",
        action="extend",
        metavar="A=B,C=D",
        help="views to compare, e.g. patch_size=32 keep_tokens=0.5, or of "
        "augmented pictures, min_crop_area=0.6,flip=true",
    )


def evaluate(
    workdir: str,
    data: Sequence[str] | None = None,
    *,
    step: int | None = None,
    format: str | None = None,
    image_field: str | None = None,
    caption_fields: Sequence[str] | None = None,
    index_dir: str | None = None,
) -> dict[str, float]:
    """What `evaluation.Evaluation` measures of a run.

    Args:
        workdir: the run directory.
        data: paths or globs; None is the run's own `evaluation.data`.
        step: of the checkpoint to measure; None is the run's end.
        format: as `data.format`; None is what the run evaluates with. The
            others likewise.
        image_field: as `data.image_field`.
        caption_fields: as `data.caption_fields`.
        index_dir: as `data.index_dir`.

    Raises:
        ValueError: where the run has not finished, there is no such
            checkpoint, or there is no data.
    """
    run = runs.load_run(workdir, step)
    settings = run.config.evaluation
    if data:
        settings = dataclasses.replace(settings, data=tuple(data))
    given = {
        "format": format,
        "image_field": image_field,
        "caption_fields": caption_fields and tuple(caption_fields),
        "index_dir": index_dir,
    }
    reading = dataclasses.replace(
        run.config.evaluation_data,
        **{name: one for name, one in given.items() if one is not None},
    )
    if not settings.data:
        raise ValueError(
            "There is nothing to evaluate on: expected `--data`, or a run with "
            f"`evaluation.data`. Received: {workdir!r} without either"
        )
    return evaluation.Evaluation(
        run.learner,
        evaluation.open_stores(together(settings.data), reading),
        settings,
        tokenizer=run.tokenizer,
        image_size=run.config.data.image_size,
        max_image_pixels=run.config.data.max_image_pixels,
    ).run(run.config.steps if step is None else step)


def together(patterns: Sequence[str]) -> list[str | list[str]]:
    """Puts the shards of a set, as a shell lists them, into one list.

    Args:
        patterns: paths or globs.

    Returns:
        The patterns in their order, where paths that differ in the number of
        `-00000-of-00002` alone are one list at the place of the first.
    """
    sets: dict[str, list[str]] = {}
    for pattern in patterns:
        shards = re.sub(r"-\d+(-of-\d+)", r"\1", os.path.basename(pattern))
        key = os.path.join(os.path.dirname(pattern), shards)
        sets.setdefault(key, []).append(pattern)
    return [one if len(one) > 1 else one[0] for one in sets.values()]


if __name__ == "__main__":
    main()
