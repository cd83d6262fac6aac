"""Runs tasks that need each other, in a folder that other runners may use.

A task is commands of Python, a process each. `run.py` plans them.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from benchmarks.icontext import results
from jest_tf import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to run once.

    Attributes:
        name: unique.
        commands: arguments of Python, one after the other.
        needs: names of the tasks that come before.
        steps: what it costs, in uniform steps; nothing if it is done.
        is_done: tells whether it is, by what is on disk now.
        done: a file to make once it is done, or None for a cell.
        settings: of a cell, and the file that its command reads them from.
        is_known: whether its result is known, so that it runs only for what
            needs the run itself, as sidecars do a reference.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    steps: float
    is_done: Callable[[], bool]
    done: pathlib.Path | None = None
    settings: tuple[config_lib.TrainConfig, pathlib.Path] | None = None
    is_known: bool = False


class Runner:
    """Runs tasks as soon as what they need is there.

    Several may work in one folder: a task that another one has is waited for.
    """

    def __init__(self, tasks, work, jobs):
        self._tasks = tasks
        self._work = work
        self._jobs = jobs
        self._lock = threading.Lock()
        self._spent = [0.0, 0.0]  # steps, seconds
        self._done = set()
        self._failed = collections.OrderedDict()
        self._processes = set()
        self._stopped = threading.Event()

    def run(self):
        """Whether all went well.

        A signal to stop is handed on to what runs, and that is waited for: a
        training is there saved, and goes on when the command is given again.
        """
        waiting = dict(self._tasks)
        with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
            try:
                self._run(waiting, pool)
            except (KeyboardInterrupt, SystemExit):
                self._stop()
                raise
        for task in waiting.values():
            say(f"not run, for what it needs failed: {task.name}")
        for failed, log in self._failed.items():
            say(f"failed: {failed}, see {log}")
        return not waiting and not self._failed

    def _run(self, waiting, pool):
        running = {}
        while waiting or running:
            ready = [task for task in waiting.values() if self._ready(task)]
            for task in ready[: self._jobs - len(running)]:
                del waiting[task.name]
                running[pool.submit(self._execute, task)] = task
            if not running:
                break
            finished, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                self._take(running.pop(future), *future.result())

    def _stop(self):
        with self._lock:
            self._stopped.set()
            for number in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
        say("stops: what is half done goes on when the command is repeated")

    def _ready(self, task):
        return all(
            need in self._done or need not in self._tasks for need in task.needs
        )

    def _execute(self, task):
        """Whether a task went well, and its seconds."""
        log = self._log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log.with_suffix(".lock"), "a", encoding="utf-8") as lock:
            if not self._has_locked(lock, task):
                return False, 0.0
            started = time.monotonic()
            if task.is_done():
                return True, 0.0
            say(f"starts: {task.name}")
            if task.settings:
                config, path = task.settings
                path.parent.mkdir(parents=True, exist_ok=True)
                config_lib.save_config(config, os.fspath(path))
            for command in task.commands:
                if not self._went_well(command, log):
                    return False, time.monotonic() - started
            if task.done:
                task.done.touch()
            return True, time.monotonic() - started

    def _has_locked(self, lock, task):
        """Waits until no other runner has the task; False if told to stop."""
        is_first = True
        while not self._stopped.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_first:
                    say(f"waits for another runner's: {task.name}")
                is_first = False
                self._stopped.wait(_POLL_SECONDS)
            else:
                return True
        return False

    def _went_well(self, command, log):
        with open(log, "a", encoding="utf-8") as file, self._lock:
            if self._stopped.is_set():
                return False
            self._note_processor(command, results.STARTED)
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=_ROOT,
                env=os.environ | _ONE_THREAD,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is handed on by `_stop`, once
            )
            self._processes.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            self._processes.remove(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime
        self._note_processor(command, f"{seconds:.1f}")
        return not process.returncode

    def _note_processor(self, command, line):
        """Notes in a training's run directory that it starts, or its time."""
        if "trainers.train" in command:
            workdir = pathlib.Path(command[command.index("--workdir") + 1])
            workdir.mkdir(parents=True, exist_ok=True)
            path = workdir / results.PROCESSOR_FILE
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def _take(self, task, went_well, seconds):
        if not went_well:
            self._failed[task.name] = self._log(task)
            say(f"failed: {task.name}, see {self._log(task)}")
            return
        self._done.add(task.name)
        self._spent[0] += task.steps
        self._spent[1] += seconds
        left = sum(
            task.steps
            for task in self._tasks.values()
            if task.name not in self._done
        )
        hours = left * self._spent[1] / max(self._spent[0], 1.0)
        hours /= 3600 * self._jobs
        say(
            f"[{len(self._done)}/{len(self._tasks)}] {task.name}: "
            f"{seconds:,.0f} s; about {hours:.1f} h left"
        )

    def _log(self, task):
        return self._work / "logs" / f"{task.name.replace(' ', '-')}.log"


# One process a core: more threads would get in each other's way.
_ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def stop(number, frame):
    """Handles a signal: what runs is told, and waited for."""
    sys.exit(128 + number)


def say(line):
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
