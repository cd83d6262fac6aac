"""Runs tasks with dependencies, a process for each command."""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from benchmarks import report
from jest_tf import files

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# One process per core: more threads would slow each other down.
_ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Two lines in a run directory for each process that trained it: that it
# started, and its processor seconds once it had ended.
PROCESSOR_FILE, STARTED = "processor_seconds.txt", "started"
PROLONG = "benchmarks.icontext.prolong"


class Task(NamedTuple):
    """One thing to do."""

    name: str  # unique
    commands: tuple[tuple[str, ...], ...]  # Python modules with arguments
    needs: tuple[str, ...] = ()  # names of tasks that come before
    steps: float = 0.0  # cost, in uniform steps
    done: pathlib.Path | None = None  # file to make at the end


class Runner:
    """Runs tasks as soon as what they need is done.

    On SystemExit, as raised for a signal, it stops the processes and waits: a
    training saves, and continues when the command is given again.

    Args:
        tasks: `{name: Task}`; a need that is not among them counts as done.
        work: folder of the logs. Only one runner may work in it.
        jobs: processes at a time.
    """

    def __init__(self, tasks, work, jobs):
        self._tasks = tasks
        self._work = pathlib.Path(work)
        self._jobs = jobs
        self._lock = threading.Lock()
        self._processes = set()
        self._stopped = False

    def run(self):
        """Returns whether all went well.

        Raises:
            SystemExit: another runner works in the folder.
        """
        try:
            with (
                files.locked(str(self._work / "runner.lock")),
                concurrent.futures.ThreadPoolExecutor(self._jobs) as pool,
            ):
                try:
                    return self._run(pool)
                except SystemExit:
                    self._stop()
                    raise
        except BlockingIOError:
            raise SystemExit(
                f"error: another runner works in {str(self._work)!r}; "
                "wait for it or name another folder with --work"
            ) from None

    def _run(self, pool):
        waiting, running = dict(self._tasks), {}
        done, failed = set(), False
        while waiting or running:
            ready = [
                task
                for task in waiting.values()
                if all(n in done or n not in self._tasks for n in task.needs)
            ]
            for task in ready[: self._jobs - len(running)]:
                del waiting[task.name]
                running[pool.submit(self._execute, task)] = task
            if not running:
                break
            finished, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                task, seconds = running.pop(future), future.result()
                if seconds is None:
                    failed = True
                    report.log(f"failed: {task.name}, see {self._log(task)}")
                else:
                    done.add(task.name)
                    count = f"[{len(done)}/{len(self._tasks)}]"
                    report.log(f"{count} {task.name}: {seconds:,.0f} s")
        for task in waiting.values():
            report.log(f"not run, as what it needs failed: {task.name}")
        return not waiting and not failed

    def _execute(self, task):
        """Seconds that a task took, or None if it failed."""
        started = time.monotonic()
        log = self._log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in task.commands:
            if not self._went_well(command, log):
                return None
        if task.done:
            task.done.parent.mkdir(parents=True, exist_ok=True)
            task.done.touch()
        return time.monotonic() - started

    def _went_well(self, command, log):
        with open(log, "a", encoding="utf-8") as file, self._lock:
            if self._stopped:
                return False
            _note_processor(command, STARTED)
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=_ROOT,
                env=os.environ | _ONE_THREAD,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is passed on by `_stop`, once
            )
            self._processes.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            self._processes.remove(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        _note_processor(command, f"{usage.ru_utime + usage.ru_stime:.1f}")
        return not process.returncode

    def _stop(self):
        with self._lock:
            self._stopped = True
            for number in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
        report.log("stopping; give the command again to continue")

    def _log(self, task):
        return self._work / "logs" / f"{task.name.replace(' ', '-')}.log"


def processor_seconds(workdir):
    """Processor seconds of all processes that trained a run.

    Returns:
        None if a process was killed together with its runner.
    """
    path = pathlib.Path(workdir) / PROCESSOR_FILE
    lines = path.read_text().split() if path.exists() else []
    times = [float(line) for line in lines if line != STARTED]
    is_known = times and 2 * len(times) == len(lines)
    return round(sum(times), 1) if is_known else None


def _note_processor(command, line):
    if command[0] in ("trainers.train", PROLONG):
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / PROCESSOR_FILE, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def exit_on_signals():
    """Makes SIGINT and SIGTERM end this process by SystemExit."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
