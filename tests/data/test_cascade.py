"""Stage 0: what it chooses, that the rest of the stream stays what it was."""

import json
import os
import tempfile

import cascade_cases
import numpy as np
import pytest
import run_server
import sidecar_files
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import config, losses, selection
from jest_tf.data import (
    cascade,
    pipeline,
    reader,
    sidecars,
    stores,
    stream,
)
from jest_tf.data.sidecars import embed
from jest_tf.embeddings import Embeddings
from jest_tf.runs import checkpoints, costs, directory


class ChoiceTest(cascade_cases.CascadeTestCase):
    def reference(self, order, positions, arrays=None):
        """The embeddings of what stands at positions, from the arrays."""
        images, texts = arrays or (self.image, self.text)
        image, text = [], []
        for position in positions:
            row, attempt = int(order.rows(position[None])[0]), 0
            while row in (*cascade_cases.INVALID, cascade_cases.BLANK):
                attempt += 1
                row = int(order.substitutes(position[None], attempt)[0])
            choices = reader.candidates(cascade_cases.captions_of(row))
            salt = int.from_bytes(b"caption", "big")
            number = int(
                stream.uniform_hash(cascade_cases.SEED, position[None], salt)[0]
            )
            choice = choices[number // 2 % len(choices)]
            image.append(images[row])
            text.append(texts[self.starts[row] + choice])
        # As the sidecars keep them.
        image, text = (
            np.float32(np.float16(values)) for values in (image, text)
        )
        return Embeddings(image, text, 20.0, -8.0)

    def offered(self, order, step):
        """A hyper-batch's positions, as their rows lie in the store."""
        positions = np.arange(30 * step, 30 * (step + 1))
        return positions[np.argsort(order.rows(positions), kind="stable")]

    def test_it_is_the_joint_draw_of_the_same_noise(self):
        order = stream.Order(80, cascade_cases.SEED)
        batches = self.batches(4, self.cascade())
        self.assertNotIn("reference_image", batches[0])
        for step, batch in enumerate(batches):
            positions = self.offered(order, step)
            draw = selection.select_jointly(
                None,
                self.reference(order, positions),
                batch_size=12,
                num_chunks=3,
                seed=cascade.joint_seed(
                    tf.constant([cascade_cases.SEED, step])
                ),
                criterion="easy_reference",
            )
            rows = order.rows(np.sort(positions[draw.indices]))
            good = ~np.isin(rows, (*cascade_cases.INVALID, cascade_cases.BLANK))
            self.assertAllEqual(batch["id"][good], 1000 + rows[good])
            self.assertAllEqual(batch["record_replaced"], ~good)

    def test_records_may_be_chosen_by_their_best_captions(self):
        """The captions that come are those of a stream without a cascade."""
        order = stream.Order(80, cascade_cases.SEED)
        positions = self.offered(order, 0)
        reference = self.reference(order, positions)
        images = np.float32(np.float16(self.image))
        text = []
        for picture in reference.image:
            # Of a substitute, where the record has no embedding.
            (row,) = np.flatnonzero((images == picture).all(1))
            own = self.text[self.starts[row] : self.starts[row + 1]]
            own = np.float32(np.float16(own))
            similarity = np.where(own.any(1), own @ picture, -9)
            text.append(own[np.argmax(similarity)])
        draw = selection.select_jointly(
            None,
            reference._replace(text=np.stack(text)),
            batch_size=12,
            num_chunks=3,
            seed=cascade.joint_seed(tf.constant([cascade_cases.SEED, 0])),
            criterion="easy_reference",
        )
        chosen = np.sort(positions[draw.indices])
        (batch,) = self.batches(1, self.cascade(captions="best"))
        good = ~np.isin(
            order.rows(chosen), (*cascade_cases.INVALID, cascade_cases.BLANK)
        )
        self.assertAllEqual(batch["id"][good], 1000 + order.rows(chosen)[good])
        (offered,) = self.batches(1, None, super_batch_size=30)
        whole = {position: offered["text"][position] for position in range(30)}
        self.assertAllEqual(
            batch["text"], [whole[position] for position in chosen]
        )

    def test_the_learners_part_is_of_its_sidecars(self):
        image, text = self.image[::-1].copy(), self.text[:, ::-1].copy()
        about = cascade_cases.DESCRIPTION._replace(scale=5.0, bias=-1.0)
        with tempfile.TemporaryDirectory() as folder:
            embed.write_arrays(
                self.store,
                image,
                text,
                about,
                embed.Output(folder),
                captions=np.diff(self.starts),
                valid=~np.isin(np.arange(80), cascade_cases.INVALID),
            )
            learner = sidecars.Sidecars(self.store, folder)
            order = stream.Order(80, cascade_cases.SEED)
            positions = self.offered(order, 0)
            reference = self.reference(order, positions)
            of_learner = self.reference(order, positions, (image, text))
            of_learner = of_learner._replace(scale=about.scale, bias=about.bias)
            for criterion in ("learnability", "hard_learner"):
                settings = config.CascadeConfig(30, 3, criterion)
                (batch,) = self.batches(
                    1,
                    cascade.Cascade(
                        settings, self.sidecars, "sigmoid", learner
                    ),
                )
                draw = selection.select_jointly(
                    of_learner,
                    reference,
                    batch_size=12,
                    num_chunks=3,
                    seed=cascade.joint_seed(
                        tf.constant([cascade_cases.SEED, 0])
                    ),
                    criterion=criterion,
                )
                rows = order.rows(np.sort(positions[draw.indices]))
                lost = (*cascade_cases.INVALID, cascade_cases.BLANK)
                good = ~np.isin(rows, lost)
                self.assertAllEqual(batch["id"][good], 1000 + rows[good])

    def test_what_stands_at_a_position_is_what_it_was(self):
        # All of it: pictures, captions, embeddings, replacements.
        chooser = self.cascade(uniform_share=0.25)
        order = stream.Order(80, cascade_cases.SEED)
        ours = self.batches(8, chooser, sidecars=self.sidecars)
        plain = self.batches(
            8, None, sidecars=self.sidecars, super_batch_size=30
        )
        replaced = 0
        for step, (one, other) in enumerate(zip(ours, plain, strict=True)):
            positions = self.offered(order, step)
            rows, _ = cascade.draw(
                self.reference(order, positions),
                chooser.settings,
                batch_size=12,
                num_uniform=3,
                seed=(cascade_cases.SEED, step),
                loss="sigmoid",
            )
            places = np.unique(positions[rows]) - 30 * step
            self.assertLen(places, 12)
            for name in one:
                self.assertAllEqual(one[name], other[name][places])
            replaced += one["record_replaced"].sum()
        self.assertGreater(replaced, 0)

    def test_a_hyper_batch_of_the_super_batch_leaves_the_stream_alone(self):
        ours = self.batches(3, self.cascade(hyper_batch_size=12))
        plain = self.batches(3, None)
        for one, other in zip(ours, plain, strict=True):
            # The plain stream doesn't know whom the sidecars lack.
            good = ~np.isin(other["id"] - 1000, cascade_cases.INVALID)
            self.assertAllEqual(one["id"][good], other["id"][good])


class DrawTest(tf.test.TestCase):
    def embeddings(self, rows=40):
        image, text = (
            sidecar_files.unit_rows(rows, seed, cascade_cases.DIM)
            for seed in (3, 4)
        )
        return Embeddings(image, text, 10.0, -10.0)

    def draw(self, step, loss="sigmoid", **settings):
        settings = config.CascadeConfig(40, num_chunks=2, **settings)
        rows, _ = cascade.draw(
            self.embeddings(),
            settings,
            batch_size=10,
            num_uniform=settings.num_uniform(10),
            seed=(cascade_cases.SEED, step),
            loss=loss,
        )
        return rows

    def test_every_setting_is_the_samplers(self):
        settings = {"gain": 0.5, "first_chunk": "uniform"}
        draw = selection.select_jointly(
            None,
            self.embeddings(),
            batch_size=10,
            num_chunks=2,
            seed=cascade.joint_seed(tf.constant([cascade_cases.SEED, 8])),
            criterion="easy_reference",
            loss="softmax",
            **settings,
        )
        rows = self.draw(8, loss="softmax", **settings)
        self.assertAllEqual(rows, draw.indices)

    def test_it_takes_what_the_reference_finds_easy(self):
        image, text, scale, bias = self.embeddings()

        def loss(gain):
            draw = tf.function(lambda step: self.draw(step, gain=gain))
            rows = [draw(tf.constant(step)).numpy() for step in range(20)]
            parts = [
                Embeddings(image[one], text[one], scale, bias) for one in rows
            ]
            return np.mean([losses.sigmoid_loss(part) for part in parts])

        self.assertLess(loss(1.0), 0.8 * loss(0.0))

    def test_the_joint_part_is_the_joint_draw_of_as_many(self):
        for step in range(3):
            draw = selection.select_jointly(
                None,
                self.embeddings(),
                batch_size=7,
                num_chunks=2,
                seed=cascade.joint_seed(
                    tf.constant([cascade_cases.SEED, step])
                ),
                criterion="easy_reference",
            )
            rows = self.draw(step, uniform_share=0.3).numpy()
            self.assertEmpty(set(draw.indices.numpy()) - set(rows))
            self.assertLen(set(rows), 10)

    def test_the_rest_is_spread_evenly(self):
        # At this gain the joint part is the same five rows at every step.
        settings = {"gain": 1e6, "uniform_share": 0.5}
        draw = tf.function(lambda step: self.draw(step, **settings))
        counts = np.zeros(40)
        num_draws = 400
        for step in range(num_draws):
            counts[draw(tf.constant(step))] += 1
        always = counts == num_draws
        self.assertEqual(always.sum(), 5)
        # Five of the other 35 each time: a standard deviation of
        # sqrt(400 * 1/7 * 6/7) = 7.0 about 57.1.
        self.assertAllInRange(counts[~always], 57.1 - 4 * 7, 57.1 + 4 * 7)

    def test_the_noise_is_not_the_selections(self):
        seed = tf.constant([cascade_cases.SEED, 3])
        ours = selection.gumbel_noise(cascade.joint_seed(seed), 1, 1000)[0]
        theirs = selection.gumbel_noise(seed, 1, 1000)[0]
        self.assertLess(abs(np.corrcoef(ours, theirs)[0, 1]), 0.15)


class RunSettingsTest(cascade_cases.CascadeTestCase):
    def test_a_share_that_is_rounded_to_no_row_is_refused(self):
        def of_run(share, num_groups=2, hyper_batch_size=24):
            recipe = config.TrainConfig(
                data=config.DataConfig(super_batch_size=12),
                selection=config.SelectionConfig(batch_size=None),
                reference=config.ReferenceConfig(model="a", sidecars=True),
                cascade=config.CascadeConfig(
                    hyper_batch_size,
                    num_chunks=1,
                    uniform_share=share,
                    num_groups=num_groups,
                ),
            )
            return cascade.of_run(recipe, self.sidecars)

        # Groups give 6 rows: 0.48 are none, 0.6 are one.
        with self.assertRaisesRegex(
            ValueError,
            "`cascade.uniform_share` must be 0, or more than half a row.*"
            "Received: uniform_share=0.08, B=12, G=2",
        ):
            of_run(0.08)
        for share, num_groups in ((0.0, 2), (0.08, 1), (0.1, 2)):
            self.assertIsNotNone(of_run(share, num_groups))
        self.assertIsNone(of_run(0.08, hyper_batch_size=None))


class StreamTest(cascade_cases.CascadeTestCase):
    def test_any_step_begins_it_and_it_is_the_same_again(self):
        chooser = self.cascade(uniform_share=0.2)
        whole = self.batches(6, chooser)
        later = self.batches(2, chooser, start_step=4)
        self.assert_equal_batches(later, whole[4:])
        other = self.batches(1, chooser, seed=cascade_cases.SEED + 1)
        self.assertNotAllEqual(other[0]["id"], whole[0]["id"])

    def test_hosts_share_what_one_would_choose(self):
        chooser = self.cascade()
        whole = self.batches(3, chooser)
        shares = [
            self.batches(3, chooser, host=host, num_hosts=2)
            for host in range(2)
        ]
        joined = [
            {
                name: np.concatenate([part[name] for part in parts])
                for name in parts[0]
            }
            for parts in zip(*shares, strict=True)
        ]
        self.assert_equal_batches(joined, whole)

    def test_groups_are_cascades_of_their_own(self):
        # Half of the hyper-batch and of the super-batch, twice a step.
        halves = self.batches(
            6,
            self.cascade(hyper_batch_size=15, uniform_share=0.5),
            super_batch_size=6,
        )
        expected = [
            {
                name: np.concatenate([halves[i][name], halves[i + 1][name]])
                for name in halves[i]
            }
            for i in (0, 2, 4)
        ]
        chooser = self.cascade(num_groups=2, uniform_share=0.5)
        self.assert_equal_batches(self.batches(3, chooser), expected)
        later = self.batches(1, chooser, start_step=2)
        self.assert_equal_batches(later, expected[2:])

    def test_hosts_choose_from_their_own_groups_alone(self):
        # Of group g are chosen the positions 100 g to 100 g + 12 / G.
        for num_groups, num_hosts, groups in (
            (1, 3, ([0], [0], [0])),
            (2, 1, ([0, 1],)),
            (2, 2, ([0], [1])),
            (2, 4, ([0], [0], [1], [1])),
            (3, 2, ([0, 1], [1, 2])),
        ):
            size = 12 // num_groups
            asked, own = [], []

            def choose(group, asked=asked, size=size):
                def ask(group):
                    asked.append(int(group))
                    return 100 * group + np.arange(size)

                found = tf.numpy_function(ask, [group], tf.int64)
                return tf.ensure_shape(found, [size])

            for host in range(num_hosts):
                asked.clear()
                part = 12 // num_hosts
                rows = slice(part * host, part * (host + 1))
                dataset = cascade.join_groups(choose, 5, rows, size, num_groups)
                (found,) = dataset.take(1).as_numpy_iterator()
                own.extend(found)
                step_5 = [group - 5 * num_groups for group in sorted(asked)]
                count = len(groups[host])
                self.assertEqual(step_5[:count], groups[host])
            expected = [
                100 * (5 * num_groups + group) + np.arange(size)
                for group in range(num_groups)
            ]
            self.assertAllEqual(own, np.concatenate(expected))

    def test_blocks_and_weights_say_what_is_offered(self):
        chooser = self.cascade()
        for weights, order in (
            ((), stream.Order(80, cascade_cases.SEED, block_size=4)),
            (
                (2.0,),
                stream.Mixture([80], (2.0,), cascade_cases.SEED, block_size=4),
            ),
        ):
            batches = self.batches(
                2, chooser, weights=weights, shuffle_block_size=4
            )
            for step, batch in enumerate(batches):
                rows = order.rows(np.arange(30 * step, 30 * (step + 1)))
                own = batch["id"][~batch["record_replaced"]] - 1000
                self.assertEmpty(set(own) - set(rows))

    def test_curated_rows_are_not_chosen(self):
        """4 of 12 rows; the last shard, of 40 records, is the curated set."""
        store = stores.join(
            [stores.open_store(path) for path in self.store.shards.paths]
        )
        options = pipeline.Options(
            num_curated=1,
            curated_rows=4,
            cascade=self.cascade(hyper_batch_size=28),
        )
        order = pipeline.order(store, cascade_cases.SEED, 12, options)
        for step, batch in enumerate(
            self.batches(
                3,
                options.cascade,
                store=store,
                num_curated=1,
                curated_rows=4,
            )
        ):
            offered = np.arange(28 * step, 28 * (step + 1))
            curated = offered[6::7]
            self.assertTrue(order.is_curated(curated).all())
            # A curated row that cannot be read has a curated substitute.
            self.assertAllInRange(batch["id"][2::3] - 1000, 40, 79)
            readable = ~batch["record_replaced"][2::3]
            self.assertAllEqual(
                (batch["id"][2::3] - 1000)[readable],
                order.rows(curated)[readable],
            )
            # The others are the joint draw from the pool's 24 positions.
            pool = offered[~order.is_curated(offered)]
            rows = order.rows(pool)
            pool = pool[np.argsort(rows, kind="stable")]
            places, _ = cascade.draw(
                Embeddings(
                    *(
                        np.float32(part)
                        for part in cascade.load_rows(
                            pool,
                            self.sidecars,
                            self.store,
                            order,
                            cascade_cases.SEED,
                        )[1:]
                    ),
                    20.0,
                    -8.0,
                ),
                options.cascade.settings,
                batch_size=8,
                seed=(cascade_cases.SEED, step),
                loss="sigmoid",
            )
            chosen = np.sort(pool[places])
            others = np.delete(batch["id"], np.arange(2, 12, 3)) - 1000
            replaced = np.delete(batch["record_replaced"], np.arange(2, 12, 3))
            self.assertAllEqual(
                others[~replaced], order.rows(chosen)[~replaced]
            )

    def test_faults_are_logged_with_the_step_that_met_them(self):
        path = os.path.join(self.get_temp_dir(), "faults.jsonl")
        log = pipeline.FaultLog(path, 1.0)
        batches = self.batches(8, self.cascade(), faults=log)
        log.close(stop_step=8)
        with open(path) as file:
            lines = [json.loads(line) for line in file]
        steps = [
            step
            for step, batch in enumerate(batches)
            for _ in range(batch["record_replaced"].sum())
        ]
        self.assertNotEmpty(steps)
        found = {line["position"]: line["step"] for line in lines}
        self.assertEqual(list(found.values()), steps)


class RefusalsTest(cascade_cases.CascadeTestCase):
    def test_a_hyper_batch_larger_than_the_store(self):
        with self.assertRaisesRegex(
            ValueError, "hyper_batch_size.*records of `data.train`, 80.*: 81"
        ):
            self.cascade(hyper_batch_size=81)
        self.cascade(hyper_batch_size=80)

    def test_a_hyper_batch_with_more_pool_rows_than_the_pool(self):
        """The last shard, 40 of 80 records, is the curated set."""
        store = stores.join(
            [stores.open_store(path) for path in self.store.shards.paths]
        )

        def batches(size):
            curated = {"num_curated": 1, "curated_rows": 4}
            chooser = self.cascade(hyper_batch_size=size)
            return self.batches(1, chooser, store=store, **curated)

        self.assertLen(batches(44), 1)  # 40 of the pool
        with self.assertRaisesRegex(ValueError, "aside, 40,.*Received: 44"):
            batches(48)

    def test_ids_that_differ_stop_it(self):
        class Other:
            """The store with other ids."""

            def __init__(self, store):
                self._store = store

            def __getattr__(self, name):
                return getattr(self._store, name)

            def ids(self, rows):
                return self._store.ids(rows) + (np.asarray(rows) == 7)

        with self.assertRaisesRegex(
            ValueError, "must have the record's id, 1008. Received: 1007"
        ):
            cascade.load_rows(
                np.arange(80),
                self.sidecars,
                Other(self.store),
                stream.Order(80, cascade_cases.SEED),
                cascade_cases.SEED,
            )

    def test_a_store_without_any_embedding(self):
        class Nothing:
            """Sidecars of records none of which could be read."""

            def read_numbered(self, rows, numbers, ids):
                nothing = np.zeros([len(rows), cascade_cases.DIM])
                return np.full(len(rows), -1), nothing, nothing

        with self.assertRaisesRegex(
            ValueError, r"16 records in a row have no embedding.*position 56"
        ):
            cascade.load_rows(
                np.arange(30, 60),
                Nothing(),
                self.store,
                stream.Order(80, cascade_cases.SEED),
                cascade_cases.SEED,
            )


class CostTest(tf.test.TestCase):
    def test_the_ledger_counts_what_was_considered(self):
        recipe = config.TrainConfig(
            data=config.DataConfig(super_batch_size=12),
            reference=config.ReferenceConfig(sidecars=True),
            cascade=config.CascadeConfig(30, num_chunks=2),
        )
        self.assertEqual(
            costs.examples_at(recipe, 3),
            {
                "examples/cascaded": 90,
                "examples/drawn": 36,
                "examples/scored": 0,
                "examples/trained": 36,
            },
        )

    def test_flops_are_those_of_the_products(self):
        settings = config.CascadeConfig(500, num_chunks=3, uniform_share=0.2)
        # 80 of 100 rows jointly; images by texts and texts by images.
        products = sum(
            2 * (2 * 500 * size * 16)
            for size in selection.chunk_sizes(80, 3, 500)
        )
        own = 2 * 500 * 16
        self.assertEqual(cascade.flops(settings, 100, (16,)), products + own)
        self.assertEqual(cascade.flops(config.CascadeConfig(), 100, (16,)), 0)

    def test_steps_are_counted_by_what_they_choose_by(self):
        recipe = config.TrainConfig(
            steps=100,
            data=config.DataConfig(super_batch_size=12),
            cascade=config.CascadeConfig(30, 3, "learnability"),
            reference=config.ReferenceConfig(sidecars=True),
            bootstrap=config.BootstrapConfig(
                renew_at=(10, 20), renews="learner"
            ),
        )
        easy = 2 * 30 * 8 * (1 + 2 * 12)
        for step, expected in (
            (0, 0),
            (4, 4 * easy),
            (10, 10 * easy),
            (25, 10 * easy + 15 * 2.5 * easy),
        ):
            dims = [(0, (8,)), (10, (8, 12)), (20, (8, 12))]
            self.assertEqual(cascade.flops_at(recipe, dims, step), expected)

    def test_groups_cost_their_part_of_the_products(self):
        one, five = (
            config.CascadeConfig(500, num_groups=groups) for groups in (1, 5)
        )
        own = 2 * 500 * 16
        self.assertEqual(
            cascade.flops(one, 100, (16,)) - own,
            5 * (cascade.flops(five, 100, (16,)) - own),
        )


def write_tiny(folder):
    """The shards of `run_server`, with sidecars."""
    tiny.write_shard(os.path.join(folder, "a.tfrecord"), rows=60)
    path = os.path.join(folder, "damaged.tfrecord")
    # The sidecars know nothing of the damage, so it shows after stage 0.
    tiny.write_shard(path, rows=8, seed=1, damaged=(2, 5))
    for name, rows in (("a", 60), ("damaged", 8)):
        store = stores.open_store(os.path.join(folder, f"{name}.tfrecord"))
        image, text = (
            sidecar_files.unit_rows(rows, seed, cascade_cases.DIM)
            for seed in (1, 2)
        )
        embed.write_arrays(store, image, text, cascade_cases.DESCRIPTION)


CASCADE = (
    "reference.sidecars=true",
    "cascade.hyper_batch_size=30",
    "cascade.num_chunks=2",
    "cascade.uniform_share=0.25",
    "selection.criterion=learnability",
)
# No selection in the graph: it trains on what stage 0 gives, and is drawn to
# what the reference makes of it.
ALONE = ("selection.batch_size=none", "reference.distillation_weight=0.5")


@pytest.mark.slow
class RunTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        write_tiny(cls.folder)
        cls.server = subprocesses.Server()
        cls.addClassCleanup(cls.server.close)

    def run_in(self, name, *overrides, ended=0, **options):
        workdir = os.path.join(self.folder, name)
        code = self.server.run(workdir, *CASCADE, *overrides, **options)
        with open(f"{workdir}.log", encoding="utf-8") as file:
            self.assertEqual(code, ended, file.read())
        return workdir

    def lines(self, workdir, name):
        return [
            {
                key: value
                for key, value in row.items()
                if not tiny.from_clock(key)
            }
            for row in tiny.read_lines(workdir, name)
        ]

    def assert_equal_runs(self, one, other):
        for name in (directory.METRICS_FILE, directory.DRAWS_FILE):
            self.assertEqual(self.lines(one, name), self.lines(other, name))
        ours, theirs = (
            subprocesses.weight_arrays(
                os.path.join(workdir, "final.weights.h5")
            )
            for workdir in (one, other)
        )
        self.assertEqual(set(ours), set(theirs))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], name)

    def test_a_killed_run_ends_as_the_unbroken_one(self):
        for name, overrides in (("both", ()), ("alone", ALONE)):
            with self.subTest(name):
                unbroken = self.run_in(name, *overrides)
                killed = f"{name}-killed"
                for place in (20, 11):
                    self.run_in(killed, *overrides, at=place, ended=-9)
                self.assertNotEmpty(
                    checkpoints.saved_steps(os.path.join(self.folder, killed))
                )
                self.assert_equal_runs(
                    self.run_in(killed, *overrides), unbroken
                )

    def test_the_log_counts_what_was_considered(self):
        workdir = self.run_in("counted", "steps=10")
        last = self.lines(workdir, directory.METRICS_FILE)[-1]
        self.assertEqual(last["examples/cascaded"], 300)
        self.assertEqual(last["examples/drawn"], 120)
        self.assertEqual(last["examples/scored"], 120)
        self.assertEqual(last["examples/trained"], 40)
        # A stage 0 of 30 positions: each with itself, and with the rows that
        # are drawn jointly in both directions; two FLOPs a multiply-add.
        recipe = run_server.recipe(self.folder, CASCADE)
        dim = sidecars.Sidecars(stores.open_stores(recipe.data)).dim
        jointly = 12 - round(recipe.cascade.uniform_share * 12)
        self.assertEqual(
            last["flops/cascade"], 10 * 2 * 30 * dim * (1 + 2 * jointly)
        )

    def test_super_batches_left_out_are_hyper_batches_left_out(self):
        workdir = os.path.join(self.folder, "skipped")
        os.makedirs(workdir)
        with open(os.path.join(workdir, directory.SKIPPED_FILE), "w") as file:
            json.dump([{"super_batches": [1, 3]}], file)
        self.run_in(
            "skipped", *ALONE, "steps=4", "evaluation.log_every_steps=1"
        )
        recipe = run_server.recipe(self.folder, (*CASCADE, *ALONE))
        store = stores.open_stores(recipe.data)
        chooser = cascade.Cascade(
            recipe.cascade, sidecars.Sidecars(store), "sigmoid"
        )
        dataset = pipeline.super_batches(
            store,
            super_batch_size=12,
            seed=recipe.seed,
            tokenizer=cascade_cases.TOKENIZER,
            image_size=cascade_cases.SIZE,
            options=pipeline.Options(
                cascade=chooser, faults=pipeline.FaultLog(None, 1.0)
            ),
        )
        ids = [
            batch["id"].tolist()
            for batch in dataset.take(7).as_numpy_iterator()
        ]
        self.assertEqual(
            [row["ids"] for row in self.lines(workdir, directory.DRAWS_FILE)],
            [ids[number] for number in (0, 2, 4, 5)],
        )

    def test_other_settings_than_at_the_beginning_are_refused(self):
        workdir = self.run_in("changed", "steps=4")
        code = self.server.run(workdir, *CASCADE, "steps=4", "cascade.gain=2")
        self.assertEqual(code, 1)
        with open(f"{workdir}.log", encoding="utf-8") as file:
            self.assertIn("cascade.gain", file.read())

    def test_two_devices_run_the_reference_that_one_would(self):
        teacher = self.run_in("teacher", "steps=4")
        settings = (
            *("steps=4", "evaluation.log_every_steps=1"),
            *("cascade.hyper_batch_size=none", "reference.sidecars=false"),
            f"reference.model={teacher}",
        )
        ours, theirs = (
            self.lines(self.run_in(*run), directory.DRAWS_FILE)
            for run in (
                ("live-one", *settings),
                (
                    "live-two",
                    *settings,
                    "distribution.strategy=mirrored",
                    "distribution.virtual_devices=2",
                ),
            )
        )
        # Then the batch norm of these towers has a replica's own statistics.
        self.assertEqual(ours[0], theirs[0])
        self.assertLen(theirs, 4)

    def test_two_devices_train_on_what_one_would(self):
        settings = ("steps=4", "evaluation.log_every_steps=1")
        one = self.run_in("one", *ALONE, *settings)
        two = self.run_in(
            "two",
            *ALONE,
            *settings,
            "distribution.strategy=mirrored",
            "distribution.virtual_devices=2",
        )
        ours, theirs = (
            self.lines(workdir, directory.DRAWS_FILE) for workdir in (one, two)
        )
        self.assertEqual(ours, theirs)


if __name__ == "__main__":
    tf.test.main()
