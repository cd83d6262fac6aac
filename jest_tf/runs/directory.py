"""The run directory: its files, how they are written, and who may write.

docs/logs.md describes each file. Other modules take names and functions from
here. A file is replaced whole or grows by rows; `cut_back` removes rows of
later steps when a run continues.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.config import checks, formats, imports
from jest_tf.data import tokenizers
from jest_tf.files import disks

CONFIG_FILE = "config.json"
LEARNER_FILE = "learner.json"
VERSIONS_FILE = "versions.json"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
DRAWS_FILE = "draws.jsonl"
TELEMETRY_FILE = "telemetry.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
FAULTS_FILE = "faults.jsonl"
FLOPS_FILE = "flops.json"
RENEWAL_FILE = "renewal.json"
NOT_FINITE_FILE = "not_finite.json"
CHECKPOINTS_FOLDER = "checkpoints"
REFERENCES_FOLDER = "references"
TENSORBOARD_FOLDER = "tensorboard"
WEIGHTS_FILE = "final.weights.h5"
DIGEST_FILE = "final.json"  # of the weights
RESULTS_FILE = "evaluation.json"
RESULTS_PAGE_FILE = "evaluation.html"
PAGE_FILE = "selection.html"
LOCK_FILE = ".lock"

# Logs that `cut_back` shortens; the stream shortens the fault log.
_LOGS = (METRICS_FILE, DRAWS_FILE, EVALUATION_FILE, TELEMETRY_FILE)
_MARGIN = 2**20  # bytes of logs, and of a checkpoint beside its arrays


def path(workdir: str, name: str) -> str:
    """Returns the path of a file of a run directory, see `files.inside`.

    Also declares that the directory, if it is on a bucket, has views
    (`files.keep_views`).
    """
    if not files.is_remote(workdir) and os.path.isdir(
        os.path.join(workdir, files.VIEWS)
    ):
        raise ValueError(
            "A run directory from a bucket keeps its files under other names. "
            f"Received: {workdir!r}, a copy of it; give it as "
            f"'file://{os.path.abspath(workdir)}'"
        )
    files.keep_views(os.path.join(workdir, LOCK_FILE))
    return files.inside(workdir, name)


def has(workdir: str, name: str) -> bool:
    """Returns whether a run directory has a file."""
    return files.is_file(path(workdir, name))


def read(workdir: str, name: str):
    """Reads a JSON file of a run directory."""
    with as_written(workdir, name):
        return json.loads(files.read_whole(path(workdir, name)))


@contextlib.contextmanager
def as_written(workdir: str, name: str, errors=ValueError) -> Iterator[None]:
    """Names a file of a run directory as the cause of errors in its content.

    Raises ValueError in place of errors that unexpected values cause, and of
    `errors`.
    """
    try:
        yield
    except (
        *(ArithmeticError, AttributeError, LookupError, TypeError),
        *(RecursionError, errors),
    ) as error:
        way_out = "take it from a copy of the run"
        saved = path(workdir, CHECKPOINTS_FOLDER)
        if name == WEIGHTS_FILE and files.list_folder(saved):
            way_out = (
                f"`{command('train', workdir)}` writes it again from the last "
                "checkpoint"
            )
        raise ValueError(
            f"{path(workdir, name)} must be as the run wrote it: {way_out}. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def write(workdir: str, name: str, content) -> None:
    """Replaces a JSON file of a run directory, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    files.write_whole(path(workdir, name), text.encode())


def append(workdir: str, name: str, row: dict) -> None:
    """Appends a row to a JSON-lines file of a locked run directory."""
    log = files.appendable(path(workdir, name))
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def each_row(workdir: str, name: str) -> Iterator[dict]:
    """Yields the complete rows of a JSON-lines file; none without a file."""
    return (row for row, _ in _rows(path(workdir, name)))


def read_rows(workdir: str, name: str) -> list[dict]:
    """Reads all rows of `each_row`."""
    return [*each_row(workdir, name)]


def load_config(workdir: str, *, trust: bool = False) -> config_lib.TrainConfig:
    """Loads the settings of a run; `trust` as in `config.load_config`."""
    if not has(workdir, CONFIG_FILE):
        raise ValueError(
            f"`workdir` must be a run directory, with {CONFIG_FILE}. "
            f"Received: {received(workdir)}"
        )
    return config_lib.load_config(path(workdir, CONFIG_FILE), trust=trust)


def restarts(workdir: str) -> list[int]:
    """Returns the steps at which `--extend` began the learning rate anew."""
    if not has(workdir, CONFIG_FILE):
        return []
    with as_written(workdir, CONFIG_FILE):
        content = formats.read(workdir, read(workdir, CONFIG_FILE))
        known = sorted({0, *map(int, content.restarts)})
        if content.restarts != known[1:] or (
            known[-1] >= content.settings["steps"]
        ):
            raise ValueError(f"restarts={content.restarts}")
        return content.restarts


def command(name: str, workdir: str) -> str:
    """Returns a command for a run as text, with `--trust` if it needs that."""
    needs_trust = has(workdir, tokenizers.FunctionTokenizer.FILE)
    with contextlib.suppress(ValueError):
        needs_trust |= bool(load_config(workdir, trust=True).functions)
        if has(workdir, LEARNER_FILE):
            needs_trust |= any(imports.classes(read(workdir, LEARNER_FILE)))
    words = f"jest-tf {name} --workdir {shlex.quote(workdir)}"
    return words + needs_trust * " --trust"


def received(workdir: str) -> str:
    """Describes a path that is no run directory, and the run it may mean."""
    if files.is_remote(workdir):
        return repr(workdir)
    above, name = os.path.split(os.path.normpath(workdir))
    if os.path.isfile(workdir):
        what, near = "a file", []
    elif os.path.isdir(workdir):
        what, near = f"a folder without {CONFIG_FILE}", _runs_in(workdir)
    else:
        what = "which does not exist"
        near = [
            run
            for run in _runs_in(above or ".")
            if checks.nearest(name, [os.path.basename(run)])
        ]
    outer = (above, os.path.dirname(above))
    near = [root for root in outer if root and has(root, CONFIG_FILE)] + near
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return f"{workdir!r}, {what}{hint}"


def _runs_in(folder):
    inner = (
        os.path.normpath(os.path.join(folder, name))
        for name in files.list_folder(folder)
    )
    return [
        run for run in inner if files.is_file(os.path.join(run, CONFIG_FILE))
    ]


def check_room(workdir: str, arrays: Iterable) -> None:
    """Raises `disks.Full` if there is no room to write arrays or variables."""
    size = sum(
        math.prod(array.shape) * tf.as_dtype(array.dtype).size
        for array in arrays
    )
    # Files for a bucket are written to a temporary folder, then uploaded.
    place = tempfile.gettempdir() if files.is_remote(workdir) else workdir
    disks.check_room(place, size + _MARGIN)


def save_learner(workdir: str, learner: keras.Model) -> None:
    """Writes the learner of a finished run to `final.weights.h5`.

    `final.json` gets the digest of the file, see `check_weights`.
    """
    check_room(workdir, learner.weights)  # HDF5 may crash on a full disk
    # Keras requires the suffix, so the partial file has it too.
    with files.written_whole(
        path(workdir, WEIGHTS_FILE), ".weights.h5"
    ) as partial:
        learner.save_weights(partial)
        # Before the weights appear: a kill leaves no other file's digest.
        write(workdir, DIGEST_FILE, {"blake2b": _digest(partial)})


def check_weights(workdir: str, local: str) -> None:
    """Raises ValueError if the final weights in a file fail their digest.

    `local` is `final.weights.h5`, or a copy of it. Weights without a digest, as
    of older runs, pass.
    """
    if not has(workdir, DIGEST_FILE):
        return
    with as_written(workdir, DIGEST_FILE):
        expected = read(workdir, DIGEST_FILE)["blake2b"]
    found = _digest(local)
    if found != expected:
        raise ValueError(
            f"it fails its checksum, {found}, but {expected} in {DIGEST_FILE}"
        )


def _digest(local):
    with open(local, "rb") as file:
        return hashlib.file_digest(
            file, functools.partial(hashlib.blake2b, digest_size=16)
        ).hexdigest()


def sync_logs(workdir: str) -> None:
    """Waits until all rows are on the disk, or uploaded."""
    logs = [name for name in (*_LOGS, FAULTS_FILE) if has(workdir, name)]
    if files.is_remote(workdir):
        logs.append(TENSORBOARD_FOLDER)
    files.sync(*(path(workdir, name) for name in logs))


def cut_back(workdir: str, step: int) -> None:
    """Removes rows of steps after `step` from the logs.

    TensorBoard itself drops what an earlier process wrote for later steps.
    """
    for log in (path(workdir, name) for name in _LOGS if has(workdir, name)):
        with (
            files.written_whole(log) as partial,
            open(partial, "w", encoding="utf-8") as file,
        ):
            file.writelines(
                line for row, line in _rows(log) if row["step"] <= step
            )


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Creates and locks a run directory, and deletes incomplete files."""
    with contextlib.ExitStack() as stack:
        try:
            if files.is_file(workdir):
                raise NotADirectoryError("it is a file")
            stack.enter_context(files.locked(path(workdir, LOCK_FILE)))
        except BlockingIOError:
            raise ValueError(
                f"Another process is training in {workdir!r}; expected a "
                "directory that nobody else writes to"
            ) from None
        except OSError as error:
            raise ValueError(
                "`--workdir` must be a directory that can be written to. "
                f"Received: {workdir!r}, {type(error).__name__}: {error}"
            ) from error
        _delete_partial(workdir)
        yield


def has_begun(workdir: str) -> bool:
    """Returns whether any step of a run is on record."""
    folder = path(workdir, CHECKPOINTS_FOLDER)
    return bool(files.list_folder(folder)) or any(
        has(workdir, name) and files.stat(path(workdir, name))[0]
        for name in (METRICS_FILE, NOT_FINITE_FILE)
    )


def delete_new(workdir: str, before: Iterable[str]) -> None:
    """Deletes the files that are neither logs nor among `before`."""
    for name in {*files.list_folder(workdir)} - {*before, LOCK_FILE}:
        if has(workdir, name) and not name.endswith(".jsonl"):
            files.remove(path(workdir, name))


def _delete_partial(workdir):
    for folder in (workdir, path(workdir, CHECKPOINTS_FOLDER)):
        for name in files.list_folder(folder):
            # Another process may be writing sidecars into this folder.
            if files.PARTIAL not in name or ".sidecar" in name:
                continue
            if has(folder, name):
                files.remove(path(folder, name))
            else:
                files.remove_folder(path(folder, name))


def _rows(path):
    """Yields the complete rows of a file, if it exists, with their lines."""
    if not files.is_file(path):
        return
    # Bytes left by a power cut need not be UTF-8.
    with (
        files.staged(path) as local,
        open(local, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # an incomplete line
            if isinstance(row, dict) and type(row.get("step")) is int:
                yield row, line.rstrip("\n") + "\n"
