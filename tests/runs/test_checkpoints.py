"""Checkpoints: when, how many, whole or not at all; resumed = unbroken."""

import contextlib
import io
import itertools
import os
import shutil
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import config, files, training
from jest_tf.runs import checkpoints, directory
from jest_tf.training import optimizer, stepper

# The files of a checkpoint.
DATA, INDEX = "state.data-00000-of-00001", "state.index"


class OfUser(keras.optimizers.SGD):
    """An optimizer as a user would write it."""


def one_layer(optimizer):
    """A model with an optimizer, both built."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer)
    model.optimizer.build(model.trainable_variables)
    return model


class CheckpointTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.get_temp_dir()
        self.folder = os.path.join(self.workdir, "checkpoints")

    def model(self, **settings):
        """Built, its optimizer too, and otherwise untouched."""
        model = training.JESTModel(tiny.learner(**settings))
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.build(None)
        model.optimizer.build(model.trainable_variables)
        return model

    def callback(
        self, model, kept=9, *, steps=2**31 - 1, every_steps=1, **options
    ):
        self.enterContext(mock.patch.object(checkpoints, "_KEPT", kept))
        run = config.TrainConfig(
            steps=steps, checkpoint=config.CheckpointConfig(every_steps)
        )
        callback = checkpoints.Checkpoints(self.workdir, run, **options)
        callback.set_model(model)
        return callback

    def save(self, model, step):
        """A checkpoint of `step`; nothing else is done."""
        model.optimizer.iterations.assign(step)
        self.callback(model, start_step=step - 1).on_train_batch_end(0)

    def steps(self):
        return [
            int(name.removeprefix("step-"))
            for name in sorted(os.listdir(self.folder))
        ]


class SavingTest(CheckpointTestCase):
    def test_every_few_steps_of_the_run_and_after_the_last(self):
        # From the start, and of a `fit` that goes on.
        for start_step, expected in ((0, [3, 6, 8]), (4, [6, 8])):
            shutil.rmtree(self.folder, ignore_errors=True)
            callback = self.callback(
                self.model(), every_steps=3, steps=8, start_step=start_step
            )
            for batch in range(8 - start_step):
                callback.on_train_batch_end(batch)
            self.assertEqual(self.steps(), expected)

    def test_the_newest_are_kept(self):
        callback = self.callback(self.model(), checkpoints._KEPT)
        seen = []
        for batch in range(4):
            callback.on_train_batch_end(batch)
            seen.append(self.steps())
        self.assertEqual(seen, [[1], [1, 2], [2, 3], [3, 4]])

    def test_room_for_the_next_one_is_looked_for_when_no_step_is_lost(self):
        model = self.model()
        size = 2**20 + sum(
            variable.numpy().nbytes
            for variable in (*model.variables, *model.optimizer.variables)
        )
        callback = self.callback(model, every_steps=3)
        with mock.patch.object(shutil, "disk_usage") as usage:
            usage.return_value.free = size - 1
            pattern = f"{size:,} bytes. Received: {size - 1:,} free bytes"
            with self.assertRaisesRegex(OSError, pattern):
                callback.on_train_begin()
            usage.return_value.free = size
            callback.on_train_begin()
            # At the save, and then.
            free = itertools.chain([size], itertools.repeat(size - 1))
            usage.side_effect = lambda path: mock.Mock(free=next(free))
            callback.on_train_batch_end(0)
            callback.on_train_batch_end(1)
            with self.assertRaisesRegex(OSError, pattern):
                callback.on_train_batch_end(2)
        self.assertEqual(self.steps(), [3])

    def test_what_is_not_finite_is_never_saved(self):
        for spoil in (
            lambda model: model.learner.bias.assign(np.inf),
            lambda model: model.optimizer.variables[-1].assign(np.nan),
        ):
            model = self.model()
            spoil(model)
            with self.assertRaises(stepper.NotFinite) as error:
                self.callback(model).on_train_batch_end(0)
            self.assertLen(error.exception.names, 1)
            self.assertEqual(checkpoints.saved_steps(self.workdir), [])

    def test_a_crash_anywhere_in_a_save_leaves_the_state_before_or_after(self):
        for crash_at in range(20):
            with self.subTest(crash_at):
                shutil.rmtree(self.folder, ignore_errors=True)
                model = self.model()
                callback = self.callback(model, 1)
                model.optimizer.iterations.assign(1)
                callback.on_train_batch_end(0)
                model.optimizer.iterations.assign(2)
                crashed = False
                try:
                    with Crash(crash_at):
                        callback.on_train_batch_end(1)
                except KeyboardInterrupt:
                    crashed = True
                with directory.locked(self.workdir):
                    pass  # which deletes partial files
                again = self.model(seed=3)
                step = checkpoints.restore(again, self.workdir).step
                self.assertEqual(again.optimizer.iterations, step)
                self.assertIn(step, (1, 2))
                self.assertAllEqual(self.steps()[-1:], [step])
                if not crashed:
                    self.assertEqual(self.steps(), [2])
                    break
        # Two files and their folder synced, renamed, the folder above synced,
        # the old folder renamed.
        self.assertEqual(crash_at, 6)


class Crash:
    """Interrupts before the n-th call that touches what lies on the disk."""

    def __init__(self, number):
        self._left = number
        self._patches = [
            mock.patch.object(checkpoints.os, name, self._counted(name))
            for name in ("fsync", "replace", "remove")
        ]

    def _counted(self, name):
        function = getattr(os, name)

        def call(*arguments):
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            return function(*arguments)

        return call

    def __enter__(self):
        for patch in self._patches:
            patch.start()

    def __exit__(self, *_):
        for patch in self._patches:
            patch.stop()


class DamagedTest(CheckpointTestCase):
    def setUp(self):
        super().setUp()
        model = self.model()
        for step in (1, 2):
            model.learner.bias.assign(float(step))
            self.save(model, step)

    def path(self, step, name=DATA):
        return os.path.join(self.folder, f"step-{step:09d}", name)

    def damage(self, step, how, name=DATA):
        with open(self.path(step, name), "r+b") as file:
            content = file.read()
            file.seek(0)
            file.truncate()
            file.write(how(content))

    def test_the_one_before_a_damaged_one_is_taken(self):
        def flipped(place):
            return lambda content: (
                content[:place]
                + bytes([content[place] ^ 1])
                + content[place + 1 :]
            )

        whole = os.path.join(self.get_temp_dir(), "whole")
        shutil.copytree(self.folder, whole)
        for name in (DATA, INDEX):
            size = os.path.getsize(self.path(2, name))
            cases = {
                "empty": lambda content: b"",
                "cut in half": lambda content: content[: len(content) // 2],
                "without its end": lambda content: content[:-1],
                "zeros": lambda content: bytes(len(content)),
                **{
                    f"bit {place} flipped": flipped(place)
                    for place in (size // 3, size // 2, size - 1)
                },
            }
            for case, how in cases.items():
                with self.subTest(f"{name} {case}"):
                    self.damage(2, how, name)
                    self.check_that_the_first_is_taken()
                shutil.rmtree(self.folder)
                shutil.copytree(whole, self.folder)

    def check_that_the_first_is_taken(self):
        model = self.model()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(checkpoints.restore(model, self.workdir).step, 1)
        self.assertAllEqual(model.learner.bias, 1.0)
        self.assertRegex(said.getvalue(), "step-000000002 is damaged: ")
        self.assertEqual(self.steps_left(), [1])

    def test_a_step_may_be_damaged_again(self):
        for _ in range(2):
            self.damage(2, lambda content: content[:-1])
            self.check_that_the_first_is_taken()
            folders = (os.path.dirname(self.path(step)) for step in (1, 2))
            shutil.copytree(*folders)

    def test_a_damaged_one_is_not_loaded_by_its_step(self):
        self.damage(2, lambda content: content[:-1])
        with self.assertRaisesRegex(checkpoints.Damaged, "step-000000002 is"):
            checkpoints.load(self.model(), self.workdir, 2)

    def steps_left(self):
        return checkpoints.saved_steps(self.workdir)

    def test_if_all_are_damaged_nothing_starts_again_in_silence(self):
        for step in (1, 2):
            self.damage(step, lambda content: content[:-1])
        for _ in range(2):
            with (
                contextlib.redirect_stderr(io.StringIO()),
                self.assertRaisesRegex(
                    ValueError, r"All check.*\[1, 2\].*another directory"
                ),
            ):
                checkpoints.restore(self.model(), self.workdir)

    def test_a_whole_one_of_another_model_is_no_damage(self):
        other = self.model(dim=7)
        with self.assertRaisesRegex(ValueError, "of this very model"):
            checkpoints.restore(other, self.workdir)
        self.assertEqual(self.steps_left(), [1, 2])

    def test_what_the_disk_does_not_give_is_no_damage(self):
        os.remove(self.path(2))
        os.symlink(self.path(2), self.path(2))  # it opens itself, for ever
        with self.assertRaises(OSError):
            checkpoints.restore(self.model(), self.workdir)
        self.assertEqual(self.steps_left(), [1, 2])


class RestoreTest(CheckpointTestCase):
    def test_the_newest_is_restored_and_other_files_are_not(self):
        model = self.model()
        self.assertEqual(checkpoints.restore(model, self.workdir).step, 0)
        # As numbers, 10 comes after 9; the name of the last is too long a
        # number for its padding.
        for step in (9, 10, 2**30):
            model.learner.bias.assign(float(step))
            self.save(model, step)
        for name in ("step-000000011.partial", "step-x", "notes.txt"):
            files.write_whole(f"{self.folder}/{name}", b"half-written")
        again = self.model()
        self.assertEqual(checkpoints.restore(again, self.workdir).step, 2**30)
        self.assertAllEqual(again.learner.bias, np.float32(2**30))
        shutil.rmtree(os.path.join(self.folder, f"step-{2**30}"))
        self.assertEqual(checkpoints.restore(again, self.workdir).step, 10)
        self.assertAllEqual(again.learner.bias, 10.0)
        self.assertEqual(again.optimizer.iterations, 10)

    def test_an_optimizer_that_is_not_built_is_saved_as_it_begins(self):
        models = [training.JESTModel(tiny.learner(0)) for _ in range(2)]
        for model in models:
            model.compile(keras.optimizers.AdamW(0.1))
        checkpoints.save(models[0], self.workdir, 0)
        state = checkpoints.read(self.workdir, 0)
        self.assertIn("optimizer/adam_w/iteration", state)
        self.assertEqual(checkpoints.restore(models[1], self.workdir).step, 0)

    def test_names_of_optimizers_may_differ(self):
        """As default names do between versions of Keras."""
        kinds = keras.optimizers

        def scaled(**name):
            return kinds.LossScaleOptimizer(kinds.SGD(0.1, **name))

        # The class in paths, and the default names of Keras 3.12 and 3.15.
        for kind, part, *names in (
            (kinds.SGD, "sgd", "SGD", "sgd"),
            (optimizer.AdamW, "adam_w", "adamw", "adam_w"),
            (scaled, "sgd", "SGD", "sgd"),
            (OfUser, "of_user", "SGD", "of_user"),
        ):
            for name, other in (names, reversed(names)):
                with self.subTest(part=part, name=name):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    saved = one_layer(kind(name=name))
                    variables = saved.optimizer.variables
                    for place, variable in enumerate(variables):
                        value = tf.fill(variable.shape, place)
                        variable.assign(tf.cast(value, variable.dtype))
                    checkpoints.save(saved, self.workdir, 7)
                    arrays = checkpoints.read(self.workdir, 7)
                    self.assertIn(f"optimizer/{part}/learning_rate", arrays)
                    for again in (kind(name=other), kind()):
                        checkpoints.restore(one_layer(again), self.workdir)
                        tiny.assert_equal_variables(
                            self, again, saved.optimizer
                        )

    def test_the_state_of_another_kind_of_optimizer_is_refused(self):
        kinds = keras.optimizers
        saved = one_layer(kinds.SGD(0.1, momentum=0.9, name="same"))
        checkpoints.save(saved, self.workdir, 7)
        other = one_layer(kinds.Lion(0.1, name="same"))
        with self.assertRaisesRegex(ValueError, "of this very model"):
            checkpoints.restore(other, self.workdir)
