"""Chooses from a whole data set once, into a manifest that training draws by.

    python -m trainers.curate --workdir runs/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord' \
        --output manifests/easy --set share=0.2 window=2048

By easy-reference, jointly in windows; with `--learner`, by the learnability
between that run and the reference; with `--like`, the records that are like
examples of tasks. A run draws by it with `data.manifest=manifests/easy`. The
output has a report, `report.html`. A command that was interrupted is continued
by the same command; with `--overwrite` it begins anew. `--set` takes fields of
`curation.Settings`, and with `--like` of `by_similarity.Settings`. The options
of the data's format are those of `data` in the training recipe, and have to be
the same there.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

import trainers
from jest_tf import config as config_lib
from jest_tf import curation
from jest_tf.config import overrides
from jest_tf.curation import by_similarity
from jest_tf.data import stores
from jest_tf.reports import manifest_page
from jest_tf.runs import progress

REPORT_FILE = "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and curates."""
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if rest and not flags.beam:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    trainers.run(lambda: _run(flags, rest))


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        # Beam has options that begin like ours.
        allow_abbrev=False,
    )
    add = parser.add_argument
    several = {"nargs": "+", "action": "extend"}
    add("--data", required=True, **several, metavar="GLOB", help="the shards")
    add("--output", required=True, help="folder of the manifest")
    add("--workdir", default="", help="the reference's run; none: by sidecars")
    add("--step", type=int, help="of its checkpoint; its final weights")
    add("--sidecar-dir", default="", help="of the reference; beside the shards")
    add("--learner", help="run directory: choose by learnability")
    add("--learner-step", type=int, help="of its checkpoint; its final weights")
    add("--learner-sidecar-dir", help="of the learner; beside the shards")
    add("--like", **several, metavar="GLOB", help="examples of the tasks")
    add(
        "--evaluation",
        **several,
        metavar="GLOB",
        help="what the tasks are evaluated on: nothing of it is chosen",
    )
    add("--set", **several, default=[], metavar="A=B", help="settings")
    add("--overwrite", action="store_true", help="write all of it anew")
    add("--no-report", action="store_true", help="write no report.html")
    add("--source-fields", nargs="*", default=manifest_page.SOURCE_FIELDS)
    add(
        "--beam",
        action="store_true",
        help="spread the shards by Apache Beam, which takes its own flags",
    )
    add("--format", default="auto", choices=config_lib.FORMATS)
    add("--image-field", default="", help="`data.image_field`")
    add("--caption-fields", default=[], nargs="+", metavar="FIELD")
    add("--index-dir", default="", help="`data.index_dir`")
    return parser


def _run(flags, beam_options):
    _check(flags)
    reference = curation.Model(flags.workdir, flags.sidecar_dir, flags.step)
    store = stores.open_stores(
        _data(flags, flags.data), progress.Progress("indexing", "bytes")
    )
    curate = _curate_like if flags.like else _curate_by_scores
    curated = curate(flags, store, reference, beam_options)
    drawn = int((curated.weights > 0).sum())
    print(f"{drawn:,} of {len(store):,} records are drawn: {flags.output}")
    for name, count in curated.counts.items():
        print(f"{count:8,}  {name}")
    if not flags.no_report:
        path = os.path.join(flags.output, REPORT_FILE)
        sidecars = None
        if not flags.beam:  # else they may be on other machines
            sidecars = reference.sidecars(store)
        manifest_page.write(path, store, curated, sidecars, flags.source_fields)
        print(path)


def _check(flags):
    values = vars(flags)
    for name in ("learner", "learner_step", "learner_sidecar_dir", "beam"):
        # A step of 0 was given, too.
        if flags.like and values[name] not in (None, False):
            raise ValueError(
                f"`--like` chooses by a reference alone, on one machine. "
                f"Received: `--{name.replace('_', '-')}` with it"
            )
    for name, other in (
        ("evaluation", "like"),
        ("step", "workdir"),
        ("learner_step", "learner"),
        ("learner_sidecar_dir", "learner"),
    ):
        if values[name] is not None and not values[other]:
            raise ValueError(
                f"`--{name.replace('_', '-')}` needs `--{other}`. "
                "Received: it alone"
            )


def _data(flags, patterns):
    """The settings of a store; tasks and evaluation are read as the pool."""
    return config_lib.DataConfig(
        train=tuple(patterns),
        format=flags.format,
        image_field=flags.image_field,
        caption_fields=tuple(flags.caption_fields),
        index_dir=flags.index_dir,
    )


def _settings(kind, flags, **values):
    for text in flags.set:
        overrides.override(kind, values, text)
    return overrides.build(kind, values)


def _curate_by_scores(flags, store, reference, beam_options):
    models = [reference]
    values = {}
    if flags.learner:
        models.append(
            curation.Model(
                flags.learner,
                flags.learner_sidecar_dir or "",
                flags.learner_step,
            )
        )
        values["criterion"] = "learnability"
    chosen_by = _settings(curation.Settings, flags, **values)
    if flags.beam:
        return curation.curate_with_beam(
            _data(flags, flags.data),
            flags.output,
            chosen_by,
            models,
            options=beam_options,
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


def _curate_like(flags, store, reference, beam_options):
    chosen_by = _settings(by_similarity.Settings, flags)

    def source(patterns):
        found = stores.open_stores(
            _data(flags, patterns), progress.Progress("indexing", "bytes")
        )
        return by_similarity.Source(found, reference.sidecars(found))

    tasks = source(flags.like)
    evaluation = source(flags.evaluation) if flags.evaluation else None
    if evaluation is None:
        print(
            "no --evaluation: what the tasks are evaluated on may be chosen",
            file=sys.stderr,
        )
    sidecars = reference.sidecars(
        store, progress.Progress("embedding", "records")
    )
    curated = by_similarity.infer(
        by_similarity.Source(store, sidecars),
        tasks,
        evaluation,
        flags.output,
        chosen_by,
        overwrite=flags.overwrite,
        progress=progress.Progress("comparing", "records"),
    )
    _tell_shortfall(curated)
    return curated


def _tell_shortfall(curated):
    """Says why fewer records were chosen than were asked for."""
    drawn = int((curated.weights > 0).sum())
    asked, candidates = (
        curated.counts[name]
        for name in (by_similarity.ASKED_FOR, by_similarity.CANDIDATES)
    )
    if drawn == asked:
        return
    reason = "that is all that the pool has"
    if candidates < np.isfinite(curated.scores).sum():
        reason = "the candidates ran out: a larger `oversampling` has more"
    print(f"{drawn:,} of the {asked:,} asked for: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
