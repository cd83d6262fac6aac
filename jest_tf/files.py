"""Atomic writes of local and remote files, and file locks.

Python opens local paths, `tf.io.gfile` paths with a scheme, such as `gs://`.
Object stores can't append or modify, so every file is written once.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator

PARTIAL = ".partial"
_PIECE = 2**24  # bytes copied at a time


def is_remote(path: str) -> bool:
    """Returns True if only `tf.io.gfile` can open the path."""
    return "://" in path


def open_file(path: str, mode: str = "rb"):
    """Opens a local or remote file."""
    if is_remote(path):
        return _gfile().GFile(path, mode)
    return open(path, mode)


@contextlib.contextmanager
def written_whole(path: str, suffix: str = "") -> Iterator[str]:
    """Yields a local file name to write to; on success it becomes `path`.

    At any instant, including a power cut, `path` holds either the old content
    or the new. An error deletes the temporary file; a killed process leaves it
    behind, hidden, with `PARTIAL` in its name. The folder of `path` is created;
    `suffix` ends the temporary name.

    Raises:
        OSError, tf.errors.OpError: if the file cannot be written.
    """
    folder, name = os.path.split(path)
    # Hidden, so that no glob takes it for data, and unique, so that several
    # processes may write the same file.
    name = f".{name}.{secrets.token_hex(8)}{PARTIAL}{suffix}"
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local:
            yield os.path.join(local, name)
            _upload(os.path.join(local, name), f"{folder}/{name}", path)
        return
    os.makedirs(folder or ".", exist_ok=True)
    partial = os.path.join(folder, name)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(folder or ".")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
        raise


def write_whole(path: str, *parts) -> None:
    """Writes bytes or arrays, concatenated, as `written_whole` does."""
    with written_whole(path) as partial, open(partial, "wb") as file:
        for part in parts:
            file.write(part)


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """Yields a local name of a file: its own, or that of a temporary copy."""
    if not is_remote(path):
        yield path
        return
    import tensorflow as tf

    with tempfile.NamedTemporaryFile() as local:
        try:
            with open_file(path) as source:
                shutil.copyfileobj(source, local, _PIECE)
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(error.message) from error
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        local.flush()
        yield local.name


def delete_partial(path: str) -> None:
    """Deletes partial files of killed writers of a local file. Hold a lock."""
    folder, name = os.path.split(path)
    pattern = f".{glob.escape(name)}.*{PARTIAL}*"
    for found in glob.glob(os.path.join(glob.escape(folder), pattern)):
        os.remove(found)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds a local lock file, created and deleted here, until the block ends.

    Raises:
        BlockingIOError: if another process holds the lock.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have deleted the file after it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def sync(path: str) -> None:
    """Flushes a local file or folder to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _upload(local, partial, path):
    # Copied beside its target first: not every scheme writes atomically.
    gfile = _gfile()
    gfile.makedirs(os.path.dirname(path))
    with open(local, "rb") as source, gfile.GFile(partial, "wb") as target:
        shutil.copyfileobj(source, target, _PIECE)
    gfile.rename(partial, path, overwrite=True)


def _gfile():
    import tensorflow as tf  # only for remote files

    return tf.io.gfile
