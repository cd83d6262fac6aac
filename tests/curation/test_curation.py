"""Curation: what is chosen, resuming, sets inferred from tasks, the command."""

import contextlib
import dataclasses
import fractions
import importlib.util
import io
import math
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import hand_draws
import html_elements
import numpy as np
import oracles
import pytest
import shard_files
import sidecar_files
import stored_cases
import tensorflow as tf

from jest_tf import config, curation, models
from jest_tf.curation import by_similarity
from jest_tf.curation import concepts as concepts_lib
from jest_tf.data import reader, stores, stream, tokenizers
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.data.stores import manifest
from jest_tf.embeddings import Embeddings
from jest_tf.reports import manifest_page
from jest_tf.runs import directory
from trainers import curate as command

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIM = stored_cases.DIM
BAD = stored_cases.BAD
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed",
)


class ScoresTestCase(tf.test.TestCase):
    """The store of the stored stages' tests, and sidecars of a learner."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.store, cls.image, cls.text, cls.starts = stored_cases.write_store(
            cls.folder
        )
        counts = np.diff(cls.starts)
        cls.learner = (
            sidecar_files.unit_rows(80, 8, DIM),
            sidecar_files.unit_rows(int(counts.sum()), 9, DIM),
        )
        cls.learner_dir = os.path.join(cls.folder, "learner")
        embed.write_arrays(
            cls.store,
            *cls.learner,
            file_format.Description("l", "t", "p", DIM, 5.0, -3.0),
            embed.Output(cls.learner_dir),
            captions=counts,
        )
        cls.models = (curation.Model(), curation.Model("", cls.learner_dir))

    def output(self):
        return self.enterContext(tempfile.TemporaryDirectory())

    def curate(self, directory, count=1, **settings):
        return curation.curate(
            self.store,
            directory,
            self.settings(count, **settings),
            self.models[:count],
        )

    def settings(self, count=1, **settings):
        """A `Choice`, with fields of its stage among the settings."""
        names = {field.name for field in dataclasses.fields(config.Stage)}
        stage = {
            "candidates": 4,
            "num_chunks": 3,
            "criterion": ("easy_reference", "learnability")[count - 1],
        }
        stage |= {name: settings.pop(name) for name in names & {*settings}}
        # The models are sidecars, which do not tell their loss.
        settings = {"window": 15, "loss": "sigmoid"} | settings
        return curation.Choice(
            config.Stage(embeddings="stored", **stage), **settings
        )


class ChoiceTest(ScoresTestCase):
    def windows(self, shard, chosen_by):
        """Of every window of a shard, from the text.

        Its rows, their captions, the seed, and how many are chosen.
        """
        start = int(self.store.shards.lengths[:shard].sum())
        length = int(self.store.shards.lengths[shard])
        good = [row for row in range(start, start + length) if row not in BAD]
        alone = self.store.of_shard(shard)
        key = curation.by_score._key(alone, chosen_by.seed)
        order = stream.Order(len(good), key)
        count = max(1, round(len(good) / chosen_by.window))
        total = fractions.Fraction(key, 2**31)
        for turn in range(chosen_by.passes):
            positions = np.arange(len(good)) + turn * len(good)
            rows = np.array(good)[order.rows(positions)]
            captions = np.array(
                [
                    self.starts[row] + self.caption(chosen_by, row, number)
                    for row, number in zip(
                        rows,
                        reader.caption_numbers(key, positions),
                        strict=True,
                    )
                ]
            )
            for number, places in enumerate(
                np.array_split(np.arange(len(rows)), count)
            ):
                before = math.floor(total)
                total += fractions.Fraction(
                    len(places), chosen_by.stage.candidates
                )
                yield (
                    rows[places],
                    captions[places],
                    (key, turn * count + number),
                    math.floor(total) - before,
                )

    def caption(self, chosen_by, row, number):
        """The number of a record's caption, drawn or most like the picture."""
        choices = reader.candidates(stored_cases.captions_of(row))
        if chosen_by.stage.captions == "drawn":
            return choices[number % len(choices)]
        texts = self.text[self.starts[row] :][choices]
        return choices[np.argmax(texts @ self.image[row])]

    def embedded(self, arrays, rows, captions, scale, bias):
        image, text = (np.float32(np.float16(values)) for values in arrays)
        return Embeddings(image[rows], text[captions], scale, bias)

    def check(self, count=1, **settings):
        """Against the slow joint draw, over whole matrices."""
        chosen_by = self.settings(count, **settings)
        found = curation.curate(
            self.store, self.output(), chosen_by, self.models[:count]
        )
        weights, scores = np.zeros(80), np.zeros(80)
        for shard in range(3):
            chosen = 0
            for rows, captions, seed, size in self.windows(shard, chosen_by):
                teacher = self.embedded(
                    (self.image, self.text), rows, captions, 20.0, -8.0
                )
                learner = None
                if count == 2:
                    learner = self.embedded(
                        self.learner, rows, captions, 5.0, -3.0
                    )
                stage = chosen_by.stage
                by_score = size - stage.num_uniform(size)
                drawn = hand_draws.rows(
                    learner,
                    teacher,
                    dataclasses.replace(
                        stage, num_chunks=min(stage.num_chunks, by_score)
                    ),
                    batch_size=size,
                    seed=seed,
                    loss=chosen_by.loss,
                )
                chosen += size
                weights[rows[drawn]] += 1
                own = -oracles.row_losses(teacher, drawn, chosen_by.loss)
                if count == 2:
                    own += oracles.row_losses(learner, drawn, chosen_by.loss)
                scores[rows] += own
            # Exact in every shard, to within a record.
            start = sum(stored_cases.LENGTHS[:shard])
            good = {*range(start, start + stored_cases.LENGTHS[shard])} - {*BAD}
            share = chosen_by.passes * len(good) / stage.candidates
            self.assertBetween(chosen, math.floor(share), math.ceil(share))
        scores[list(BAD)] = np.nan
        self.assertAllEqual(found.weights, weights)
        self.assertAllClose(
            found.scores, scores / chosen_by.passes, rtol=1e-4, atol=1e-4
        )
        return found

    def test_every_window_passes_the_stage(self):
        for count, settings in (
            (1, {}),
            (2, {"candidates": 2, "seed": 3, "captions": "drawn"}),
            (1, {"loss": "softmax", "passes": 2, "uniform_share": 0.5}),
        ):
            with self.subTest(**settings):
                found = self.check(count, **settings)
                passes = settings.get("passes", 1)
                self.assertLessEqual(found.weights.max(), passes)

    def test_all_may_be_chosen(self):
        found = self.curate(self.output(), candidates=1)
        self.assertAllEqual(found.weights, ~np.isin(np.arange(80), BAD))

    def test_of_any_number_of_windows_so_many_are_chosen_as_their_share(self):
        random = np.random.default_rng(0)
        for candidates in (1, 2, 3, 5, 10, 1000):
            share = fractions.Fraction(1, candidates)
            for key in (0, 1, 2**30, 2**31 - 1):
                sizes = random.integers(1, 9, 50).tolist()
                counts = curation.by_score._counts(share, sizes, key)
                self.assertAllInRange(counts, 0, 8)
                difference = np.cumsum(counts) - share * np.cumsum(sizes)
                self.assertLess(np.abs(difference).max(), 1)
        # Over all keys the mean is the share: of two records 0.4.
        keys, fifth = range(0, 2**31, 2**21), fractions.Fraction(1, 5)
        counts = [
            sum(curation.by_score._counts(fifth, [1, 1], key)) for key in keys
        ]
        self.assertAllClose(np.mean(counts), 0.4, atol=1 / len(keys))

    def test_sidecars_alone_do_not_tell_the_loss(self):
        for count, received in (
            (1, "sidecars without a run"),
            (2, "sidecars without a run and sidecars without a run"),
        ):
            with self.assertRaisesRegex(ValueError, f"`loss` .*{received}"):
                self.curate(self.output(), count, loss=None)
        found = self.curate(self.output(), loss="softmax")
        self.assertEqual(found.made_by["loss"], "softmax")

    def test_one_shard_under_two_folders_is_refused(self):
        folder = self.output()
        path = os.path.join(folder, "0.tfrecord")
        shutil.copy(os.path.join(self.folder, "0.tfrecord"), path)
        store = stores.join([self.store, stores.open_store(path)])
        with self.assertRaisesRegex(
            ValueError, f"two of version .* and {path}"
        ):
            curation.curate(
                store, self.output(), self.settings(), self.models[:1]
            )


class ResumeTest(ScoresTestCase):
    def read(self, folder):
        return {
            path.name: path.read_bytes()
            for path in pathlib.Path(folder).iterdir()
            if path.is_file()
        }

    def test_what_is_there_is_kept_and_what_is_missing_is_made(self):
        whole, broken = self.output(), self.output()
        self.curate(whole)
        self.curate(broken)
        names = sorted(os.listdir(broken))
        self.assertLen(names, 4)  # three shards and the list
        os.remove(os.path.join(broken, manifest.MANIFEST_FILE))
        os.remove(manifest.part_path(self.store, 1, broken))
        kept = manifest.part_path(self.store, 0, broken)
        before = os.stat(kept).st_mtime_ns
        self.curate(broken)
        self.assertEqual(self.read(broken), self.read(whole))
        self.assertEqual(os.stat(kept).st_mtime_ns, before)

    def test_another_choice_is_refused_unless_it_is_to_replace(self):
        folder, whole = self.output(), self.output()
        self.curate(folder)
        with self.assertRaisesRegex(ValueError, "made_by.candidates=2"):
            self.curate(folder, candidates=2)
        with self.assertRaisesRegex(ValueError, "expected made_by.criterion="):
            self.curate(folder, count=2)
        # To replace is to write all anew.
        self.curate(whole, candidates=2)
        path = manifest.part_path(self.store, 0, folder)
        header, part, _ = manifest.read_part(path)
        manifest.write_part(
            path, header, part._replace(weights=part.weights + 1)
        )
        found = curation.curate(
            self.store,
            folder,
            self.settings(candidates=2),
            self.models[:1],
            overwrite=True,
        )
        self.assertEqual(found.made_by["candidates"], 2)
        self.assertEqual(self.read(folder), self.read(whole))

    def test_two_processes_do_not_write_one_manifest(self):
        folder = self.output()
        with curation.claimed(folder):
            with self.assertRaisesRegex(ValueError, "Another process is writ"):
                self.curate(folder)

    def test_a_remote_manifest_equals_a_local_one(self):
        remote = self.curate("ram://curation/a")
        self.assertEqual(remote.identity, self.curate(self.output()).identity)

    def test_models_that_do_not_fit_are_refused(self):
        for criterion, found, pattern in (
            ("learnability", self.models[:1], "and the learner. Received: 1"),
            ("easy_reference", self.models, "the reference. Received: 2"),
            ("learnability", self.models[:1] * 2, "need folders of their own"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                curation.curate(
                    self.store,
                    self.output(),
                    self.settings(criterion=criterion),
                    found,
                )

    def test_settings_out_of_range_are_refused(self):
        for name, value in (
            *(("window", 0), ("passes", 0), ("loss", "l2"), ("seed", -1)),
            ("stage.embeddings", config.Stage(5)),
        ):
            with self.assertRaisesRegex(ValueError, f"`{name}` must be"):
                curation.Choice(**{name.partition(".")[0]: value})

    def spread(self, directory, *options, **arguments):
        return curation.curate_with_beam(
            config.DataConfig(train=(f"{self.folder}/*.tfrecord",)),
            directory,
            self.settings(),
            self.models[:1],
            options=["--runner=DirectRunner", *options],
            **arguments,
        )

    @needs_beam
    def test_beam_writes_the_same_files(self):
        alone, spread = self.output(), self.output()
        expected = self.curate(alone)
        found = self.spread(spread)
        self.assertEqual(found.identity, expected.identity)
        files = self.read(alone)
        self.assertEqual(self.read(spread), files)
        path = manifest.part_path(self.store, 0, spread)
        header, part, _ = manifest.read_part(path)
        manifest.write_part(
            path, header, part._replace(weights=part.weights + 1)
        )
        self.spread(spread, overwrite=True)
        self.assertEqual(self.read(spread), files)


class ReportTest(ScoresTestCase):
    """The page's numbers, against loops over everything."""

    def test_nearest_others_are_those_of_a_matrix(self):
        rows = np.setdiff1d(np.arange(80), [4, 50, 61])
        queries = rows[::3]
        image = np.float32(np.float16(self.image))
        cosines = image[queries] @ image[rows].T
        cosines[queries[:, None] == rows] = -np.inf
        bad = np.isin(rows, stored_cases.INVALID)
        cosines[:, bad] = -np.inf
        cosines[np.isin(queries, stored_cases.INVALID)] = -np.inf
        expected = rows[cosines.argmax(1)]
        expected[np.isinf(cosines.max(1))] = -1
        known = ~np.isin(queries, stored_cases.INVALID)
        source = sidecars_lib.Sidecars(self.store)
        for values in (5 * known.sum(), 2**24):
            with mock.patch.object(manifest_page, "_BLOCK_VALUES", values):
                asked, others, best = manifest_page.nearest_others(
                    source, rows, queries
                )
            self.assertAllEqual(asked, queries[known])
            self.assertAllEqual(others, expected[known])
            self.assertAllClose(best, cosines.max(1)[known], 1e-6, 1e-6)

    def test_what_cannot_be_read_is_shown_grey_and_text_is_escaped(self):
        folder = self.output()
        path = os.path.join(folder, "a.tfrecord")
        good = tf.io.encode_png(np.zeros([3, 3, 3], np.uint8)).numpy()
        shard_files.write_shard(
            path,
            [
                shard_files.serialize(image=image, caption=caption, kind="<i>")
                for image, caption in (
                    (good, "<script>"),
                    (b"x", "b"),
                    (good, " "),
                    (good, "c"),
                )
            ],
        )
        store = stores.open_store(path)
        found = shard_files.write_manifest(
            store, os.path.join(folder, "m"), [1, 2, 1, 0], [1, 2, np.nan, 2]
        )
        page = os.path.join(folder, "report.html")
        manifest_page.write(page, store, found)
        with open(page, encoding="utf-8") as file:
            text = file.read()
        elements = html_elements.Elements()
        elements.feed(text)
        self.assertEmpty(elements.open)
        self.assertNotIn("script", elements.tags)
        self.assertLen(elements.images, 3)
        self.assertIn("&lt;script&gt;", text)
        self.assertIn("&lt;i&gt;", text)
        self.assertIn("Weights", text)
        self.assertNotIn("Near-duplicates", text)


def write_set(folder, name, images, captions, ids, **metadata):
    """A shard of a picture of noise a number, and a few captions."""
    payloads = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        pixels = np.random.default_rng(image).integers(0, 256, (4, 4, 3))
        payloads.append(
            shard_files.serialize(
                image=tf.io.encode_png(pixels.astype(np.uint8)).numpy(),
                caption=caption,
                id=int(ids[row]),
                **{key: values[row] for key, values in metadata.items()},
            )
        )
    path = os.path.join(folder, f"{name}.tfrecord")
    return stores.open_store(shard_files.write_shard(path, payloads))


class LikeTest(tf.test.TestCase):
    """A pool of 300 around 12 directions, tasks near four of them."""

    DIM = 16

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.directory = os.path.join(self.folder, "manifest")
        self.random = np.random.default_rng(0)
        self.directions = self.unit(self.random.normal(size=(12, self.DIM)))
        self.pool = self.source("pool", np.arange(300) % 12, range(1000, 1300))
        labels = np.arange(10) % 4
        self.labels = labels
        self.tasks = self.source(
            "tasks",
            labels,
            range(10),
            concept=[f"concept {label}" for label in labels],
        )

    def unit(self, values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def source(
        self,
        name,
        labels,
        ids,
        images=None,
        image=None,
        captions=None,
        valid=None,
        **metadata,
    ):
        """A store with sidecars near the directions of the labels."""
        ids = list(ids)
        if captions is None:
            captions = [f"caption {key}" for key in ids]
        store = write_set(
            self.folder,
            name,
            ids if images is None else images,
            captions,
            ids,
            **metadata,
        )
        near = self.directions[labels]
        noise = self.random.normal(size=(2, *near.shape))
        # Cosines of about 0.9 with the direction.
        found = [self.unit(near + 0.12 * part) for part in noise]
        if image is not None:
            found[0] = image
        # As the sidecar of a blank caption has it.
        found[1][[caption == " " for caption in captions]] = 0.0
        embed.write_arrays(
            store,
            *found,
            file_format.Description("m", "t", "p", self.DIM, 10.0, -10.0),
            embed.Output(overwrite=True),
            valid=valid,
        )
        return sidecars_lib.Sidecars(store)

    def infer(self, evaluation=None, overwrite=False, **settings):
        settings = {"size": 40, "near": 1.1} | settings
        return by_similarity.infer(
            self.pool,
            self.tasks,
            evaluation,
            self.directory,
            by_similarity.Settings(**settings),
            overwrite=overwrite,
        )

    def similarities(self):
        """[300, 10]: the mean of both cosines, from the arrays."""
        pool, tasks = (
            source.read_shard(0) for source in (self.pool, self.tasks)
        )
        pool, tasks = (
            np.concatenate([rows.image, rows.text], 1).astype(np.float64)
            for rows in (pool, tasks)
        )
        return pool @ tasks.T / 2

    def test_it_is_the_slow_choice_in_turns(self):
        """In blocks of any size."""
        similar = self.similarities()
        chosen = oracles.choose_in_turns(similar, self.labels, 40)
        for rows in (7, by_similarity._BLOCK_ROWS):
            self.directory = os.path.join(self.folder, f"blocks of {rows}")
            with mock.patch.object(by_similarity, "_BLOCK_ROWS", rows):
                found = self.infer()
            self.assertAllClose(found.scores, similar.max(1), atol=1e-5)
            self.assertAllEqual(np.flatnonzero(found.weights), sorted(chosen))
            self.assertAllEqual(np.unique(found.weights), [0.0, 1.0])
        # A task's nearest lie about its direction, ten for each of four.
        counts = np.bincount(np.array(sorted(chosen)) % 12, minlength=12)
        self.assertAllEqual(counts[:4], [10] * 4)

    def test_a_concept_that_runs_out_leaves_its_turns_to_others(self):
        # Each finds eight candidates a row that it could have; some are
        # another's, and all of the pool is too little.
        found = self.infer(size=300)
        self.assertEqual(found.weights.sum(), 300)
        self.assertEqual(found.counts["concepts"], 4)
        self.assertEqual(found.made_by["balanced_over"], "concept")
        # As many candidates as rows: the 75 nearest of each concept.
        self.directory = os.path.join(self.folder, "again")
        found, similar, rows = (
            self.infer(size=300, oversampling=1),
            self.similarities(),
            set(),
        )
        for concept in range(4):
            of_concept = similar[:, self.labels == concept].max(1)
            rows |= set(np.argsort(-of_concept)[:75].tolist())
        self.assertAllEqual(np.flatnonzero(found.weights), sorted(rows))
        self.assertEqual(found.counts["candidates"], len(rows))
        self.assertEqual(found.counts["asked for"], 300)

    def test_near_duplicates_and_repeated_ids_come_once(self):
        image = np.repeat(self.directions, 25, 0)[
            np.argsort(np.tile(np.arange(25), 12), kind="stable")
        ]
        self.pool = self.source(
            "copies", np.arange(300) % 12, range(2000, 2300), image=image
        )
        found = self.infer(size=100, near=0.999)
        # A picture for each direction of which there are candidates.
        rows = np.flatnonzero(found.weights)
        self.assertLen(rows, len(np.unique(rows % 12)))
        self.assertEqual(found.counts["asked for"], 100)
        self.assertEqual(found.counts["candidates"], 300)
        self.assertGreater(found.counts["near-duplicates"], 50)

        self.directory = os.path.join(self.folder, "ids")
        self.pool = self.source(
            "ids", np.arange(300) % 12, np.arange(300) // 12 % 5 + 7000
        )
        found = self.infer(size=100)
        self.assertEqual(found.weights.sum(), 5)
        self.assertGreater(found.counts["repeated ids"], 50)
        self.directory = os.path.join(self.folder, "counted")
        found = self.infer(size=100, compare_ids=False)
        self.assertEqual(found.weights.sum(), 100)

    def test_what_is_in_the_evaluation_is_left_out_and_counted(self):
        """Its items need no caption, and no embedding."""
        before = np.flatnonzero(self.infer().weights)
        by_id, by_picture, by_embedding, by_both = before[[0, 5, 9, 12]]
        rows = self.pool.read_shard(0)
        for name, captions in (("evaluation", None), ("bare", [" "] * 4)):
            image = self.unit(self.random.normal(size=(4, self.DIM)))
            image[2] = rows.image[by_embedding]
            evaluation = self.source(
                name,
                [8, 9, 10, 11],
                [1000 + by_id, 8001, 8002, 1000 + by_both],
                images=[8000, 1000 + by_picture, 8002, 1000 + by_both],
                image=image,
                captions=captions,
                valid=np.array([True, True, True, False]),
            )
            self.directory = os.path.join(self.folder, f"apart from {name}")
            found = self.infer(evaluation, leak=0.999)
            after = np.flatnonzero(found.weights)
            self.assertLen(after, 40)
            left_out = {by_id, by_picture, by_embedding, by_both}
            chosen = oracles.choose_in_turns(
                self.similarities(), self.labels, 40, left_out
            )
            self.assertAllEqual(after, sorted(chosen))
            counts = [
                found.counts[f"in the evaluation, by {reason}"]
                for reason in ("id", "picture", "embedding")
            ]
            self.assertEqual(counts, [2, 1, 1])
            self.assertEqual(
                found.counts["items of the evaluation without an embedding"], 1
            )

    def test_tasks_that_share_items_with_the_evaluation_are_refused(self):
        # Two of the examples are of the same item.
        self.tasks = self.source(
            "tasks", self.labels, [0, 1, 2, 3, 4, 5, 6, 3, 8, 9]
        )
        evaluation = self.source("e", [8, 9, 10], [8000, 3, 6])
        with self.assertRaisesRegex(
            ValueError,
            "3 examples of equal id, the first record 3 of .*tasks.tfrecord "
            "and record 1 of .*e.tfrecord, ids 3 and 3; set compare_ids=false",
        ):
            self.infer(evaluation)
        # Neither needs a caption.
        self.tasks = self.source(
            "blank", self.labels, range(10), captions=["a"] * 9 + [" "]
        )
        for captions in ([" "] * 2, ["a"] * 2):
            evaluation = self.source("f", [8, 9], [8000, 9], captions=captions)
            with self.assertRaisesRegex(ValueError, "1 examples of equal id"):
                self.infer(evaluation)
        evaluation = self.source("p", [8, 9], [8000, 8001], images=[77, 5])
        with self.assertRaisesRegex(ValueError, "1 examples of equal picture"):
            self.infer(evaluation)
        self.assertFalse(os.path.exists(self.directory))

    def test_embeddings_of_two_models_are_refused(self):
        store = self.tasks.store
        folder = os.path.join(self.folder, "others")
        embed.write_arrays(
            store,
            self.unit(np.ones([10, self.DIM])),
            self.unit(np.ones([10, self.DIM])),
            file_format.Description("n", "t", "p", self.DIM, 10.0, -10.0),
            embed.Output(folder),
        )
        self.tasks = sidecars_lib.Sidecars(store, folder)
        with self.assertRaisesRegex(ValueError, "of one model.* m, n"):
            self.infer()

    def test_concepts_are_a_field_a_caption_or_clusters(self):
        examples = by_similarity.load(self.tasks)

        def concepts(field="", num_clusters=None):
            return concepts_lib.concepts_of(
                self.tasks.store,
                examples.rows,
                examples.both,
                field,
                num_clusters,
            )

        def assert_clusters(found):
            self.assertEqual(found.over, "clusters")
            self.assertLen(found.names, 4)
            # The same grouping under other numbers.
            pairs = zip(found.labels.tolist(), self.labels, strict=True)
            self.assertLen(set(pairs), 4)

        over, names, labels = concepts()
        self.assertEqual(over, "concept")
        self.assertEqual(names, [f"concept {number}" for number in range(4)])
        self.assertAllEqual(labels, self.labels)
        over, names, _ = concepts("caption")
        self.assertEqual(over, "caption")
        self.assertEqual(names, [f"caption {number}" for number in range(10)])
        with self.assertRaisesRegex(ValueError, "'kind' must be a field of ev"):
            concepts("kind")
        assert_clusters(concepts(num_clusters=4))
        self.tasks = self.source("plain", self.labels, range(10))
        examples = by_similarity.load(self.tasks)
        assert_clusters(concepts(num_clusters=4))
        self.assertLen(concepts().names, 3)  # the root of ten
        self.assertIn("clusters", self.infer().counts)

    def test_settings_out_of_range_are_refused(self):
        for name, value in (("size", 0), ("oversampling", 0), ("near", -1.0)):
            with self.assertRaisesRegex(ValueError, f"`{name}` must be"):
                by_similarity.Settings(**{name: value})


class CommandTest(tf.test.TestCase):
    """The command on shipped pictures, with two runs never trained."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        counts = {"curated": 500, "val": 250, "test": 250}
        shard_files.write_shipped(cls.folder, **counts)
        for seed, name in enumerate(("reference", "learner")):
            cls.write_run(name, seed)

    @classmethod
    def write_run(cls, name, seed, loss="sigmoid"):
        workdir = os.path.join(cls.folder, name)
        os.makedirs(workdir)
        recipe = config.TrainConfig(
            seed=seed,
            data=config.DataConfig(image_size=32, text_length=16),
            model=config.ModelConfig(preset="tiny", loss=loss),
        )
        config.save_config(recipe, os.path.join(workdir, directory.CONFIG_FILE))
        letters = "abcdefghijklmnopqrstuvwxyz"
        tokenizer = tokenizers.WordPieceTokenizer(
            ["[UNK]", "[EOS]", *letters, *(f"##{a}" for a in letters)], 16
        )
        tokenizer.save(workdir)
        learner = models.build_learner(recipe, tokenizer.vocabulary_size)
        directory.save_learner(workdir, learner)

    def path(self, name):
        return os.path.join(self.folder, name)

    def arguments(self, output, *more, data="val"):
        return [
            *("--workdir", self.path("reference")),
            *("--data", self.path(f"{data}-*.tfrecord")),
            *("--sidecar-dir", self.path("sidecars")),
            *("--index-dir", self.path("index")),
            *("--output", self.path(output)),
            *more,
        ]

    def run_command(self, output, *more, **arguments):
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as shown,
        ):
            command.main(self.arguments(output, *more, **arguments))
        return printed.getvalue(), shown.getvalue()

    def read_page(self, output):
        with open(
            os.path.join(self.path(output), "report.html"), encoding="utf-8"
        ) as file:
            text = file.read()
        self.assertNotRegex(text, r"https?://|<script|<link|url\(")
        found = html_elements.Elements()
        found.feed(text)
        self.assertEmpty(found.open)
        return text, found

    def test_it_writes_what_the_library_does_and_a_report(self):
        printed, shown = self.run_command(
            "easy",
            *("--sidecar-dir", self.path("anew")),
            *("--set", "stage.candidates=3", "window=100", "seed=4"),
        )
        self.assertRegex(printed, r"\b8[34] of 250 records are drawn: .*easy")
        self.assertRegex(shown, r"(?s)embedding.* 250 .*scoring.* 250 of 250")
        self.assertIn("report.html", printed)
        data = config.DataConfig(
            train=(self.path("val-*.tfrecord"),),
            index_dir=self.path("index"),
            manifest=self.path("easy"),
        )
        store = stores.open_stores(data)
        expected = curation.choose(
            store,
            curation.Choice(
                config.Stage(3, "stored", criterion="easy_reference"),
                window=100,
                seed=4,
                loss="sigmoid",
            ),
            [curation.Model("", self.path("anew"))],
        )
        self.assertEqual(store.manifest.made_by["loss"], "sigmoid")
        self.assertAllEqual(store.manifest.weights, expected.weights)
        self.assertAllEqual(store.manifest.scores, expected.scores)
        text, found = self.read_page("easy")
        # Eight of each decile, and twelve pairs.
        self.assertLen(found.images, 80 + 24)
        for wanted in (
            "easy_reference",
            '<td dir="auto">mono icon',
            "heroicons",
        ):
            self.assertIn(wanted, text)
        # Those of the pairs are all drawn.
        self.assertGreater(text.count('class="card kept"'), 24)

    def test_the_loss_is_the_one_that_the_runs_were_trained_with(self):
        self.write_run("softmax", 2, "softmax")

        def loss(*names, **settings):
            models = [
                curation.Model(self.path(name), self.path(f"{name}_sidecars"))
                for name in names
            ]
            criterion = ("easy_reference", "learnability")[len(models) - 1]
            stage = config.Stage(5, "stored", criterion=criterion)
            chosen_by = curation.Choice(stage, **settings)
            return curation.for_models(chosen_by, models).loss

        self.assertEqual(loss("softmax"), "softmax")
        self.assertEqual(loss("softmax", loss="sigmoid"), "sigmoid")
        self.assertEqual(loss("reference", "learner"), "sigmoid")
        with self.assertRaisesRegex(ValueError, "none, with 'sigmoid' of "):
            loss("reference", "softmax")

    def test_like_tasks_without_anything_of_their_evaluation(self):
        printed, _ = self.run_command(
            "like",
            *("--like", self.path("val-*.tfrecord")),
            *("--evaluation", self.path("test-*.tfrecord")),
            *("--set", "size=150", "near=1.1", "leak=1.1"),
            data="curated",
        )
        self.assertRegex(printed, "150 of .* records are drawn")
        self.assertIn("  clusters", printed)
        self.assertIn("in the evaluation, by picture", printed)
        text, _ = self.read_page("like")
        self.assertIn("passed over: in the evaluation, by id", text)
        self.assertNotIn("passed over: candidates", text)
        self.assertRegex(text, "asked for.*150")
        self.assertRegex(text, "pool.*1 shards")

    def test_what_does_not_fit_is_one_line(self):
        for more, message in (
            (["--evaluation", "x"], "`--evaluation` needs `--like`"),
            (["--learner-step", "3"], "`--learner-step` needs `--learner`"),
            (["--workdir", "", "--step", "3"], "`--step` needs `--workdir`"),
            (["--learner-sidecar-dir", "x"], "needs `--learner`"),
            (
                ["--like", "x", "--learner-sidecar-dir", "x"],
                "Received: `--learner-sidecar-dir` with it",
            ),
            (["--like", "x", "--beam"], "Received: `--beam` with it"),
            (["--set", "stage.candidates=0"], "candidates` must be at least 1"),
            (["--set", "stage.embeddings=live"], "`stage.embeddings` must be"),
            (["--set", "size=2"], "No setting `size`"),
        ):
            with self.assertRaises(SystemExit) as stopped:
                self.run_command("none", "--no-report", *more)
            self.assertRegex(str(stopped.exception), f"^error: .*{message}")
        with self.assertRaises(SystemExit):
            self.run_command("none", "--unknown")
