"""Retries of reads: most storage errors pass within seconds.

NFS mounts and clients of object stores sit out longer outages. After the last
try, `data/stores/shards.py` makes a fault of the record.
"""

import concurrent.futures
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

# Errors of a local or remote file system.
ERRORS = (OSError, tf.errors.OpError)
# Errors about a file's name, which a retry cannot cure.
LASTING = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnimplementedError,
    tf.errors.InvalidArgumentError,
)
# Seconds before each further try.
WAITS = (0.1, 1.0, 4.0)
# Simultaneous requests to remote storage in one call.
_REMOTE_REQUESTS = 16


def call_all(
    function: Callable,
    items: Sequence,
    remote: bool = False,
    tries: int = 1 + len(WAITS),
) -> list:
    """Calls a function on each item, and again on those that failed.

    Failed items wait together, so a call lasts seconds however many fail.

    Args:
        function: item -> result; may raise one of `ERRORS`.
        items: its arguments.
        remote: whether to call it on several items at a time.
        tries: limit on calls of one item.

    Returns:
        The result of each item, or its last error.
    """

    def attempt(item):
        try:
            return function(item)
        except ERRORS as error:
            return error

    out = map_parallel(attempt, items, remote)
    for wait in WAITS[: tries - 1]:
        failed = [i for i, result in enumerate(out) if _may_pass(result)]
        if not failed:
            break
        time.sleep(wait)
        again = map_parallel(attempt, [items[i] for i in failed], remote)
        for i, result in zip(failed, again, strict=True):
            out[i] = result
    return out


def call(function: Callable):
    """Calls a function until it returns; raises its last error."""
    (result,) = call_all(lambda _: function(), [None])
    if isinstance(result, ERRORS):
        raise result
    return result


def map_parallel(function: Callable, items: Sequence, remote: bool) -> list:
    """Maps a function over items, over several at a time if they are remote."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
        return list(pool.map(function, items))


def _may_pass(result):
    # An `OSError` without a number comes from a library and is about the data.
    return (
        isinstance(result, ERRORS)
        and not isinstance(result, LASTING)
        and getattr(result, "errno", 0) is not None
    )
