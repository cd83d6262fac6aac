"""Retries: most errors of storage pass within seconds.

NFS mounts and clients of object stores silently wait for the end of longer
outages, so slow requests are logged here. Requests that they give up on are
tried again, with growing waits; `persist` logs them. After the last try,
`data/stores/shards.py` turns a failed record into a fault; any other failure
ends the command.
"""

import concurrent.futures
import contextlib
import errno
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl import logging

# Errors of a local or remote file system.
ERRORS = (OSError, tf.errors.OpError)
# Errors about a file's name, which a retry cannot cure.
LASTING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnimplementedError,
    tf.errors.InvalidArgumentError,
)
# Seconds before each further try, for records and for whole files.
WAITS = (0.1, 1.0, 4.0)
FILE_WAITS = (1.0, 4.0, 16.0, 60.0)
# Seconds until a slow request is logged; the waits between logs then double.
SILENCE = 8.0
# Simultaneous requests of a call to remote storage.
_REMOTE_REQUESTS = 16

# The action and the start time of each request in progress.
_requests: dict[object, tuple[str, float]] = {}


def call_all(
    function: Callable,
    items: Sequence,
    remote: bool = False,
    tries: int = 1 + len(WAITS),
    patience: float = math.inf,
) -> list:
    """Calls a function on each item, and again on the items that failed.

    Failed items wait together, so the waits take seconds however many fail. If
    `remote`, several items are called at a time, and slow calls are logged.
    After `patience` seconds no item is tried again.

    Returns:
        The result of each item, or the last of `ERRORS` that it raised.
    """

    def attempt(item):
        slow = watched("read data") if remote else contextlib.nullcontext()
        try:
            with slow:
                return function(item)
        except ERRORS as error:
            return error

    end = time.monotonic() + patience
    out = map_parallel(attempt, items, remote)
    for wait in WAITS[: tries - 1]:
        failed = [i for i, result in enumerate(out) if may_pass(result)]
        if not failed or time.monotonic() + wait > end:
            break
        time.sleep(wait)
        again = map_parallel(attempt, [items[i] for i in failed], remote)
        for i, result in zip(failed, again, strict=True):
            out[i] = result
    return out


def call(function: Callable):
    """Calls a function, again if it fails; raises its last error."""
    (result,) = call_all(lambda _: function(), [None], True)
    if isinstance(result, ERRORS):
        raise result
    return result


def persist(what: str, function: Callable):
    """Calls a function on a remote file until it returns, at most five times.

    The waits between the calls add up to 81 seconds. `what` names the action
    in the log: "upload gs://bucket/file".

    Raises:
        OSError: the last error; FileNotFoundError, PermissionError or
            FileExistsError where one fits.
    """
    for wait in (*FILE_WAITS, None):
        try:
            with watched(what):
                return function()
        except ERRORS as error:
            if wait is None or not may_pass(error):
                raise python_error(error) from error
            logging.warning(
                "Failed to %s; trying again in %g s: %s",
                *(what, wait, " ".join(str(error).split())[:200]),
            )
        time.sleep(wait)


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """Logs a warning if the block, whose action is `what`, takes long."""
    _start_watch(os.getpid())
    key = object()
    _requests[key] = what, time.monotonic()
    try:
        yield
    finally:
        del _requests[key]


@functools.cache
def _start_watch(process):
    del process  # keys the cache: a fork does not inherit the thread
    threading.Thread(target=_watch, daemon=True).start()


def _watch():
    said, wait, pause = None, SILENCE, threading.Event()
    while True:
        pause.wait(min(1.0, SILENCE / 4))
        now = time.monotonic()
        slow = [
            (since, what)
            for what, since in [*_requests.values()]
            if now - since >= SILENCE
        ]
        if not slow:
            said = None
        elif said is None or now - said >= wait:
            since, what = min(slow)
            logging.warning(
                "Still trying to %s after %.0f s%s: the network is slow, or "
                "the storage fails and is asked again",
                *(what, now - since),
                f", as do {len(slow) - 1} other requests" * (len(slow) > 1),
            )
            wait = SILENCE if said is None else 2 * wait
            said = now


def map_parallel(function: Callable, items: Sequence, remote: bool) -> list:
    """Maps a function over items, several at a time if they are remote."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
        return list(pool.map(function, items))


def may_pass(result) -> bool:
    """Returns whether a result is an error that a retry may cure."""
    denied = tf.errors.PermissionDeniedError | tf.errors.UnauthenticatedError
    if isinstance(result, denied) and "response code 401" in result.message:
        return True  # an expired token: the next request asks for a new one
    # An `OSError` without a number comes from a library and is about the data.
    return (
        isinstance(result, ERRORS)
        and not isinstance(result, LASTING)
        and getattr(result, "errno", 0) is not None
    )


def python_error(error: Exception) -> OSError:
    """Converts an error of TensorFlow's file systems to Python's own."""
    if isinstance(error, OSError):
        return error
    kinds = {
        tf.errors.NotFoundError: (FileNotFoundError, errno.ENOENT),
        tf.errors.AlreadyExistsError: (FileExistsError, errno.EEXIST),
        tf.errors.PermissionDeniedError: (PermissionError, errno.EACCES),
        tf.errors.UnauthenticatedError: (PermissionError, errno.EACCES),
    }
    kind, number = kinds.get(type(error), (OSError, errno.EIO))
    return kind(number, " ".join(error.message.split()))
