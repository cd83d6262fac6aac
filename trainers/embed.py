"""Writes the sidecars of a data set with a finished run as the reference.

    python -m trainers.embed --workdir runs/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord'

A sidecar holds the reference's embeddings of one shard; a run with
`reference.sidecars=true` reads them in place of running the reference. Sidecars
that are there are kept, and one that was interrupted is continued: run the
same command again. Where another process is writing some of them it exits with
code 75, "try again later". On several hosts give each its `--host` and
`--num-hosts`. The options of the data's format are those of `data` in the
training recipe, and have to be the same there.
"""

import argparse
from collections.abc import Sequence

import trainers
from jest_tf import config as config_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.data.sidecars import embed, file_format, precision
from jest_tf.models import reference
from jest_tf.runs import interruptions, progress


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and writes."""
    flags = _parser().parse_args(argv)
    trainers.run(lambda: _run(flags))


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="the reference's run directory")
    add(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="the shards",
    )
    add("--output", default="", help="folder of the sidecars; beside each")
    add("--dtype", default="float16", choices=file_format.DTYPES)
    add("--batch-size", type=int, default=256, help="records a forward pass")
    add("--overwrite", action="store_true", help="replace what does not fit")
    add("--check", action="store_true", help="compare draws with the live one")
    add("--host", type=int, default=0, help="number of this host")
    add("--num-hosts", type=int, default=1, help="shards are dealt to so many")
    add("--format", default="auto", choices=config_lib.FORMATS)
    add("--image-field", default="", help="`data.image_field`")
    add("--caption-fields", default=[], nargs="+", metavar="FIELD")
    add("--index-dir", default="", help="`data.index_dir`")
    add(
        "--max-image-pixels",
        type=int,
        default=config_lib.DataConfig.max_image_pixels,
        help="`data.max_image_pixels`",
    )
    return parser


def _run(flags):
    if flags.batch_size < 1:
        raise ValueError(
            f"`--batch-size` must be at least 1. Received: {flags.batch_size}"
        )
    if not 0 <= flags.host < flags.num_hosts:
        raise ValueError(
            f"`--host` must be in [0, --num-hosts). Received: {flags.host} of "
            f"{flags.num_hosts}"
        )
    if flags.check and flags.num_hosts > 1:
        raise ValueError(
            "`--check` reads the sidecars of all shards: run it once more on "
            "one host when all hosts are done. Received: "
            f"--num-hosts {flags.num_hosts}"
        )
    run = reference.load_run(flags.workdir)
    store = stores.join(
        [
            stores.open_store(
                pattern,
                format=flags.format,
                image_field=flags.image_field,
                caption_fields=flags.caption_fields,
                index_dir=flags.index_dir,
                progress=progress.Progress("indexing", "bytes"),
            )
            for pattern in flags.data
        ]
    )
    description = reference.describe(run)
    summary = embed.write(
        store,
        reference.encoder(run, flags.batch_size),
        description,
        flags.output,
        image_size=run.config.data.image_size,
        max_image_pixels=flags.max_image_pixels,
        batch_size=flags.batch_size,
        dtype=flags.dtype,
        shards=range(flags.host, len(store.shards.paths), flags.num_hosts),
        overwrite=flags.overwrite,
        progress=progress.Progress("embedding", "records"),
    )
    _report(summary)
    if summary.busy:
        raise SystemExit(interruptions.EXIT_CODE)
    if flags.check:
        sidecars = sidecars_lib.Sidecars(store, flags.output, description)
        print(
            precision.compare(
                run, store, sidecars, max_image_pixels=flags.max_image_pixels
            )
        )


def _report(summary):
    print(
        f"{summary.written} sidecars written, {summary.rows:,} records; "
        f"{summary.skipped} were there"
    )
    for path in summary.busy:
        print(f"another process is writing {path}")
    if summary.invalid:
        print(f"{summary.invalid:,} of the records could not be read:")
    for reason, count in summary.reasons.items():
        print(f"{count:8,}  {reason}")


if __name__ == "__main__":
    main()
