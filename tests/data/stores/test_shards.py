"""Tests of what the formats share: patterns, ranges of bytes, files."""

import errno
import hashlib
import os
import tempfile
from unittest import mock

import numpy as np
import shard_files
import tensorflow as tf

from jest_tf import files
from jest_tf.data.stores import shards
from jest_tf.files import retries


class FilesTestCase(tf.test.TestCase):
    """Runs on a local folder; `RemoteTest` on a folder of `tf.io.gfile`."""

    def setUp(self):
        super().setUp()
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        # Longer than a window and a gap, so that every path is taken.
        self.data = np.random.default_rng(0).bytes(5 * 10**6)
        self.path = self.write("a", self.data)

    def write(self, name, data):
        path = os.path.join(self.directory, name)
        files.write_whole(path, data)
        return path

    def read(self, spans, path=None):
        """The bytes of ranges, or their faults."""
        spans = np.insert(spans, 2, 7, axis=1)  # the checksum

        def parse(data, checksum):
            self.assertEqual(checksum, 7)
            return bytes(data)

        return shards.read_records(path or self.path, spans, parse)


class ReadTest(FilesTestCase):
    def test_ranges_are_returned_in_the_order_of_the_request(self):
        rng = np.random.default_rng(1)
        spans = np.stack(
            [rng.integers(0, 4 * 10**6, 50), rng.integers(0, 10**5, 50)], 1
        )
        spans[7] = spans[3]
        spans[8] = 5 * 10**6, 0
        self.assertEqual(
            self.read(spans), [self.data[o : o + s] for o, s in spans.tolist()]
        )
        self.assertEqual(self.read(np.empty((0, 2), np.int64)), [])

    def test_unreadable_ranges_are_faults_among_readable_ones(self):
        spans = np.array(
            [
                [10, 5],
                [5 * 10**6 - 3, 10],
                [0, -7],
                [0, 2**40],
                [2**40, 3],
                [15, 5],
            ]
        )
        self.assertEqual(
            self.read(spans),
            [
                self.data[10:15],
                shards.Fault("truncated: 3 of 10 bytes"),
                shards.Fault("damaged: 7 bytes that are not a record"),
                shards.Fault(f"oversized: {2**40} bytes, more than {2**28}"),
                shards.Fault("truncated: 0 of 3 bytes"),
                self.data[15:20],
            ],
        )
        with self.assertRaisesRegex(ValueError, "none cannot be read"):
            self.read(spans[:1], self.path + "none")

    def test_a_scan_returns_bytes_and_reports_them(self):
        sizes = []
        with shards.open_scan(self.path, sizes.append) as file:
            self.assertEqual(file.raw.size, 5 * 10**6)
            for start in range(0, 5 * 10**6, 70001):
                self.assertEqual(
                    file.read(70001), self.data[start : start + 70001]
                )
            self.assertEqual(sum(sizes), 5 * 10**6)
            self.assertEqual(file.read(1), b"")
            # Backward, and more than a buffer.
            file.seek(5)
            self.assertEqual(file.read(4_900_000), self.data[5:4_900_005])
            file.seek(6 * 10**6)
            self.assertEqual(file.read(5), b"")

    def test_a_file_that_becomes_shorter_in_a_scan_is_an_error(self):
        if files.is_remote(self.path):
            self.skipTest("An open file of this kind keeps its bytes.")
        with shards.open_scan(self.path) as file:
            os.truncate(self.path, 1000)
            file.seek(900)
            with self.assertRaisesRegex(OSError, "shrank while"):
                file.read(200)

    def test_whole_files_are_read_or_are_faults(self):
        other = self.write("b", b"")
        self.assertEqual(
            shards.read_files([other, self.path + "none", self.path]),
            [b"", shards.Fault("missing file: 'anone'"), self.data],
        )
        with mock.patch.object(shards, "MAX_RECORD_BYTES", 10):
            self.assertRegex(
                shards.read_files([self.path])[0].reason,
                "oversized: .*more than 10",
            )

    def test_patterns_match_and_leave_out_index_files(self):
        for name in ("b", "b.index", "c"):
            self.write(name, b"x")
        found = shards.expand(os.path.join(self.directory, "[bc]*"))
        self.assertEqual([os.path.basename(path) for path in found], ["b", "c"])
        self.assertEqual(shards.expand(self.path), [self.path])
        with self.assertRaisesRegex(ValueError, "x.* matches none"):
            shards.expand(os.path.join(self.directory, "x*"))


class RemoteTest(ReadTest):
    """The same on TensorFlow's file system in memory."""

    def setUp(self):
        super().setUp()
        self.directory = f"ram://{os.path.basename(self.directory)}"
        tf.io.gfile.makedirs(self.directory)
        self.path = self.write("a", self.data)


class LocalTest(FilesTestCase):
    def reads(self, spans):
        recorder = shard_files.BadSector(0, 0)
        with mock.patch.object(files, "open_file", recorder):
            self.read(spans)
        return recorder.calls

    def test_neighbouring_ranges_are_one_read(self):
        gap = shards._LOCAL_GAP
        self.assertEqual(
            self.reads([[2000, 50], [100, 20], [120, 30], [100, 20]]),
            [(100, 1950)],
        )
        self.assertEqual(
            self.reads([[0, 10], [10 + gap, 5], [16 + 2 * gap, 5]]),
            [(0, 15 + gap), (16 + 2 * gap, 5)],
        )

    def test_a_device_or_folder_is_no_image(self):
        self.assertEqual(
            shards.read_files(["/dev/zero", "file:///dev/zero"]),
            2 * [shards.Fault("missing file: 'zero'")],
        )

    def test_an_id_is_an_integer_or_digits_or_a_hashed_string(self):
        def hashed(text):
            digest = hashlib.blake2b(text, digest_size=8).digest()
            return int.from_bytes(digest, "little") & (2**63 - 1)

        for value, expected in (
            (-(2**63), -(2**63)),
            (2**63, None),
            (True, 1),
            (None, None),
            (1.5, None),
            ("", None),
            (b" ", None),
            ("007", 7),
            (b" -12 ", -12),
            ("--1", hashed(b"--1")),
            ("9" * 20, hashed(b"9" * 20)),
            ("\u0664", hashed("\u0664".encode())),
            ("\udc80", hashed(b"\x80")),
        ):
            self.assertEqual(shards.stored_id(value), expected)


@mock.patch.object(retries, "WAITS", (0.0, 0.0))
class StorageErrorTest(FilesTestCase):
    SPANS = np.array([[100, 20], [130, 20], [160, 20], [2 * 10**6, 30]])
    FAULT = shards.Fault("unreadable: [Errno 5] Input/output error")

    def read_from(self, sector):
        with mock.patch.object(files, "open_file", sector):
            return self.read(self.SPANS)

    def payloads(self):
        return [self.data[o : o + s] for o, s in self.SPANS.tolist()]

    def test_an_error_that_passes_is_waited_out(self):
        for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN):
            sector = shard_files.BadSector(140, 141, number, times=2)
            self.assertEqual(self.read_from(sector), self.payloads())
            # The first three ranges are a single read, and only it is repeated.
            self.assertEqual(
                sector.calls, [(100, 80), (2 * 10**6, 30)] + 2 * [(100, 80)]
            )

    def test_a_bad_sector_costs_only_its_record(self):
        expected = self.payloads()
        expected[1] = self.FAULT
        self.assertEqual(
            self.read_from(shard_files.BadSector(140, 141)), expected
        )
        # Between two ranges it costs none.
        self.assertEqual(
            self.read_from(shard_files.BadSector(150, 160)), self.payloads()
        )

    def test_a_missing_shard_is_an_error_at_once(self):
        os.remove(self.path)
        with (
            mock.patch.object(retries.time, "sleep") as sleep,
            self.assertRaisesRegex(ValueError, f"{self.path} cannot be read"),
        ):
            self.read(self.SPANS)
        self.assertEmpty(sleep.mock_calls)

    def test_whole_files_are_retried_and_then_faults(self):
        other = self.write("b", b"other")
        sector = shard_files.BadSector(100, 101, times=2)
        with mock.patch.object(files, "open_file", sector):
            self.assertEqual(
                shards.read_files([self.path, other]), [self.data, b"other"]
            )
            sector.times = 3
            self.assertEqual(
                shards.read_files([self.path, other]), [self.FAULT, b"other"]
            )

    def test_a_scan_retries_and_names_the_byte(self):
        sector = shard_files.BadSector(0, 10**7, times=1)
        with mock.patch.object(files, "open_file", sector):
            with shards.open_scan(self.path) as file:
                self.assertEqual(file.read(9), self.data[:9])
                sector.times = 3
                file.seek(4500000)
                with self.assertRaisesRegex(OSError, "at byte 4500000: .Errno"):
                    file.read(100)

    def test_remote_storage_is_retried_too(self):
        folder = f"ram://{os.path.basename(self.directory)}"
        path = f"{folder}/a"
        files.write_whole(path, self.data)
        real = tf.io.gfile.GFile.read

        def failing(error, times):
            left = [times]

            def read(file, size=-1):
                # The joint read, and that of each of the first three ranges.
                if file.tell() < 1000 and size > 1 and left[0]:
                    left[0] -= 1
                    raise error(None, None, "the storage says no")
                return real(file, size)

            return mock.patch.object(tf.io.gfile.GFile, "read", read)

        with failing(tf.errors.UnavailableError, 2):
            self.assertEqual(self.read(self.SPANS, path), self.payloads())
        with failing(tf.errors.DataLossError, 99):
            found = self.read(self.SPANS, path)
        self.assertEqual(found[3], self.payloads()[3])
        for fault in found[:3]:
            self.assertEqual(
                fault, shards.Fault("unreadable: the storage says no")
            )
