"""Artefacts: what is written is read, and nothing in a file is believed."""

import os
import tempfile

import numpy as np
import safetensors
import safetensors.numpy
import shard_files
import tensorflow as tf

from jest_tf.data import artefacts

METADATA = {"made from": "\u00fcber", "empty": ""}
ARRAYS = {
    "ids": np.arange(5),
    "image": np.float16(np.eye(5, 3)),
    "text": np.zeros([0, 3], np.float16),
}
ROWS = np.arange(36).reshape(18, 2)


class ArtefactsTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "artefact")

    def write(self, kind="index", arrays=None, path=None):
        arrays = ARRAYS if arrays is None else arrays
        artefacts.write(path or self.path, kind, METADATA, arrays)

    def assert_is_what_was_written(self, found):
        self.assertEqual(found.metadata | METADATA, found.metadata)
        self.assertCountEqual(found.arrays, ARRAYS)
        for name, expected in ARRAYS.items():
            self.assertEqual(found.arrays[name].dtype, expected.dtype)
            self.assertAllEqual(found.arrays[name], expected)


class ReadTest(ArtefactsTestCase):
    def test_what_is_written_is_read(self):
        self.write()
        found = artefacts.read(self.path, "index", verify=True)
        self.assert_is_what_was_written(found)
        self.assertEqual(os.listdir(self.folder), ["artefact"])

    def test_safetensors_reads_it(self):
        self.write()
        for name, values in safetensors.numpy.load_file(self.path).items():
            self.assertAllEqual(values, ARRAYS[name])
        with safetensors.safe_open(self.path, "numpy") as file:
            self.assertEqual(file.metadata() | METADATA, file.metadata())

    def test_every_damaged_byte_is_found(self):
        self.write()
        for position in range(os.path.getsize(self.path)):
            shard_files.flip(self.path, position)
            with self.assertRaisesRegex(ValueError, "must be a jest_tf index"):
                artefacts.read(self.path, "index", verify=True)
            shard_files.flip(self.path, position)
        artefacts.read(self.path, "index", verify=True)

    def test_other_files_are_refused_with_a_way_out(self):
        self.write(kind="sidecar")
        with self.assertRaisesRegex(ValueError, "'sidecar'.*`jest-tf curate"):
            artefacts.read(self.path, "manifest")
        for arrays in (ARRAYS, {"a": np.zeros(3)}):
            safetensors.numpy.save_file(arrays, self.path)
            with self.assertRaisesRegex(
                ValueError, "must be a jest_tf sidecar"
            ):
                artefacts.read(self.path, "sidecar")


class WriterTest(ArtefactsTestCase):
    def test_the_head_has_room_for_a_checksum_of_any_length(self):
        for length in range(128):  # the head is padded to a multiple of it
            rows = ROWS + length
            artefacts.write(
                self.path, "index", {"text": length * "x"}, {"rows": rows}
            )
            found = artefacts.read(self.path, "index", verify=True)
            self.assertAllEqual(found.arrays["rows"], rows)
