"""Choose from a whole data set once, into a manifest that training draws by.

By default every window of the data passes a stored stage of five candidates by
easy-reference, such as a run's (docs/funnel.md). With `--learner` the score is
the learnability between that run and the reference. With `--like` the records
most like examples of tasks are chosen. A run draws by the manifest with
`data.manifest=DIR`. The output has a report, `report.html`. An interrupted
command is continued by the same command; `--overwrite` starts again. `--set`
takes fields of `curation.Choice`, such as stage.candidates=3, and with `--like`
of `by_similarity.Settings`. The format flags must equal `data` in the training
recipe.
"""

import argparse
import dataclasses
import os
import sys

from jest_tf import config
from jest_tf.cli import flags as flags_lib

REPORT_FILE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add, several = parser.add_argument, flags_lib.SEVERAL
    add("--data", required=True, **several, metavar="GLOB", help="the shards")
    add("--output", required=True, metavar="DIR", help="folder of the manifest")
    add(
        "--workdir",
        default="",
        help="the reference's run directory (default: only its sidecars)",
    )
    add(
        "--step",
        type=int,
        help="step of the reference's checkpoint (default: the final weights)",
    )
    add(
        "--sidecar-dir",
        default="",
        metavar="DIR",
        help="sidecars of the reference (default: beside each shard)",
    )
    add("--learner", metavar="DIR", help="a run to score learnability by")
    add(
        "--learner-step",
        type=int,
        metavar="STEP",
        help="of the learner's checkpoint (default: the end)",
    )
    add(
        "--learner-sidecar-dir",
        metavar="DIR",
        help="sidecars of the learner (default: beside each shard)",
    )
    add("--like", **several, metavar="GLOB", help="examples of the tasks")
    add(
        "--evaluation",
        **several,
        metavar="GLOB",
        help="evaluation data of the tasks, none of which is chosen",
    )
    add("--set", **several, default=[], metavar="A=B", help="settings")
    add("--overwrite", action="store_true", help="start again")
    add("--no-report", action="store_true", help="write no report.html")
    add(
        "--source-fields",
        nargs="*",
        metavar="FIELD",
        help="metadata that the report counts by (default: source kind style)",
    )
    add(
        "--beam",
        action="store_true",
        help="spread the shards by Apache Beam, which takes its own flags",
    )
    flags_lib.add_trust(parser)
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Curates, writes the report and prints what was chosen."""
    _check(flags)
    from jest_tf import curation
    from jest_tf.reports import manifest_page

    reference = curation.Model(flags.workdir, flags.sidecar_dir, flags.step)
    store = flags_lib.open_store(_data(flags, flags.data))
    curate = _curate_like if flags.like else _curate_by_scores
    curated = curate(flags, store, reference)
    drawn = int((curated.weights > 0).sum())
    print(f"{drawn:,} of {len(store):,} records are drawn: {flags.output}")
    for name, count in curated.counts.items():
        print(f"{count:8,}  {name}")
    if flags.no_report:
        return
    path = os.path.join(flags.output, REPORT_FILE)
    # With Beam the sidecars may be on other machines.
    sidecars = None if flags.beam else reference.sidecars(store)
    fields = flags.source_fields
    if fields is None:
        fields = manifest_page.SOURCE_FIELDS
    manifest_page.write(path, store, curated, sidecars, fields)
    print(path)


def _check(flags):
    values = vars(flags)
    for name in ("learner", "learner_step", "learner_sidecar_dir", "beam"):
        # A step of 0 counts as given.
        if flags.like and values[name] not in (None, False):
            raise ValueError(
                "`--like` chooses by a reference alone, on a single machine. "
                f"Received: `{flags_lib.name(name)}` with it"
            )
    for name, other in (
        ("evaluation", "like"),
        ("step", "workdir"),
        ("learner_step", "learner"),
        ("learner_sidecar_dir", "learner"),
    ):
        if values[name] is not None and not values[other]:
            raise ValueError(
                f"`{flags_lib.name(name)}` needs `--{other}`. "
                "Received: it alone"
            )


def _data(flags, patterns):
    return config.DataConfig(
        train=tuple(patterns), **flags_lib.format_of(flags)
    )


def _curate_by_scores(flags, store, reference):
    from jest_tf import curation
    from jest_tf.runs import progress

    models, values = [reference], dataclasses.asdict(curation.Choice())
    if flags.learner:
        sidecar_dir = flags.learner_sidecar_dir or ""
        models.append(
            curation.Model(flags.learner, sidecar_dir, flags.learner_step)
        )
        values["stage"]["criterion"] = "learnability"
    chosen_by = flags_lib.settings(curation.Choice, flags, **values)
    if flags.beam:
        return curation.curate_with_beam(
            _data(flags, flags.data),
            flags.output,
            chosen_by,
            models,
            options=flags.beam_options,
            overwrite=flags.overwrite,
        )
    return curation.curate(
        store,
        flags.output,
        chosen_by,
        models,
        overwrite=flags.overwrite,
        embedding=progress.Progress("embedding", "records"),
        scoring=progress.Progress("scoring", "records"),
    )


def _curate_like(flags, store, reference):
    from jest_tf.curation import by_similarity
    from jest_tf.runs import progress

    settings = flags_lib.settings(by_similarity.Settings, flags)

    def source(patterns, setting):
        found = flags_lib.open_store(_data(flags, patterns), setting)
        return reference.sidecars(found)

    tasks = source(flags.like, "--like")
    if not flags.evaluation:
        print(
            "no --evaluation: what the tasks are evaluated on may be chosen",
            file=sys.stderr,
        )
    sidecars = reference.sidecars(
        store, progress.Progress("embedding", "records")
    )
    curated = by_similarity.infer(
        sidecars,
        tasks,
        source(flags.evaluation, "--evaluation") if flags.evaluation else None,
        flags.output,
        settings,
        overwrite=flags.overwrite,
        progress=progress.Progress("comparing", "records"),
    )
    _report_shortfall(curated)
    return curated


def _report_shortfall(curated):
    import numpy as np

    from jest_tf.curation import by_similarity

    drawn = int((curated.weights > 0).sum())
    asked = curated.counts[by_similarity.ASKED_FOR]
    if drawn == asked:
        return
    reason = "that is all that the pool has"
    finite = np.isfinite(curated.scores).sum()
    if curated.counts[by_similarity.CANDIDATES] < finite:
        reason = "the candidates ran out: a larger `oversampling` has more"
    print(f"{drawn:,} of the {asked:,} asked for: {reason}", file=sys.stderr)
