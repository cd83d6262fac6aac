"""Flags that several commands share."""

import argparse

from jest_tf import config, files
from jest_tf.config import overrides

SEVERAL = {"nargs": "+", "action": "extend"}
SETTINGS = {**SEVERAL, "default": [], "metavar": "A.B=C"}


def open_store(flags: argparse.Namespace, flag: str):
    """Opens the store that `--flag` names; None without the flag.

    Shows progress if the store is indexed first.
    """
    from jest_tf.data import stores
    from jest_tf.runs import progress

    patterns = getattr(flags, flag)
    if not patterns:
        return None
    data = config.DataConfig(
        train=tuple(patterns),
        image_field=flags.image_field,
        caption_fields=tuple(flags.caption_fields),
        index_dir=flags.index_dir,
    )
    indexing = progress.Progress("indexing", "bytes")
    return stores.open_stores(data, indexing, f"--{flag}")


def load_reference(name: str, setting: str):
    """Loads the reference that a flag, `setting`, names; None for ""."""
    from jest_tf.runs import loading

    if not name:
        return None
    loading.check_model(name, setting)
    return loading.load(name)


def open_sidecars(store, model, directory: str, like=None):
    """Opens the sidecars of a store, writing those that are missing.

    Without a `model`, all must be there, and be of the same model as the
    sidecars `like`.
    """
    from jest_tf.data import sidecars
    from jest_tf.data.sidecars import embed, file_format
    from jest_tf.models import reference
    from jest_tf.runs import progress

    if model is None:
        expected = like.description if like else None
        return sidecars.Sidecars(store, directory, expected)
    description = reference.describe(model)
    shards = range(len(store.shards.paths))
    paths = [sidecars.sidecar_path(store, i, directory) for i in shards]
    present = list(filter(files.is_file, paths))
    dtype = file_format.read(present[0])[0].dtype if present else "float16"
    shown = progress.Progress("embedding", "records")
    embed.write(
        store,
        reference.encoder(model),
        description,
        embed.Output(directory, dtype, progress=shown),
        image_size=model.image_form,
    )
    return sidecars.Sidecars(store, directory, description)


def settings(kind: type, flags: argparse.Namespace, **values):
    """Builds a dataclass `kind` from the values and `--set`."""
    for text in flags.set:
        overrides.override(kind, values, text)
    return overrides.build(kind, values)


def add_reference(parser: argparse.ArgumentParser, flag: str) -> None:
    """Adds the flags of a reference, `flag` among them, and its sidecars."""
    parser.add_argument(
        flag,
        default="",
        metavar="NAME",
        help="a run directory or a public model, docs/models.md (default: the "
        "model of the sidecars, which must be there)",
    )
    parser.add_argument(
        "--sidecar-dir",
        default="",
        metavar="DIR",
        help="sidecars of the reference (default: beside each shard)",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that load a run directory."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="call the functions that run directories name (docs/models.md)",
    )


def add_by(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the flag of the fields whose values are slices."""
    parser.add_argument(
        "--by",
        **SEVERAL,
        default=[],
        metavar="FIELD",
        help=f"fields of the records, such as brand: also {what}",
    )


def add_mix(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that mixes a tuned model with its start."""
    parser.add_argument(
        "--mix",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the run's weights, 0 to 1; the rest is of the model "
        "that it started from, `model.init_from` (1)",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the data format, as in `data` of a recipe."""
    for field, shown, options in (
        ("image_field", "the format's own", {}),
        ("caption_fields", "the format's own", {"nargs": "+"}),
        ("index_dir", "beside each shard", {}),
    ):
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            default=getattr(config.DataConfig, field),
            metavar=field.rpartition("_")[2].upper(),
            help=f"as `data.{field}` in a recipe (default: {shown})",
            **options,
        )
