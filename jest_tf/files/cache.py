"""A cache of results that threads share."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence


class Cache:
    """Keeps the latest results by key, of `most` size together; thread-safe.

    A result is made once for all threads: those that also need it wait. `size`
    maps a result to its size.
    """

    def __init__(self, most: int, size: Callable = lambda result: 1):
        self._most, self._size = most, size
        self._total = 0
        self._futures: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        keys: Iterable[Hashable],
        make: Callable[[list], Sequence],
        is_stale: Callable = lambda key, result: False,
    ) -> dict:
        """Returns the results of distinct keys, by key.

        `make` maps the keys that are missing to their results, in order.
        """
        futures, missing = {}, []
        with self._lock:
            for key in keys:
                future = self._futures.get(key)
                if future and future.done() and is_stale(key, future.result()):
                    self._remove(key)
                    future = None
                if future is None:
                    future = self._futures[key] = concurrent.futures.Future()
                    missing.append(key)
                self._futures.move_to_end(key)
                futures[key] = future
        if missing:
            self._make(missing, make, futures)
        return {key: future.result() for key, future in futures.items()}

    def drop(self, key: Hashable, result) -> None:
        """Drops a result, unless a newer one has replaced it."""
        with self._lock:
            future = self._futures.get(key)
            if future and future.done() and future.result() is result:
                self._remove(key)

    def _make(self, missing, make, futures):
        try:
            results = make(missing)
        except BaseException as error:
            with self._lock:
                for key in missing:
                    if self._futures.get(key) is futures[key]:
                        self._remove(key)
            for key in missing:
                futures[key].set_exception(error)
            raise
        with self._lock:
            for key, result in zip(missing, results, strict=True):
                futures[key].set_result(result)
                if self._futures.get(key) is futures[key]:
                    self._total += self._size(result)
            # Those asked for are last; they are kept whatever their size.
            while self._total > self._most:
                oldest = next(iter(self._futures))
                if oldest in futures:
                    break
                self._remove(oldest)

    def _remove(self, key):
        future = self._futures.pop(key)
        if future.done():
            self._total -= self._size(future.result())
