"""The page of a run shows the run's own examples, escaped."""

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from unittest import mock

import html_elements
import markupsafe
import numpy as np
import pytest
import shard_files
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import cli, config
from jest_tf.data import pipeline, stores, tokenizers
from jest_tf.reports import run_page
from jest_tf.runs import directory, inputs
from jest_tf.selection import summary

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
            data=config.DataConfig(train=(self.shard,), image_size=SIZE),
            model=config.ModelConfig(patch_size=SIZE),
            reference=config.ReferenceConfig("somewhere"),
            selection=config.SelectionConfig(
                2, stages=(config.Stage(2, num_chunks=1),)
            ),
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
            "stages": [
                {
                    "stage": 0,
                    "criterion": criterion,
                    "rows_in": B,
                    "rows_out": 2,
                    "overlap_independent": 0.5,
                    "overlap_uniform": 1.0,
                    "learnability": {"kept": summary, "dropped": {"count": 0}},
                    "highest": [extreme(0), extreme(1)],
                    "lowest": [extreme(3), extreme(2)],
                }
            ],
        }

    def write(self, lines):
        for name, rows in (
            (directory.TELEMETRY_FILE, lines),
            (
                directory.METRICS_FILE,
                [
                    {
                        "step": line["step"],
                        "seconds": 2.0 * line["step"],
                        "stages/0/score": 1.0,
                        "stages/0/uniform_score": -1.0,
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

    def batches(self, count, store=None):
        return list(
            pipeline.super_batches(
                store or stores.open_stores(self.config.data),
                selection=self.config.selection,
                seed=9,
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
        found = pipeline.at_positions(store, positions, seed=9, image_size=SIZE)
        for place, position in enumerate(positions):
            batch, row = batches[position // B], position % B
            self.assertAllEqual(found.image[place], batch["image"][row])
            self.assertEqual(found.id[place], batch["id"][row])
            # The same caption: so says its hash.
            caption = tf.strings.to_hash_bucket_fast(
                [found.caption[place]], 2**63 - 1
            )
            self.assertEqual(caption[0], batch["caption_id"][row])

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
            *("Stage 0: score of the rows that pass", "Records"),
            *("Stage 0: learnability of rows, median", "Most learnable"),
        ):
            self.assertIn(title, text)

    def test_other_data_is_refused(self):
        ids = self.batches(1)[0]["id"] + 1
        self.write([self.line(1, 0, ids)])
        with self.assertRaisesRegex(
            ValueError, f"id {ids[0]} at 0 of super-batch 0.*id {ids[0] - 1}$"
        ):
            run_page.write(self.workdir, "nowhere")

    def test_a_run_without_stages_is_refused_by_name(self):
        uniform = dataclasses.replace(
            self.config, selection=config.SelectionConfig(B)
        )
        config.save_config(uniform, f"{self.workdir}/config.json")
        with (
            contextlib.redirect_stderr(io.StringIO()) as said,
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(tf.config, "set_visible_devices"),
        ):
            self.assertEqual(cli.main(["page", "--workdir", self.workdir]), 1)
        self.assertRegex(
            said.getvalue(),
            "^error: There is no selection to show: expected a run with a "
            f"stage that scores. Received: '{self.workdir}' without a line of "
            "telemetry.jsonl",
        )
        with self.assertRaisesRegex(ValueError, "must be a run directory"):
            run_page.read(f"{self.workdir}/none")
        with self.assertRaisesRegex(ValueError, "`num_moments`.*0"):
            run_page.write(self.workdir, "nowhere", 0)

    def watch(self, *stages, seconds=7):
        """The pages at which `watch` waits, and the last.

        Each wait brings the run to the next stage, a function.
        """
        path, pages, stages = f"{self.workdir}/page.html", [], list(stages)

        def look():
            pages.append("")
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    pages[-1] = file.read()
                html_elements.parse(pages[-1])

        def wait(given):
            self.assertEqual(given, seconds)
            look()
            stages.pop(0)()

        with mock.patch.object(run_page.time, "sleep", wait):
            run_page.watch(self.workdir, path, seconds=seconds)
        look()
        self.assertEmpty(stages)
        return pages

    def finish(self):
        self.append(directory.WEIGHTS_FILE, "")

    def append(self, name, text):
        with open(f"{self.workdir}/{name}", "a") as file:
            file.write(text)

    def test_a_page_follows_its_run_from_before_the_beginning_to_the_end(self):
        batches = self.batches(3)
        lines = [
            self.line(step, step - 1, batches[step - 1]["id"])
            for step in (1, 2, 3)
        ]
        rows = [
            {"step": 2 * step, "train/loss": 0.5 / step, "seconds": 30.0 * step}
            for step in (1, 2, 3)
        ]
        text = [json.dumps(row) + "\n" for row in rows]
        draw = [json.dumps(line) + "\n" for line in lines]
        log, telemetry = directory.METRICS_FILE, directory.TELEMETRY_FILE
        os.rename(f"{self.workdir}/config.json", f"{self.workdir}/later")

        def begin():
            os.rename(f"{self.workdir}/later", f"{self.workdir}/config.json")

        def first():
            self.append(telemetry, draw[0])
            self.append(log, text[0] + text[1][:9])

        def second():
            self.append(log, text[1][9:])

        def cut_back():  # as a run does that continues
            directory.cut_back(self.workdir, 2)

        def third():
            self.append(telemetry, "".join(draw[1:]))
            self.append(log, text[1] + text[2])

        def nothing():
            pass

        with mock.patch.object(
            run_page.stores, "open_stores", wraps=stores.open_stores
        ) as opened:
            none, waiting, one, two, cut, three, same, last = self.watch(
                begin, first, second, cut_back, third, nothing, self.finish
            )
        opened.assert_called_once()
        self.assertEqual(none, "")
        self.assertIn("Waiting for the first logged step", waiting)
        self.assertIn("0 of 6", waiting)
        for page, step, loss, left in (
            (one, 2, "0.5", None),
            (two, 4, "0.25", "00:30"),
            (cut, 2, "0.5", None),
            (three, 6, "0.1667", None),
        ):
            self.assertNotIn("Waiting", page)
            self.assertIn(f"<dd>{step} of 6</dd>", page)
            self.assertIn(f"<dd>{loss}</dd>", page)
            if left is None:
                self.assertNotIn("time left", page)
            else:
                self.assertIn(f"<dd>{left}</dd>", page)
        refresh = '<meta http-equiv="refresh" content="7">'
        for page in (waiting, one, two, cut, three):
            self.assertIn(refresh, page)
        # While it is watched the newest draw alone, in the end all.
        self.assertEqual(one.count('class="card kept"'), 2)
        self.assertEqual(three.count('class="card kept"'), 2)
        self.assertIn("in step 3<", three)
        self.assertEqual(same, three)
        self.assertEqual(last.count('class="card kept"'), 6)
        self.assertNotIn("refresh", last)

    def test_a_watched_page_says_why_it_has_no_pictures(self):
        ids = self.batches(1)[0]["id"]
        self.write([self.line(1, 0, ids)])
        self.finish()
        os.rename(self.shard, f"{self.workdir}/b.tfrecord")
        (page,) = self.watch()
        self.assertIn("The pictures cannot be shown here: ", page)
        self.assertIn("a.tfrecord", page)
        self.assertIn("Stage 0: score of the rows that pass", page)
        with self.assertRaisesRegex(ValueError, "a.tfrecord"):
            run_page.write(self.workdir, f"{self.workdir}/page.html")


class FunnelPageTest(tf.test.TestCase):
    """Pages of funnels with stored stages, whose choices are made here."""

    STORED = config.Stage(2, "stored", num_chunks=2, criterion="easy_reference")

    def setUp(self):
        super().setUp()
        self.workdir = self.enterContext(tempfile.TemporaryDirectory())
        noisy = range(0, 40, 3)
        self.shard = tiny.write_shard(f"{self.workdir}/pool", 40, noisy=noisy)
        tiny.write_sidecars(self.shard, noisy)

    def choose(self, *stages, step=2):
        """Writes a run that has logged a step; ids into and out of stages."""
        self.config = config.TrainConfig(
            steps=3,
            data=config.DataConfig(
                train=(self.shard,),
                image_size=tiny.IMAGE_SIZE,
                noise_field="noise",
            ),
            model=config.ModelConfig(patch_size=tiny.IMAGE_SIZE),
            selection=config.SelectionConfig(4, stages=stages),
        )
        config.save_config(self.config, f"{self.workdir}/config.json")
        with contextlib.redirect_stderr(io.StringIO()):
            sources = inputs.open_sources(
                self.config, tf.distribute.get_strategy()
            )
        order = inputs.order_of(self.config, sources)
        chooser = inputs.stored_stages_of(self.config, sources)
        positions = chooser.choose(step - 1, 0)
        found = chooser.summaries.take(step - 1)
        self.store, self.ids = sources.store, []
        size = chooser.sizes[0]
        for some in (np.arange(size) + (step - 1) * size, positions):
            self.ids.append(sources.store.ids(order.rows(some)))
        if len(found) < len(stages):  # the first of two in three pass the last
            kept = np.arange(len(positions)) % 3 > 0
            rows = {
                "row": np.arange(len(kept)),
                "id": self.ids[-1],
                "kept": kept,
                "own_score": np.linspace(3, 1, len(kept), dtype=np.float32),
                "learner_loss": np.linspace(3, 1, len(kept)),
                "clean": sources.clean(self.ids[-1]),
            }
            found[len(found)] = summary.of_rows(
                stages[-1],
                rows,
                {"learner_loss": np.ones(4)},
                drawn=np.flatnonzero(kept),
                seed=np.array([0, 1]),
            )
        row = {"step": step, "seconds": 1.0}
        line = {"step": step, "super_batch": step - 1}
        line["stages"] = [{"stage": number} | found[number] for number in found]
        directory.append(self.workdir, directory.TELEMETRY_FILE, line)
        for number, one in found.items():
            for name in ("clean_in", "clean_out"):
                row[f"stages/{number}/{name}"] = one[name]
            row[f"stages/{number}/score"] = one.get("score", 2.0)
            row[f"stages/{number}/uniform_score"] = one.get("uniform_score", 1)
        directory.append(self.workdir, directory.METRICS_FILE, row)
        return found

    def shown(self):
        """The page, its table, and its pictures' ids, all checked."""
        path = f"{self.workdir}/page.html"
        run_page.write(self.workdir, path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        cards = re.findall(
            r'title="id (\d+): .*?base64,(.*?)"', text, re.DOTALL
        )
        records = {
            int(key): record
            for key, record in zip(
                self.store.ids(np.arange(40)),
                self.store.read(range(40)),
                strict=True,
            )
        }
        for key, payload in cards:
            pixels = tf.io.decode_png(base64.b64decode(payload))
            expected = tf.io.decode_png(records[int(key)].image)
            self.assertAllEqual(pixels, expected)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", text, re.DOTALL)
        return text, cells, [int(key) for key, _ in cards]

    def test_a_run_of_stored_stages_alone(self):
        found = self.choose(self.STORED, self.STORED)
        text, cells, ids = self.shown()
        self.assertEqual([one["rows_in"] for one in found.values()], [16, 8])
        expected = []
        for number, one in found.items():
            expected += [
                *(str(number), "stored", "joint, by easy_reference"),
                *(str(one["rows_in"]), str(one["rows_out"])),
                *(f"{one['clean_in']:.0%}", f"{one['clean_out']:.0%}"),
                *(f"{one['score']:+.3g}", f"{one['uniform_score']:+.3g}"),
            ]
        self.assertEqual(cells, expected)
        for title in (
            "Offered: 8 of 16 pairs",
            "Stage 0, stored: Easiest for the reference",
            "Stage 1, stored: Easiest for the reference",
            "Hardest for the reference",
            "Stage 1: score of the rows that pass",
            "Stage 0: clean share of its rows",
        ):
            self.assertIn(title, text)
        # What is offered; then the most and the least of each stage.
        every = [
            one["id"]
            for line in found.values()
            for end in ("highest", "lowest")
            for one in line[end]
        ]
        self.assertEqual(ids[8:], every)
        self.assertContainsSubset(ids[:8], self.ids[0])
        kept = {one["id"] for one in found[1]["highest"] if one["kept"]}
        self.assertContainsSubset(kept, self.ids[1])

    def test_a_live_stage_shows_rows_that_a_stored_one_passed(self):
        live = config.Stage(3, num_chunks=2, criterion="hard_learner")
        found = self.choose(self.STORED, live)
        _, cells, ids = self.shown()
        # 24 rows, of which 12 pass the first stage and 4 the second.
        self.assertEqual(cells[3:5], ["24", "12"])
        self.assertEqual(
            cells[9:14],
            ["1", "live", "joint, by hard_learner", "12", "4"],
        )
        rows = [one["row"] for one in found[1]["highest"] + found[1]["lowest"]]
        self.assertEqual(ids[24:], [int(self.ids[1][row]) for row in rows])


RECIPE = """
from jest_tf import config as c

def config():
    return c.TrainConfig(
        steps=30,
        data=c.DataConfig(
            train=("a.tfrecord",),
            image_size=16,
            text_length=4,
            vocabulary_size=12,
        ),
        model=c.ModelConfig(preset="tiny"),
        selection=c.SelectionConfig(
            4, stages=(c.Stage(3, num_chunks=2, criterion="hard_learner"),)
        ),
        evaluation=c.EvaluationConfig(
            data=("a.tfrecord",), log_every_steps=1, every_steps=10
        ),
    )
"""


@pytest.mark.slow
class WatchedRunTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        tiny.write_shard(f"{self.folder}/a.tfrecord", rows=40)
        with open(f"{self.folder}/recipe.py", "w") as file:
            file.write(RECIPE)

    def start(self, module, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", f"trainers.{module}", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=subprocesses.environment(),
        )
        self.addCleanup(process.kill)
        return process

    def test_a_run_is_watched_until_both_end(self):
        watching = self.start("page", "--workdir", "run", "--watch", "1")
        training = self.start(
            *("train", "--config", "recipe.py", "--workdir", "run")
        )
        path, live = f"{self.folder}/run/selection.html", 0
        while watching.poll() is None:
            if training.poll():
                self.fail(training.communicate()[0])
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                html_elements.parse(text)
                live += "refresh" in text
            time.sleep(0.1)
        said = watching.communicate()[0]
        self.assertEqual(watching.returncode, 0, said)
        self.assertEqual(training.wait(), 0, training.communicate()[0])
        self.assertIn(f"open file://{path}, renewed", said)
        self.assertGreater(live, 0)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        self.assertNotIn("refresh", text)
        self.assertIn("<dd>30 of 30</dd>", text)
        self.assertIn("Step 30, a: image to text recall@1", text)
        found = html_elements.parse(text)
        self.assertLen(found.images, 8 * (1 + 2 * 8))
