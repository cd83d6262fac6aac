"""Choose from a whole data set once, into a manifest for training.

By default every window of the data passes a stored stage with five candidates
and the criterion easy_reference, like those of a run (docs/funnel.md). Missing
sidecars are written first. A run with `data.manifest=DIR` draws by the
manifest. `report.html`, beside it, shows records that it keeps and drops. The
same command continues after an interruption; `--overwrite` starts again.
`--set` takes fields of `curation.Choice`, such as stage.candidates=3. The
format flags must equal `data` in the training recipe. With `--distinct`,
`near.csv` lists the near-duplicates.
"""

import argparse
import contextlib
import dataclasses
import os

from jest_tf.cli import flags as flags_lib
from jest_tf.config import checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add, several = parser.add_argument, flags_lib.SEVERAL
    add("--data", required=True, **several, metavar="GLOB", help="the shards")
    add("--output", required=True, metavar="DIR", help="folder of the manifest")
    add("--set", **several, default=[], metavar="A=B", help="settings")
    add("--overwrite", action="store_true", help="start again")
    add(
        "--distinct",
        type=float,
        metavar="COSINE",
        help="leave out all but one of images whose embeddings have at least "
        "this cosine, which depends on the reference",
    )
    add(
        "--tests",
        **several,
        metavar="GLOB",
        help="with --distinct, also leave out near-duplicates of these shards",
    )
    flags_lib.add_reference(parser, "--workdir")
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Curates, writes the report and prints what was chosen."""
    from jest_tf import curation
    from jest_tf.reports import manifest_page
    from jest_tf.runs import progress

    if flags.distinct is not None:
        checks.check("--distinct", flags.distinct, checks.within("(0, 1]"))
    elif flags.tests:
        raise ValueError(
            "`--tests` needs `--distinct`, the least cosine of "
            "near-duplicates. Received: --tests alone"
        )
    model = flags_lib.load_reference(flags.workdir, "--workdir")
    values = {"stage": dataclasses.asdict(curation.STAGE)}
    if model is not None and model.loss:
        values["loss"] = model.loss
    elif not any(text.startswith("loss=") for text in flags.set):
        raise ValueError(
            "`loss` must be the pair loss that trained the reference. "
            "Received: no `loss`, and neither sidecars nor towers tell it; add "
            "`--set loss=sigmoid` or loss=softmax, or name its run, `--workdir`"
        )
    chosen_by = flags_lib.settings(curation.Choice, flags, **values)
    store = flags_lib.open_store(flags, "data")
    sidecars = flags_lib.open_sidecars(store, model, flags.sidecar_dir)
    curated = curation.curate(
        sidecars,
        flags.output,
        chosen_by,
        overwrite=flags.overwrite,
        left_out=_left_out(flags, model, sidecars),
        progress=progress.Progress("scoring", "records"),
    )
    drawn = int((curated.weights > 0).sum())
    print(f"{drawn:,} of {len(store):,} records are drawn: {flags.output}")
    path = os.path.join(flags.output, "report.html")
    manifest_page.write(path, store, curated)
    print(path)


@contextlib.contextmanager
def _left_out(flags, model, sidecars):
    """Yields the records to leave out, bool [n]; writes `near.csv` after.

    As a context of `curation.curate`, it runs under the lock of the folder, and
    a refused choice leaves `near.csv` as it was.
    """
    import numpy as np

    from jest_tf import files
    from jest_tf.curation import repeats
    from jest_tf.runs import progress

    path = os.path.join(flags.output, "near.csv")
    if flags.distinct is None:
        yield np.zeros(len(sidecars), bool)
        files.remove(path)  # of a choice that this one has replaced
        return
    store, tests = sidecars.store, None
    if flags.tests:
        test_store = flags_lib.open_store(flags, "tests")
        tests = flags_lib.open_sidecars(
            test_store, model, flags.sidecar_dir, like=sidecars
        )
    files.delete_partial(path)
    with (
        files.written_whole(path) as partial,
        open(partial, "w", encoding="utf-8") as file,
    ):
        file.write("of,row,id,pool_row,pool_id,cosine\n")

        def write(queries, pairs):
            name = "pool" if queries is sidecars else "tests"
            ids = queries.store.ids(pairs.rows), store.ids(pairs.others)
            columns = pairs.rows, ids[0], pairs.others, ids[1], pairs.cosines
            file.writelines(
                f"{name},{row},{key},{other},{other_key},{cosine:.4f}\n"
                for row, key, other, other_key, cosine in zip(
                    *columns, strict=True
                )
            )

        found = repeats.find(
            sidecars,
            flags.distinct,
            tests,
            report=write,
            indexing=progress.Progress("indexing", "images"),
            comparing=progress.Progress("comparing", "images"),
        )
        yield found.left_out
    print(
        f"{found.left_out.sum():,} of {len(store):,} records are left out: "
        f"near-duplicates, {found.leaked.sum():,} of them of the tests ({path})"
    )
