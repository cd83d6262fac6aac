"""Local disks: temporary files of a process, and errors of full disks."""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator

# A distinctive name, so that no user's folder is deleted as a leftover.
_TEMPORARY = "jest-tf-temporary-"
_RANDOM = 8 * "[a-z0-9_]"  # what `mkdtemp` adds
# Searched for in the text of errors, because those of HDF5 have no number.
_FULL = re.compile("|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT))))


class Full(OSError):
    """A disk, or the user's quota on it, is full."""


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Gives the process its own temporary folder until the block ends.

    TensorFlow, too, puts its temporary files there. Folders that killed
    processes have left are deleted.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    above = tempfile.gettempdir()
    for old in glob.glob(
        os.path.join(glob.escape(above), _TEMPORARY + _RANDOM)
    ):
        # A folder that is in use is locked.
        with contextlib.suppress(OSError), _hold_lock(old):
            shutil.rmtree(old)
    new = tempfile.mkdtemp(prefix=f".{_TEMPORARY}")
    folder = os.path.join(above, os.path.basename(new)[1:])
    with contextlib.ExitStack() as stack:
        # Some network disks can't lock folders; leftovers then stay.
        with contextlib.suppress(OSError):
            stack.enter_context(_hold_lock(new))
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
def room_for(*paths: str) -> Iterator[None]:
    """Converts errors of a full disk, whatever their library, to `Full`.

    If an error does not name the file that could not be written, `Full` names
    the path on the disk with the least room.
    """
    try:
        yield
    except Exception as error:
        match = _FULL.search(str(error))
        if isinstance(error, Full) or not match:
            raise
        path = getattr(error, "filename", None)
        if not isinstance(path, str):
            path = min(paths, key=_free)
        raise _full(match[0], path, "the data to write") from error


def check_room(path: str, size: int) -> None:
    """Raises `Full` if the disk of a folder lacks room for `size` bytes."""
    if size > _free(path) or _lacks_inodes(path):
        raise _full(os.strerror(errno.ENOSPC), path, f"{size:,} bytes")


@contextlib.contextmanager
def _hold_lock(folder):
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def _full(reason, path, needed):
    temporary = tempfile.gettempdir()
    other = "or set TMPDIR, " if path.startswith(temporary) else ""
    received = f"{_free(path):,} free bytes. Make room"
    if _lacks_inodes(path):
        needed, received = "a file", "no free inode. Delete files"
    return Full(
        errno.ENOSPC,
        f"{reason}: expected room for {needed}. Received: {received}, {other}"
        "and repeat the command, which continues",
        path,
    )


def _free(path):
    usage = shutil.disk_usage(_existing(path))
    # Some network disks report zeros.
    return usage.free if usage.total else sys.maxsize


def _lacks_inodes(path):
    """Returns whether a disk has inodes, of which none is left to the user."""
    state = os.statvfs(_existing(path))
    return bool(state.f_files) and not state.f_favail


def _existing(path):
    """Returns a path, or the nearest folder above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    return path
