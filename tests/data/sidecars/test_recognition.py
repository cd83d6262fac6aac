"""Tests of the share of pairs that a reference recognises."""

from unittest import mock

import numpy as np
import sidecar_files
import tensorflow as tf

from jest_tf.data.sidecars import recognition

NUM_PAIRS, DIM = 4_000, 32


def sidecars_of(image, text, valid):
    def read_numbered(rows, numbers, ids):
        np.testing.assert_array_equal(ids, rows + 7)
        return np.where(valid[rows], 0, -1), image[rows], text[rows]

    return mock.Mock(read_numbered=read_numbered)


class RecognisedShareTest(tf.test.TestCase):
    def share(self, image, text, valid=None, rows=None):
        count = len(image)
        valid = np.ones(count, bool) if valid is None else valid
        rows = np.ones(count, bool) if rows is None else rows
        sidecars = sidecars_of(image, text, valid)
        store = mock.Mock(ids=lambda rows: rows + 7)
        return recognition.recognised_share(sidecars, store, rows)

    def pairs(self, matched):
        """Pairs of which the first so many have equal embeddings."""
        image = sidecar_files.unit_rows(NUM_PAIRS, 0, DIM)
        text = sidecar_files.unit_rows(NUM_PAIRS, 1, DIM)
        text[:matched] = image[:matched]
        return image, text

    def test_a_perfect_reference_recognises_the_matched_pairs(self):
        """Those with a cosine of 1; by chance a tenth of the others."""
        for matched in (0, 1_000, 4_000):
            share = self.share(*self.pairs(matched))
            # Four standard deviations of a share of 4,000.
            self.assertAllClose(share, matched / NUM_PAIRS, atol=0.03)

    def test_a_collapsed_reference_recognises_none(self):
        same = np.tile(sidecar_files.unit_rows(1, 0, DIM), [NUM_PAIRS, 1])
        self.assertEqual(self.share(same, same), 0.0)

    def test_only_the_rows_asked_for_with_embeddings_count(self):
        image, text = self.pairs(1_000)
        rows = np.arange(NUM_PAIRS) < 1_500
        valid = np.arange(NUM_PAIRS) >= 500
        share = self.share(image, text, valid, rows)
        self.assertAllClose(share, 0.5, atol=0.06)

    def test_too_few_are_refused(self):
        image, text = self.pairs(0)
        with self.assertRaisesRegex(ValueError, "at least two.*Received: 1"):
            self.share(image, text, rows=np.arange(NUM_PAIRS) < 1)
