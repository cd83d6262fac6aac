"""Tests of the web-like data: splits by icon set, and a pool's noise."""

import collections
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.icontext import (
    noise,
    pictures,
    selection,
    shards,
    sources,
    towers,
    web,
)
from jest_tf import config
from jest_tf.data import stores
from jest_tf.training import flops


def record(style, number, caption=None, kind=sources.MONO_ICON, seed=None):
    """A record with random pixels and a name of one word."""
    random = np.random.default_rng(
        [len(style), number] if seed is None else seed
    )
    pixels = random.integers(0, 200, [32, 32, 3], np.uint8)
    png = pictures.encode(pixels)
    row = sources.Row(
        kind=kind,
        style=style,
        source="source",
        license="MIT",
        name=f"name {number}",
        captions=(caption or f"word{number} thing",),
        drawing=None,
    )
    identifier = selection.identifier_of("source", style, row.name)
    return selection.Record(row, identifier, png)


POOL = [record("set", number) for number in range(400)]
LOGOS = [record("logos", n, kind=sources.LOGO) for n in range(60)]


class NoiseTest(tf.test.TestCase):
    def test_kinds_have_their_shares_and_the_pool_keeps_its_size(self):
        found = noise.add(POOL, 0.7, LOGOS)
        kinds = collections.Counter(one.noise for one in found)
        self.assertEqual(len(found), 400)
        self.assertEqual(kinds[""], 120)
        for kind, share in noise.CRAWL.items():
            expected = share * 280
            # Four standard deviations of a binomial number.
            spread = 4 * np.sqrt(expected * (1 - share))
            self.assertNear(kinds[kind], expected, spread)

    def test_a_pair_without_noise_is_what_it_was(self):
        for before, after in zip(
            POOL, noise.add(POOL, 0.5, LOGOS), strict=True
        ):
            if not after.noise:
                self.assertEqual(after, before)

    def test_each_kind_is_what_it_says(self):
        found = noise.add(POOL, 0.7, LOGOS)
        by_kind = collections.defaultdict(list)
        for before, after in zip(POOL, found, strict=True):
            by_kind[after.noise].append((before, after))
        captions = {one.row.captions for one in POOL}
        for before, after in by_kind[noise.MOVED]:
            self.assertEqual(after.png, before.png)
            self.assertNotEqual(after.row.captions, before.row.captions)
            self.assertIn(after.row.captions, captions)
        for before, after in by_kind[noise.UNINFORMATIVE]:
            self.assertEqual(after.png, before.png)
            self.assertNotIn(after.row.captions, captions)
        for _, after in by_kind[noise.WRONG_DOMAIN]:
            self.assertEqual(after.row.kind, sources.LOGO)
        by_caption = {one.row.captions: one for one in POOL}
        for _, after in by_kind[noise.NEAR_DUPLICATE]:
            pixels = pictures.decode(after.png)
            source = pictures.decode(by_caption[after.row.captions].png)
            shifts = [
                np.array_equal(np.roll(source, (down, right), (0, 1)), pixels)
                for down in range(-2, 3)
                for right in range(-2, 3)
            ]
            self.assertEqual(sum(shifts), 1)

    def test_ids_stay_unique(self):
        found = noise.add(POOL, 0.9, LOGOS)
        self.assertLen({one.identifier for one in found}, 400)

    def test_a_higher_level_keeps_what_was_noise(self):
        low, high = (noise.add(POOL, level, LOGOS) for level in (0.3, 0.7))
        for less, more in zip(low, high, strict=True):
            if less.noise:
                self.assertEqual(more.noise, less.noise)

    def test_kinds_and_seed_are_settings(self):
        shares = {noise.UNINFORMATIVE: 3, noise.MOVED: 1}
        found = noise.add(POOL, 0.5, LOGOS, shares, seed=3)
        kinds = collections.Counter(record.noise for record in found)
        total = round(0.5 * len(POOL))
        self.assertEqual(kinds.keys(), {"", *shares})
        self.assertEqual(kinds[""], len(POOL) - total)
        self.assertAllClose(kinds[noise.UNINFORMATIVE] / total, 0.75, atol=0.1)
        other = noise.add(POOL, 0.5, LOGOS, shares, seed=4)
        self.assertNotEqual(
            *([record.noise for record in some] for some in (found, other))
        )
        with self.assertRaisesRegex(ValueError, "`shares` must have kinds"):
            noise.add(POOL, 0.5, LOGOS, {"typos": 1})

    def test_too_few_pairs_of_another_domain_are_refused(self):
        with self.assertRaisesRegex(ValueError, r"`foreign` must have"):
            noise.add(POOL, 0.9, LOGOS[:3])


class WebTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        data, cls.out = (
            pathlib.Path(folder, "data"),
            pathlib.Path(folder, "web"),
        )
        data.mkdir()
        sets = [
            record(style, number)
            for style in ("alpha", "beta", "beta6-solid", "gamma")
            for number in range(20)
        ]
        # The held-out picture again, in the pool.
        copy = record("set", 1_000, "a copy", seed=[len("alpha"), 0])
        emoji = [record(web.VAL_STYLE, 1, kind=sources.EMOJI)]
        pool = [*POOL, *LOGOS, *sets, copy, *emoji]
        shards.write(data, "pool", pool, 2)
        for split in ("val_concept", "test_concept", "test_style"):
            one = record(split, 0, kind=sources.EMOJI)
            shards.write(data, split, [one], 1)
        (data / "stats.json").write_text("{}")
        with mock.patch.multiple(
            web,
            NUM_CURATED=30,
            FEWER_CURATED=(10,),
            NUM_FAMILIES={"test_sets": 2, "val_sets": 1},
            NUM_HELD_OUT={"test_sets": 25, "val_sets": 10},
            FAMILY_SIZES=range(20, 41),
        ):
            web.build(data, cls.out)
        cls.stats = json.loads((cls.out / "stats.json").read_text())

    def read(self, pattern):
        return [
            one
            for file in sorted(self.out.glob(pattern))
            for one in shards.read(file)
        ]

    def test_held_out_families_are_in_no_training_split(self):
        held_out = {
            style for some in self.stats["held_out"].values() for style in some
        }
        # A family is held out as a whole.
        self.assertEqual("beta" in held_out, "beta6-solid" in held_out)
        trained = self.read("pool00/*") + self.read("curated-*")
        styles = {one.row.style for one in trained}
        self.assertEmpty(styles & held_out)
        self.assertNotIn(web.VAL_STYLE, styles)
        self.assertNotIn("logos", styles)

    def test_captions_of_a_test_differ(self):
        tests = self.read("test_sets-*")
        captions = {one.row.captions[0] for one in tests}
        self.assertLen(captions, len(tests))

    def test_the_curated_set_is_apart_from_the_pool(self):
        curated = {one.identifier for one in self.read("curated-*")}
        pool = {one.identifier for one in self.read("pool00/*")}
        self.assertLen(curated, 30)
        self.assertEmpty(curated & pool)
        fewer = {one.identifier for one in self.read("curated10-*")}
        self.assertLen(fewer, 10)
        self.assertContainsSubset(fewer, curated)

    def test_every_level_has_its_noise_in_the_metadata(self):
        for level in web.LEVELS:
            store = stores.open_store(
                f"{self.out}/pool{level:02d}/*.tfrecord",
                index_dir=f"{self.get_temp_dir()}/{level}",
            )
            kinds = collections.Counter(store.columns(["noise"])["noise"])
            self.assertEqual(
                len(store) - kinds[b""], round(level / 100 * len(store))
            )
            counts = self.stats["sizes"][f"pool{level:02d}"]
            self.assertEqual(counts.get("pairs", 0), kinds[b""])


class CopiesTest(tf.test.TestCase):
    def test_only_a_picture_like_a_held_out_one_is_a_copy(self):
        one, other = record("set", 1), record("set", 2)
        self.assertAllEqual(web.copies([other, one], [one]), [False, True])


class SmallTowersTest(tf.test.TestCase):
    def test_they_cost_about_a_tenth_and_survive_their_configuration(self):
        images = tf.TensorSpec([4, 32, 32, 3], tf.float32)
        towers_of = [
            build(config.TrainConfig(), 100)[0]
            for build in (towers.build, towers.build_small)
        ]
        usual, small = (flops.count(one, images)[0] for one in towers_of)
        self.assertBetween(usual / small, 7, 13)
        small = towers_of[1]
        again = type(small).from_config(small.get_config())
        pictures = tf.random.stateless_uniform([4, 32, 32, 3], (0, 1))
        self.assertAllEqual(again(pictures), small(pictures))


if __name__ == "__main__":
    tf.test.main()
