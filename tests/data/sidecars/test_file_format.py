"""Tests of one sidecar file: what is written is read, nothing is believed."""

import fcntl
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import sidecar_files
import tensorflow as tf

from jest_tf.data.sidecars import file_format

ROWS = 21
HEADER = file_format.Header(sidecar_files.DESCRIPTION, "float32", "stamp", ROWS)


class SidecarFilesTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "shard.sidecar")
        self.partial = self.path + ".partial"
        rng = np.random.default_rng(1)
        self.ids = rng.integers(0, 2**62, ROWS)
        self.counts = rng.integers(0, 4, ROWS)
        self.valid = rng.random(ROWS) < 0.8
        self.counts[~self.valid] = 0
        self.ends = np.cumsum(self.counts)
        self.image = sidecar_files.unit_rows(ROWS)
        self.text = sidecar_files.unit_rows(int(self.counts.sum()), 1)

    def append(self, writer, start, stop):
        writer.append(
            self.ids[start:stop],
            self.image[start:stop],
            self.text[
                self.ends[start] - self.counts[start] : self.ends[stop - 1]
            ],
            captions=self.counts[start:stop],
            valid=self.valid[start:stop],
        )

    def write(self, cuts=(0, 5, 8, ROWS), header=HEADER, path=None):
        with file_format.Writer(path or self.path, header) as writer:
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
                self.append(writer, start, stop)
            writer.finish()

    def assert_is_what_was_written(self, path=None):
        mapped = file_format.map_file(path or self.path)
        self.assertAllEqual(mapped.ids, self.ids)
        bits = np.unpackbits(mapped.valid, bitorder="little")
        self.assertAllEqual(bits[:ROWS], self.valid)
        self.assertAllEqual(mapped.offsets, [0, *self.ends])
        self.assertAllEqual(
            mapped.image, np.where(self.valid[:, None], self.image, 0)
        )
        self.assertAllEqual(mapped.text, self.text)


class WriterTest(SidecarFilesTestCase):
    def test_a_file_holds_what_was_appended_in_batches_of_any_size(self):
        for cuts in ((0, ROWS), (0, 1, 2, ROWS), (0, 8, 16, ROWS)):
            self.write(cuts)
            self.assertEqual(file_format.read_header(self.path), HEADER)
            self.assert_is_what_was_written()
            self.assertFalse(os.path.exists(self.partial))

    def test_the_layout_is_as_documented(self):
        self.write()
        with open(self.path, "rb") as file:
            data = file.read()
        magic, version, length = struct.unpack_from("<8sII", data)
        self.assertEqual((magic, version), (b"JESTSIDE", 1))
        place = 96 + length
        captions = len(self.text)
        for dtype, expected in (
            ("<i8", self.ids),
            ("u1", np.packbits(self.valid, bitorder="little")),
            ("<i8", np.append(0, self.ends)),
            ("<f4", np.where(self.valid[:, None], self.image, 0)),
            ("<f4", self.text),
        ):
            place = -(-place // 64) * 64
            found = np.frombuffer(data, dtype, expected.size, place)
            self.assertAllEqual(found, expected.ravel())
            place += found.nbytes
        self.assertLen(data, place)
        for slot in (32, 64):
            self.assertIn(
                struct.unpack_from("<QQ", data, slot),
                [(ROWS, captions), (0, 0)],
            )

    def test_float16_rounds_to_nearest(self):
        header = HEADER._replace(dtype="float16")
        self.write(header=header)
        mapped = file_format.map_file(self.path)
        self.assertEqual(mapped.text.dtype, np.float16)
        self.assertAllEqual(mapped.text, self.text.astype(np.float16))

    def test_a_file_without_captions_can_be_read(self):
        self.counts[:] = 0
        self.ends[:] = 0
        self.text = self.text[:0]
        self.write()
        self.assert_is_what_was_written()

    def test_what_a_writer_left_is_continued_to_the_same_bytes(self):
        self.write()
        with open(self.path, "rb") as file:
            expected = file.read()
        os.remove(self.path)
        for start, stop in ((0, 3), (3, 9), (9, 17), (17, ROWS)):
            with file_format.Writer(self.path, HEADER) as writer:
                self.assertEqual(writer.rows_done, start)
                self.assertEqual(
                    writer.num_invalid, int((~self.valid[:start]).sum())
                )
                self.append(writer, start, stop)
                if stop == ROWS:
                    writer.finish()
        with open(self.path, "rb") as file:
            data = bytearray(file.read())
        # But for the slots, which tell of the commits.
        data[32:96] = expected[32:96]
        self.assertEqual(bytes(data), expected)

    def test_rows_that_are_not_counted_are_written_again(self):
        with file_format.Writer(self.path, HEADER) as writer:
            self.append(writer, 0, 6)
        with mock.patch.object(file_format.Writer, "_commit"):
            with file_format.Writer(self.path, HEADER) as writer:
                self.append(writer, 6, 14)  # the process dies here
        with file_format.Writer(self.path, HEADER) as writer:
            self.assertEqual(writer.rows_done, 6)
            # Some that were valid no longer are, and the other way round.
            self.valid[6:] = self.counts[6:] == 1
            self.counts[6:] = self.valid[6:]
            self.ends = np.cumsum(self.counts)
            self.text = sidecar_files.unit_rows(int(self.counts.sum()), 1)
            self.text[: self.ends[5]] = sidecar_files.unit_rows(
                len(self.text) + 99, 1
            )[: self.ends[5]]
            self.append(writer, 6, ROWS)
            writer.finish()
        self.assert_is_what_was_written()

    def test_a_torn_slot_falls_back_to_the_other(self):
        with file_format.Writer(self.path, HEADER) as writer:
            self.append(writer, 0, 6)
            writer._commit()
            self.append(writer, 6, 14)
        places = {}
        with open(self.partial, "rb") as file:
            data = file.read()
        for place in (32, 64):
            places[struct.unpack_from("<Q", data, place)[0]] = place
        self.assertEqual(set(places), {6, 14})
        with open(self.partial, "r+b") as file:
            file.seek(places[14] + 3)
            file.write(b"\xff")
        with file_format.Writer(self.path, HEADER) as writer:
            self.assertEqual(writer.rows_done, 6)
            self.append(writer, 6, ROWS)
            writer.finish()
        self.assert_is_what_was_written()

    def test_a_partial_file_of_something_else_is_begun_anew(self):
        others = (
            HEADER._replace(stamp="other"),
            HEADER._replace(dtype="float16"),
            HEADER._replace(
                description=sidecar_files.DESCRIPTION._replace(scale=1.0)
            ),
        )
        for other in others:
            with file_format.Writer(self.path, other) as writer:
                self.append(writer, 0, 6)
            with file_format.Writer(self.path, HEADER) as writer:
                self.assertEqual(writer.rows_done, 0)
                self.append(writer, 0, 6)
        for data in (b"", b"JEST", b"\0" * 5000):
            with open(self.partial, "wb") as file:
                file.write(data)
            with file_format.Writer(self.path, HEADER) as writer:
                self.assertEqual(writer.rows_done, 0)

    def test_a_partial_file_cut_anywhere_is_continued_or_begun_anew(self):
        with file_format.Writer(self.path, HEADER) as writer:
            self.append(writer, 0, 6)
            writer._commit()
            self.append(writer, 6, 14)
        with open(self.partial, "rb") as file:
            data = file.read()
        done = set()
        for size in (*range(0, len(data), 7), len(data)):
            with open(self.partial, "wb") as file:
                file.write(data[:size])
            with file_format.Writer(self.path, HEADER) as writer:
                done.add(writer.rows_done)
                cuts = [writer.rows_done, ROWS]
                self.append(writer, *cuts)
                writer.finish()
            self.assert_is_what_was_written()
        self.assertEqual(done, {0, 6, 14})

    def test_a_file_has_one_writer_at_a_time(self):
        with file_format.Writer(self.path, HEADER) as writer:
            with self.assertRaisesRegex(BlockingIOError, "another process"):
                file_format.Writer(self.path, HEADER)
            self.append(writer, 0, ROWS)
            writer.finish()
        self.write()  # the lock is gone

    def test_a_lock_on_a_file_that_was_renamed_meanwhile_is_not_one(self):
        # The other process finishes between the opening and the locking.
        really = fcntl.flock
        finished = []

        def lock(file, how):
            if not finished:
                finished.append(True)
                os.replace(self.partial, self.path)
            really(file, how)

        with mock.patch.object(fcntl, "flock", lock):
            with file_format.Writer(self.path, HEADER) as writer:
                self.append(writer, 0, ROWS)
                writer.finish()
        self.assert_is_what_was_written()

    def test_nothing_is_left_of_a_writer_that_wrote_nothing(self):
        with file_format.Writer(self.path, HEADER):
            self.assertTrue(os.path.exists(self.partial))
        self.assertFalse(os.path.exists(self.partial))

    def test_what_does_not_fit_is_refused(self):
        good = {
            "ids": self.ids[:2],
            "image": sidecar_files.unit_rows(2),
            "text": sidecar_files.unit_rows(3),
            "captions": [1, 2],
            "valid": [True, True],
        }
        infinite = np.float32([[np.inf, 0, 0, 0], [1, 0, 0, 0]])
        for message, changed in {
            r"`image` must be \[2, 4\]": {"image": sidecar_files.unit_rows(3)},
            r"`text` must be \[3, 4\]": {"text": sidecar_files.unit_rows(2)},
            r"with `valid` alike": {"valid": [True]},
            "`captions` must be 2 integers": {"captions": [1, 1, 1]},
            "must not be negative. Received: -1": {"captions": [4, -1]},
            "at most the 21 rows": {"ids": np.arange(22)},
            "length 0.5": {"image": sidecar_files.unit_rows(2) / 2},
            "`text` must be of unit length.*2": {
                "text": 2 * sidecar_files.unit_rows(3)
            },
            "a row of length inf": {"image": infinite},
            "a row of length nan": {"image": np.full((2, 4), np.nan)},
            "a row of length 0$": {"image": np.zeros((2, 4))},
        }.items():
            with file_format.Writer(self.path, HEADER) as writer:
                with self.assertRaisesRegex(ValueError, message):
                    writer.append(**good | changed)
                self.assertEqual(writer.rows_done, 0)
        with file_format.Writer(self.path, HEADER) as writer:
            self.append(writer, 0, 20)
            with self.assertRaisesRegex(ValueError, "21 rows. Received: 20"):
                writer.finish()

    def test_a_header_that_cannot_be_is_refused(self):
        describe = sidecar_files.DESCRIPTION._replace
        for message, header in {
            "`dtype`. Received: 'int8'": HEADER._replace(dtype="int8"),
            "`rows`. Received: 0": HEADER._replace(rows=0),
            "`dim`. Received: 0": HEADER._replace(description=describe(dim=0)),
            "`scale`. Received: nan": HEADER._replace(
                description=describe(scale=float("nan"))
            ),
            "a str `fingerprint`. Received: 1": HEADER._replace(
                description=describe(fingerprint=1)
            ),
            "at most 1048576 bytes": HEADER._replace(stamp="a" * 2**20),
        }.items():
            with self.assertRaisesRegex(ValueError, message):
                file_format.Writer(self.path, header)


# A process of its own that writes a row after the other, without TensorFlow.
SLOW_WRITER = """
import importlib.util, sys, time
import numpy as np
spec = importlib.util.spec_from_file_location("sidecar_files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
files._COMMIT_SECONDS = 0.0
about = files.Description("a", "b", "c", 4, 1.0, 0.0)
with files.Writer(sys.argv[2], files.Header(about, "float16", "d", 400)) as it:
    print(it.rows_done, flush=True)
    while it.rows_done < 400:
        row = it.rows_done
        one = np.eye(4)[[row % 4]]
        it.append([row * 3], one, one[[0] * (row % 3)], captions=[row % 3])
        time.sleep(0.001)
    it.finish()
"""


class KillTest(tf.test.TestCase):
    def test_killed_at_any_moment_it_is_continued_to_the_same_file(self):
        module = file_format.__file__
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "killed.sidecar")
            command = [sys.executable, "-c", SLOW_WRITER, module, path]
            moments = random.Random(0)
            starts = []
            while not os.path.exists(path):
                self.assertLess(len(starts), 60)
                with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                    starts.append(int(child.stdout.readline()))
                    time.sleep(moments.uniform(0.0, 0.3))
                    child.kill()
            whole = os.path.join(folder, "whole.sidecar")
            subprocess.run([*command[:-1], whole], check=True)
            killed, unbroken = (
                bytearray(pathlib.Path(each).read_bytes())
                for each in (path, whole)
            )
        self.assertEqual(starts, sorted(starts))
        self.assertGreater(len(set(starts)), 2)
        # But for the slots, which tell of the commits.
        killed[32:96] = unbroken[32:96]
        self.assertEqual(killed, unbroken)


class ReadTest(SidecarFilesTestCase):
    def test_what_is_no_finished_sidecar_is_refused(self):
        with self.assertRaisesRegex(ValueError, "No such file"):
            file_format.read_header(self.path)
        with file_format.Writer(self.path, HEADER) as writer:
            self.append(writer, 0, 6)
        with self.assertRaisesRegex(ValueError, "21 rows. Received: 6; it is"):
            file_format.map_file(self.partial)
        os.remove(self.partial)
        self.write()
        with open(self.path, "rb") as file:
            data = file.read()
        cases = {
            "must be 1404 bytes. Received: 1405": data + b"\0",
            "must be 1404 bytes. Received: 1403": data[:-1],
            "no sidecar, or is truncated": data[:95],
            "no sidecar": b"",
            "is no sidecar": b"X" + data[1:],
            "must be of format 1. Received: 2": data[:8] + b"\2" + data[9:],
            "header fails its checksum": data[:100] + b"X" + data[101:],
        }
        for message, wrong in cases.items():
            message = message.replace("1404", str(len(data)))
            message = message.replace("1405", str(len(data) + 1))
            message = message.replace("1403", str(len(data) - 1))
            with open(self.path, "wb") as file:
                file.write(wrong)
            with self.assertRaisesRegex(ValueError, message):
                file_format.map_file(self.path)

    def test_any_damage_to_the_head_is_refused_or_harmless(self):
        self.write()
        with open(self.path, "rb") as file:
            data = file.read()
        length = struct.unpack_from("<I", data, 12)[0]
        rng = np.random.default_rng(0)
        refused = 0
        for place in [*range(96), *rng.integers(96, 96 + length, 50)]:
            for value in (0, 255, data[place] ^ 1):
                damaged = bytearray(data)
                damaged[place] = value
                with open(self.path, "wb") as file:
                    file.write(damaged)
                try:
                    self.assert_is_what_was_written()
                except ValueError as error:
                    self.assertRegex(str(error), "^Sidecar .*sidecar ")
                    refused += 1
        self.assertGreater(refused, 150)


if __name__ == "__main__":
    tf.test.main()
