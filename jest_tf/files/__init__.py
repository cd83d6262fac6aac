"""Files of any scheme: whole writes, listings, locks, staged logs.

Python opens local paths. A path with a scheme goes to the library that opens
it (`files/remote.py`): `gs://` and `ram://` to TensorFlow, others, such as
`s3://`, to fsspec. Object stores can't append, modify or rename, so a remote
file is written at once, from a local copy; a log is appended to locally and
uploaded by `sync`.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator

PARTIAL = ".partial"
_TEMPORARY = "jest-tf-"


def is_remote(path: str) -> bool:
    """Returns whether a path has a scheme, such as `gs://`."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns the path without relative parts; a remote one as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def inside(folder: str, name: str) -> str:
    """Returns the path of what a file or a listing names within a folder.

    Raises:
        ValueError: it is no single name, or a link that leads out.
    """
    if not name or name in (".", "..") or {"/", "\0"} & {*name}:
        raise ValueError(
            f"What lies in {folder} must have a plain name, not a path. "
            f"Received: {name!r}; delete it, or take the folder from where you "
            "trust its files"
        )
    path = os.path.join(folder, name)
    if not is_remote(path):
        check_links([path], folder)
    return path


def check_links(paths: Iterable[str], folder: str) -> None:
    """Raises ValueError if a path is a link that leads out of a folder."""
    root = os.path.realpath(folder)
    for path in filter(os.path.islink, paths):
        real = os.path.realpath(path)
        if os.path.commonpath([real, root]) != root:
            raise ValueError(
                f"Links within {folder} must not lead out of it: copy what "
                f"they lead to. Received: {path}, to {real}"
            )


def open_file(path: str, mode: str = "rb"):
    """Opens a local or remote file for reading."""
    path = _current(path)
    return (
        _remote().open_file(path, mode) if is_remote(path) else open(path, mode)
    )


def read_whole(path: str) -> bytes:
    """Returns the content of a file.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be read.
    """
    path = _current(path)
    if is_remote(path):
        return _remote().read(path)
    with open(path, "rb") as file:
        return file.read()


def read_ranges(path: str, ranges) -> bytes:
    """Reads byte ranges of a remote file; see `remote.read_ranges`."""
    return _remote().read_ranges(path, ranges)


def open_pages(path: str):
    """Opens a remote file to be read by pages; see `remote.PagedFile`."""
    return _remote().PagedFile(path)


def stat(path: str) -> tuple[int, int]:
    """Returns a file's size and time of change in nanoseconds.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be found out.
    """
    path = _current(path)
    if is_remote(path):
        return _remote().stat(path)
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def is_file(path: str) -> bool:
    """Returns whether a path is a file."""
    path = _current(path)
    return _remote().is_file(path) if is_remote(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Returns whether a path is a folder; in an object store, not empty."""
    return _remote().is_folder(path) if is_remote(path) else os.path.isdir(path)


def list_folder(path: str) -> list[str]:
    """Returns the sorted names in a folder; none if there is no folder."""
    if is_remote(path):
        return _checked(path, _remote().names(path))
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def tree(path: str) -> list[str]:
    """Returns the files under a folder, relative to it and sorted."""
    if is_remote(path):
        return _checked(path, _remote().tree(path))
    return sorted(
        os.path.relpath(os.path.join(root, name), path)
        for root, _, names in os.walk(path)
        for name in names
    )


def find(pattern: str) -> list[str]:
    """Returns the sorted paths that match a glob."""
    if is_remote(pattern):
        return sorted(_remote().find(pattern))
    return sorted(glob.glob(pattern))


def make_folder(path: str) -> None:
    """Creates a local folder; object stores need none."""
    if not is_remote(path):
        os.makedirs(path or ".", exist_ok=True)


def remove(path: str) -> None:
    """Deletes a file, if it is there."""
    if is_remote(path):
        _check_lease(path)
        _remote().remove(path)
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def remove_folder(path: str) -> None:
    """Deletes a folder, if it is there, and what is in it.

    Of a remote folder the files go in the reverse order of their names, which
    is the reverse of the order in which `written_folder` writes them.
    """
    if not is_remote(path):
        # Renamed first, so that a kill leaves no half of it.
        doomed = path + PARTIAL
        shutil.rmtree(doomed, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        return
    for name in reversed(tree(path)):
        remove(f"{path}/{name}")
    _remote().remove_empty(path)


def move_folder(source: str, target: str) -> None:
    """Renames a folder, and replaces `target`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not is_remote(source):
        os.stat(source)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(source, target)
        return
    names = tree(source)
    if not names:
        raise FileNotFoundError(source)
    with staged_folder(source) as local:
        for name in names:
            _upload(os.path.join(local, name), f"{target}/{name}")
    remove_folder(source)


@contextlib.contextmanager
def written_whole(path: str, suffix: str = "") -> Iterator[str]:
    """Yields a local file name to write to; on success it becomes `path`.

    At any instant, including a power cut, `path` holds either the old content
    or the new. An error deletes the temporary file; a killed process leaves it
    behind, hidden, with `PARTIAL` in its name. The folder of `path` is created;
    `suffix` ends the temporary name.

    Raises:
        OSError: the file cannot be written.
    """
    folder, name = os.path.split(path)
    # Hidden, so that no glob takes it for data, and unique, so that several
    # processes may write the same file.
    name = f".{name}.{secrets.token_hex(8)}{PARTIAL}{suffix}"
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local:
            yield os.path.join(local, name)
            _upload(os.path.join(local, name), path)
        _forget(path)
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
def written_folder(path: str) -> Iterator[str]:
    """Yields a new local folder; on success it becomes the folder `path`.

    A local `path` appears whole. To a remote one the files are uploaded in the
    order of their names, so it is whole when it has the last one. An error
    deletes the folder; a killed process leaves it behind, as `path` with the
    ending `PARTIAL`, or as a remote folder that is not whole.

    Raises:
        OSError: the folder cannot be written, or a local `path` exists.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local:
            yield local
            for name in tree(local):
                _upload(os.path.join(local, name), f"{path}/{name}")
        return
    path = path.rstrip(os.sep)
    partial = path + PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
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
    """Yields a local name of a file: its own, or that of a temporary copy.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be copied.
    """
    path = _current(path)
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        _remote().download(path, local)
        yield local


@contextlib.contextmanager
def staged_folder(path: str) -> Iterator[str]:
    """Yields a local name of a folder: its own, or that of a temporary copy.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be copied.
    """
    if not is_remote(path):
        check_links((os.path.join(path, name) for name in tree(path)), path)
        yield path
        return
    with tempfile.TemporaryDirectory() as local:
        for name in tree(path):
            place = os.path.join(local, name)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _remote().download(f"{path}/{name}", place)
        yield local


def appendable(path: str) -> str:
    """Returns a local name of a file, or folder, whose files are appended to.

    That of a remote one is a copy, kept while its folder is `locked` and
    uploaded by `sync`.
    """
    if not is_remote(path):
        return path
    return _leases().of(path).stage(path)


def sync(path: str) -> None:
    """Flushes a local file or folder to disk, or uploads what was appended."""
    if is_remote(path):
        _leases().of(path).upload(path, _upload)
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def delete_partial(path: str) -> None:
    """Deletes partial files of killed writers of a file. Hold a lock."""
    if is_remote(path):
        return  # what a killed process was uploading never appears
    folder, name = os.path.split(path)
    pattern = f".{glob.escape(name)}.*{PARTIAL}*"
    for found in glob.glob(os.path.join(glob.escape(folder), pattern)):
        os.remove(found)


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Gives a process a temporary folder of its own, for the time of the block.

    Those that killed processes have left are deleted. TensorFlow, too, puts
    there what it would delete at the end.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    above = tempfile.gettempdir()
    for old in glob.glob(os.path.join(glob.escape(above), f"{_TEMPORARY}*")):
        # One that is in use is locked.
        with contextlib.suppress(OSError), _lock_of(old):
            shutil.rmtree(old)
    new = tempfile.mkdtemp(prefix=f".{_TEMPORARY}")
    folder = os.path.join(above, os.path.basename(new)[1:])
    with contextlib.ExitStack() as stack:
        # Some network disks have no locks on folders, and nothing is swept up.
        with contextlib.suppress(OSError):
            stack.enter_context(_lock_of(new))
        os.rename(new, folder)  # locked before it can be found
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            os.environ.pop("TMPDIR")
            if before[1] is not None:
                os.environ["TMPDIR"] = before[1]
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock_of(folder):
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds a lock file, created and deleted here, until the block ends.

    A remote one is a lease (`files/leases.py`) on the folder it lies in, which
    is checked before each write there.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if is_remote(path):
        with _leases().held(path, _upload):
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


def _checked(folder, names):
    """Names of a remote listing, sorted; objects may be called anything."""
    for name in names:
        for part in name.split("/"):
            inside(folder, part)
    return sorted(names)


def _upload(local, path):
    _check_lease(path)
    _remote().upload(local, path)


def _check_lease(path):
    lease = _leases().find(path)
    if lease is not None:
        lease.check()


def _current(path):
    """The local copy of a remote file that is appended to, or `path`."""
    lease = _leases().find(path) if is_remote(path) else None
    return path if lease is None else lease.local(path)


def _forget(path):
    """A log that was written anew is no longer the one appended to."""
    lease = _leases().find(path)
    if lease is not None:
        lease.forget(path)


# Both load TensorFlow, which only remote files need.
def _remote():
    from jest_tf.files import remote

    return remote


def _leases():
    from jest_tf.files import leases

    return leases
