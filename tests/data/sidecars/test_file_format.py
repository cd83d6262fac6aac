"""A sidecar: what is written is read, and what does not fit is refused."""

import os
import tempfile

import numpy as np
import sidecar_files
import tensorflow as tf

from jest_tf import files
from jest_tf.data.sidecars import file_format

ROWS = 21
DIM = sidecar_files.DIM
HEADER = file_format.Header(sidecar_files.DESCRIPTION, "float32", "stamp", ROWS)


class WriteTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "shard.sidecar")
        rng = np.random.default_rng(1)
        self.ids = rng.integers(0, 2**62, ROWS)
        self.counts = rng.integers(0, 4, ROWS)
        self.valid = rng.random(ROWS) < 0.8
        self.counts[~self.valid] = 0
        self.ends = np.cumsum(self.counts)
        self.image = sidecar_files.unit_rows(ROWS)
        self.text = sidecar_files.unit_rows(int(self.counts.sum()), 1)

    def append(self, append, start, stop):
        first = self.ends[start] - self.counts[start]
        append(
            self.ids[start:stop],
            self.image[start:stop],
            self.text[first : self.ends[stop - 1]],
            self.counts[start:stop],
            self.valid[start:stop],
        )

    def write(self, cuts=(0, 5, 8, ROWS), header=HEADER):
        with file_format.written(self.path, header) as append:
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
                self.append(append, start, stop)

    def assert_is_what_was_written(self):
        header, found = file_format.read(self.path)
        self.assertEqual(header, HEADER)
        image = np.where(self.valid[:, None], self.image, 0)
        self.assertAllEqual(found.arrays["ids"], self.ids)
        self.assertAllEqual(found.arrays["offsets"], [0, *self.ends])
        self.assertAllEqual(found.arrays["image"], image)
        self.assertAllEqual(found.arrays["text"], self.text)

    def test_batches_of_any_size_give_the_same_bytes(self):
        contents = []
        for cuts in ((0, ROWS), (0, 1, 2, ROWS), (0, 8, 16, ROWS)):
            self.write(cuts)
            self.assert_is_what_was_written()
            contents.append(files.read_whole(self.path))
        self.assertEqual(contents, contents[:1] * 3)
        self.assertEqual(os.listdir(self.folder), ["shard.sidecar"])

    def test_a_sidecar_without_captions_can_be_read(self):
        self.counts[:] = 0
        self.ends[:] = 0
        self.text = self.text[:0]
        self.write()
        self.assert_is_what_was_written()

    def test_rows_that_do_not_fit_are_refused(self):
        unit_rows = sidecar_files.unit_rows
        good = {
            "ids": self.ids[:2],
            "image": unit_rows(2),
            "text": unit_rows(3),
            "captions": [1, 2],
            "valid": np.array([True, True]),
        }
        infinite = np.float32([[np.inf, 0, 0, 0], [1, 0, 0, 0]])
        for message, changed in {
            "length 0.5": {"image": unit_rows(2) / 2},
            "`text` must be of unit length.*2": {"text": 2 * unit_rows(3)},
            "a row of length inf": {"image": infinite},
            "a row of length nan": {"image": np.full((2, 4), np.nan)},
            "a row of length 0$": {"image": np.zeros((2, 4))},
        }.items():
            with self.assertRaisesRegex(ValueError, message):
                with file_format.written(self.path, HEADER) as append:
                    append(**good | changed)
        with self.assertRaisesRegex(ValueError, "21 rows. Received: 20"):
            self.write((0, 20))
        self.assertEmpty(os.listdir(self.folder))

    def test_an_impossible_header_is_refused(self):
        describe = sidecar_files.DESCRIPTION._replace
        for message, header in {
            "`dtype` .* Received: 'int8'": HEADER._replace(dtype="int8"),
            "`dim` .* Received: 0": HEADER._replace(
                description=describe(dim=0)
            ),
            "`scale` .* Received: nan": HEADER._replace(
                description=describe(scale=float("nan"))
            ),
            "`fingerprint` must be a string. Received: 1": HEADER._replace(
                description=describe(fingerprint=1)
            ),
        }.items():
            with self.assertRaisesRegex(ValueError, message):
                self.write(header=header)
