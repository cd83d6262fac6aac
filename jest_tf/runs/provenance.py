"""The origin of a run: settings, data and versions, checked on resuming."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import platform
import subprocess
from collections.abc import Iterator

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.config import formats, recipes, tables
from jest_tf.data import stores as stores_lib
from jest_tf.embeddings import ON_TENSORFLOW
from jest_tf.runs import directory, inputs, loading, progress

_PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-text",
    "tf-models-official",
    "numpy",
    "jest-tf",
    *(() if ON_TENSORFLOW else ("jax",)),
)
# Settings that may differ on resuming: saving, file locations, devices, and
# measurements. Devices change results in the last digits.
_MAY_CHANGE = (
    "callbacks",
    "checkpoint.",
    "data.index_dir",
    "data.noise_field",
    "reference.sidecar_dir",
    "distribution.",
)


@contextlib.contextmanager
def claimed(workdir: str, config: config_lib.TrainConfig) -> Iterator[str]:
    """Locks a run directory that is new or has this run, and yields it.

    A run refused before its first step leaves no settings behind.
    """
    with directory.locked(workdir):
        before = {*files.list_folder(workdir)}
        check_settings(workdir, config)
        is_new = directory.CONFIG_FILE not in before
        if is_new:
            directory.write(workdir, directory.VERSIONS_FILE, _versions())
        else:
            _compare_versions(workdir)
        _save_config(workdir, config)
        try:
            yield workdir
        except ValueError:
            if is_new and not directory.has_begun(workdir):
                directory.delete_new(workdir, before)
            raise


def extend(workdir: str, steps: int) -> config_lib.TrainConfig:
    """Reopens a finished run, with `steps` more steps; returns its settings."""
    loading.check_finished(workdir, "--workdir")
    before, restarts = directory.load_config(workdir), None
    settings = before.optimizer
    rate = f"goes on at {settings.learning_rate:g}"
    if tables.schedule(settings.schedule).has_end:
        if steps <= settings.warmup_steps:
            raise ValueError(
                "`--extend` must be more than `optimizer.warmup_steps="
                f"{settings.warmup_steps}`, because the learning rate begins "
                f"anew. Received: {steps}"
            )
        restarts = [*directory.restarts(workdir), before.steps]
        rate = (
            f"begins anew: {settings.warmup_steps:,} steps of warm-up to "
            f"{settings.learning_rate:g}, then {settings.schedule}"
        )
    config = dataclasses.replace(before, steps=before.steps + steps)
    if directory.has(workdir, directory.DATA_FILE):
        _check_shards(workdir, stores_lib.open_stores(before.data))
    with directory.locked(workdir):
        # In this order, a kill in between leaves a run that only has to write
        # its weights again.
        files.remove(directory.path(workdir, directory.WEIGHTS_FILE))
        _save_config(workdir, config, restarts)
    progress.say(
        f"{workdir}: extended from {before.steps:,} to {config.steps:,} steps; "
        f"the learning rate {rate}"
    )
    return config


def check_data(workdir: str, sources: inputs.Sources) -> None:
    """Checks that the data of a run, if recorded, is unchanged.

    Other or rewritten shards would give another stream.
    """
    if not directory.has(workdir, directory.DATA_FILE):
        return
    before, now = _read_data(workdir), _describe_data(sources)
    _check_shards(workdir, sources.store)
    names = {
        "manifest": "`data.manifest`",
        "reference": "The reference",
        "sidecars": "Tokenizer, preprocessing, scale, bias and dtype of the "
        "sidecars in `reference.sidecar_dir`",
    }
    if not _is_current(before):  # manifests and sidecars have been made again
        names = {"reference": names["reference"]}
    for name, what in names.items():
        _check_same(what, workdir, before[name], now[name])


def _check_shards(workdir, store):
    before = _read_data(workdir)
    count = 2  # a name and a stamp
    if not _is_current(before):
        count = 1
        progress.say(
            f"{directory.path(workdir, directory.DATA_FILE)} is of version "
            "0.3.0, whose checksums differ: the names of the shards are "
            "compared, not their bytes"
        )
    with directory.as_written(workdir, directory.DATA_FILE):
        shards = [
            [
                " of version ".join(["shard " + name, stamp][:count])
                for name, stamp in side
            ]
            for side in (before["shards"], _describe_shards(store))
        ]
    for was, is_now in itertools.zip_longest(*shards):
        _check_same("`data.train`", workdir, was, is_now)


def _read_data(workdir):
    names = ("shards", "reference", "manifest", "sidecars")
    with directory.as_written(workdir, directory.DATA_FILE):
        found = directory.read(workdir, directory.DATA_FILE)
        return {name: found[name] for name in names} | {
            "format": found.get("format")
        }


def _is_current(described):
    return described["format"] == formats.FORMAT


def record_data(workdir: str, sources: inputs.Sources) -> None:
    """Records the data of a run that is new, or of version 0.3.0."""
    if not (
        directory.has(workdir, directory.DATA_FILE)
        and _is_current(_read_data(workdir))
    ):
        now = _describe_data(sources)
        directory.write(workdir, directory.DATA_FILE, now)


def _describe_data(sources):
    store, sidecars = sources.store, sources.sidecars
    return {
        "format": formats.FORMAT,
        "shards": _describe_shards(store),
        "reference": sources.fingerprint,
        "manifest": store.manifest.identity if store.manifest else "",
        "sidecars": sidecars.identity if sidecars else "",
    }


def _describe_shards(store):
    return [
        [os.path.basename(path), store.stamp(number)]
        for number, path in enumerate(store.shards.paths)
    ]


def _check_same(what, workdir, before, now):
    if before != now:
        raise ValueError(
            f"{what} must be what the run in {workdir!r} began with, "
            f"{before or 'none'}. Received: {now or 'none'}"
        )


def check_settings(workdir: str, config: config_lib.TrainConfig) -> None:
    """Checks that a run directory, if it has a run, has one of `config`."""
    if not directory.has(workdir, directory.CONFIG_FILE):
        return
    # Compared with the user's settings, not called.
    before = directory.load_config(workdir, trust=True)
    for name, now, was in _differences(
        dataclasses.asdict(config), dataclasses.asdict(before)
    ):
        if not name.startswith(_MAY_CHANGE):
            way_out = "take another directory for another run"
            is_finished = directory.has(workdir, directory.WEIGHTS_FILE)
            if name == "steps" and now > was and is_finished:
                command = directory.command("train", workdir)
                way_out = (
                    f"to train it further, `{command} --extend {now - was}`"
                )
            raise ValueError(
                f"`--workdir` {workdir!r} holds a run with other settings. "
                f"Expected {name}={was!r}, to continue it. Received: "
                f"{name}={now!r}; {way_out}"
            )


def _save_config(workdir, config, restarts=None):
    """Writes the settings; keeps the restarts of the rate unless given."""
    if restarts is None:
        restarts = directory.restarts(workdir)
    content = recipes.to_json(config)
    content |= {"restarts": restarts} if restarts else {}
    directory.write(workdir, directory.CONFIG_FILE, content)


def _differences(now, was, path=""):
    for name, value in now.items():
        if isinstance(value, dict):
            yield from _differences(value, was[name], f"{path}{name}.")
        elif _are_groups(value) and _are_groups(was[name], len(value)):
            for number, pair in enumerate(zip(value, was[name], strict=True)):
                yield from _differences(*pair, f"{path}{name}.{number}.")
        elif value != was[name]:
            yield path + name, value, was[name]


def _are_groups(value, count=None):
    """Returns whether a value is a list of groups of settings."""
    return (
        isinstance(value, list | tuple)
        and count in (None, len(value))
        and all(isinstance(part, dict) for part in value)
    )


def _compare_versions(workdir):
    """Reports changed versions, which may change the last bits of results."""
    with directory.as_written(workdir, directory.VERSIONS_FILE):
        before = directory.read(workdir, directory.VERSIONS_FILE)["versions"]
        changed = [
            f"{name} {before.get(name)}, now {version}"
            for name, version in _versions()["versions"].items()
            if version != before.get(name)
        ]
    if changed:
        progress.say(f"this run began with {'; '.join(changed)}")


def _versions():
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # for example, used from a checkout
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _git(*arguments):
    folder, name = os.path.split(os.path.abspath(__file__))
    try:
        # An installed copy may lie in an unrelated checkout.
        for command in (("ls-files", "--error-unmatch", name), arguments):
            done = subprocess.run(
                # Avoids locking the index of somebody who works there.
                ["git", "--no-optional-locks", *command],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
