"""Bytes between replicas: what is called equals what `benchmarks.traffic` says.

Hand counts stand here for the totals that docs/distribution.md rests on.
"""

import collections
import dataclasses

import lockstep
import numpy as np
import pairwise
import random_embeddings
import tensorflow as tf

from benchmarks import traffic
from jest_tf import config, losses, selection
from jest_tf.distribution import placement

LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}
ROWS = {
    "image": ((4, 4, 3), "uint8"),
    "text": ((6,), "int32"),
    "id": ((), "int64"),
    "flag": ((), "bool"),
}


def setup_of(num_replicas, **changes):
    return traffic.Setup(
        num_replicas,
        super_batch_size=48,
        batch_size=24,
        num_chunks=2,
        dim=24,
        reference_dim=10,
        rows=ROWS,
    )._replace(**changes)


def calls_of_a_step(setup):
    """The collectives that each replica calls, as (kind, shape, dtype)."""
    size, stage = setup.super_batch_size, config.Stage(2)
    stage = dataclasses.replace(stage, num_chunks=setup.num_chunks)
    batch = {
        name: np.zeros([size, *shape], dtype)
        for name, (shape, dtype) in setup.rows.items()
    }
    everything = *random_embeddings.models(size), batch

    def step(replicas):
        number = int(replicas.replica_id)
        learner, reference, rows = lockstep.share(
            everything, number, setup.num_replicas
        )
        shared = {"quota": setup.quota, "replicas": replicas}
        options = {"loss": setup.loss, "seed": (0, 1)} | shared
        draw = selection.draw(
            learner, reference, stage, size=setup.batch_size, **options
        )
        selection.summarize(draw, replicas)
        dealt = placement.deal(draw.indices, size, **shared)
        placement.move(rows, dealt, replicas)
        image, text = (tf.constant(part[: setup.share]) for part in learner[:2])
        with tf.GradientTape() as tape:
            tape.watch(image)
            trained = learner._replace(image=image, text=text)
            loss = LOSSES[setup.loss](trained, replicas=replicas)
        tape.gradient(loss, image)

    return lockstep.run(setup.num_replicas, step)[1]


class TrafficTest(tf.test.TestCase):
    def test_a_step_calls_what_the_count_says(self):
        for num_replicas, quota, loss in pairwise.cases(
            (2, 4), config.QUOTAS, LOSSES
        ):
            setup = setup_of(num_replicas, quota=quota, loss=loss)
            expected = collections.Counter(
                call[1:] for call in traffic.collectives(setup)
            )
            with self.subTest(replicas=num_replicas, quota=quota, loss=loss):
                for calls in calls_of_a_step(setup):
                    self.assertEqual(collections.Counter(calls), expected)

    def test_selection_moves_rows_chosen_and_not_the_super_batch(self):
        # Twice the super-batch, the same sub-batch: the embeddings that go
        # round stay, and candidates are two numbers a row at most.
        for quota in config.QUOTAS:
            chosen = set()
            for size in (4096, 8192):
                setup = traffic.Setup(8, size, 1024, 16, 768, 768, quota)
                totals = traffic.totals(setup)
                chosen.add(totals["chosen embeddings"])
                self.assertLessEqual(totals["candidates"], 16 * size * 8)
            self.assertLen(chosen, 1)

    def test_totals_by_hand(self):
        # R = 4, B = 48, b = 24 in two chunks of 12; D = 24 and 10.
        setup = setup_of(4)
        totals = traffic.totals(setup)
        # A replica offers 12 rows a chunk, 4 + 4 bytes each, to three others.
        self.assertEqual(totals["candidates"], 2 * 12 * 8 * 3)
        # 24 rows of 2 (24 + 10) floats, by an all-reduce: 2 * 3/4 of them.
        self.assertEqual(totals["chosen embeddings"], 24 * 68 * 4 * 1.5)
        # m = ceil(12 / 4) = 3 rows of 48 + 24 + 8 + 1 bytes from each other.
        self.assertEqual(totals["rows"], 3 * 3 * (48 + 24 + 8 + 1))
        # 6 rows of two times 24 floats from each other.
        self.assertEqual(totals["loss embeddings"], 3 * 6 * 2 * 24 * 4)
        totals = traffic.totals(setup_of(4, quota="per_replica"))
        self.assertNotIn("rows", totals)

    def test_work_and_memory_by_hand(self):
        setup = setup_of(4, loss_block_size=2)
        work = traffic.flops(setup)
        # 12 images with 24 texts and 12 texts with 24 images, of two models.
        self.assertEqual(work["selection"], 2 * 2 * 12 * 24 * (24 + 10))
        # 5 products of 6 x 24 x 24.
        self.assertEqual(work["loss"], 5 * 2 * 6 * 24 * 24)
        held = traffic.memory(setup)
        self.assertEqual(held["embeddings held"], 12 * 68 * 4)
        self.assertEqual(held["block of loss logits"], 2 * 24 * 4)
        self.assertEqual(held["tile of scores"], 12 * 12 * 4)
