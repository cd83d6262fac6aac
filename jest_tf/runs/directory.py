"""The directory of a run: claimed by one process, and described by itself.

It holds the settings, resolved, and what the run began with: versions, machine
and revision. A process that continues a run must have the same settings and
read the same data.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import stores
from jest_tf.models import reference
from jest_tf.runs import checkpoints, interruptions

VERSIONS_FILE = "versions.json"
DATA_FILE = "data.json"

_PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-text",
    "tf-models-official",
    "numpy",
    "jest-tf",
)
_LOCK_FILE = ".lock"
# A run may be continued with others of these: they say when its state is saved,
# where things lie, on what it runs and what is measured of the machine, but not
# what it computes, up to the last digits that depend on the devices.
_MAY_CHANGE = (
    "checkpoint.",
    "data.index_dir",
    "data.max_fault_rate",
    "evaluation.energy",
    "evaluation.time_parts",
    "reference.sidecar_dir",
    "distribution.",
)


@contextlib.contextmanager
def claimed(workdir: str, config: config_lib.TrainConfig) -> Iterator[str]:
    """Holds a run directory: made, or checked to hold this very run.

    What a killed process has left half-written is deleted. So is what a new
    run has written down of itself when it is refused before its first step,
    or the directory would hold on to settings that nobody can train with.

    Args:
        workdir: the run directory, which is also what `with` yields.
        config: the run.

    Raises:
        ValueError: if it holds another run, or another process holds it.
    """
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, _LOCK_FILE), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is training in {workdir!r}; expected a "
                "directory that nobody else writes to"
            ) from None
        checkpoints.delete_partial(workdir)
        before = {*os.listdir(workdir)}
        _claim(workdir, config)
        try:
            yield workdir
        except ValueError:
            if reference.CONFIG_FILE not in before and not _has_begun(workdir):
                _delete_files(workdir, {*os.listdir(workdir)} - before)
            raise


@contextlib.contextmanager
def thrown_away() -> Iterator[str]:
    """A folder for what a worker writes beside the one that keeps the run.

    Some of what is written is summed over the workers, so all must write.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def check_data(
    workdir: str,
    store: stores.Store,
    reference_fingerprint: str,
    sidecars: str = "",
) -> None:
    """Writes down what data a run reads, or checks that it still does.

    Other shards, or the same ones written anew, would be another stream: the
    run would go on from its step, but nowhere that it had been going.

    Args:
        workdir: the run directory.
        store: the examples.
        reference_fingerprint: of the reference, "" where there is none.
        sidecars: `Sidecars.identity`, "" where there are none.

    Raises:
        ValueError: where a shard, the manifest, the reference or its sidecars
            are not what they were.
    """
    shards = [
        [os.path.basename(path), store.stamp(number)]
        for number, path in enumerate(store.shards.paths)
    ]
    here = {
        "shards": shards,
        "reference": reference_fingerprint,
        "manifest": store.manifest.identity if store.manifest else "",
        "sidecars": sidecars,
    }
    path = os.path.join(workdir, DATA_FILE)
    if not os.path.isfile(path):
        interruptions.write_json(path, here)
        return
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    if len(before["shards"]) != len(shards):
        raise ValueError(
            f"`data.train` must match what the run in {workdir!r} began with, "
            f"{len(before['shards'])} shards. Received: {len(shards)}"
        )
    for was, now in zip(before["shards"], shards, strict=True):
        if was != now:
            raise ValueError(
                "`data.train` must be the data that the run in "
                f"{workdir!r} began with, shard {was[0]} of version {was[1]}. "
                f"Received: {now[0]} of version {now[1]}"
            )
    began_with = before.get("manifest", "")  # which older runs don't name
    if began_with != here["manifest"]:
        raise ValueError(
            f"`data.manifest` must be the one that the run in {workdir!r} "
            f"began with, {began_with or 'none'}. Received: "
            f"{here['manifest'] or 'none'}"
        )
    if before["reference"] != here["reference"]:
        raise ValueError(
            f"The reference must be the one that the run in {workdir!r} began "
            f"with, {before['reference']}. Received: {here['reference']}"
        )
    began_with = before.get("sidecars", sidecars)  # as above
    if began_with != sidecars:
        raise ValueError(
            "The sidecars must be of the tokenizer, preprocessing, scale, bias "
            f"and dtype of those that the run in {workdir!r} began with. "
            "Received: others; set `reference.sidecar_dir` to the first ones"
        )


def _has_begun(workdir):
    """Whether a run has made a step that anything is known of."""
    logs = checkpoints.METRICS_FILE, interruptions.NOT_FINITE_FILE
    paths = (os.path.join(workdir, name) for name in logs)
    return bool(checkpoints.saved_steps(workdir)) or any(
        os.path.isfile(path) and os.path.getsize(path) for path in paths
    )


def _delete_files(workdir, names):
    for name in names:
        path = os.path.join(workdir, name)
        # A log says what was wrong.
        if os.path.isfile(path) and not name.endswith(".jsonl"):
            os.remove(path)


def _claim(workdir, config):
    path = os.path.join(workdir, reference.CONFIG_FILE)
    versions = os.path.join(workdir, VERSIONS_FILE)
    if os.path.isfile(path):
        _compare_config(workdir, config, config_lib.load_config(path))
        _compare_versions(versions)
    else:
        interruptions.write_json(versions, _versions())
    with files.written_whole(path) as partial:
        config_lib.save_config(config, partial)


def _compare_config(workdir, config, before):
    differences = _differences(
        dataclasses.asdict(config), dataclasses.asdict(before)
    )
    for name, here, there in differences:
        if not name.startswith(_MAY_CHANGE):
            raise ValueError(
                f"`--workdir` {workdir!r} holds a run with other settings. "
                f"Expected {name}={there!r}, to continue it. Received: "
                f"{name}={here!r}; take another directory for another run"
            )


def _differences(here, there, path=""):
    for name, value in here.items():
        if isinstance(value, dict):
            yield from _differences(value, there[name], f"{path}{name}.")
        elif value != there[name]:
            yield path + name, value, there[name]


def _compare_versions(path):
    """Says with what other versions the run began: its bits may differ."""
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        before = json.load(file)["versions"]
    now = _versions()["versions"]
    changed = [
        f"{name} {before.get(name)}, now {now[name]}"
        for name in now
        if now[name] != before.get(name)
    ]
    if changed:
        _say(f"this run began with {'; '.join(changed)}")


def _versions():
    """What the run ran with: versions, machine, and the code's revision."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # used from a checkout, say
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _git(*arguments):
    """What git says of the checkout that this file lies in; None without."""
    folder, name = os.path.split(os.path.abspath(__file__))
    try:
        # An installed copy may lie in the checkout of something else.
        for command in (("ls-files", "--error-unmatch", name), arguments):
            done = subprocess.run(
                ["git", *command],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _say(text):
    print(text, file=sys.stderr, flush=True)
