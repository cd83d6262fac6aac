"""Settings of a draw that are refused."""

import random_embeddings
import tensorflow as tf

from jest_tf import selection


class SettingsTest(tf.test.TestCase):
    def test_errors_name_the_setting(self):
        learner, reference = random_embeddings.models(10)
        cases = (
            (dict(batch_size=11), r"`batch_size` \(b\).*B=10.*11"),
            (dict(batch_size=0), "from 1 to"),
            (dict(batch_size=4, num_chunks=5), "`num_chunks`.*5.*batch_size=4"),
            (dict(batch_size=4, num_chunks=0), "`num_chunks`"),
            (dict(batch_size=4, criterion="easy"), "`criterion`.*'easy'"),
            (dict(batch_size=4, loss="hinge"), "`loss`.*'hinge'"),
            (dict(batch_size=4, first_chunk="top"), "`first_chunk`.*'top'"),
            (dict(batch_size=4, quota="host"), "`quota`.*'host'"),
            (dict(batch_size=4, seed=(1, 2, 3)), "`seed` must be two"),
        )
        for options, message in cases:
            options = {"num_chunks": 2, "seed": (0, 0), **options}
            with self.subTest(**options):
                with self.assertRaisesRegex(ValueError, message):
                    selection.select_jointly(learner, reference, **options)

    def test_an_unknown_method_is_named(self):
        with self.assertRaisesRegex(ValueError, "`method`.*'greedy'"):
            selection.Settings("greedy", 4)
