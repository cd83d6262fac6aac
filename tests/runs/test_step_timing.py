"""Traces of a run's steps by TensorFlow's profiler."""

from unittest import mock

import tensorflow as tf

from jest_tf.runs import step_timing


class ProfileTest(tf.test.TestCase):
    def test_the_steps_asked_for_are_traced(self):
        folder = self.get_temp_dir()
        traced = []
        with (
            mock.patch.object(
                tf.profiler.experimental,
                "start",
                lambda place: traced.append((place, profile.step)),
            ),
            mock.patch.object(
                tf.profiler.experimental,
                "stop",
                lambda: traced.append(profile.step),
            ),
        ):
            for start, of, expected in (
                (0, (2, 4), [(folder, 2), 4]),
                (3, (2, 4), [(folder, 3), 4]),
                (4, (2, 4), []),
                (0, (), []),
                (0, (4, 9), [(folder, 4), 6]),
            ):
                profile = step_timing.Profile(folder, of, start)
                traced.clear()
                profile.on_epoch_begin(0)
                for batch in range(6 - start):
                    profile.on_train_batch_begin(batch)
                    profile.on_train_batch_end(batch)
                profile.stop()
                self.assertEqual(traced, expected)


if __name__ == "__main__":
    tf.test.main()
