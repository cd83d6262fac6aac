"""Choose from a whole data set once, into a manifest for training.

By default every window of the data passes a stored stage with five candidates
and the criterion easy-reference, like those of a run (docs/funnel.md). With
`--learner` the score is the learnability between that run and the reference. A
run with `data.manifest=DIR` draws by the manifest. `report.html`, beside it,
shows records that it keeps and drops. The same command continues after an
interruption; `--overwrite` starts again. `--set` takes fields of
`curation.Choice`, such as stage.candidates=3. The format flags must equal
`data` in the training recipe.
"""

import argparse
import dataclasses
import os

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
        help="step of the learner's checkpoint (default: the final weights)",
    )
    add(
        "--learner-sidecar-dir",
        metavar="DIR",
        help="sidecars of the learner (default: beside each shard)",
    )
    add("--set", **several, default=[], metavar="A=B", help="settings")
    add("--overwrite", action="store_true", help="start again")
    flags_lib.add_trust(parser)
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Curates, writes the report and prints what was chosen."""
    _check(flags)
    from jest_tf import curation
    from jest_tf.reports import manifest_page
    from jest_tf.runs import progress

    data = config.DataConfig(
        train=tuple(flags.data), **flags_lib.format_of(flags)
    )
    store = flags_lib.open_store(data)
    models = [curation.Model(flags.workdir, flags.sidecar_dir, flags.step)]
    values = dataclasses.asdict(curation.Choice())
    if flags.learner:
        sidecar_dir = flags.learner_sidecar_dir or ""
        models.append(
            curation.Model(flags.learner, sidecar_dir, flags.learner_step)
        )
        values["stage"]["criterion"] = "learnability"
    curated = curation.curate(
        store,
        flags.output,
        flags_lib.settings(curation.Choice, flags, **values),
        models,
        overwrite=flags.overwrite,
        embedding=progress.Progress("embedding", "records"),
        scoring=progress.Progress("scoring", "records"),
    )
    drawn = int((curated.weights > 0).sum())
    print(f"{drawn:,} of {len(store):,} records are drawn: {flags.output}")
    path = os.path.join(flags.output, REPORT_FILE)
    manifest_page.write(path, store, curated)
    print(path)


def _check(flags):
    values = vars(flags)
    for name, other in (
        ("step", "workdir"),
        ("learner_step", "learner"),
        ("learner_sidecar_dir", "learner"),
    ):
        # A step of 0 counts as given.
        if values[name] is not None and not values[other]:
            raise ValueError(
                f"`{flags_lib.name(name)}` needs `--{other}`. "
                f"Received: no `--{other}`"
            )
