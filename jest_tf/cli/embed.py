"""Embed a data set into sidecars.

A sidecar holds the reference's embeddings of a shard. Stored stages choose by
them, and live stages read them instead of running the reference
(docs/funnel.md). Existing sidecars are kept, and the same command continues
after an interruption. If another process is writing some of the sidecars, the
command exits with code 75, "try again later". With several hosts, give each its
`--host` and `--num-hosts`. Format flags must equal `data` in the recipe.
"""

import argparse
import shlex

from jest_tf.cli import flags as flags_lib
from jest_tf.config import checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        *("--model", "--workdir"),
        required=True,
        dest="model",
        metavar="NAME",
        help="the reference: a run directory, a .keras file, or a public model "
        "such as keras_hub:siglip2_base_patch16_224",
    )
    add(
        "--data",
        **flags_lib.SEVERAL,
        required=True,
        metavar="GLOB",
        help="the shards",
    )
    add(
        "--output",
        default="",
        metavar="PATH",
        help="folder of the sidecars (default: beside each shard)",
    )
    add(
        "--dtype",
        default="float16",
        choices=("float16", "float32"),  # as in `sidecars.file_format`
        help="dtype of the embeddings (default: float16)",
    )
    add(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="records per forward pass (default: 256)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace sidecars that do not fit",
    )
    add("--host", type=int, default=0, help="index of this host (default: 0)")
    add(
        "--num-hosts",
        type=int,
        default=1,
        help="hosts that share the shards (default: 1)",
    )
    flags_lib.add_trust(parser)
    flags_lib.add_format(parser)


def run(flags: argparse.Namespace) -> None:
    """Writes the sidecars of this host's shards and reports on them."""
    checks.check("--batch-size", flags.batch_size, checks.at_least(1))
    if not 0 <= flags.host < flags.num_hosts:
        raise ValueError(
            f"`--host` must be in [0, --num-hosts). Received: {flags.host} of "
            f"{flags.num_hosts}"
        )
    from jest_tf.data.sidecars import embed
    from jest_tf.models import reference
    from jest_tf.runs import interruptions, loading, notices, progress

    loading.check_model(flags.model, "--model")
    teacher = loading.load(flags.model)
    store = flags_lib.open_store(flags, "data")
    notices.check_sample(store)
    summary = embed.write(
        store,
        reference.encoder(teacher, flags.batch_size),
        reference.describe(teacher),
        embed.Output(
            flags.output,
            flags.dtype,
            flags.overwrite,
            range(flags.host, len(store.shards.paths), flags.num_hosts),
            progress.Progress("embedding", "records"),
        ),
        image_size=teacher.image_form,
        batch_size=flags.batch_size,
    )
    _report(summary, flags)
    if summary.busy:
        raise SystemExit(interruptions.EXIT_CODE)


def _report(summary, flags):
    print(
        f"{summary.written} sidecar{'s' * (summary.written != 1)} written, "
        f"{summary.rows:,} records; {summary.skipped} were there"
    )
    for path in summary.busy:
        print(f"another process is writing {path}")
    if summary.invalid:
        print(f"{summary.invalid:,} of the records could not be read:")
    for reason, count in summary.reasons.items():
        print(f"{count:8,}  {reason}")
    if not summary.busy:
        settings = [f"reference.model={flags.model}"]
        if flags.output:
            settings.append(f"reference.sidecar_dir={flags.output}")
        trust = " --trust" if flags.trust else ""
        when = ", once every host has written" if flags.num_hosts > 1 else ""
        command = f"jest-tf train --config RECIPE{trust} --set"
        print(f"next{when}: {command} {shlex.join(settings)}")
