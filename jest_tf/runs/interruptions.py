"""Interruptions of a run: signals, and nonfinite numbers.

On a signal, the step in progress ends and the state is saved. A nonfinite loss
or weight ends `fit` before its step is written.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import keras

from jest_tf import distribution
from jest_tf.embeddings import ON_TENSORFLOW
from jest_tf.runs import directory, steps
from jest_tf.training import stepper

# EX_TEMPFAIL of sysexits.h: "try again later", here with the same command.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """Ends a process that was asked to stop; uncaught, it exits with 75."""


class Signals(keras.callbacks.Callback):
    """Turns SIGTERM and the first SIGINT into `Preempted` at the end of a step.

    It is a context manager, which restores the handlers at its end, and a
    callback of `fit`, to be placed after the callbacks that log and save a step
    and before slow ones. Outside of steps, and in the first step, which changes
    nothing worth saving, `Preempted` is raised at once; not in the first step
    on JAX, which may crash. A second SIGINT kills. Ignored signals stay
    ignored, and only the main thread handles signals.

    Attributes:
        received: the name of the signal; None before any.
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
                # None is a handler that was not set from Python.
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
        """Defers signals until the block is left."""
        at_once, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = at_once
        if at_once:
            self._raise_if_received()

    def stop_together(self, any_worker: Callable[[bool], bool]) -> None:
        """Makes all workers stop after the same step.

        Each worker calls `any_worker` after each step; given whether this
        worker got a signal, it returns whether any worker did.
        """
        self._any_worker, self._at_once = any_worker, False
        # TensorFlow's service for workers has taken SIGTERM and ignores it.
        self._take()

    def meet(self, wish: bool = False) -> bool:
        """Returns whether any worker wishes, once all have called it.

        Stops all of them if any got a signal. Call it between two `fit`s.
        """
        if self._any_worker is None:
            return wish
        self._stop_if_any()
        return self._any_worker(wish)

    def release(self) -> None:
        """Raises at once from here on, as no worker waits for another."""
        self._at_once = True
        self._raise_if_received()

    def on_train_begin(self, logs=None):
        """Resets the state for a new `fit`."""
        self._at_once, self._has_stepped = self._any_worker is None, False

    def on_train_batch_begin(self, batch, logs=None):
        """Defers signals, as the state changes from here on."""
        if self._any_worker is None:
            self._at_once = ON_TENSORFLOW and not self._has_stepped
            self._raise_if_received()

    def on_train_batch_end(self, batch, logs=None):
        """Stops on a signal: the step is logged, and saved if due."""
        self._has_stepped = True
        if self._any_worker is None:
            self._raise_if_received()
            self._at_once = True
        else:
            self._stop_if_any()

    def on_train_end(self, logs=None):
        """Raises at once again, unless other workers may wait."""
        if self._any_worker is None:
            self.release()

    def _stop_if_any(self):
        if self._any_worker(self.received is not None):
            self.received = self.received or "a signal to another worker"
            raise Preempted(EXIT_CODE)

    def _take(self):
        for number in self._before:
            signal.signal(number, self._handle)

    def _raise_if_received(self):
        if self.received:
            self._at_once = False  # a second signal must not break into saving
            raise Preempted(EXIT_CODE)

    def _handle(self, number, frame):
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if self._at_once:
            self._raise_if_received()


class FiniteCheck(steps.StepCallback):
    """Ends `fit` at a nonfinite loss, score or weight.

    Belongs before the callbacks that log and save. A nonfinite gradient leaves
    its step's loss finite, so weights are checked in one pass over them; AdamW
    makes about seven. On TPUs only scalars are checked, as others would move to
    the host; clipping spreads a nonfinite gradient to all weights.
    """

    def on_train_begin(self, logs=None):
        """Finds the variables to check."""
        variables = self.model.trainable_variables
        strategy = self.model.distribute_strategy
        if distribution.is_tpu(strategy):
            variables = [weight for weight in variables if not weight.shape]
        self._find = stepper.finder(variables)

    def on_train_batch_end(self, batch, logs=None):
        """Checks the metrics of the step and the variables."""
        super().on_train_batch_end(batch, logs)
        self.model.sync()
        logs = logs or {}
        names = stepper.not_finite(logs) + self._find()
        if names:
            values = {
                name: float(logs[name])
                for name in ("loss", "scale", "bias")
                if name in logs
            }
            raise stepper.NotFinite(names, values)


def not_finite_error(
    step: int,
    ids: Sequence[int],
    error: stepper.NotFinite,
    learning_rate: float,
    workdir: str | None,
) -> ValueError:
    """Returns the error of a step with nonfinite numbers.

    The case, with the ids of the step's super-batch, is written to `workdir`,
    if any.
    """
    values = error.values | {"learning_rate": learning_rate}
    place = ""
    if workdir:
        case = {
            "step": step,
            "super_batch": step - 1,
            "not_finite": list(error.names),
            # JSON has no NaN.
            **{name: str(value) for name, value in values.items()},
            "ids": ids,
        }
        directory.write(workdir, directory.NOT_FINITE_FILE, case)
        path = directory.path(workdir, directory.NOT_FINITE_FILE)
        place = f". Its ids are in {path}"
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value:.6g}"
        for name, value in values.items()
    )
    return ValueError(
        f"Step {step} (super-batch {step - 1}): expected finite numbers. "
        f"Received: {stepper.shorten(error.names)} not finite; {shown}{place}; "
        "begin another run with a lower `optimizer.learning_rate`"
    )
