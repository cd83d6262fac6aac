"""The page of a run shows the run's own examples, escaped."""

import base64
import functools
import json
import os
import pathlib
import re
import tempfile
from unittest import mock

import html_elements
import markupsafe
import numpy as np
import shard_files
import tensorflow as tf
import tiny

from jest_tf import config
from jest_tf.data import pipeline, stores, tokenizers
from jest_tf.evaluation import slices
from jest_tf.reports import charts, run_page
from jest_tf.runs import directory

CAPTIONS = (["<b>a & b"], ["c", "d"], ["e\"f' <script>"], [" ", "عربى"])
SIZE, ROWS, B = 16, 7, 4
BRANDS = ("north", "north", "south", "south", "south", "north", "east")


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
                    brand=BRANDS[row],
                )
                for row, image in enumerate(self.images)
            ],
        )
        self.config = config.TrainConfig(
            seed=11,
            steps=6,
            data=config.DataConfig(train=(self.shard,), image_size=SIZE),
            model=config.ModelConfig(towers="own:towers"),
            reference=config.ReferenceConfig("somewhere"),
            selection=config.SelectionConfig(
                2, stages=(config.Stage(2, num_chunks=1, last_step=3),)
            ),
        )
        config.save_config(self.config, f"{self.workdir}/config.json")

    def line(self, step, ids):
        """What telemetry has of a step."""
        summary = {"count": 2, "mean": 0.5, "quantiles": [0.1] * 11}
        rows = [
            {"row": row, "id": int(ids[row]), "score": 1.5 - row}
            | {"kept": row < 2}
            for row in range(B)
        ]
        stage = {
            "stage": 0,
            "criterion": "learnability",
            "rows_in": B,
            "rows_out": 2,
            "learnability": {"kept": summary, "dropped": {"count": 0}},
            "highest": rows[:2],
            "lowest": rows[:1:-1],
        }
        return {"step": step, "super_batch": step - 1, "stages": [stage]}

    def write(self, lines):
        def measures(step):
            return {
                "seconds": 2.0 * step,
                "stages/0/score": 1.0,
                "stages/0/uniform_score": -1.0,
            }

        def scores(step):
            score = {"eval/val/image_to_text/mrr": 0.5}
            return score | {"flops/step": 10**12 * step}

        logs = {directory.TELEMETRY_FILE: lines}
        for name, values in (
            (directory.METRICS_FILE, measures),
            (directory.EVALUATION_FILE, scores),
        ):
            steps = [line["step"] for line in lines]
            logs[name] = [{"step": step} | values(step) for step in steps]
        for name, rows in logs.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            pathlib.Path(self.workdir, name).write_text(text)

    def batches(self, count, store=None):
        return list(
            pipeline.super_batches(
                store or stores.open_stores(self.config.data),
                plan=self.config.plan,
                loss="sigmoid",
                seed=11,
                tokenizer=tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3),
                image_size=SIZE,
                options=pipeline.Options(faults=pipeline.FaultLog(None, 1.0)),
            )
            .take(count)
            .as_numpy_iterator()
        )

    def test_examples_at_positions_are_those_of_the_stream(self):
        """Also where a record is replaced."""
        path = os.path.join(self.workdir, "b.tfrecord")
        payloads = list(tf.data.TFRecordDataset(self.shard).as_numpy_iterator())
        broken = tf.io.encode_png(self.images[2]).numpy()[:60]
        payloads[2] = shard_files.serialize(image=broken, caption="x", id=102)
        store = stores.open_store(shard_files.write_shard(path, payloads))
        batches = self.batches(6, store)
        replaced = [batch["record_replaced"] for batch in batches]
        self.assertGreater(np.sum(replaced), 1)
        positions = np.random.default_rng(0).permutation(6 * B)
        images, captions, ids = pipeline.at_positions(
            store, positions, seed=11, image_size=SIZE
        )
        for place, position in enumerate(positions):
            batch, row = batches[position // B], position % B
            self.assertAllEqual(images[place], batch["image"][row])
            self.assertEqual(ids[place], batch["id"][row])
            # The same caption: so says its hash.
            caption = tf.strings.to_hash_bucket_fast(
                [captions[place]], 2**63 - 1
            )
            self.assertEqual(caption[0], batch["caption_id"][row])

    def test_the_page_shows_the_pixels_and_captions_of_the_rows(self):
        batches = self.batches(3)
        self.write([self.line(n, batches[n - 1]["id"]) for n in (1, 3)])
        path = f"{self.workdir}/page.html"
        run_page.write(self.workdir, path, trust=True)
        text = pathlib.Path(path).read_text("utf-8")
        found = html_elements.parse(text)
        self.assertNotIn("script", found.tags)
        self.assertEmpty(re.findall(r"(?:src|href)=\"(?!data:)", text))
        # First all rows offered; newest first; the highest, then the lowest.
        expected = [(batches[2], row) for row in range(B)]
        expected += [
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
        for title in (
            *("Score on val", "TFLOPs", "Most learnable"),
            "Step 3, val: image to text MRR 0.500",
        ):
            self.assertIn(title, text)

    def test_a_run_without_a_stage_has_its_scores_since_the_start(self):
        tuned = config.TrainConfig(
            data=self.config.data,
            model=config.ModelConfig(init_from="runs/start"),
            selection=config.SelectionConfig(2),
        )
        config.save_config(tuned, f"{self.workdir}/config.json")
        name = "eval/val/image_to_text/mrr"
        for row in (
            {"step": 0, name: 0.5},
            {"step": 6, name: 0.25, "flops/step": 10**12},
        ):
            directory.append(self.workdir, directory.EVALUATION_FILE, row)
        path = f"{self.workdir}/page.html"
        with mock.patch.object(charts, "draw", wraps=charts.draw) as draw:
            run_page.write(self.workdir, path)
        drawn = [(line.x, line.y) for line in draw.call_args.args[1] if line.x]
        self.assertEqual(drawn, [([0.0, 1.0], [0.5, 0.25])])
        page = pathlib.Path(path).read_text("utf-8")
        self.assertIn(f"From the start to the end {name} 0.500 to 0.250", page)
        self.assertNotIn("funnel", page)

    def test_slices_are_counted_among_rows_offered_and_kept(self):
        # Of each draw two rows are kept; another record, 999, was not offered.
        # Step 4 is offered a record twice, and keeps one of these rows.
        # No stage scores in the last two of the six steps.
        batches = self.batches(6)
        kept = {1: [0, 1], 3: [1, 3], 4: [2, 3], 6: [0, 1]}
        lines = [self.line(step, batches[step - 1]["id"]) for step in kept]
        self.write(lines)
        draws, offered, chosen = [], [], []
        for step, rows in kept.items():
            ids = batches[step - 1]["id"]
            draws.append({"step": step, "ids": [*map(int, ids[rows]), 999]})
            if step <= 4:
                offered += [BRANDS[i - 100] for i in ids]
                chosen += [BRANDS[i - 100] for i in ids[rows]]
        path = f"{self.workdir}/page.html"
        by = functools.partial(
            run_page.write, self.workdir, path, trust=True, by=["brand"]
        )
        with self.assertRaisesRegex(ValueError, "train with `evaluation.log_"):
            by()
        text = "".join(json.dumps(row) + "\n" for row in draws)
        pathlib.Path(self.workdir, directory.DRAWS_FILE).write_text(text)
        with mock.patch.object(slices, "LEAST_RECORDS", 1):
            by()
        expected = []
        for brand in {*BRANDS}:
            before, after = offered.count(brand) / 12, chosen.count(brand) / 6
            row = (
                *(f"brand={brand}", f"{offered.count(brand)}"),
                *(f"{before:.1%}", f"{chosen.count(brand)}", f"{after:.1%}"),
            )
            expected.append((abs(after - before), (*row, after / before)))
        page = pathlib.Path(path).read_text("utf-8")
        found = re.findall(
            r"<td>(brand=\w+)</td><td>(\d+)</td><td>(.*?)</td>"
            r"\s*<td>(\d+)</td><td>(.*?)</td>\s*<td>.* to .*</td>"
            r"<td>(.*?)</td>",
            page,
        )
        self.assertIn("in 3 logged steps", page)
        self.assertEqual(
            found,
            [
                (*row, f"{ratio:.2f}")
                for _, (*row, ratio) in sorted(expected, reverse=True)
            ],
        )
        with self.assertRaisesRegex(ValueError, "Received: brnad, empty in"):
            run_page.write(self.workdir, path, trust=True, by=["brnad"])

    def test_other_data_is_refused(self):
        ids = self.batches(1)[0]["id"] + 1
        self.write([self.line(1, ids)])
        with self.assertRaisesRegex(ValueError, f"id {ids[0]} at 0 of super-"):
            run_page.write(self.workdir, "nowhere", trust=True)
        os.remove(self.shard)
        with self.assertRaisesRegex(ValueError, "a.tfrecord"):
            run_page.write(self.workdir, "nowhere", trust=True)
