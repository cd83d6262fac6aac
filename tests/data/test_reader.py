"""Tests of records that cannot be had: replaced, logged, limited; a fuzz."""

import concurrent.futures
import itertools
import json
import os
import tempfile
import threading
import time
from unittest import mock

import numpy as np
import picture_files
import shard_files
import streams
import tensorflow as tf

from jest_tf.data import images, pipeline, stores, stream, tokenizers
from jest_tf.data import reader as reader_lib

SIZE = 8
SEED = 5
TOKENIZER = tokenizers.WordPieceTokenizer(
    ["[UNK]", "[EOS]", "##0", *"abcdefghijklmnopqrstuvwxyz0123456789"], 6
)


class ListStore:
    """A list of records with the interface of `stores.Store`."""

    manifest = None
    is_remote = False
    lost_share = 0.0

    def __init__(self, found, parts=None):
        self.found = found
        self.parts = parts or (len(found),)
        self.reads = 0

    def __len__(self):
        return len(self.found)

    def read(self, rows):
        self.reads += len(rows)
        return [self.found[row] for row in rows]

    def read_unparsed(self, rows):
        return [
            record if row % 2 else (lambda record=record: record)
            for row, record in zip(rows, self.read(rows), strict=True)
        ]

    def ids(self, rows):
        return 1000 + np.asarray(rows)

    def describe(self, row):
        return f"record {row} of memory"


class SumSidecars:
    """Embeddings that tell row and caption."""

    dim = 2
    dtype = "float32"
    is_remote = False

    def __init__(self, without=()):
        self.without = without

    def valid(self, rows):
        return ~np.isin(rows, self.without)

    def read(self, rows, captions, ids):
        np.testing.assert_array_equal(ids, 1000 + rows)
        both = np.stack([rows, captions], 1).astype(np.float32)
        return both, both


def good_record(row):
    rng = np.random.default_rng(row)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    captions = tuple(f"{chr(97 + row % 26)} {n}".encode() for n in range(2))
    return stores.Record(tf.io.encode_png(image).numpy(), captions, {})


def bad_records():
    """A record in every way that it can be bad, by its reason."""
    good = good_record(0)
    png, jpeg = good.image, picture_files.every_kind()["jpeg"]
    return {
        "truncated: 1 of 2 bytes": stores.Fault("truncated: 1 of 2 bytes"),
        "no nonblank caption": good._replace(captions=()),
        "no nonblank .*": good._replace(captions=(b"", b" \n", b"\xc2\xa0")),
        "empty image": good._replace(image=b""),
        "truncated image": good._replace(image=png[:20]),
        "damaged image": good._replace(image=png[:-30]),
        "damaged image: .*JPEG": good._replace(image=jpeg[:-30]),
        "unknown image format": good._replace(image=b"<html>"),
        "oversized image": good._replace(
            image=tf.io.encode_png(np.zeros([40, 40, 3], np.uint8)).numpy()
        ),
    }


class ReadingTestCase(streams.StreamTestCase):
    def setUp(self):
        super().setUp()
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(directory, "faults.jsonl")
        # Of the images below, one has 1,600.
        self.enterContext(mock.patch.object(images, "MAX_PIXELS", 1000))

    def batches(self, store, count, log=None, **settings):
        settings = {
            "batch_size": 16,
            "seed": SEED,
            "tokenizer": TOKENIZER,
            "image_size": SIZE,
            "faults": log or pipeline.FaultLog(self.path, 1.0),
        } | settings
        dataset = streams.super_batches(store, **settings)
        return list(dataset.take(count).as_numpy_iterator())


class ReplacementTest(ReadingTestCase):
    def setUp(self):
        super().setUp()
        self.bad = bad_records()
        # Rows 3, 6, 9, ... are bad.
        self.places = 3 * np.arange(1, len(self.bad) + 1)
        self.good = [good_record(row) for row in range(60)]
        found = list(self.good)
        for place, record in zip(self.places, self.bad.values(), strict=True):
            found[place] = record
        self.store = ListStore(found)

    def expected(self, order, count):
        """(row in the end, rows tried before it), by position."""
        for position in range(count):
            row, tried = int(order.rows(np.array([position]))[0]), []
            for attempt in itertools.count(1):
                if row not in self.places:
                    break
                tried.append(row)
                (row,) = order.substitutes(np.array([position]), attempt)
            yield int(row), tried

    def resized(self, row, size):
        image = images.decode(self.good[row].image)
        return images.resize_image(image, size)

    def test_bad_records_are_replaced_by_a_function_of_the_position(self):
        values = streams.joined(self.batches(self.store, 15))
        untouched = streams.joined(self.batches(ListStore(self.good), 15))
        order = stream.Order(60, SEED)
        replaced = 0
        for position, (row, tried) in enumerate(self.expected(order, 240)):
            self.assertEqual(values["id"][position], 1000 + row)
            self.assertEqual(values["record_replaced"][position], bool(tried))
            self.assertAllEqual(
                values["image"][position], self.resized(row, SIZE)
            )
            if not tried:
                for name, value in values.items():
                    self.assertAllEqual(
                        value[position], untouched[name][position]
                    )
            replaced += bool(tried)
        # Four epochs, and every bad record in each.
        self.assertEqual(replaced, 4 * len(self.bad))

    def test_every_fault_is_logged_with_step_id_place_and_reason(self):
        log = pipeline.FaultLog(self.path, 1.0)
        self.batches(self.store, 15, log)
        log.close(stop_step=15)
        reasons = dict(zip(self.places, self.bad, strict=True))
        with open(self.path) as file:
            lines = [json.loads(line) for line in file]
        order = stream.Order(60, SEED)
        expected = [
            (position, row)
            for position, (_, tried) in enumerate(self.expected(order, 240))
            for row in tried
        ]
        self.assertEqual(
            [(line["position"], line["id"] - 1000) for line in lines], expected
        )
        for line, (position, row) in zip(lines, expected, strict=True):
            self.assertEqual(line["step"], position // 16)
            self.assertEqual(line["setting"], "data.train")
            self.assertEqual(line["place"], f"record {row} of memory")
            self.assertRegex(line["reason"], f"^{reasons[row]}")

    def test_both_images_and_sidecars_are_of_the_replacement(self):
        values = streams.joined(
            self.batches(
                self.store,
                15,
                image_form=images.Resizing(5),
                sidecars=SumSidecars(),
                embeddings=True,
            )
        )
        joined = values["reference_image"]
        self.assertAllEqual(joined, values["reference_text"])
        self.assertAllEqual(joined[:, 0], values["id"] - 1000)
        # The caption's second token is its number.
        numbers = [TOKENIZER.vocabulary.index(n) for n in "01"]
        self.assertAllEqual(
            values["text"][:, 1], np.take(numbers, joined[:, 1].astype(int))
        )
        for row, image in zip(
            joined[:, 0].astype(int), values["image_for_reference"], strict=True
        ):
            self.assertAllEqual(image, self.resized(row, 5))

    def test_replacements_come_from_the_same_part_of_a_mixture(self):
        self.store.parts = (33, 27)
        weights = {"weights": (1.0, 3.0), "shuffle_block_size": 4}
        values = streams.joined(self.batches(self.store, 15, **weights))
        order = stream.Mixture((33, 27), (1.0, 3.0), SEED, block_size=4)
        expected = [row for row, _ in self.expected(order, 240)]
        self.assertAllEqual(values["id"] - 1000, expected)
        self.assertEqual((values["id"] < 1033).sum(), 60)

    def test_a_chunk_without_a_single_good_image_is_repaired(self):
        broken = self.bad["damaged image"]
        store = ListStore([broken] * 3 + self.good[3:6])
        values = streams.joined(self.batches(store, 42, batch_size=1))
        self.assertTrue((values["id"] >= 1003).all())
        # Seven epochs, and in each three bad records.
        self.assertEqual(values["record_replaced"].sum(), 21)


class FarTest(ReadingTestCase):
    """Blocks and chunks that are read ahead are those of the store."""

    def setUp(self):
        super().setUp()
        found = [good_record(row) for row in range(23)]
        found[5] = stores.Fault("gone")
        self.store = ListStore(found)

    def blocks(self, *, size=4, starts=(0,), kept=9, once=True):
        return reader_lib.Blocks(
            self.store, size, np.array(starts), kept=kept, once=once
        )

    def test_records_are_those_of_the_store_in_any_order(self):
        rows = np.random.default_rng(0).integers(23, size=200)
        for once in (True, False):
            blocks = self.blocks(once=once, starts=(0, 9), kept=3)
            for some in np.split(rows, 20):
                self.assertEqual(blocks.read(some), self.store.read(some))

    def test_a_block_is_read_whole_and_once_an_epoch(self):
        blocks = self.blocks()
        order = np.random.default_rng(0).permutation(23)
        for epoch in (1, 2):
            for rows in np.array_split(order, 5):
                blocks.read(rows)
            self.assertEqual(self.store.reads, 23 * epoch)

    def test_a_record_asked_for_again_brings_its_whole_block(self):
        """As in an epoch of stored stages, which leave most of a block."""
        blocks = self.blocks()
        for rows in ([0, 2], [2, 3], [1, 0], [3]):
            found = blocks.read(np.array(rows))
            self.assertEqual(found, [good_record(row) for row in rows])
        self.assertEqual(self.store.reads, 3 * 4)

    def test_a_failed_read_is_tried_anew(self):
        blocks = self.blocks()
        with mock.patch.object(self.store, "read", side_effect=ValueError):
            with self.assertRaises(ValueError):
                blocks.read(np.array([1]))
        self.assertEqual(
            blocks.read(np.array([1])), self.store.read(np.array([1]))
        )

    def test_threads_share_a_read(self):
        ready, read = threading.Barrier(4), self.store.read

        def slow(rows):
            time.sleep(0.05)
            return read(rows)

        def ask(row):
            ready.wait(10)
            return blocks.read(np.array([row]))

        blocks = self.blocks()
        with (
            mock.patch.object(self.store, "read", slow),
            concurrent.futures.ThreadPoolExecutor(4) as pool,
        ):
            found = list(pool.map(ask, range(4)))
        self.assertEqual(self.store.reads, 4)
        self.assertEqual(found, [[self.store.found[row]] for row in range(4)])

    def test_chunks_read_ahead_are_the_readers(self):
        asked = []

        def read(positions):
            asked.append(positions.tolist())
            if positions[0] == 6:
                raise ValueError("too many")
            return positions + 1

        ahead = reader_lib.Ahead(read, 2)
        chunks = np.arange(8).reshape(4, 2)
        for chunk in chunks:
            ahead.start(chunk)
        for chunk in chunks[:3]:
            self.assertAllEqual(ahead.read(chunk), chunk + 1)
        with self.assertRaisesRegex(ValueError, "too many"):
            ahead.read(chunks[3])
        self.assertCountEqual(asked, chunks.tolist())
        # A chunk that was not started, or was given up, is read.
        self.assertAllEqual(ahead.read(chunks[0]), chunks[0] + 1)

    def test_a_stream_read_ahead_equals_one_that_is_not(self):
        for settings in (
            {"sidecars": SumSidecars(without=(7,)), "embeddings": True},
            {"shuffle_block_size": 2, "num_curated": 1, "curated_rows": 4},
        ):
            values = []
            for is_remote in (False, True):
                store = ListStore(self.store.found, (11, 12))
                store.is_remote = is_remote
                batches = self.batches(store, 6, **settings)
                values.append([streams.joined(batches)])
            self.assert_equal_batches(*values)


class LimitTest(ReadingTestCase):
    def test_a_store_of_nothing_good_stops_at_once(self):
        bad = bad_records()
        for reason in ("empty image", "damaged image"):
            store = ListStore([bad[reason]] * 4)
            with self.assertRaisesRegex(
                tf.errors.InvalidArgumentError,
                rf"16 substitutes in a row.*position \d+.*of memory: {reason}",
            ):
                self.batches(store, 1)

    def test_a_run_stops_above_the_rate_and_says_why(self):
        broken = bad_records()["damaged image"]
        good = [good_record(row) for row in range(20)]
        store = ListStore([*good, broken])
        log = pipeline.FaultLog(self.path, 0.01)
        # One in 21 is more than one in 100: over after at most
        # 0.01 * 1024 + 1 = 12 of them, which are in 12 epochs. The reason is
        # noted before the record is counted, by another thread as well.
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError,
            "Too many records cannot be read: 11 of .*at most 1.00%.*"
            r"1\d x damaged image: Invalid PNG",
        ):
            self.batches(store, 17, log)
        with self.assertRaisesRegex(ValueError, "Too many records"):
            log.check()


class FuzzTest(ReadingTestCase):
    def test_hundreds_of_mutated_images_harm_no_other(self):
        count, rng = 400, np.random.default_rng(0)
        kinds = list(picture_files.every_kind().values())
        good = [good_record(row) for row in range(count)]
        found = list(good)
        for row in range(0, count, 2):
            encoded, _ = shard_files.mutate(kinds[row // 2 % len(kinds)], rng)
            found[row] = good[row]._replace(image=encoded)

        def values_of(records):
            store = ListStore(records)
            return streams.joined(self.batches(store, 1, batch_size=count))

        intact, first, second = map(values_of, (good, found, found))
        # Twice the same: no image shows memory that nobody wrote.
        self.assert_equal_batches([first], [second])
        rows = stream.Order(count, SEED).rows(np.arange(count))
        for name, value in first.items():
            self.assertAllEqual(
                value[rows % 2 == 1], intact[name][rows % 2 == 1]
            )
        faults = [
            isinstance(images.decode(record.image), stores.Fault)
            for record in found
        ]
        self.assertAllEqual(first["record_replaced"], np.take(faults, rows))
        # Some mutations do no harm, most do.
        self.assertBetween(first["record_replaced"].mean(), 0.2, 0.5)
