"""Stored stages: what they choose; the rest of the stream stays as it is."""

import functools

import numpy as np
import oracles
import sidecar_files
import stored_cases
import streams
import tensorflow as tf
from stored_cases import BAD, SEED

from jest_tf import config, selection
from jest_tf.data import (
    loading,
    pipeline,
    reader,
    stored_stages,
    stores,
    stream,
)
from jest_tf.embeddings import Embeddings

EASY = functools.partial(
    config.Stage, embeddings="stored", criterion="easy_reference", num_chunks=3
)
UNSCORED = config.Stage(2, "stored", method="uniform")
# Funnels whose hyper-batches have at most the 80 rows of the store.
FUNNELS = {
    "best captions": (EASY(5),),
    "drawn captions": (EASY(5, captions="drawn"),),
    "a gain": (EASY(5, gain=0.1),),
    "the top": (EASY(5, method="top"),),
    "independent rows": (EASY(5, method="independent", gain=2.0),),
    "two stages": (EASY(2, captions="drawn"), EASY(5)),
    "three, not all scoring": (EASY(2, last_step=1), UNSCORED, EASY(3)),
}


def noise_seed(number, group, seed=SEED):
    """The seed of the draw of a stage, by its number, in a group of all."""
    return np.array([seed ^ (number + 1) * 0x57A6E0, group], np.int32)


def draw(stage, reference, number, group, loss="sigmoid"):
    """A stage's draw from all rows of the reference's embeddings."""
    passed = len(reference.image) // stage.candidates
    return selection.draw(
        None,
        reference,
        stage,
        size=passed,
        loss=loss,
        seed=noise_seed(number, group),
    )


class ChoiceTest(stored_cases.StoredTestCase):
    """Six rows of every step, from 30 to 72."""

    order = stream.Order(80, SEED)

    def stages(self, *stages, batch_size=6, loss="sigmoid", **settings):
        plan = config.plan(config.SelectionConfig(batch_size, stages))
        settings = {
            "sidecars": self.sidecars,
            "store": self.store,
            "order": self.order,
            "seed": SEED,
        } | settings
        return stored_stages.StoredStages(plan, loss, **settings)

    def reference(self, positions, captions="best"):
        """The embeddings of what stands at positions, from the arrays."""
        # As the sidecars keep them.
        images, texts = (
            np.float32(np.float16(values)) for values in (self.image, self.text)
        )
        image, text = [], []
        salt = int.from_bytes(b"caption", "big")
        for position in positions.tolist():
            (row,), attempt = self.order.rows([position]), 0
            while row in BAD:
                attempt += 1
                (row,) = self.order.substitutes([position], attempt)
            own = texts[self.starts[row] : self.starts[row + 1]]
            choices = np.flatnonzero(own.any(1))
            if captions == "best":
                choice = choices[np.argmax(own[choices] @ images[row])]
            else:
                number = oracles.position_hash(SEED, position, salt) // 2
                choice = choices[number % len(choices)]
            image.append(images[row])
            text.append(own[choice])
        return Embeddings(np.stack(image), np.stack(text), 20.0, -8.0)

    def by_hand(self, stages, step, batch_size=6, loss="sigmoid"):
        """The positions chosen in a step, and the draw of each stage."""
        size = batch_size * np.prod([stage.candidates for stage in stages])
        positions, drawn = np.arange(size * step, size * (step + 1)), {}
        for number, stage in enumerate(stages):
            if not stage.scores or not stage.is_active(step):
                positions = np.sort(positions)[: size // stage.candidates]
            else:
                # In the order of their rows, and of equal rows as they come.
                positions = np.sort(positions)
                line = np.argsort(self.order.rows(positions), kind="stable")
                positions = positions[line]
                reference = self.reference(positions, stage.captions)
                drawn[number] = draw(stage, reference, number, step, loss)
                rows = {"position": positions, "reference": reference}
                drawn[number] = drawn[number], rows
                positions = positions[drawn[number][0].indices]
            size //= stage.candidates
        return np.sort(positions), drawn

    def test_every_stage_is_the_draw_of_its_settings(self):
        for name, stages in FUNNELS.items():
            # The last funnel has a stage that has ended by then.
            for step in (1, 2) if "three" in name else (1,):
                with self.subTest(name, step=step):
                    expected, _ = self.by_hand(stages, step)
                    self.assertLen(expected, 6)
                    chosen = self.stages(*stages).choose(step, 0)
                    self.assertAllEqual(chosen, expected)
        # Not all of them choose alike.
        self.assertLen(
            {
                tuple(self.by_hand(FUNNELS[name], 1)[0])
                for name in [*FUNNELS][:5]
            },
            5,
        )

    def test_the_loss_of_the_funnel_scores(self):
        stages = FUNNELS["two stages"]
        softmax, _ = self.by_hand(stages, 2, loss="softmax")
        chosen = self.stages(*stages, loss="softmax").choose(2, 0)
        self.assertAllEqual(chosen, softmax)
        self.assertNotAllEqual(chosen, self.by_hand(stages, 2)[0])

    def test_outside_its_steps_a_stage_passes_its_first_rows(self):
        stages = (EASY(5, first_step=1, last_step=2),)
        for step in range(5):
            first = 30 * step + np.arange(6)
            expected = first
            if step in (1, 2):
                expected, _ = self.by_hand(stages, step)
                self.assertNotAllEqual(expected, first)
            chosen = self.stages(*stages)
            self.assertAllEqual(chosen.choose(step, 0), expected)
            summaries = chosen.options.summaries.take(step)
            self.assertEqual(list(summaries), [0] if step in (1, 2) else [])

    def test_before_there_is_a_reference_the_first_rows_pass(self):
        # Even of a hyper-batch larger than the store.
        chosen = stored_stages.StoredStages(
            config.plan(
                config.SelectionConfig(6, (EASY(9), EASY(2))),
                has_reference=False,
                bootstrap=config.BootstrapConfig((5,)),
                steps=9,
            )[:1],
            "sigmoid",
            *(None, self.store, self.order, SEED),
        )
        for step in range(2):
            self.assertAllEqual(
                chosen.choose(step, 0), 108 * step + np.arange(6)
            )
        self.assertEqual(chosen.options.summaries.take(0), {})

    def test_summaries_are_those_of_the_draws(self):
        stages = FUNNELS["two stages"]
        clean = np.arange(80) % 3 > 0
        options = loading.Options(clean=lambda ids: clean[ids - 1000])
        chosen = self.stages(*stages, options=options)
        chosen.choose(1, 0)
        found = chosen.options.summaries.take(1)
        self.assertEqual(chosen.options.summaries.take(1), {})  # taken
        _, draws = self.by_hand(stages, 1)
        for number, (drawn, rows) in draws.items():
            entry, reference = found[number], rows["reference"]
            kept = drawn.indices
            size, passed = len(rows["position"]), len(kept)
            self.assertEqual(
                (entry["rows_in"], entry["rows_out"]), (size, passed)
            )
            self.assertEqual(entry["criterion"], "easy_reference")
            part = self.part(reference, kept)
            self.assertAllClose(entry["score"], -oracles.sigmoid_loss(part))
            # As many rows by other noise.
            seed = noise_seed(number, 1) ^ np.array([0x5EED, 0])
            keys = selection.gumbel_noise(seed, 1, size)[0]
            uniform = np.argsort(-keys)[:passed]
            part = self.part(reference, uniform)
            self.assertAllClose(
                entry["uniform_score"], -oracles.sigmoid_loss(part)
            )
            store_rows = self.order.rows(rows["position"])
            self.assertAllClose(entry["clean_in"], clean[store_rows].mean())
            self.assertAllClose(
                entry["clean_out"], clean[store_rows[kept]].mean()
            )
            losses = oracles.row_losses(reference, kept, "sigmoid")
            about = entry["reference_loss"]["kept"]
            self.assertAllClose(about["mean"], losses[kept].mean(), 1e-4)
            place, first = np.argmin(losses), entry["highest"][0]
            self.assertEqual(first["position"], rows["position"][place])
            self.assertEqual(first["id"], 1000 + store_rows[place])
            self.assertAllClose(first["score"], -losses[place], 1e-4)
            self.assertEqual(first["kept"], place in kept)
        plain = self.stages(*stages)
        plain.choose(1, 0)
        self.assertNotIn("clean_in", plain.options.summaries.take(1)[0])

    def part(self, reference, rows):
        image, text, scale, bias = reference
        return Embeddings(image[rows], text[rows], scale, bias)


class StreamTest(stored_cases.StoredTestCase):
    def test_what_stands_at_a_position_is_what_it_was(self):
        """Its image, caption, embeddings and replacement."""
        # Two stored stages and a live stage.
        stages = (EASY(2), EASY(2), config.Stage(3, num_chunks=1))
        chosen = stored_stages.StoredStages(
            config.plan(config.SelectionConfig(5, stages)),
            "sigmoid",
            *(self.sidecars, self.store, stream.Order(80, SEED), SEED),
        )
        self.assertEqual(chosen.sizes, (60, 30, 15))
        ours = self.batches(4, embeddings=True, batch_size=5, stages=stages)
        plain = self.batches(4, embeddings=True, batch_size=60)
        for step, (batch, other) in enumerate(zip(ours, plain, strict=True)):
            places = chosen.choose(step, 0) - 60 * step
            self.assertLen(places, 15)
            expected = {name: all_[places] for name, all_ in other.items()}
            self.assert_equal_batches([batch], [expected])
        self.assertTrue(any(batch["record_replaced"].any() for batch in ours))

    def test_any_step_begins_it_and_hosts_share_it(self):
        settings = {"batch_size": 12, "stages": FUNNELS["best captions"]}
        whole = self.batches(4, **settings)
        shares = [
            self.batches(2, start_step=2, host=host, num_hosts=2, **settings)
            for host in range(2)
        ]
        hosts = [streams.joined(parts) for parts in zip(*shares, strict=True)]
        self.assert_equal_batches(hosts, whole[2:])

    def test_curated_rows_are_not_chosen(self):
        """Two of eight; the last shard, of 40 records, is the curated set."""
        store = stores.join(
            [stores.open_store(path) for path in self.store.shards.paths]
        )
        curated = {"num_curated": 1, "curated_rows": 2, "store": store}
        stages = FUNNELS["best captions"]
        funnel = config.SelectionConfig(8, stages)
        order = pipeline.order(store, SEED, pipeline.Options(num_curated=1))
        chosen = stored_stages.StoredStages(
            config.plan(funnel, curated_rows=2),
            "sigmoid",
            *(self.sidecars, store, order, SEED),
        )
        ours = self.batches(3, batch_size=8, stages=stages, **curated)
        # Without stages 30 rows of the pool come beside the curated rows.
        plain = self.batches(3, batch_size=32, **curated)
        for step, (batch, other) in enumerate(zip(ours, plain, strict=True)):
            places = chosen.choose(step, 0) - 30 * step
            expected = {
                name: value if name == "curated" else value[places]
                for name, value in other.items()
            }
            self.assert_equal_batches([batch], [expected])
            self.assertAllInRange(batch["id"] - 1000, 0, 39)
            self.assertAllInRange(batch["curated"]["id"] - 1000, 40, 79)
        # A hyper-batch is of the pool's 40 records.
        with self.assertRaisesRegex(ValueError, "draw from, 40.*: 45$"):
            self.batches(1, batch_size=11, stages=stages, **curated)


class Memory:
    """Sidecars and records of 25,000 rows, without files."""

    scale, bias = 12.0, -6.0

    def __init__(self):
        self.image, self.text = (
            sidecar_files.unit_rows(25_000, seed) for seed in (3, 4)
        )
        self.asked = []

    def ids(self, rows):
        return rows

    def read_numbered(self, rows, numbers, ids):
        self.asked.append(rows)
        return np.zeros(len(rows), int), self.image[rows], self.text[rows]

    def embeddings(self, rows):
        parts = self.image[rows], self.text[rows]
        return Embeddings(*parts, np.float32(12.0), np.float32(-6.0))


class GroupsTest(tf.test.TestCase):
    """20,000 rows into a stage: two groups of 10,000, of which ten pass."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.memory = Memory()
        cls.order = stream.Order(25_000, SEED)

    def stages(self):
        self.memory.asked.clear()
        funnel = config.SelectionConfig(20, (EASY(1000),))
        return stored_stages.StoredStages(
            config.plan(funnel),
            "sigmoid",
            *(self.memory, self.memory, self.order, SEED),
        )

    def group(self, number):
        """A group's choice by hand; groups are numbered over all steps."""
        positions = np.arange(10_000 * number, 10_000 * (number + 1))
        positions = positions[np.argsort(self.order.rows(positions))]
        reference = self.memory.embeddings(self.order.rows(positions))
        drawn = draw(EASY(1000), reference, 0, number)
        return np.sort(positions[drawn.indices])

    def test_groups_are_draws_of_their_own(self):
        chosen = self.stages()
        self.assertEqual(chosen.num_groups, 2)
        for group in (1, 0):
            self.assertAllEqual(chosen.choose(3, group), self.group(6 + group))
        # Those of the first group are told.
        (found,) = chosen.options.summaries.take(3).values()
        self.assertEqual((found["rows_in"], found["rows_out"]), (10_000, 10))
        for row in found["highest"]:
            self.assertBetween(row["position"], 60_000, 69_999)

    def test_hosts_choose_from_their_own_groups_alone(self):
        whole = np.concatenate([self.group(6), self.group(7)])
        for rows, groups in (
            (slice(0, 10), [6]),
            (slice(10, 15), [7]),
            (slice(5, 15), [6, 7]),
        ):
            chosen = self.stages()
            found = next(iter(chosen.positions(3, rows).take(1)))
            self.assertAllEqual(found, whole[rows])
            asked = {tuple(np.sort(some)) for some in self.memory.asked}
            for group in (6, 7):
                own = np.arange(10_000 * group, 10_000 * (group + 1))
                own = tuple(np.sort(self.order.rows(own)))
                self.assertEqual(own in asked, group in groups)

    def test_groups_are_few_and_small_enough(self):
        most = stored_stages.MOST_ROWS
        chunks = functools.partial(EASY, num_chunks=16)
        for groups, stages, sizes in (
            (1, (chunks(1000),), (most, 64)),
            (2, (chunks(1000),), (most + 64, 64)),
            # 4 is the next divisor after 3.
            (4, (chunks(1000),), (3 * most, 64)),
            # 16 rows of every group pass, a row for each chunk.
            (4, (chunks(1000),), (9 * most, 64)),
            (16, (chunks(1000, method="top"),), (9 * most, 64)),
            # The second stage passes fewer rows.
            (2, (chunks(100), chunks(2)), (9 * most, 64, 32)),
            (7, (EASY(2, num_chunks=1),), (90 * most, 7)),  # the largest
        ):
            with self.subTest(stages=stages, sizes=sizes):
                self.assertEqual(
                    stored_stages.num_groups(stages, sizes), groups
                )


class CostTest(tf.test.TestCase):
    def test_flops_are_those_of_the_draws(self):
        def draw(rows_in, rows_out, groups=1):
            return selection.draw_flops(rows_in, rows_out, 16, groups)

        for funnel, curated_rows, expected in (
            (config.SelectionConfig(100), 0, 0),
            (config.SelectionConfig(100, (config.Stage(5),)), 0, 0),
            (config.SelectionConfig(100, (EASY(5),)), 0, draw(500, 100)),
            (config.SelectionConfig(100, (EASY(5),)), 40, draw(300, 60)),
            (
                config.SelectionConfig(
                    100, (UNSCORED, EASY(3), EASY(5), config.Stage(2))
                ),
                0,
                draw(3000, 1000) + draw(1000, 200),
            ),
            (
                config.SelectionConfig(128, (EASY(200),)),
                0,
                draw(25_600, 128, groups=2),
            ),
        ):
            (segment,) = config.plan(funnel, curated_rows=curated_rows)
            self.assertEqual(stored_stages.flops(segment, 16), expected)
            self.assertEqual(stored_stages.flops(segment, 0), 0)


class RefusalsTest(stored_cases.StoredTestCase):
    def load(self, positions=None, **changes):
        arguments = {
            "positions": np.arange(80) if positions is None else positions,
            "sidecars": self.sidecars,
            "store": self.store,
            "order": stream.Order(80, SEED),
            "seed": SEED,
        }
        return stored_stages.load_rows(**arguments | changes)

    def test_ids_that_differ(self):
        class Other:
            """The store with another id."""

            def ids(self, rows):
                return 1000 + rows + (np.asarray(rows) == 7)

        with self.assertRaisesRegex(ValueError, "id, 1008. Received: 1007"):
            self.load(store=Other())

    def test_records_without_any_embedding(self):
        class Nothing:
            """Sidecars of records none of which could be read."""

            def read_numbered(self, rows, numbers, ids):
                nothing = np.zeros([len(rows), stored_cases.DIM])
                return np.full(len(rows), -1), nothing, nothing

        first = 30 + np.argmin(stream.Order(80, SEED).rows(np.arange(30, 60)))
        with self.assertRaisesRegex(
            ValueError,
            f"{reader.MAX_ATTEMPTS} substitutes in a row for the record at"
            f" position {first} have no embedding, the last record",
        ):
            self.load(np.arange(30, 60), sidecars=Nothing())
