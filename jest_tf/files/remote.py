"""Remote file systems: TensorFlow's, and fsspec's for all other schemes.

`retries.persist` retries each function, and raises Python's errors.
"""

import contextlib
import difflib
import errno
import functools
import os
import secrets

import numpy as np
import tensorflow as tf

from jest_tf.files import cache, retries

# TensorFlow's file systems on which a file appears once it is whole and closed.
_WHOLE = ("gs://",)
# Sets how many bytes TensorFlow's gs:// fetches from the start of a read, by
# default 64 MB; the command `jest-tf` sets another number.
READAHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"
_FETCHED = int(os.environ.get(READAHEAD, 2**26))
# A read seeks by reading the byte before its start, then advances by this many
# bytes at a time. A byte beyond those fetched costs another request.
_STRIDE = 2**19
# Bytes to read with one request.
PIECE = (_FETCHED - 1) // _STRIDE * _STRIDE or _FETCHED - 1
# Bytes of a page, and of all pages that are kept.
_PAGE = 2**20
_KEPT = 2**30


def open_file(path: str, mode: str):
    """Opens a file; its reads are not retried."""
    system = _system(path.partition("://")[0])
    with _naming(path):
        return system.open(path, mode)


def read(path: str) -> bytes:
    """Reads a whole file."""

    def attempt():
        with open_file(path, "rb") as file:
            return file.read()

    return retries.persist(f"read {path}", attempt)


def remove(path: str) -> None:
    """Deletes a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _persist("delete", "remove", path)


def remove_empty(path: str) -> None:
    """Deletes a folder without files, on systems that have such folders."""
    with contextlib.suppress(FileNotFoundError):
        _persist("delete", "remove_empty", path)


def upload(local: str, path: str) -> None:
    """Copies a local file to a path, where it appears whole."""
    _persist("upload", "upload", path, local)


def download(path: str, local: str) -> None:
    """Copies a file to a local path, in parallel pieces."""
    size, _ = stat(path)

    def copy(start):
        content = _read_range(path, start, min(start + PIECE, size))
        os.pwrite(file.fileno(), content, start)

    with open(local, "wb") as file:
        retries.map_parallel(copy, range(0, size, PIECE), True)


def read_ranges(path: str, ranges: np.ndarray, gap: int = 2**19) -> bytes:
    """Reads and joins byte ranges of a file, with parallel requests.

    The ranges, int64 [k, 2], are ascending and do not overlap; those at most
    `gap` bytes apart are read together.
    """
    starts, ends = ranges.T
    is_new = starts[1:] - ends[:-1] > gap
    first = np.flatnonzero(np.append(True, is_new))
    last = np.append(first[1:], len(ranges)) - 1
    pieces = [
        (place, min(place + PIECE, end))
        for start, end in zip(starts[first], ends[last], strict=True)
        for place in range(start, end, PIECE)
    ]
    joint = b"".join(
        retries.map_parallel(
            lambda span: _read_range(path, *span), pieces, True
        )
    )
    if len(pieces) == 1 and len(joint) == int((ends - starts).sum()):
        return joint
    # Where each range begins among the bytes read.
    base = np.cumsum(np.append(0, ends[last] - starts[first]))[:-1]
    group = np.cumsum(np.append(0, is_new))
    places = starts - starts[first][group] + base[group]
    sizes = ends - starts
    return b"".join(
        joint[place : place + size]
        for place, size in zip(places.tolist(), sizes.tolist(), strict=True)
    )


class Pages:
    """Reads byte ranges of remote files by pages, and keeps the latest pages.

    Neighbouring pages are read together, and once for all threads that ask for
    them. Thread-safe.
    """

    def __init__(self, page: int = _PAGE, kept: int = _KEPT):
        self._page, self._pages = page, cache.Cache(kept // page)

    def read(self, file: "PagedFile", ranges: np.ndarray) -> bytes:
        """Reads byte ranges of a file; see `PagedFile.read`."""
        first = ranges[:, 0] // self._page
        last = (ranges[:, 1] - 1) // self._page
        counts = last - first + 1
        line = np.arange(counts.sum()) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        numbers = np.unique(np.repeat(first, counts) + line).tolist()
        pages = self._pages.get(
            [(file, number) for number in numbers], self._fetch
        )
        parts = []
        for (start, end), low, other in zip(
            ranges.tolist(), first.tolist(), last.tolist(), strict=True
        ):
            joint = b"".join(pages[file, n] for n in range(low, other + 1))
            parts.append(joint[start - low * self._page :][: end - start])
        return b"".join(parts)

    def _fetch(self, pages):
        """Reads pages of a file, given as (file, number)."""
        (file, _), *_ = pages
        spans = np.array([number for _, number in pages])[:, None] * self._page
        spans = np.minimum(spans + [0, self._page], file.size)
        content = read_ranges(file.path, spans, gap=0)
        file.check_unchanged()
        sizes = spans[:, 1] - spans[:, 0]
        return [
            content[end - size : end]
            for size, end in zip(sizes, np.cumsum(sizes), strict=True)
        ]


# Shared by all files, such as sidecars of a learner and a reference.
PAGES = Pages()


class PagedFile:
    """A remote file that is read by pages, as it was when it was opened."""

    def __init__(self, path: str):
        self.path, self._state = path, stat(path)
        self.size, _ = self._state

    def read(self, ranges: np.ndarray) -> bytes:
        """Reads and joins byte ranges, int64 [k, 2], none of them empty."""
        return PAGES.read(self, ranges)

    def check_unchanged(self) -> None:
        """Raises ValueError if the file was replaced since it was opened."""
        if stat(self.path) != self._state:
            raise ValueError(
                f"{self.path} was replaced by another file since it was "
                "opened: start again"
            )


def _read_range(path, start, end):
    def attempt():
        with open_file(path, "rb") as file:
            file.seek(int(start))
            return file.read(int(end - start))

    content = retries.persist(f"read {path}", attempt)
    if len(content) < end - start:
        raise OSError(
            errno.EIO, f"{path} has {len(content)} of {end - start} bytes"
        )
    return content


class _TensorFlow:
    """The file systems of `tf.io.gfile`."""

    open = staticmethod(tf.io.gfile.GFile)
    is_folder = staticmethod(tf.io.gfile.isdir)
    find = staticmethod(tf.io.gfile.glob)
    remove = staticmethod(tf.io.gfile.remove)

    def stat(self, path):
        status = tf.io.gfile.stat(path)
        return status.length, status.mtime_nsec

    def is_file(self, path):
        with contextlib.suppress(tf.errors.NotFoundError):
            return not tf.io.gfile.stat(path).is_directory
        return False

    def remove_empty(self, path):
        # Object stores have no folders without files.
        if not path.startswith(_WHOLE):
            tf.io.gfile.rmtree(path)

    def names(self, path):
        with contextlib.suppress(tf.errors.NotFoundError):
            # The marker object of the folder itself has an empty name.
            names = (name.rstrip("/") for name in tf.io.gfile.listdir(path))
            return [name for name in names if name]
        return []

    def tree(self, path):
        return [
            os.path.relpath(os.path.join(root, name), path)
            for root, _, names in tf.io.gfile.walk(path)
            for name in names
            if name
        ]

    def upload(self, path, local):
        # Copied outside Python, so no signal cuts it short and leaves half.
        target = path
        if not path.startswith(_WHOLE):
            folder, name = os.path.split(path)
            target = f"{folder}/.{name}.{secrets.token_hex(8)}.partial"
            tf.io.gfile.makedirs(folder)
        tf.io.gfile.copy(local, target, overwrite=True)
        if target != path:
            tf.io.gfile.rename(target, path, overwrite=True)


class _Fsspec:
    """A file system of fsspec, which returns paths without the scheme."""

    def __init__(self, system):
        self._system = system
        self.is_file, self.is_folder = system.isfile, system.isdir
        self.remove = system.rm_file

    def open(self, path, mode):
        # Callers read ranges, so reading ahead would be wasted.
        return self._system.open(path, mode, cache_type="none")

    def stat(self, path):
        info = self._system.info(path)
        time = info.get("mtime") or info.get("LastModified")
        time = time or info.get("created") or 0.0
        seconds = time if isinstance(time, int | float) else time.timestamp()
        return info["size"], int(seconds * 1e9)

    def names(self, path):
        with contextlib.suppress(FileNotFoundError):
            paths = self._system.ls(path, detail=False)
            return [os.path.basename(name.rstrip("/")) for name in paths]
        return []

    def tree(self, path):
        start = self._system._strip_protocol(path)
        return [
            os.path.relpath(name, start) for name in self._system.find(path)
        ]

    def find(self, pattern):
        return [*map(self._system.unstrip_protocol, self._system.glob(pattern))]

    def remove_empty(self, path):
        with contextlib.suppress(OSError):
            self._system.rmdir(path)

    def upload(self, path, local):
        self._system.put_file(local, path)


def _persist(action, method, path, *arguments):
    """Calls a method of the file system of a path, with retries."""

    def attempt():
        system = _system(path.partition("://")[0])
        with _naming(path):
            return getattr(system, method)(path, *arguments)

    return retries.persist(f"{action} {path}", attempt)


# Each takes a path; as in `files`.
stat = functools.partial(_persist, "look up", "stat")
is_file = functools.partial(_persist, "look up", "is_file")
is_folder = functools.partial(_persist, "look up", "is_folder")
names = functools.partial(_persist, "list", "names")
tree = functools.partial(_persist, "list", "tree")
find = functools.partial(_persist, "list", "find")


@contextlib.contextmanager
def _naming(path):
    """Converts fsspec's errors to OSErrors; EIO if they have no number."""
    try:
        yield
    except tf.errors.OpError:
        raise
    except OSError as error:
        if error.errno is None:
            error.errno = errno.EIO
        raise
    except Exception as error:
        raise OSError(
            errno.EIO, f"{type(error).__name__}: {error}", path
        ) from error


@functools.cache
def _system(scheme):
    if scheme in tf.io.gfile.get_registered_schemes():
        return _TensorFlow()
    import fsspec

    try:
        return _Fsspec(fsspec.filesystem(scheme, use_listings_cache=False))
    except (ImportError, ValueError) as error:
        schemes = sorted(filter(None, tf.io.gfile.get_registered_schemes()))
        known = ", ".join(f"{scheme}://" for scheme in schemes)
        close = difflib.get_close_matches(scheme, ("gs", "s3", "file"), 1)
        hint = f". Did you mean {close[0]}://?" if close else ""
        raise ValueError(
            "A path must be local, or of a scheme that TensorFlow opens, "
            f"{known}, or that fsspec opens with the scheme's library, as "
            "s3:// after `pip install '.[s3]'` in a clone. "
            f"Received: {scheme}:// ({error}){hint}"
        ) from error
