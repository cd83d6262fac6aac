"""The rules of the whole IconText data set.

Neither packages nor a rasteriser are needed: drawings here are pixels already.
"""

import collections
import json
import pathlib
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.icontext import full, manifest, pictures, selection, sources


def a_row(name, **changes):
    """A row of a mono icon, with changes."""
    fields = {
        "kind": sources.MONO_ICON,
        "style": "some-set",
        "source": "some@1.0",
        "license": "MIT",
        "name": name,
        "captions": (name,),
        "drawing": None,
    }
    return sources.Row(**(fields | changes))


class SieveTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        generator = np.random.default_rng(0)
        self.drawn = {
            name: generator.integers(0, 240, [14, 14, 3], np.uint8)
            for name in "abcdef"
        }
        # Correlation with "a" of 0.98 or so: a copy for an icon, not for
        # emoji art.
        noise = generator.integers(-24, 25, [14, 14, 3])
        near = np.clip(self.drawn["a"] + noise, 0, 240).astype(np.uint8)
        self.drawn["near a"] = near
        patches = (
            mock.patch.object(
                pictures, "render", lambda name, size: self.drawn[name]
            ),
            mock.patch.object(pictures, "encode", lambda pixels: b""),
        )
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)

    def sieve(self, held_out=()):
        return selection.Sieve(size=14, held_out=held_out)

    def rows(self, *names, **changes):
        return [
            a_row(f"{i}", drawing=name, captions=(name,), **changes)
            for i, name in enumerate(names)
        ]

    def test_copies_of_held_out_pictures_do_not_pass(self):
        self.assertBetween(
            pictures.shape_vector(self.drawn["a"])
            @ pictures.shape_vector(self.drawn["near a"]),
            0.975,
            0.99,
        )
        first = self.sieve()
        list(first.accept(self.rows("a"), "test_style"))
        for kind, expected in (
            (sources.MONO_ICON, {"b"}),
            (sources.EMOJI, {"b", "near a"}),
        ):
            second = self.sieve(first.held_out)
            rows = self.rows("a", "near a", "b", kind=kind)
            found = second.accept(rows, "pool")
            self.assertEqual({one.row.captions[0] for one in found}, expected)

    def test_rows_together_are_treated_like_rows_one_by_one(self):
        rows = self.rows("b", "near a", "c", "b", "a", "d", "c")
        first = self.sieve()
        list(first.accept(self.rows("a"), "val_concept"))
        together, single = (self.sieve(first.held_out) for _ in range(2))
        found = list(together.accept(rows, "pool", 100))
        self.assertEqual(found, list(single.accept(rows, "pool")))
        self.assertEqual(together.drops, single.drops)
        # One copy, one leak of the very pixels, "b" and "c" twice.
        self.assertEqual([one.row.name for one in found], ["0", "2", "5"])

    def test_held_out_pictures_are_not_compared_with_each_other(self):
        sieve = self.sieve()
        found = sieve.accept(self.rows("a", "near a", "a"), "test_concept")
        # The last is the first, under the same caption.
        self.assertEqual([one.row.name for one in found], ["0", "1"])


class MergeTest(tf.test.TestCase):
    def made(self, style, *pairs):
        """Records of pictures and captions, and two dropped before."""
        records = [
            selection.Record(
                a_row(f"{style}{i}", style=style, captions=(caption, "more")),
                selection.identifier_of("some@1.0", style, f"{style}{i}"),
                png,
            )
            for i, (png, caption) in enumerate(pairs)
        ]
        return records, {"duplicate pair": 2}

    def test_a_pair_that_two_sets_have_is_kept_once(self):
        one, other = (
            self.made("x", (b"1", "ant"), (b"2", "bee")),
            self.made("y", (b"1", "ant"), (b"1", "bee"), (b"3", "cow")),
        )
        reference = [selection.Record(a_row("cow"), 5, b"3")]
        drops = collections.Counter()
        merged = full.merged([one, other], {"reference": reference}, drops)
        self.assertEqual(merged, [*one[0], other[0][1]])
        self.assertEqual(drops, {"duplicate pair": 2 + 2 + 2})

    def test_two_rows_with_one_id_are_refused(self):
        pool, _ = self.made("x", (b"1", "ant"))
        splits = {"pool": pool, "reference": pool}
        with self.assertRaisesRegex(ValueError, "two rows have id"):
            manifest.write("", self.get_temp_dir(), splits, {}, {}, {})


class SettingsTest(tf.test.TestCase):
    def test_no_data_set_takes_noncommercial_licences(self):
        for license_id, always, permissive in (
            ("MIT", True, True),
            ("CC0-1.0", True, True),
            ("CC-BY-SA-4.0", True, False),
            ("GPL-3.0", True, False),
            ("", True, False),
            ("CC-BY-NC-4.0", False, False),
        ):
            found = [sources.admits(license_id, only) for only in (False, True)]
            self.assertEqual(found, [always, permissive], license_id)

    def test_a_data_set_of_other_settings_is_refused_and_kept(self):
        folder = pathlib.Path(self.get_temp_dir())
        settings = {"size": 32}
        versions = {"npm": ["a@1"], "python": {"numpy": "2.0"}}
        self.assertFalse(full.is_built(folder, settings, versions))
        stats = {"settings": settings, "versions": versions, "bytes": 7}
        (folder / "stats.json").write_text(json.dumps(stats))
        newer = versions | {"python": {"numpy": "2.1"}}
        self.assertTrue(full.is_built(folder, settings, newer))
        for other, versions, what in (
            ({"size": 64}, newer, "size is 32, wanted is 64"),
            (settings, {"npm": ["a@2"]}, r"npm is \['a@1'\]"),
        ):
            with self.assertRaisesRegex(FileExistsError, what):
                full.is_built(folder, other, versions)


if __name__ == "__main__":
    tf.test.main()
