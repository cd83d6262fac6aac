"""Local disks: a process's temporary files, and disks that are full."""

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

# Nobody's own folder may be taken for one that was left, and deleted.
_TEMPORARY = "jest-tf-temporary-"
_RANDOM = 8 * "[a-z0-9_]"  # what `mkdtemp` adds
# In errors of Python, of TensorFlow and of HDF5, which has no number.
_FULL = re.compile("|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT))))


class Full(OSError):
    """A disk has no room, or its user none of a quota."""


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Gives a process a temporary folder of its own, for the time of the block.

    Folders that killed processes have left are deleted. TensorFlow, too, puts
    its temporary files there.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    above = tempfile.gettempdir()
    for old in glob.glob(
        os.path.join(glob.escape(above), _TEMPORARY + _RANDOM)
    ):
        # A folder that is in use is locked.
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
def room_for(*paths: str) -> Iterator[None]:
    """Tells a full disk from other errors, of whatever library.

    If an error does not name the file that could not be written, `Full` names
    the local path with the least room.

    Raises:
        Full: the disk is full.
    """
    try:
        yield
    except Exception as error:
        found = _FULL.search(str(error))
        if isinstance(error, Full) or not found:
            raise
        path = getattr(error, "filename", None)
        if not isinstance(path, str):
            path = min(paths, key=_free)
        raise _full(found[0], path, "what is written to it") from error


def check_room(path: str, size: int) -> None:
    """Raises `Full` if the disk of a folder lacks room for `size` bytes."""
    if size > _free(path):
        raise _full(os.strerror(errno.ENOSPC), path, f"{size:,} bytes")


@contextlib.contextmanager
def _lock_of(folder):
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def _full(reason, path, needed):
    temporary = tempfile.gettempdir()
    other = "or set TMPDIR, " if path.startswith(temporary) else ""
    return Full(
        errno.ENOSPC,
        f"{reason}: expected room for {needed}. Received: {_free(path):,} "
        f"bytes that are free. Make room, {other}and the same command goes on",
        path,
    )


def _free(path):
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    usage = shutil.disk_usage(path)
    # Some network disks tell nothing.
    return usage.free if usage.total else sys.maxsize
