"""What stops a run before its last step: signals, numbers that aren't finite.

A signal lets the step in progress end and its state be saved. A loss or weight
that is not finite ends `fit` before anything is written of its step; the
super-batches at fault are then left out, if the run's settings say so, by a
list in the run directory from which the super-batch of any step follows. The
state on disk is the business of `runs/checkpoints.py`.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from jest_tf.runs import directory, steps
from jest_tf.training import finite

# EX_TEMPFAIL of sysexits.h: "try again later", here with the same command.
EXIT_CODE = 75

# A batch that breaks the step is rare; several in a row mean that the learner
# itself has diverged.
_MOST_SKIPS = 3
_SKIPS_WINDOW = 1000  # super-batches

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The process was asked to stop; unless caught, it exits with 75."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Signals(keras.callbacks.Callback):
    """Turns SIGTERM and the first SIGINT into `Preempted` at a step's end.

    A context manager, which puts the handlers back when it is left, and a
    callback of `fit`, which belongs behind those that save and log a step and
    before those that may take long. While no step is in progress, and in the
    first one, which changes nothing worth saving, `Preempted` is raised at
    once. A second SIGINT kills. Outside of the main thread, where Python lets
    nobody handle signals, it does nothing; a signal that is ignored stays so.

    With `stop_together` all workers stop at the end of the execution in which
    the first of them had a signal, which then waits for that.

    Attributes:
        received: the name of the signal, None before there was one.
    """

    def __init__(self):
        super().__init__()
        self.received = None
        self._before = {}
        self._at_once = True
        self._has_stepped = False
        self._any_worker = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                # None is a handler that wasn't set from Python.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
            self._take()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Holds back what would be raised at once until the block is left."""
        at_once, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = at_once
        if at_once:
            self._raise_if_received()

    def stop_together(self, any_worker: Callable[[bool], bool]) -> None:
        """From now on steps that several workers make end for all of them.

        Args:
            any_worker: whether any worker had a signal, of whether this one
                had; asked by all at the end of each execution.
        """
        self._any_worker = any_worker
        # TensorFlow's service for workers has taken SIGTERM for itself, and
        # does nothing with it.
        self._take()

    def on_train_begin(self, logs=None):
        """Starts anew with every `fit`."""
        self._at_once, self._has_stepped = self._any_worker is None, False

    def on_train_batch_begin(self, batch, logs=None):
        """From here on the state is in flux."""
        if self._any_worker is None:
            self._at_once = not self._has_stepped
            self._raise_if_received()

    def on_train_batch_end(self, batch, logs=None):
        """The step is logged, and saved if it was due."""
        self._has_stepped = True
        if self._any_worker is None:
            self._raise_if_received()
            self._at_once = True
        elif self._any_worker(self.received is not None):
            self.received = self.received or "a signal to another worker"
            raise Preempted

    def on_train_end(self, logs=None):
        """No other worker waits for what comes after the last step."""
        self._at_once = True
        self._raise_if_received()

    def _take(self):
        for number in self._before:
            signal.signal(number, self._handle)

    def _raise_if_received(self):
        if self.received:
            self._at_once = False
            raise Preempted

    def _handle(self, number, frame):
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if self._at_once:
            self._at_once = False  # a second one mustn't break into saving
            raise Preempted


class FiniteCheck(steps.StepCallback):
    """Ends `fit` at a loss, score or weight that is not finite.

    Belongs before the callbacks that log and save, so that they see nothing of
    that step. The weights are looked at because a gradient that is not finite
    leaves the loss of its own step finite; it costs one pass over them, of the
    seven or so that AdamW makes. On TPUs, where it would move them to the host,
    only scalars are: with `optimizer.clip_norm` they tell of all.

    Raises:
        finite.NotFinite: from within `fit`.
    """

    def __init__(self, start_step: int = 0):
        super().__init__(start_step)
        self._find = None

    def on_train_begin(self, logs=None):
        """Finds what to look at."""
        variables = self.model.trainable_variables
        strategy = self.model.distribute_strategy
        if isinstance(strategy, tf.distribute.TPUStrategy):
            variables = [one for one in variables if not one.shape]
        self._find = finite.finder(variables)

    def on_train_batch_end(self, batch, logs=None):
        """Looks."""
        super().on_train_batch_end(batch, logs)
        logs = logs or {}
        # XLA compiles no check of what is scored, and a draw may go around a
        # row that is not finite: of that only the draw's score tells.
        names = [
            name
            for name in ("loss", "select/score")
            if not np.isfinite(logs.get(name, 0.0))
        ]
        names += self._find()
        if names:
            values = {
                name: float(logs[name])
                for name in ("loss", "scale", "bias")
                if name in logs
            }
            raise finite.NotFinite(names, values)


class Skipped:
    """The super-batches that a run leaves out, a list in its directory.

    Args:
        workdir: the run directory.
        writes: whether this process keeps the list on disk, as one of several
            workers does.
    """

    def __init__(self, workdir: str, *, writes: bool = True):
        self._workdir = workdir
        self._writes = writes
        self._cases = []
        if directory.has(workdir, directory.SKIPPED_FILE):
            self._cases = directory.read(workdir, directory.SKIPPED_FILE)

    @property
    def numbers(self) -> list[int]:
        """Of the super-batches left out, ascending."""
        return sorted(
            number for one in self._cases for number in one["super_batches"]
        )

    def at(self, step: int) -> int:
        """The number of the super-batch that a step trains on.

        Super-batches are dealt to the steps in turn, but for those left out,
        so leaving one out changes nothing of the steps before it.

        Args:
            step: steps done before this one.
        """
        number = step
        for skipped in self.numbers:
            number += skipped <= number
        return number

    def add(self, case: dict) -> bool:
        """Leaves out more super-batches.

        Args:
            case: `super_batches`, their numbers, and what else is to be kept.

        Returns:
            False, with nothing added, where it was done three times already
            within the thousand super-batches before: it doesn't help.
        """
        start = min(case["super_batches"]) - _SKIPS_WINDOW
        recent = [
            one for one in self._cases if max(one["super_batches"]) >= start
        ]
        if len(recent) >= _MOST_SKIPS:
            return False
        self._cases.append(case)
        if self._writes:
            directory.write(self._workdir, directory.SKIPPED_FILE, self._cases)
        return True
