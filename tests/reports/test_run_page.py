"""The page of a run shows the run's own examples, escaped."""

import base64
import json
import os
import re
import tempfile

import html_elements
import markupsafe
import numpy as np
import shard_files
import tensorflow as tf
import tiny

from jest_tf import config
from jest_tf.data import pipeline, stores, tokenizers
from jest_tf.reports import run_page
from jest_tf.runs import directory

CAPTIONS = (["<b>a & b"], ["c", "d"], ["e\"f' <script>"], [" ", "عربى"])
SIZE, ROWS, B = 16, 7, 4


class PageTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.enterContext(tempfile.TemporaryDirectory())
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8)
        self.shard = shard_files.write_shard(
            os.path.join(self.workdir, "a.tfrecord"),
            [
                shard_files.serialize(
                    image=tf.io.encode_png(image).numpy(),
                    captions=CAPTIONS[row % len(CAPTIONS)],
                    id=100 + row,
                )
                for row, image in enumerate(self.images)
            ],
        )
        self.config = config.TrainConfig(
            seed=9,
            steps=6,
            data=config.DataConfig(
                train=(self.shard,), super_batch_size=B, image_size=SIZE
            ),
            model=config.ModelConfig(patch_size=SIZE),
            reference=config.ReferenceConfig("somewhere"),
            selection=config.SelectionConfig("joint", 2, 1),
        )
        config.save_config(self.config, f"{self.workdir}/config.json")

    def line(self, step, number, ids, criterion="learnability"):
        summary = {"count": 2, "mean": 0.5, "quantiles": [0.1] * 11}

        def extreme(row):
            return {
                "row": row,
                "score": 1.5 - row,
                "kept": row < 2,
                "id": int(ids[row]),
            }

        return {
            "step": step,
            "super_batch": number,
            "criterion": criterion,
            "filter_ratio": 0.5,
            "overlap_independent": 0.5,
            "overlap_uniform": 1.0,
            "learnability": {"kept": summary, "dropped": {"count": 0}},
            "highest": [extreme(0), extreme(1)],
            "lowest": [extreme(3), extreme(2)],
        }

    def write(self, lines):
        for name, rows in (
            (directory.TELEMETRY_FILE, lines),
            (
                directory.METRICS_FILE,
                [
                    {
                        "step": line["step"],
                        "select/score": 1.0,
                        "select/uniform_score": -1.0,
                        "train/repeat_rate": 0.25,
                        "select/effective_filter_ratio": 0.4,
                    }
                    for line in lines
                ],
            ),
        ):
            with open(f"{self.workdir}/{name}", "w") as file:
                for row in rows:
                    file.write(json.dumps(row) + "\n")

    def batches(self, count):
        return list(
            pipeline.super_batches(
                stores.open_stores(self.config.data),
                super_batch_size=B,
                seed=9,
                tokenizer=tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3),
                image_size=SIZE,
            )
            .take(count)
            .as_numpy_iterator()
        )

    def test_examples_at_positions_are_those_of_the_stream(self):
        batches = self.batches(6)
        store = stores.open_stores(self.config.data)
        positions = np.array([3, 22, 3, 8])
        found = pipeline.at_positions(
            store, positions, step_size=B, seed=9, image_size=SIZE
        )
        for place, position in enumerate(positions):
            batch, row = batches[position // B], position % B
            self.assertAllEqual(found.image[place], batch["image"][row])
            self.assertEqual(found.id[place], batch["id"][row])
            # The same caption: so says its hash.
            caption = tf.strings.to_hash_bucket_fast(
                [found.caption[place]], 2**63 - 1
            )
            self.assertEqual(caption[0], batch["caption_id"][row])

    def test_replaced_records_are_replaced_alike(self):
        path = os.path.join(self.workdir, "b.tfrecord")
        payloads = list(tf.data.TFRecordDataset(self.shard).as_numpy_iterator())
        broken = tf.io.encode_png(self.images[2]).numpy()[:60]
        payloads[2] = shard_files.serialize(image=broken, caption="x", id=102)
        shard_files.write_shard(path, payloads)
        store = stores.open_store(path)
        options = {"super_batch_size": ROWS, "seed": 9, "image_size": SIZE}
        (batch,) = (
            pipeline.super_batches(
                store,
                tokenizer=tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3),
                options=pipeline.Options(faults=pipeline.FaultLog(None, 1.0)),
                **options,
            )
            .take(1)
            .as_numpy_iterator()
        )
        self.assertEqual(batch["record_replaced"].sum(), 1)
        step_size = options.pop("super_batch_size")
        found = pipeline.at_positions(
            store, np.arange(ROWS), step_size=step_size, **options
        )
        self.assertAllEqual(found.image, batch["image"])
        self.assertAllEqual(found.id, batch["id"])

    def test_the_page_shows_the_pixels_and_captions_of_the_rows(self):
        batches = self.batches(3)
        lines = [
            self.line(step, step - 1, batches[step - 1]["id"])
            for step in (1, 3)
        ]
        self.write(lines)
        path = f"{self.workdir}/page.html"
        run_page.write(self.workdir, path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        found = html_elements.Elements()
        found.feed(text)
        self.assertEmpty(found.open)
        self.assertNotIn("script", found.tags)
        self.assertEmpty(re.findall(r"(?:src|href)=\"(?!data:)", text))
        self.assertLen(found.images, 8)
        # Newest first; the highest, then the lowest.
        expected = [
            (batches[number], row) for number in (2, 0) for row in (0, 1, 3, 2)
        ]
        captions = {c for several in CAPTIONS for c in several}
        for image, (batch, row) in zip(found.images, expected, strict=True):
            payload = image["src"].removeprefix("data:image/png;base64,")
            pixels = tf.io.decode_png(base64.b64decode(payload))
            self.assertAllEqual(pixels, batch["image"][row])
            self.assertIn(image["alt"], captions)
        for caption in (CAPTIONS[0][0], CAPTIONS[2][0]):
            self.assertNotIn(caption, text)
        shown = {image["alt"] for image in found.images}
        for caption in shown:
            self.assertIn(str(markupsafe.escape(caption)), text)
        self.assertEqual(text.count('class="card kept"'), 4)
        for title in ("Score of the sub-batch", "Records", "Learnability"):
            self.assertIn(title, text)
        self.assertIn("Most learnable", text)

    def test_each_criterion_has_its_headings(self):
        ids = self.batches(1)[0]["id"]
        self.write([self.line(1, 0, ids, "easy_reference")])
        run_page.write(self.workdir, f"{self.workdir}/page.html")
        with open(f"{self.workdir}/page.html", encoding="utf-8") as file:
            self.assertIn("Easiest for the reference", file.read())

    def test_other_data_is_refused(self):
        ids = self.batches(1)[0]["id"] + 1
        self.write([self.line(1, 0, ids)])
        with self.assertRaisesRegex(ValueError, f"id {ids[0]} in row 0"):
            run_page.write(self.workdir, "nowhere")

    def test_a_run_without_telemetry_is_refused_by_name(self):
        with self.assertRaisesRegex(ValueError, "There is no selection to sh"):
            run_page.read(self.workdir)
        with self.assertRaisesRegex(ValueError, "must be a run directory"):
            run_page.read(f"{self.workdir}/none")
        with self.assertRaisesRegex(ValueError, "`num_moments`.*0"):
            run_page.write(self.workdir, "nowhere", 0)


if __name__ == "__main__":
    tf.test.main()
