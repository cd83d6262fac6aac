"""Files of any scheme: whole writes, listings, locks, staged logs.

Python opens local paths. A path with a scheme goes to the library that opens
it (`files/remote.py`): `gs://` and `ram://` to TensorFlow, others, such as
`s3://`, to fsspec. Object stores can't append, modify or rename, so a remote
file is written whole, from a local copy; a log grows locally, and `sync`
uploads it. In a folder with views (`keep_views`), a remote file is an object
of another name (`files/leases.py`), which callers never see. Errors are
Python's, such as FileNotFoundError, for every scheme.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from jest_tf.files import disks
from jest_tf.files.paths import (
    PARTIAL,
    VIEWS,
    absolute,
    check_links,
    checked,
    inside,
    is_remote,
    local_path,
    local_tree,
)


def open_file(path: str, mode: str = "rb"):
    """Opens a local or remote file for reading."""
    path = place(path)
    return (
        _remote().open_file(path, mode) if is_remote(path) else open(path, mode)
    )


def place(path: str) -> str:
    """Returns the path by which other libraries find a file."""
    return _leases().place(path) if is_remote(path) else path


def read_whole(path: str) -> bytes:
    """Returns the content of a file."""

    def read(located):
        if is_remote(located):
            return _remote().read(located)
        with open(located, "rb") as file:
            return file.read()

    return _at_its_place(path, read)


def read_ranges(path: str, ranges) -> bytes:
    """Reads byte ranges of a remote file; see `remote.read_ranges`."""
    return _remote().read_ranges(place(path), ranges)


def open_pages(path: str):
    """Opens a remote file for reading by pages; see `remote.PagedFile`."""
    return _at_its_place(path, _remote().PagedFile)


def stat(path: str) -> tuple[int, int]:
    """Returns a file's size in bytes and its modification time in ns."""

    def find(located):
        if is_remote(located):
            return _remote().stat(located)
        state = os.stat(located)
        return state.st_size, state.st_mtime_ns

    return _at_its_place(path, find)


def is_file(path: str) -> bool:
    """Returns whether a path is a file."""
    located = place(path)
    if not is_remote(located):
        return os.path.isfile(located)
    return located != path or _remote().is_file(path)


def is_folder(path: str) -> bool:
    """Returns whether a folder exists; object stores have no empty folders."""
    return _remote().is_folder(path) if is_remote(path) else os.path.isdir(path)


def list_folder(path: str) -> list[str]:
    """Returns the sorted names in a folder; [] if it does not exist."""
    if is_remote(path):
        names = _leases().listed(path, _remote().names(path))
        return checked(path, {name.split("/")[0] for name in names})
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def tree(path: str) -> list[str]:
    """Returns the files under a folder, relative to it and sorted."""
    if is_remote(path):
        return checked(path, _leases().listed(path, _remote().tree(path)))
    return local_tree(path)


def find(pattern: str) -> list[str]:
    """Returns the sorted paths that match a glob."""
    if is_remote(pattern):
        return sorted(_remote().find(pattern))
    return sorted(glob.glob(pattern))


def remove(path: str) -> None:
    """Deletes a file, if it is there."""
    if is_remote(path):
        _remove_remote([path])
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def remove_folder(path: str) -> None:
    """Deletes a folder and its contents, if it is there.

    Files of a remote folder without a lock are deleted in the reverse order of
    their names; `written_folder` writes them in the order of their names.
    """
    if not is_remote(path):
        # Renamed first, so that a killed process leaves no part of `path`.
        doomed = path + PARTIAL
        shutil.rmtree(doomed, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        return
    _remove_remote([f"{path}/{name}" for name in reversed(tree(path))])
    _remote().remove_empty(path)


def move_folder(source: str, target: str) -> None:
    """Renames a folder, replacing `target`."""
    if not is_remote(source):
        os.stat(source)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(source, target)
        return
    names = tree(source)
    if not names:
        raise FileNotFoundError(source)
    with staged_folder(source) as local:
        remove_folder(target)
        _upload([(f"{local}/{name}", f"{target}/{name}") for name in names])
    remove_folder(source)


@contextlib.contextmanager
def written_whole(path: str, suffix: str = "") -> Iterator[str]:
    """Yields a local file name to write to; on success it becomes `path`.

    At any instant, including a power cut, `path` holds either the old content
    or the new. An error deletes the temporary file; a killed process leaves it
    behind, hidden, with `PARTIAL` in its name. The folder of `path` is created;
    `suffix` ends the temporary name.
    """
    folder, name = os.path.split(path)
    # Hidden, so that no glob takes it for data, and unique, so that several
    # processes may write the same file.
    name = f".{name}.{secrets.token_hex(8)}{PARTIAL}{suffix}"
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local, disks.room_for(local):
            yield os.path.join(local, name)
            _upload([(os.path.join(local, name), path)])
        return
    partial = os.path.join(folder, name)
    try:
        with disks.room_for(partial):
            os.makedirs(folder or ".", exist_ok=True)
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
def written_folder(path: str) -> Iterator[str]:
    """Yields a new local folder; on success it becomes the folder `path`.

    A local `path` appears whole, and so does a remote `path` in a folder that
    is locked and has views. To other remote folders, files are uploaded in the
    order of their names. An error deletes the new folder; a killed process
    leaves `path` with the ending `PARTIAL`, or an incomplete remote folder. A
    local `path` must not exist.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local, disks.room_for(local):
            yield local
            names = tree(local)
            _upload([(f"{local}/{name}", f"{path}/{name}") for name in names])
        return
    path = path.rstrip(os.sep)
    partial = path + PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disks.room_for(partial):
            os.makedirs(partial)
            yield partial
            for root, _, names in os.walk(partial):
                for name in names:
                    sync(os.path.join(root, name))
                sync(root)
            os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(os.path.dirname(path) or ".")


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """Yields a local path of a file: its own, or that of a temporary copy."""
    located = place(path)
    if not is_remote(located):
        yield located
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        _download(path, local)
        yield local


@contextlib.contextmanager
def staged_folder(path: str) -> Iterator[str]:
    """Yields a local path of a folder: its own, or that of a temporary copy."""
    if not is_remote(path):
        check_links((os.path.join(path, name) for name in tree(path)), path)
        yield path
        return
    with tempfile.TemporaryDirectory() as local:
        for name in tree(path):
            copy = os.path.join(local, name)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            _download(f"{path}/{name}", copy)
        yield local


def appendable(path: str) -> str:
    """Returns the local path at which to append to a file or folder.

    For a remote path, it is a copy, which lasts while the remote folder is
    `locked`; `sync` uploads it.
    """
    if not is_remote(path):
        return path
    return _leases().of(path).stage(path)


def sync(*paths: str) -> None:
    """Flushes local files or folders; uploads the copies of remote ones."""
    if paths and is_remote(paths[0]):
        _leases().of(paths[0]).sync(paths)
        return
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def delete_partial(path: str) -> None:
    """Deletes partial files that killed writers of a file left. Hold a lock."""
    if is_remote(path):
        return  # an interrupted upload never appears
    folder, name = os.path.split(path)
    pattern = f".{glob.escape(name)}.*{PARTIAL}*"
    for partial in glob.glob(os.path.join(glob.escape(folder), pattern)):
        os.remove(partial)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds a lock file, created and deleted here, until the block ends.

    A remote lock is a lease (`files/leases.py`) on its folder. Each write to
    the folder checks the lease first.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if is_remote(path):
        with _leases().held(path):
            yield
        return
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


def keep_views(lock: str) -> None:
    """Declares that the remote folder of a lock has views.

    Files that a process sends after it has lost the lock are then never read.
    Every process that reads the folder must make this declaration.
    """
    if is_remote(lock):
        _leases().keep_views(lock)


def _at_its_place(path, call):
    """Calls `call` with a file's place, and again if the file has moved."""
    while True:
        located = place(path)
        try:
            return call(located)
        except FileNotFoundError:
            lease = _leases().find(path) if is_remote(path) else None
            if lease is not None:
                lease.check()  # a new holder may have deleted the file
            if place(path) == located:
                raise


def _download(path, local):
    _at_its_place(path, lambda located: _remote().download(located, local))


def _upload(pairs):
    """Uploads pairs of a local file and a path, all of the same folder."""
    lease = _leases().find(pairs[0][1]) if pairs else None
    if lease is not None:
        lease.write(pairs)
        return
    for local, path in pairs:
        _remote().upload(local, path)


def _remove_remote(paths):
    lease = _leases().find(paths[0]) if paths else None
    if lease is not None:
        lease.remove(paths)
        return
    for path in paths:
        _remote().remove(path)


# Both load TensorFlow, which only remote files need.
def _remote():
    from jest_tf.files import remote

    return remote


def _leases():
    from jest_tf.files import leases

    return leases
