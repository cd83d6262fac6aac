"""Curation: what is chosen, resuming, the report, the command."""

import base64
import contextlib
import dataclasses
import fractions
import io
import math
import os
import pathlib
import shutil
import tempfile

import hand_draws
import html_elements
import numpy as np
import oracles
import shard_files
import stored_cases
import tensorflow as tf
import tiny

from jest_tf import cli, config, curation
from jest_tf.curation import choice
from jest_tf.data import reader, sidecars, stores, stream
from jest_tf.data.stores import manifest
from jest_tf.embeddings import Embeddings
from jest_tf.reports import manifest_page

BAD = stored_cases.BAD


class ScoresTestCase(stored_cases.StoredTestCase):
    def output(self):
        return self.enterContext(tempfile.TemporaryDirectory())

    def curate(self, directory, **settings):
        chosen_by = self.settings(**settings)
        return curation.curate(self.sidecars, directory, chosen_by)

    def settings(self, **settings):
        """A `Choice`, with fields of its stage among the settings."""
        names = {field.name for field in dataclasses.fields(config.Stage)}
        stage = {"candidates": 4, "num_chunks": 3}
        stage |= {name: settings.pop(name) for name in names & {*settings}}
        settings = {"window": 15, "loss": "sigmoid"} | settings
        stage = dataclasses.replace(curation.STAGE, **stage)
        return curation.Choice(stage=stage, **settings)


class ChoiceTest(ScoresTestCase):
    def windows(self, shard, chosen_by):
        """Of every window of a shard, from the text.

        Its rows, their captions, the seed, and how many are chosen.
        """
        start = int(self.store.shards.lengths[:shard].sum())
        length = int(self.store.shards.lengths[shard])
        good = [row for row in range(start, start + length) if row not in BAD]
        key = choice._key(self.store.stamp(shard), chosen_by.seed)
        places = np.arange(len(good))
        rows = np.array(good)[stream.Order(len(good), key).rows(places)]
        captions = np.array(
            [
                self.starts[row] + self.caption(chosen_by, row, number)
                for row, number in zip(
                    rows, reader.caption_numbers(key, places), strict=True
                )
            ]
        )
        count = max(1, round(len(good) / chosen_by.window))
        total = fractions.Fraction(key, 2**31)
        for number, some in enumerate(np.array_split(places, count)):
            before = math.floor(total)
            total += fractions.Fraction(len(some), chosen_by.stage.candidates)
            yield (
                rows[some],
                captions[some],
                (key, number),
                math.floor(total) - before,
            )

    def caption(self, chosen_by, row, number):
        """The number of a record's caption, drawn or most like the image."""
        choices = reader.candidates(stored_cases.captions_of(row))
        if chosen_by.stage.captions == "drawn":
            return choices[number % len(choices)]
        texts = self.text[self.starts[row] :][choices]
        return choices[np.argmax(texts @ self.image[row])]

    def check(self, **settings):
        """Against the slow joint draw, over whole matrices."""
        chosen_by = self.settings(**settings)
        stage = chosen_by.stage
        found = curation.curate(self.sidecars, self.output(), chosen_by)
        image, text = (
            np.float32(np.float16(values)) for values in (self.image, self.text)
        )
        weights, scores = np.zeros(80), np.zeros(80)
        for shard in range(3):
            chosen = 0
            for rows, captions, seed, size in self.windows(shard, chosen_by):
                teacher = Embeddings(image[rows], text[captions], 20.0, -8.0)
                drawn = hand_draws.rows(
                    None,
                    teacher,
                    dataclasses.replace(
                        stage, num_chunks=min(stage.num_chunks, size)
                    ),
                    batch_size=size,
                    seed=seed,
                    loss=chosen_by.loss,
                )
                chosen += size
                weights[rows[drawn]] = 1
                losses = oracles.row_losses(teacher, drawn, chosen_by.loss)
                scores[rows] = -losses
            # Exact in every shard, to within a record.
            start = sum(stored_cases.LENGTHS[:shard])
            good = {*range(start, start + stored_cases.LENGTHS[shard])} - {*BAD}
            share = len(good) / stage.candidates
            self.assertBetween(chosen, math.floor(share), math.ceil(share))
        scores[list(BAD)] = np.nan
        self.assertAllEqual(found.weights, weights)
        self.assertAllClose(found.scores, scores, rtol=1e-4, atol=1e-4)

    def test_every_window_passes_the_stage(self):
        for settings in (
            {},
            {"candidates": 2, "seed": 3, "captions": "drawn"},
            {"loss": "softmax", "gain": 0.5},
        ):
            with self.subTest(**settings):
                self.check(**settings)

    def test_all_may_be_chosen(self):
        found = self.curate(self.output(), candidates=1)
        self.assertAllEqual(found.weights, ~np.isin(np.arange(80), BAD))

    def test_one_shard_under_two_folders_is_refused(self):
        folder = self.output()
        path = os.path.join(folder, "0.tfrecord")
        shutil.copy(os.path.join(self.folder, "0.tfrecord"), path)
        shutil.copy(os.path.join(self.folder, "0.tfrecord.sidecar"), folder)
        store = stores.join([self.store, stores.open_store(path)])
        message = f"two of version .*/0.tfrecord and {path}; leave out"
        with self.assertRaisesRegex(ValueError, message):
            curation.curate(
                sidecars.Sidecars(store), self.output(), self.settings()
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
        # To replace is to write all anew.
        self.curate(whole, candidates=2)
        path = manifest.part_path(self.store, 0, folder)
        header, part, _ = manifest.read_part(path)
        part = part._replace(weights=part.weights + 1)
        manifest.write_part(path, header, part)
        found = curation.curate(
            self.sidecars, folder, self.settings(candidates=2), overwrite=True
        )
        self.assertEqual(found.made_by["candidates"], 2)
        self.assertEqual(self.read(folder), self.read(whole))

    def test_a_remote_manifest_equals_a_local_one(self):
        remote = self.curate("ram://curation/a")
        self.assertEqual(remote.identity, self.curate(self.output()).identity)

    def test_stages_that_cannot_curate_are_refused(self):
        for name, value in (
            ("stage.embeddings", config.Stage(5)),
            ("stage.criterion", config.Stage(5, "stored")),
        ):
            settings = {"loss": "sigmoid", name.partition(".")[0]: value}
            with self.assertRaisesRegex(ValueError, f"`{name}` must "):
                curation.Choice(**settings)


class ReportTest(tf.test.TestCase):
    """The page shows records that a manifest keeps and drops."""

    def test_what_cannot_be_read_is_shown_grey_and_text_is_escaped(self):
        folder = self.get_temp_dir()
        good = tf.io.encode_png(np.zeros([3, 3, 3], np.uint8)).numpy()
        payloads = [
            shard_files.serialize(image=image, caption=caption)
            for image, caption in (
                *((good, "<script>"), (b"x", "b")),
                *((good, "not scored"), (good, "c")),
            )
        ]
        shard = shard_files.write_shard(f"{folder}/a.tfrecord", payloads)
        store = stores.open_store(shard)
        found = shard_files.write_manifest(
            store, f"{folder}/m", [0, 2, 1, 1], [1, 3, np.nan, 2]
        )
        manifest_page.write(f"{folder}/report.html", store, found)
        text = pathlib.Path(folder, "report.html").read_text("utf-8")
        elements = html_elements.parse(text)
        self.assertNotIn("script", elements.tags)
        kept, dropped = text.split("<h2>Dropped</h2>")
        self.assertLess(kept.index("<b>+3.00</b>"), kept.index("<b>+2.00</b>"))
        self.assertIn('<b>+1.00</b>\n<figcaption dir="auto">&lt;s', dropped)
        # Pixels of a record that cannot be read.
        grey, _, black = (
            tf.io.decode_png(base64.b64decode(image["src"].partition(",")[2]))
            for image in elements.images
        )
        self.assertAllEqual(np.unique(grey), [128])
        self.assertAllEqual(np.unique(black), [0])


class CommandTest(tf.test.TestCase):
    def test_it_writes_what_the_library_does_and_a_report(self):
        """On shipped images, with a run never trained."""
        folder = self.enterContext(tempfile.TemporaryDirectory())
        shard_files.write_shipped(folder, val=250)
        recipe = config.TrainConfig(
            data=config.DataConfig(image_size=32, text_length=16),
            model=config.ModelConfig(preset="tiny", loss="softmax"),
        )
        tiny.write_run(f"{folder}/reference", recipe, tiny.LETTERS)
        data = config.DataConfig(
            train=(f"{folder}/val-*.tfrecord",),
            index_dir=f"{folder}/index",
            manifest=f"{folder}/easy",
        )
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as shown,
        ):
            cli.execute(
                [
                    *("--workdir", f"{folder}/reference"),
                    *("--data", *data.train, "--index-dir", data.index_dir),
                    *("--sidecar-dir", f"{folder}/sidecars"),
                    *("--output", data.manifest),
                    *("--set", "stage.candidates=3", "window=100", "seed=4"),
                ],
                "curate",
            )
        printed, shown = printed.getvalue(), shown.getvalue()
        self.assertRegex(printed, r"\b8[34] of 250 records are drawn: .*easy")
        self.assertRegex(shown, r"(?s)embedding.* 250 .*scoring.* 250 of 250")
        self.assertIn("report.html", printed)
        store = stores.open_stores(data)
        expected = curation.curate(
            sidecars.Sidecars(store, f"{folder}/sidecars"),
            f"{folder}/again",
            curation.Choice(
                "softmax",
                config.Stage(3, "stored", criterion="easy_reference"),
                window=100,
                seed=4,
            ),
        )
        self.assertAllEqual(store.manifest.weights, expected.weights)
        self.assertAllEqual(store.manifest.scores, expected.scores)
        page = pathlib.Path(data.manifest, "report.html").read_text("utf-8")
        self.assertNotRegex(page, r"https?://|<script|<link|url\(")
        self.assertLen(html_elements.parse(page).images, 24 + 24)
        self.assertEqual(page.count('class="card kept"'), 24)
        self.assertIn("easy_reference", page)
