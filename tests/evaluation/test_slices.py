"""Slices of an evaluation, by hand."""

import tempfile

import numpy as np
import shard_files
import tensorflow as tf
from evaluation_cases import Oracle, number_of, present, serialize

from jest_tf import config, evaluation
from jest_tf.evaluation import slices
from jest_tf.runs import evaluations


class SlicesTest(tf.test.TestCase):
    def opened(self, records):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = f"{folder}/some.tfrecord"
        shard_files.write_shard(
            path, [serialize(**present(**each)) for each in records]
        )
        settings = config.EvaluationConfig((path,))
        self.encoder = evaluation.Encoder(Oracle(), number_of, 2, 64)
        return evaluation.open_stores(settings.named)["some"]

    def measured(self, store, *fields):
        embedded = store.embed(self.encoder)
        (columns,) = slices.read_columns([store.store], fields)
        return slices.measure_slices(store, embedded, columns)

    def test_classes_by_hand(self):
        # (gray, label, brand, how often): a gray of the label's number is
        # right. Brands of fewer than 20 records are joined, but for one alone.
        kinds = (
            *((1, "c 1", "north", 24), (2, "c 2", "south", 5)),
            *((1, "c 2", "south", 15), (2, "c 2", "r", 2), (1, "c 2", "s", 3)),
            *((2, "c 2", "", 1),),
        )
        store = self.opened(
            {"gray": gray, "label": label, "brand": brand}
            for gray, label, brand, count in kinds
            for _ in range(count)
        )
        name = "zero_shot/accuracy@1"
        found = {
            each.value: (len(each.rows), *each.measures[name][::3])
            for each in self.measured(store, "brand")
        }
        expected = {
            "north": (24, 1.0, 24),
            "south": (20, 5 / 20, 20),
            slices.RARE: (5, 2 / 5, 5),
            "": (1, 1.0, 1),
        }
        self.assertEqual([*found], [*expected])  # the largest first
        self.assertAllClose(found, expected)

    def test_the_slices_of_a_field_together_are_the_store(self):
        # 60 pairs of some kinds, the image and the caption drawn apart.
        drawn = np.random.default_rng(0).integers(0, 5, [60, 3])
        kinds = ["x", "x", "y", "y", "z"]
        store = self.opened(
            {"gray": gray, "caption": [f"a {number}"], "kind": kinds[kind]}
            for gray, number, kind in drawn
        )
        found = self.measured(store, "kind")
        sizes = [len(each.rows) for each in found]
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.assertCountEqual(
            np.concatenate([s.rows for s in found]), range(60)
        )
        for name, value in store.measure(self.encoder).items():
            of_slices = [each.measures[name] for each in found]
            self.assertAllClose(
                np.average(
                    [each.value for each in of_slices],
                    weights=[each.count for each in of_slices],
                ),
                value,
            )

    def test_an_interval_ends_where_the_share_would_be_at_its_edge(self):
        # Wilson: |p - q| = z sqrt(q (1 - q) / n) at both ends q.
        for right in (0, 1, 7, 20):
            p, low, high, count = slices.estimate(right / 20, 20)
            self.assertEqual((p, count), (right / 20, 20))
            for end in (low, high):
                spread = 1.96 * np.sqrt(end * (1 - end) / 20)
                self.assertAllClose(abs(p - end), spread, atol=1e-6)

    def test_a_field_that_no_record_has_is_refused(self):
        stores = {
            name: self.opened(
                {"gray": 1, "caption": ["a 1"], "brand": brand}
                for _ in range(2)
            )
            for name, brand in (("some", "a"), ("others", ""))
        }
        given = stores, self.encoder
        found = evaluations.measure_slices(*given, ["brand"])
        self.assertEqual([len(found[name]) for name in stores], [1, 0])
        with self.assertRaisesRegex(ValueError, "of metadata.*: caption, id"):
            evaluations.measure_slices(stores, None, ["id", "brand", "caption"])
        with self.assertRaisesRegex(ValueError, "Received: brnad, empty in"):
            # Before anything is embedded.
            evaluations.measure_slices(stores, None, ["brand", "brnad"])
