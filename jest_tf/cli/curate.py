"""Choose from a whole data set once, into a manifest for training.

By default every window of the data passes a stored stage with five candidates
and the criterion easy-reference, like those of a run (docs/funnel.md). Missing
sidecars are written first. A run with `data.manifest=DIR` draws by the
manifest. `report.html`, beside it, shows records that it keeps and drops. The
same command continues after an interruption; `--overwrite` starts again.
`--set` takes fields of `curation.Choice`, such as stage.candidates=3. The
format flags must equal `data` in the training recipe.
"""

import argparse
import dataclasses
import os

from jest_tf.cli import flags as flags_lib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add, several = parser.add_argument, flags_lib.SEVERAL
    add("--data", required=True, **several, metavar="GLOB", help="the shards")
    add("--output", required=True, metavar="DIR", help="folder of the manifest")
    add("--set", **several, default=[], metavar="A=B", help="settings")
    add("--overwrite", action="store_true", help="start again")
    flags_lib.add_reference(parser, "--workdir")
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Curates, writes the report and prints what was chosen."""
    from jest_tf import curation
    from jest_tf.reports import manifest_page
    from jest_tf.runs import progress

    model = flags_lib.load_reference(flags.workdir, "--workdir")
    values = {"stage": dataclasses.asdict(curation.STAGE)}
    if model is not None:
        values["loss"] = model.loss
    elif not any(text.startswith("loss=") for text in flags.set):
        raise ValueError(
            "`loss` must be the pair loss that trained the reference. "
            "Received: no `loss`, and sidecars do not tell it; add `--set "
            "loss=sigmoid` or loss=softmax, or name its run, `--workdir`"
        )
    chosen_by = flags_lib.settings(curation.Choice, flags, **values)
    store = flags_lib.open_store(flags, "data")
    curated = curation.curate(
        flags_lib.open_sidecars(store, model, flags.sidecar_dir),
        flags.output,
        chosen_by,
        overwrite=flags.overwrite,
        progress=progress.Progress("scoring", "records"),
    )
    drawn = int((curated.weights > 0).sum())
    print(f"{drawn:,} of {len(store):,} records are drawn: {flags.output}")
    path = os.path.join(flags.output, "report.html")
    manifest_page.write(path, store, curated)
    print(path)
