"""Errors of storage that may be over in a moment, and trying again.

Everything is tried again together, so that a call waits for seconds however
much of it has failed. Longer troubles are for the file system to sit out, as
hard NFS mounts and the clients of buckets do. What becomes of an error that
stays is in `data/stores/shards.py`.
"""

import errno
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

# What a system raises, local or remote.
ERRORS = (OSError, tf.errors.OpError)
# Seconds before each further try.
WAITS = (0.1, 1.0, 4.0)
_PASSING_NUMBERS = frozenset(
    (
        *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
        *(errno.ESTALE, errno.ETIMEDOUT),
    )
)
_PASSING_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
    tf.errors.AbortedError,
    tf.errors.DataLossError,
)


def is_passing(error: Exception) -> bool:
    """Whether an error is of the storage or the moment, not of a file.

    I/O errors are among them, though a bad sector's stays.
    """
    return isinstance(error, _PASSING_ERRORS) or (
        isinstance(error, OSError) and error.errno in _PASSING_NUMBERS
    )


def is_broken(error: Exception) -> bool:
    """Whether an error may be of the bytes asked for and of no others."""
    return isinstance(error, tf.errors.DataLossError) or (
        isinstance(error, OSError) and error.errno == errno.EIO
    )


def caught(function: Callable, item):
    """What a function returns, or the system's error that it raises."""
    try:
        return function(item)
    except ERRORS as error:
        return error


def try_all(function: Callable, items: Sequence) -> list:
    """Calls a function until no result is an error that may pass.

    Args:
        function: a list of items -> a result or an error for each. Called
            once with all, then, after a wait, with those of the passing errors.
        items: what to call it with.

    Returns:
        A result or the last error for each item.
    """
    out = list(function(items))
    for wait in WAITS:
        left = [
            i
            for i, one in enumerate(out)
            if isinstance(one, Exception) and is_passing(one)
        ]
        if not left:
            break
        time.sleep(wait)
        again = function([items[i] for i in left])
        for i, result in zip(left, again, strict=True):
            out[i] = result
    return out


def call(function: Callable):
    """What a function of nothing returns; raises the error that stays."""
    (result,) = try_all(
        lambda items: [caught(lambda _: function(), one) for one in items],
        [None],
    )
    if isinstance(result, Exception):
        raise result
    return result


def tries(error: Exception) -> str:
    """For messages: how often what failed was tried."""
    return f", tried {1 + len(WAITS)} times" if is_passing(error) else ""
