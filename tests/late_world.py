"""A bucket, its processes and their clock, in one thread at a time.

A `World` makes a history from a seed: a thread is left at each of its requests
and waits, and the next is taken at random. Requests and answers may be
late or lost, be carried out long after they were given up, and processes may be
cut off, stopped for a while, or die.
"""

import contextlib
import io
import random
import re
import threading
import time
import types
from unittest import mock

from jest_tf.files import leases, remote, retries

FOLDER = "late://bucket/run"
# Of a request: what befalls its process, or it.
CHANCES = {
    "stop": 0.01,
    "cut off": 0.01,
    "die": 0.002,
    "late": 0.01,
    "answer late": 0.01,
    "answer lost": 0.01,
}
LONGEST = 300.0  # seconds of each of these


class Killed(BaseException):
    """Ends a thread of a process that is dead."""


class Process:
    """A process: its leases and its troubles."""

    def __init__(self, name, chances):
        self.name, self.chances = name, chances
        self.held = {}  # as `leases._held`
        self.number = 0  # the last that it claimed
        self.stopped_until = self.cut_off_until = 0.0
        self.is_dead = False


class World:
    """See above.

    Attributes:
        now: seconds.
        objects: bytes and time of change by path.
        disturbed: processes that have changed what readers find, though another
            had published a view since.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.objects = {}
        self.disturbed = []
        self._in_flight = []  # (time, process, change)
        self._threads = []
        self._own = set()
        self._current = None
        self._back = threading.Semaphore(0)

    @contextlib.contextmanager
    def entered(self):
        """Leases and requests of the block are of this world."""
        bucket = Bucket(self)
        clock = types.SimpleNamespace(
            monotonic=lambda: self.now, sleep=self.sleep
        )
        own = types.SimpleNamespace(
            Thread=lambda target, daemon: Thread(self, target),
            Event=lambda: Event(self),
        )
        tokens = types.SimpleNamespace(
            token_hex=lambda size: (
                f"{self.random.getrandbits(8 * size):0{2 * size}x}"
            )
        )
        with contextlib.ExitStack() as stack:
            for module, name, value in (
                (leases, "time", clock),
                (retries, "time", clock),
                (leases, "threading", own),
                (leases, "random", self.random),
                (leases, "secrets", tokens),
                (retries, "watched", lambda what: contextlib.nullcontext()),
                (remote, "_system", lambda scheme: bucket),
                (
                    retries,
                    "map_parallel",
                    lambda call, some, _: [*map(call, some)],
                ),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            leases._read_view.cache_clear()
            yield

    def start(self, process, function, delay=0.0):
        """Starts a thread of a process, after a delay in seconds."""
        thread = types.SimpleNamespace(
            process=process,
            wakes=self.now + delay,
            turn=threading.Semaphore(0),
            is_done=False,
        )

        def run():
            thread.turn.acquire()
            try:
                function()
            except Killed:
                pass
            finally:
                thread.is_done = True
                self._back.release()

        self._threads.append(thread)
        own = threading.Thread(target=run, daemon=True)
        self._own.add(own)
        own.start()
        return thread

    def run(self):
        """Lets all threads come to their ends, and all requests arrive."""
        while self._threads or self._in_flight:
            due = [
                (max(thread.wakes, thread.process.stopped_until), thread)
                for thread in self._threads
            ]
            due += [(request[0], request) for request in self._in_flight]
            self.now = max(self.now, min(time for time, _ in due))
            chosen = self.random.choice(
                [item for time, item in due if time <= self.now]
            )
            if isinstance(chosen, tuple):
                self._in_flight.remove(chosen)
                self._change(*chosen[1:])
                continue
            self._current = chosen
            with mock.patch.object(leases, "_held", chosen.process.held):
                chosen.turn.release()
                self._back.acquire()
            self._threads = [
                thread for thread in self._threads if not thread.is_done
            ]

    def sleep(self, seconds):
        """Lets the others go on for so long."""
        if threading.current_thread() not in self._own:
            time.sleep(seconds)  # of an earlier test, as what watches requests
            return
        thread = self._current
        thread.wakes = self.now + seconds
        self._back.release()
        thread.turn.acquire()
        if thread.process.is_dead:
            raise Killed

    def request(self, call, changes):
        """Sends a request of the current thread, and returns its answer."""
        process = self._current.process

        def befalls(what):
            return self.random.random() < process.chances.get(what, 0.0)

        def long():
            return self.random.uniform(0.0, LONGEST)

        self.sleep(self.random.uniform(0.01, 0.5))
        if befalls("stop"):
            process.stopped_until = self.now + long()
        if befalls("cut off"):
            process.cut_off_until = self.now + long()
        process.is_dead |= befalls("die")
        # A library that tries again, and a request that takes its time.
        self.sleep(long() if befalls("late") else 0.0)
        if self.now < process.cut_off_until:
            if changes and self.random.random() < 0.5:
                self._in_flight.append((self.now + long(), process, call))
            self.sleep(self.random.uniform(1.0, 60.0))
            raise OSError(5, "the network is gone")
        answer = self._change(process, call) if changes else call()
        if befalls("answer late"):
            self.sleep(long())
        if befalls("answer lost"):
            raise OSError(5, "the answer got lost")
        return answer

    def seen(self):
        """What a reader on another machine finds: contents by file."""
        ask = mock.patch.object(self, "request", lambda call, changes: call())
        with ask, mock.patch.object(leases, "_held", {}):
            view = leases._last_view(FOLDER)
        return {
            name: self.objects.get(f"{FOLDER}/{target}", "lost")
            for name, target in view.items()
        }

    def _change(self, process, call):
        views = [path for path in self.objects if f"{FOLDER}/.view/" in path]
        last = max(views, default="/000000").rpartition("/")[2]
        before = self.seen()
        call()
        is_of_another = process.number < int(last[:6])
        if is_of_another and self.seen() != before:
            self.disturbed.append(process.name)


class Bucket:
    """A world's storage, as a file system of `remote`."""

    def __init__(self, world):
        self._world = world

    def _ask(self, call):
        return self._world.request(call, False)

    def _find(self, path):
        if path not in self._world.objects:
            raise FileNotFoundError(path)
        return self._world.objects[path]

    def open(self, path, mode):
        return io.BytesIO(self._ask(lambda: self._find(path)[0]))

    def stat(self, path):
        content, seconds = self._ask(lambda: self._find(path))
        return len(content), int(seconds * 1e9)

    def is_file(self, path):
        return self._ask(lambda: path in self._world.objects)

    def tree(self, path):
        start = f"{path}/"
        return self._ask(
            lambda: [
                name.removeprefix(start)
                for name in self._world.objects
                if name.startswith(start)
            ]
        )

    def names(self, path):
        return sorted({name.split("/")[0] for name in self.tree(path)})

    def remove(self, path):
        objects = self._world.objects
        self._world.request(lambda: objects.pop(path, None), True)

    def remove_empty(self, path):
        pass

    def upload(self, path, local):
        world = self._world
        with open(local, "rb") as file:
            content = file.read()
        if claim := re.search(r"/\.lock/(\d{6})-[0-9a-f]{16}$", path):
            world._current.process.number = int(claim[1])

        def put():
            world.objects[path] = content, world.now

        world.request(put, True)


class Event:
    """As `threading.Event`."""

    def __init__(self, world):
        self._world, self._is_set = world, False

    def set(self):
        self._is_set = True

    def wait(self, seconds):
        deadline = self._world.now + seconds
        while not self._is_set and self._world.now < deadline:
            self._world.sleep(1.0)
        return self._is_set


class Thread:
    """As `threading.Thread`."""

    def __init__(self, world, target):
        self._world, self._target = world, target

    def start(self):
        process = self._world._current.process
        self._thread = self._world.start(process, self._target)

    def join(self):
        while not self._thread.is_done:
            self._world.sleep(1.0)
