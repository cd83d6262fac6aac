"""Leases: locks on remote folders, which have neither `flock` nor append.

A lease is one object that its holder rewrites every ten seconds. An object that
is a minute old by the storage's own clock, or that does not change for a minute
of waiting, belongs to a dead process, and may be taken. No clock of a machine
is compared with another's.

Object stores are asked for no more than reads and writes of one object, so a
newcomer writes its name, waits, and holds the lease if its name is still there
(Fischer's mutual exclusion); the name is read again before each write to the
folder. A process that was stopped for a minute therefore finds that it has lost
its lease, and writes nothing any more.
"""

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

from jest_tf.files import remote

# Seconds between two beats of a holder, and after which it counts as dead.
BEAT = 10.0
EXPIRY = 60.0
# Seconds that a newcomer waits to see that no other came at the same time.
SETTLE = 1.0
# Some storages tell times of change in whole seconds only.
_RESOLUTION = 1.0
# Equally long, because a cached size may cut an object that has grown.
_SIZE = 512

_held: dict[str, "Lease"] = {}


class Lost(OSError):
    """Another process has taken the lease."""


class Lease:
    """A lease that this process holds, and the logs that wait for upload.

    Args:
        path: of the object, in the folder that is leased.
        token: of this holder.
        folder: a local one, for copies of what is appended to.
    """

    def __init__(self, path: str, token: str, folder: str):
        self.path = path
        self._token = token
        self._folder = folder
        self._staged: dict[str, str] = {}
        self._uploaded: dict[str, tuple] = {}
        self._stop = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `Lost` unless this process still holds the lease."""
        found = _read(self.path)
        if found.get("token") != self._token:
            holder = found.get("holder", "none")
            raise Lost(
                f"The lease {self.path} was lost: expected this process as its "
                f"holder. Received: {holder}, who has taken it after "
                f"{EXPIRY:.0f} seconds without a sign of this one. Nothing "
                "more is written"
            )

    def local(self, path: str) -> str:
        """Returns the local copy of a file that is appended to, or `path`."""
        return self._staged.get(path, path)

    def stage(self, path: str) -> str:
        """Returns the local copy of a file or folder to append to."""
        if path not in self._staged:
            local = os.path.join(
                self._folder, urllib.parse.quote(path, safe="")
            )
            with contextlib.suppress(FileNotFoundError):
                if remote.is_file(path):
                    remote.download(path, local)
            self._staged[path] = local
        return self._staged[path]

    def forget(self, path: str) -> None:
        """Drops the copy of a file that was written anew."""
        local = self._staged.pop(path, None)
        if local is not None and os.path.exists(local):
            os.remove(local)
            self._uploaded.pop(local, None)

    def upload(self, path: str, upload: Callable[[str, str], None]) -> None:
        """Uploads what has changed in the copy of a file or folder."""
        local = self._staged.get(path)
        if local is None:
            return
        pairs = [(local, path)]
        if os.path.isdir(local):
            pairs = [
                (os.path.join(root, name), f"{path}{root[len(local) :]}/{name}")
                for root, _, names in os.walk(local)
                for name in names
            ]
        for source, target in pairs:
            if not os.path.exists(source):
                continue
            found = os.stat(source)
            state = found.st_size, found.st_mtime_ns
            if self._uploaded.get(source) != state:
                upload(source, target)
                self._uploaded[source] = state

    def sync(self, upload: Callable[[str, str], None]) -> None:
        """Uploads all that has changed."""
        for path in list(self._staged):
            self.upload(path, upload)

    def release(self) -> None:
        """Ends the beats, and gives the lease back if it is still held."""
        self._stop.set()
        self._thread.join()
        # Whoever has taken it, or will take it after an outage, is not ours.
        with contextlib.suppress(OSError):
            if _read(self.path).get("token") == self._token:
                remote.remove(self.path)

    def _beat(self):
        while not self._stop.wait(BEAT):
            # A beat that fails is missed; before the next write all is told.
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") != self._token:
                    return
                self._beats += 1
                _write(self.path, self._token, self._beats)


def find(path: str) -> Lease | None:
    """Returns the lease of this process on a folder that a path lies in."""
    for folder, lease in _held.items():
        if path.startswith(f"{folder}/") and path != lease.path:
            return lease
    return None


def of(path: str) -> Lease:
    """Returns the lease of this process that covers a path.

    Raises:
        ValueError: there is none.
    """
    lease = find(path)
    if lease is None:
        raise ValueError(
            "A remote file is only appended to in a folder that this process "
            f"has locked. Received: {path}"
        )
    return lease


@contextlib.contextmanager
def held(path: str, upload: Callable[[str, str], None]) -> Iterator[None]:
    """Holds a lease until the block ends, and uploads what was appended.

    Raises:
        BlockingIOError: a living process holds it.
        Lost: another process has taken it in the meantime.
    """
    token = secrets.token_hex(16)
    _wait_until_free(path)
    _write(path, token, 0)
    time.sleep(SETTLE)
    if _read(path).get("token") != token:
        raise BlockingIOError(f"{path}: another process was faster")
    folder = os.path.dirname(path)
    with tempfile.TemporaryDirectory() as local:
        lease = _held[folder] = Lease(path, token, local)
        try:
            yield
            lease.sync(upload)
        except Lost:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                lease.sync(upload)
            raise
        finally:
            del _held[folder]
            lease.release()


def _wait_until_free(path):
    found = _read(path)
    if not found:
        return
    waited = _age(path)
    started = time.monotonic()
    while waited + time.monotonic() - started < EXPIRY:
        time.sleep(min(1.0, BEAT))
        now = _read(path)
        if not now:
            return
        if now != found:
            raise BlockingIOError(f"{path}: {now.get('holder')} holds it")


def _age(path):
    """Seconds since the last beat by the storage's clock, never overstated."""
    probe = f"{path}.{secrets.token_hex(4)}"
    try:
        remote.upload(os.devnull, probe)
        beat, now = remote.stat(path)[1], remote.stat(probe)[1]
    except FileNotFoundError:  # it was given back
        return EXPIRY
    finally:
        remote.remove(probe)
    return max(0.0, (now - beat) / 1e9 - _RESOLUTION)


def _read(path):
    try:
        return json.loads(remote.read(path))
    except (FileNotFoundError, ValueError):
        return {}


def _write(path, token, beats):
    holder = f"process {os.getpid()} of {socket.gethostname()}"
    text = json.dumps({"token": token, "beats": beats, "holder": holder})
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode().ljust(_SIZE))
        file.flush()
        remote.upload(file.name, path)
