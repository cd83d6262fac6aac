"""Settings of a draw that are refused."""

import random_embeddings
import tensorflow as tf

from jest_tf import selection


class SettingsTest(tf.test.TestCase):
    def test_errors_name_the_setting(self):
        learner, reference = random_embeddings.models(10)
        cases = (
            (dict(batch_size=11), r"`batch_size` \(b\).*B=10.*11"),
            (dict(batch_size=0), "batch_size` must be at least 1.*0"),
            (dict(batch_size=4, num_chunks=5), "num_chunks`.*5.*batch_size=4"),
            (dict(batch_size=4, num_chunks=0), "num_chunks` must be at least"),
            (dict(batch_size=4, criterion="easy"), "criterion`.*'easy'"),
            (dict(batch_size=4, loss="hinge"), "loss`.*'hinge'"),
            (dict(batch_size=4, first_chunk="top"), "first_chunk`.*'top'"),
            (dict(batch_size=4, quota="host"), "quota`.*'host'"),
            (dict(batch_size=4, seed=(1, 2, 3)), "`seed` must be two"),
        )
        for options, message in cases:
            options = {"num_chunks": 2, "seed": (0, 0), **options}
            with self.subTest(**options):
                with self.assertRaisesRegex(ValueError, message):
                    selection.select_jointly(learner, reference, **options)

    def test_settings_that_a_draw_does_not_apply_are_refused(self):
        models = random_embeddings.models(10)
        for options, message in (
            (dict(batch_size=4, candidates=5), "must be .*'candidates'"),
            (dict(num_chunks=2), "batch_size"),
        ):
            with self.assertRaisesRegex(TypeError, message):
                selection.select_jointly(*models, seed=(0, 0), **options)
