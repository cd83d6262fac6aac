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


def call_all(
    function: Callable,
    items: Sequence,
    workers: int = 1,
    tries: int = 1 + len(WAITS),
) -> list:
    """Calls a function on each item, and again on those that failed.

    Failed items wait together, so a call lasts seconds however many fail.

    Args:
        function: item -> result; may raise one of `ERRORS`.
        items: its arguments.
        workers: limit on simultaneous calls.
        tries: limit on calls of one item.

    Returns:
        The result of each item, or its last error.
    """

    def attempt(item):
        try:
            return function(item)
        except ERRORS as error:
            return error

    out = map_parallel(attempt, items, workers)
    for wait in WAITS[: tries - 1]:
        failed = [i for i, result in enumerate(out) if may_pass(result)]
        if not failed:
            break
        time.sleep(wait)
        again = map_parallel(attempt, [items[i] for i in failed], workers)
        for i, result in zip(failed, again, strict=True):
            out[i] = result
    return out


def call(function: Callable):
    """Calls a function until it returns; raises its last error."""
    (result,) = call_all(lambda _: function(), [None])
    if isinstance(result, ERRORS):
        raise result
    return result


def may_pass(result) -> bool:
    """Returns whether a result is an error that a retry may cure.

    An `OSError` without a number comes from a library and is about the data.
    """
    if isinstance(result, LASTING):
        return False
    return isinstance(result, tf.errors.OpError) or (
        isinstance(result, OSError) and result.errno is not None
    )


def map_parallel(function: Callable, items: Sequence, workers: int) -> list:
    """Maps a function over items with at most `workers` threads."""
    workers = min(workers, len(items))
    if workers < 2:
        return [function(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
