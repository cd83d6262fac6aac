"""Leases: one writer at a time in a remote folder, however late requests are.

Object stores have neither `flock` nor, through TensorFlow, conditional writes,
and a request may be carried out long after its sender was taken for dead. So
nothing that counts is ever written twice under the same name.

To write in a folder, a process claims the next number: it writes its own
object, `.lock/000004-TOKEN`, and then looks for other claims to this number. If
it finds another, it withdraws its own and tries again; otherwise it has the
number, because later claimants will find its claim. A claim is rewritten every
ten seconds. A claim that is a minute old by the storage's own clock, or that
does not change during a minute of waiting, belongs to a dead process, and the
next number may be claimed. A process that finds a higher number than its own
has lost its lease, and ends. Clocks decide only how long a newcomer waits.

In a folder with views, a file is stored as an object of another name, with its
writer's number and a count, `metrics.jsonl~000004-17`. A view, an object in
`.view/`, maps files to objects; the last view of the highest number counts. A
file that this view does not list is the object of the file's own name, if any.
A writer starts from the view that counts then. It uploads objects, publishes a
view, checks that it still holds the lease, and deletes the objects that the
view no longer lists. Objects that it sends after it has lost the lease are in
no view that is read.

Listings must show every finished write, as those of Cloud Storage and S3 do.
"""

import contextlib
import functools
import json
import os
import random
import re
import secrets
import socket
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence

from jest_tf.files import paths as paths_lib
from jest_tf.files import remote, retries

# Seconds between a holder's beats, and without a beat until it counts as dead.
BEAT = 10.0
EXPIRY = 60.0
# Most seconds until newcomers that claimed the same number try again.
PAUSE = 2.0
# Some storages report modification times in whole seconds only.
_RESOLUTION = 1.0
# Bytes of every claim: a stale cached size would truncate a longer object.
_SIZE = 512

_NUMBER = re.compile(r"\d{6}-")
_CLAIM = re.compile(r"\d{6}-[0-9a-f]{16}")
_END = ".end"
_OBJECT = re.compile(r".+~(\d{6})-\d+", re.DOTALL)

_held: dict[str, "Lease"] = {}
_locks: dict[str, str] = {}  # by folder with views


class Lost(OSError):
    """Another process has taken the lease."""


class Lease:
    """A lease that this process holds, and the logs that wait for upload.

    Attributes:
        view: objects by file, relative to the folder; None without views.
        staged: local copies of files that are appended to, by path.
    """

    def __init__(self, claim: str, folder: str):
        self.path, self._name = os.path.split(claim)
        self.view: dict[str, str] | None = None
        self._claim = claim
        self._count = 0  # of objects written
        self._published = ""
        self._folder = folder
        self.staged: dict[str, str] = {}
        self._uploaded: dict[str, tuple] = {}
        self._stop = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `Lost` unless this process still holds the lease."""
        claims = _newest(self.path)
        if self._name not in claims:
            holder = "nobody"
            for name in claims:
                process = _read(f"{self.path}/{name}").get("holder", "unknown")
                holder = f"{name[:6]}, {process}"
            raise Lost(
                f"The lease {self.path} was lost: expected this process as its "
                f"holder, number {self._name[:6]}. Received: {holder}, after "
                f"{EXPIRY:.0f} seconds without a sign of this process. What it "
                "writes from now on is ignored"
            )

    def begin(self) -> None:
        """Starts from the view that counts; deletes other, older objects."""
        root = os.path.dirname(self.path)
        self.view = dict(_last_view(root))
        self._publish(self.view)
        kept, old = {*self.view.values()}, []
        for name in remote.tree(root):
            folder, _, number = name.rpartition("/")
            if match := _OBJECT.fullmatch(name):
                number = match[1]
            elif folder not in (paths_lib.VIEWS, os.path.basename(self.path)):
                continue
            if name not in kept and number[:6] < self._name[:6]:
                old.append(f"{root}/{name}")
        retries.map_parallel(remote.remove, old, True)

    def write(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Uploads local files to paths, where they appear together."""
        self._upload(pairs)
        for _, path in pairs:
            # A log that is written whole makes its local copy obsolete.
            local = self.staged.pop(path, None)
            if local is not None and os.path.exists(local):
                os.remove(local)
                self._uploaded.pop(local, None)

    def remove(self, paths: Sequence[str]) -> None:
        """Deletes files."""
        self.check()
        names = {self._shorten(path) for path in paths}
        view = self.view or {}
        if names & {*view}:
            self._publish(
                {name: item for name, item in view.items() if name not in names}
            )
        # Without a view, an object of the file's own name would reappear.
        for path in paths:
            remote.remove(path)

    def stage(self, path: str) -> str:
        """Returns the local copy of a file or folder to append to."""
        if path not in self.staged:
            local = os.path.join(
                self._folder, urllib.parse.quote(path, safe="")
            )
            located = place(path)
            with contextlib.suppress(FileNotFoundError):
                if remote.is_file(located):
                    remote.download(located, local)
            self.staged[path] = local
        return self.staged[path]

    def sync(self, paths: Sequence[str] | None = None) -> None:
        """Uploads changed local copies of files and folders, or of all."""
        pairs, states = [], {}
        for path in self.staged if paths is None else paths:
            local = self.staged.get(path, "")
            names = [""]
            if os.path.isdir(local):
                names = [f"/{name}" for name in paths_lib.local_tree(local)]
            for name in names:
                if not os.path.exists(local + name):
                    continue
                status = os.stat(local + name)
                state = status.st_size, status.st_mtime_ns
                if self._uploaded.get(local + name) == state:
                    continue
                states[local + name] = state
                if name:  # TensorBoard's, with a name unique to this process
                    self.check()
                    remote.upload(local + name, path + name)
                else:
                    pairs.append((local, path))
        if pairs:
            self._upload(pairs)
        self._uploaded |= states

    def beat(self) -> bool:
        """Rewrites the claim; False if the lease is lost."""
        if self._name not in _newest(self.path):
            return False
        self._beats += 1
        _sign(self._claim, self._beats)
        return True

    def release(self) -> None:
        """Stops the beats, and gives the lease back."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            remote.upload(os.devnull, self._claim + _END)

    def _upload(self, pairs):
        self.check()
        view = dict(self.view or {})
        for local, path in pairs:
            if self.view is None:
                remote.upload(local, path)
                continue
            self._count += 1
            name = self._shorten(path)
            view[name] = f"{name}~{self._name[:6]}-{self._count}"
            remote.upload(local, self._join(view[name]))
        if self.view is not None:
            self._publish(view)

    def _publish(self, view):
        """Publishes a view, and deletes the objects that it leaves out."""
        old = {*self.view.values(), self._published} - {*view.values(), ""}
        self._count += 1
        # The token stays unique if a folder is deleted and numbers restart.
        number, _, token = self._name.partition("-")
        published = f"{paths_lib.VIEWS}/{number}-{self._count:08d}-{token}"
        _write(self._join(published), json.dumps(view).encode())
        # From here on, a process that takes the lease starts from this view.
        self.check()
        self.view, self._published = view, published
        for name in sorted(old):
            remote.remove(self._join(name))

    def _shorten(self, path):
        return path[len(os.path.dirname(self.path)) + 1 :]

    def _join(self, name):
        return f"{os.path.dirname(self.path)}/{name}"

    def _keep(self):
        while not self._stop.wait(BEAT):
            # A failed beat is skipped; `check` finds a lease that was lost.
            with contextlib.suppress(OSError):
                if not self.beat():
                    return


def keep_views(lock: str) -> None:
    """Declares that the folder of a lock has views."""
    _locks[os.path.dirname(lock)] = lock


def find(path: str) -> Lease | None:
    """Returns this process's lease on a folder above a path, if any."""
    for folder, lease in _held.items():
        if path.startswith(f"{folder}/"):
            return lease
    return None


def of(path: str) -> Lease:
    """Returns this process's lease on a folder above a path."""
    lease = find(path)
    if lease is None:
        raise ValueError(
            "A remote file is only appended to in a folder that this process "
            f"has locked. Received: {path}"
        )
    return lease


def place(path: str) -> str:
    """Returns a file's place: a local copy, an object of a view, or `path`.

    The place of a missing file is `path`.
    """
    lease, root = find(path), _root(path)
    if lease is not None and path in lease.staged:
        return lease.staged[path]
    if root is None:
        return path
    name = path[len(root) + 1 :]
    return f"{root}/{_view(root).get(name, name)}"


def listed(folder: str, names: Sequence[str]) -> set[str]:
    """Returns the files of a folder, given the names of its objects.

    Files and names are relative to the folder, and include its subfolders.
    """
    root = _root(f"{folder}/")
    if root is None:
        return {*names}
    inside = f"{folder}/"[len(root) + 1 :]
    own = {paths_lib.VIEWS, os.path.basename(_locks[root])}
    kept = {
        name
        for name in names
        if not _OBJECT.fullmatch(name)
        and (inside or name.split("/")[0] not in own)
    }
    return kept | {
        name.removeprefix(inside)
        for name in _view(root)
        if name.startswith(inside)
    }


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """Holds a lease until the block ends; then uploads the appended logs.

    Raises:
        BlockingIOError: a living process holds it.
        Lost: another process has taken it in the meantime.
    """
    folder = os.path.dirname(path)
    with tempfile.TemporaryDirectory() as local:
        lease = Lease(_claim(path), local)
        try:
            if folder in _locks:
                lease.begin()
            _held[folder] = lease
            yield
            lease.sync()
        except Lost:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                lease.sync()
            raise
        finally:
            _held.pop(folder, None)
            lease.release()


def _claim(path):
    """Claims a number that no other process has; returns the claim's path."""
    views = f"{os.path.dirname(path)}/{paths_lib.VIEWS}"
    while True:
        _wait_until_free(path)
        # Views keep their numbers used even if a lock was deleted by hand.
        used = filter(_NUMBER.match, [*_newest(path), *remote.names(views)])
        number = 1 + max((int(name[:6]) for name in used), default=0)
        name = f"{number:06d}-{secrets.token_hex(8)}"
        _sign(f"{path}/{name}", 0)
        if [*_newest(path)] == [name]:
            return f"{path}/{name}"
        remote.remove(f"{path}/{name}")
        time.sleep(random.uniform(0.0, PAUSE))


def _wait_until_free(path):
    """Waits until no living process has the highest number."""
    living = _living(path)
    if not living:
        return
    waited = min(_age(f"{path}/{name}") for name in living)
    started = time.monotonic()
    while waited + time.monotonic() - started < EXPIRY:
        time.sleep(min(1.0, BEAT))
        now = _living(path)
        if not now:
            return
        if now != living:
            holder = [*now.values()][0].get("holder", "another process")
            raise BlockingIOError(f"{path}: {holder} holds it")


def _living(path):
    """The contents of the highest number's unreleased claims, by name."""
    return {
        name: _read(f"{path}/{name}")
        for name, has_ended in _newest(path).items()
        if not has_ended
    }


def _newest(path):
    """The claims of the highest number, and whether each was released."""
    names = {*remote.names(path)}
    claims = sorted(filter(_CLAIM.fullmatch, names))
    return {
        name: name + _END in names
        for name in claims
        if name[:6] == claims[-1][:6]
    }


def _root(path):
    """The folder with views that a path lies in; None if it lies in none."""
    inside = (root for root in _locks if path.startswith(f"{root}/"))
    return min(inside, key=len, default=None)


def _view(root):
    return _held[root].view if root in _held else _last_view(root)


def _last_view(root):
    """The view that counts in a folder: objects by file."""
    while True:
        names = remote.names(f"{root}/{paths_lib.VIEWS}")
        if not names:
            return {}
        # A view may vanish meanwhile: its successor's publication deletes it.
        with contextlib.suppress(FileNotFoundError):
            return _read_view(root, max(names))


@functools.lru_cache(maxsize=16)
def _read_view(root, name):
    path = f"{root}/{paths_lib.VIEWS}/{name}"
    try:
        view = json.loads(remote.read(path))
        paths_lib.checked(root, [*view, *view.values()])
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The view {path} must be a JSON object of names within its "
            f"folder. Received: {error}"
        ) from error
    return view


def _age(claim):
    """Seconds since the last beat by the storage's clock, never overstated."""
    probe = f"{claim}.{secrets.token_hex(4)}"
    try:
        remote.upload(os.devnull, probe)
        beat, now = remote.stat(claim)[1], remote.stat(probe)[1]
    except FileNotFoundError:  # it was given back
        return EXPIRY
    finally:
        remote.remove(probe)
    return max(0.0, (now - beat) / 1e9 - _RESOLUTION)


def _read(claim):
    try:
        return json.loads(remote.read(claim))
    except (FileNotFoundError, ValueError):
        return {}


def _sign(claim, beats):
    holder = f"process {os.getpid()} of {socket.gethostname()}"
    text = json.dumps({"beats": beats, "holder": holder})
    _write(claim, text.encode().ljust(_SIZE))


def _write(path, content):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        remote.upload(file.name, path)
