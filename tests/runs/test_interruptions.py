"""What stops a run: signals, and numbers that are not finite."""

import itertools
import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from jest_tf import training
from jest_tf.embeddings import ON_TENSORFLOW
from jest_tf.runs import interruptions
from jest_tf.training import stepper


class SignalsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
            signal.signal(number, signal.default_int_handler)

    def send(self, number=signal.SIGTERM):
        os.kill(os.getpid(), number)
        return {}

    def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        default = signal.default_int_handler
        with interruptions.Signals() as signals:
            self.assertNotEqual(signal.getsignal(signal.SIGTERM), default)
            self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
            self.send(signal.SIGINT)
        self.assertEqual(signal.getsignal(signal.SIGTERM), default)
        self.assertIsNone(signals.received)

    def test_another_thread_than_the_main_one_has_none(self):
        seen = []

        def run():
            with interruptions.Signals():
                seen.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self.assertEqual(seen, [signal.default_int_handler])

    def test_a_signal_is_held_back_while_it_is_deferred(self):
        done = []
        with interruptions.Signals() as signals:
            signals.on_train_begin()
            with self.assertRaises(interruptions.Preempted):
                with signals.deferred():
                    self.send()
                    done.append("saved")
                done.append("went on")
            # What saves on the way out is not stopped again.
            with signals.deferred():
                done.append("saved again")
        self.assertEqual(done, ["saved", "saved again"])

    def test_outside_of_a_step_it_raises_at_once(self):
        # In the first step, whose changes are not worth waiting for, as well.
        states = ["before", "between", *["first"] * ON_TENSORFLOW]
        for number, state in itertools.product(
            (signal.SIGTERM, signal.SIGINT), states
        ):
            with interruptions.Signals() as signals:
                if state != "before":
                    signals.on_train_begin()
                    signals.on_train_batch_begin(0)
                if state == "between":
                    signals.on_train_batch_end(0)
                with self.assertRaises(interruptions.Preempted) as stop:
                    self.send(number)
            self.assertEqual(signals.received, number.name)
            self.assertEqual(stop.exception.code, 75)

    def test_a_step_ends_before_it_raises(self):
        with interruptions.Signals() as signals:
            signals.on_train_begin()
            signals.on_train_batch_begin(0)
            signals.on_train_batch_end(0)
            signals.on_train_batch_begin(1)
            self.send()
            self.send()  # schedulers repeat themselves
            with self.assertRaises(interruptions.Preempted):
                signals.on_train_batch_end(1)
            self.send()  # and don't disturb the saving

    def together(self, signals, others=False):
        """What the workers are asked, as `signals` asks it."""
        asked = []

        def any_worker(wish):
            asked.append(wish)
            return wish or others

        signals.stop_together(any_worker)
        return asked

    def test_workers_are_asked_at_the_end_of_a_step_and_stop_together(self):
        for sent_at, others, received in (
            (0, False, "SIGTERM"),  # waits, in the first step
            (2, False, "SIGTERM"),  # and between two
            (None, True, "a signal to another worker"),
        ):
            with interruptions.Signals() as signals:
                asked = self.together(signals, others)
                signals.on_train_begin()
                with self.assertRaises(interruptions.Preempted):
                    for batch in range(3):
                        if batch == sent_at:
                            self.send()
                        signals.on_train_batch_begin(batch)
                        signals.on_train_batch_end(batch)
            last = sent_at or 0
            expected = [False] * last + [sent_at is not None]
            self.assertEqual(asked, expected)
            self.assertEqual(signals.received, received)

    def test_between_two_fits_workers_stop_where_they_meet(self):
        for others, received in (
            (False, "SIGTERM"),
            (True, "a signal to another worker"),
        ):
            with interruptions.Signals() as signals:
                asked = self.together(signals, others)
                signals.on_train_end()
                if not others:
                    self.assertFalse(signals.meet())
                    self.assertTrue(signals.meet(True))
                    self.send()  # waits
                with self.assertRaises(interruptions.Preempted):
                    signals.meet()
            self.assertEqual(signals.received, received)
            expected = [False] if others else [*[False] * 3, True, True]
            self.assertEqual(asked, expected)

    def test_nobody_is_asked_after_the_last_fit(self):
        with interruptions.Signals() as signals:
            asked = self.together(signals)
            signals.release()
            with self.assertRaises(interruptions.Preempted):
                self.send()
        self.assertEqual(asked, [])

    def test_a_handler_that_was_set_since_is_replaced(self):
        # As the service does that TensorFlow starts for several workers.
        with interruptions.Signals() as signals:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.together(signals)
            self.send()
        self.assertEqual(signals.received, "SIGTERM")

    def test_an_exception_that_got_lost_is_raised_again(self):
        # As in a finalizer, where Python drops them.
        with interruptions.Signals() as signals:
            signals.on_train_begin()
            try:
                self.send()
            except interruptions.Preempted:
                pass
            with self.assertRaises(interruptions.Preempted):
                signals.on_train_batch_begin(0)

    def test_a_second_interrupt_kills(self):
        with interruptions.Signals() as signals:
            signals.on_train_batch_begin(0)
            signals.on_train_batch_end(0)
            signals.on_train_batch_begin(1)
            self.send(signal.SIGINT)  # waits for the step
            self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_DFL)


class FiniteCheckTest(tf.test.TestCase):
    """Losses that are not finite are in test_run.py."""

    @pytest.mark.tensorflow  # by its custom gradient
    def test_a_gradient_that_is_not_finite_is_seen_in_its_own_step(self):
        @tf.custom_gradient
        def trap(values):
            return values, lambda gradient: gradient * np.inf

        extra = [keras.layers.Lambda(trap)]
        model = training.JESTModel(tiny.learner(0, extra=extra))
        model.compile(keras.optimizers.SGD(0.1))
        with self.assertRaises(stepper.NotFinite) as raised:
            model.fit(
                tiny.dataset(tiny.super_batches(2)),
                verbose=0,
                callbacks=[interruptions.FiniteCheck()],
            )
        error = raised.exception
        self.assertEqual(model.optimizer.iterations, 1)
        self.assertTrue(np.isfinite(error.values["loss"]))
        self.assertNotIn("loss", error.names)
        # Those of the image tower, whose gradient passes the trap.
        self.assertLen(error.names, 2)
        for name in error.names:
            self.assertRegex(name, "dense.*(kernel|bias)")
