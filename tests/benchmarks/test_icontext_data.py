"""IconText's data: the set that ships, and the rules of its builder.

Neither a network nor packages nor a rasteriser are needed.
"""

import collections
import hashlib
import itertools
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.icontext import (
    manifest,
    noise,
    pictures,
    selection,
    shards,
    sources,
    web,
)
from jest_tf.data import stores

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
SPLITS = ("curated", "pool", "val", "test")
TRAINING = ("curated", "pool")
HELD_OUT = ("val", "test")
ICONS = {"mono icon", "colour icon"}
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-PDDC"}


def a_row(name="name", **changes):
    """A row of a mono icon, with changes."""
    fields = {
        "kind": sources.MONO_ICON,
        "style": "set",
        "source": "some@1.0",
        "license": "MIT",
        "name": name,
        "captions": (name,),
        "drawing": None,
    }
    return sources.Row(**(fields | changes))


def a_record(number, seed=None, noise="", **changes):
    """An icon with random pixels and a name of one word."""
    random = np.random.default_rng(number if seed is None else seed)
    png = pictures.encode(random.integers(0, 200, [32, 32, 3], np.uint8))
    row = a_row(f"name {number}", captions=(f"word{number} thing",))
    return selection.Record(row._replace(**changes), number, png, noise)


class ShippedDataTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.stats = json.loads(FOLDER.joinpath("stats.json").read_text())
        cls.files = {
            split: sorted(FOLDER.glob(f"{split}-*.tfrecord"))
            for split in SPLITS
        }
        cls.records = {
            split: [record for file in files for record in shards.read(file)]
            for split, files in cls.files.items()
        }

    def every(self, *splits):
        return [record for split in splits for record in self.records[split]]

    def test_statistics_are_those_of_the_shards_which_fit_in_16_megabytes(self):
        listed = [file for files in self.files.values() for file in files]
        self.assertCountEqual(listed, FOLDER.rglob("*.tfrecord"))
        sizes = {
            split: sum(file.stat().st_size for file in files)
            for split, files in self.files.items()
        }
        self.assertLessEqual(sum(sizes.values()), 16_000_000)
        found = manifest.statistics(self.records, sizes)
        self.assertEqual(found, {name: self.stats[name] for name in found})

    def test_the_tables_of_the_readme_are_the_statistics(self):
        readme = FOLDER.joinpath("README.md").read_text()
        splits = self.stats["splits"]
        rows = [
            (split, entry["pairs"], entry["bytes"])
            for split, entry in splits.items()
        ]
        kinds = {kind for entry in splits.values() for kind in entry["kinds"]}
        for kind in kinds:
            counts = (entry["kinds"].get(kind, "") for entry in splits.values())
            rows.append((kind, *counts))
        for name in ("noise_of_pool", "licenses", "dropped", "left_out"):
            rows += self.stats[name].items()
        for name, *numbers in rows:
            name = "none" if name == "pairs" else name
            cells = [f"{number:,}" if number else "" for number in numbers]
            self.assertIn(f"| {' | '.join([name, *cells])} |", readme)

    def test_every_picture_decodes_to_32_pixels_and_its_id_is_a_hash(self):
        records = self.every(*SPLITS)
        for record in records:
            self.assertEqual(pictures.decode(record.png).shape, (32, 32, 3))
            row = record.row
            origin = f"{row.source}|{row.style}|{row.name}"
            start = hashlib.sha256(origin.encode()).hexdigest()[:16]
            self.assertEqual(record.identifier, int(start, 16) % 2**63)
            for text in row.captions:
                self.assertEqual(text, " ".join(text.split()))
        identifiers = {record.identifier for record in records}
        self.assertLen(identifiers, len(records))

    def test_every_licence_is_permissive_and_its_text_is_there(self):
        text = FOLDER.joinpath("LICENSES.md").read_text()
        rows = {
            cells[0]: cells
            for line in text.splitlines()
            if line.startswith("| ")
            for cells in [[cell.strip() for cell in line.split("|")[1:-1]]]
        }
        for style, pairs in self.stats["styles"].items():
            self.assertEqual(rows[style][6], str(pairs))
        for row in {record.row for record in self.every(*SPLITS)}:
            self.assertIn(row.license, PERMISSIVE)
            cells = rows[row.style]
            self.assertStartsWith(cells[2], f"[{row.license}]")
            self.assertNotEqual(cells[4], "")
            self.assertEqual(cells[5], row.source)
            file = cells[2].partition("(")[2].rstrip(")")
            self.assertGreater(FOLDER.joinpath(file).stat().st_size, 500)

    def test_the_sets_of_val_and_test_are_in_no_other_split(self):
        training, val, test = (
            {record.row.style for record in self.every(*splits)}
            for splits in (TRAINING, ["val"], ["test"])
        )
        self.assertEmpty(training & (val | test))
        self.assertEmpty(val & test)
        for split in HELD_OUT:
            rows = [record.row for record in self.records[split]]
            self.assertContainsSubset({row.kind for row in rows}, ICONS)
            captions = {row.captions[0].lower() for row in rows}
            self.assertLen(captions, len(rows))

    def test_no_training_picture_draws_the_same_as_a_held_out_one(self):
        some = slice(None, None, 4)  # all of them take four times as long
        training = self.every(*TRAINING)[some]
        is_copy = web.copies(training, self.every(*HELD_OUT))
        self.assertEqual(is_copy.sum(), 0)

    def test_the_pool_has_its_noise_and_the_other_splits_have_none(self):
        for record in self.every("curated", *HELD_OUT):
            self.assertEqual(record.noise, "")
        pool = self.records["pool"]
        kinds = collections.Counter(record.noise for record in pool)
        self.assertEqual(kinds[""], round((1 - 0.7) * len(pool)))
        for kind, share in noise.CRAWL.items():
            expected = share * (len(pool) - kinds[""])
            # Four standard deviations of a binomial number.
            spread = 4 * np.sqrt(expected * (1 - share))
            self.assertNear(kinds[kind], expected, spread)


POOL = [a_record(number) for number in range(400)]
LOGOS = [
    a_record(1000 + number, kind=sources.LOGO, style="logos")
    for number in range(60)
]


class NoiseTest(tf.test.TestCase):
    def test_each_kind_is_what_it_says(self):
        found = noise.add(POOL, 0.7, LOGOS)
        by_kind = collections.defaultdict(list)
        for before, after in zip(POOL, found, strict=True):
            by_kind[after.noise].append((before, after))
        for before, after in by_kind[""]:
            self.assertEqual(after, before)
        captions = {record.row.captions for record in POOL}
        for before, after in by_kind[noise.MOVED]:
            self.assertEqual(after.png, before.png)
            self.assertNotEqual(after.row.captions, before.row.captions)
            self.assertIn(after.row.captions, captions)
        for before, after in by_kind[noise.UNINFORMATIVE]:
            self.assertEqual(after.png, before.png)
            self.assertNotIn(after.row.captions, captions)
        for _, after in by_kind[noise.WRONG_DOMAIN]:
            self.assertEqual(after.row.kind, sources.LOGO)
        by_caption = {record.row.captions: record for record in POOL}
        for _, after in by_kind[noise.NEAR_DUPLICATE]:
            pixels = pictures.decode(after.png)
            source = pictures.decode(by_caption[after.row.captions].png)
            shifts = itertools.product(range(-2, 3), repeat=2)
            moved = (np.roll(source, shift, (0, 1)) for shift in shifts)
            equal = [np.array_equal(each, pixels) for each in moved]
            self.assertEqual(sum(equal), 1)

    def test_a_higher_level_keeps_what_was_noise(self):
        low, high = (noise.add(POOL, level, LOGOS) for level in (0.3, 0.7))
        for less, more in zip(low, high, strict=True):
            if less.noise:
                self.assertEqual(more.noise, less.noise)


class WebTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        data, cls.out = (pathlib.Path(folder, name) for name in ("data", "web"))
        data.mkdir()
        styles = "alpha", "beta", "beta6-solid", "gamma"
        sets = [
            a_record(2000 + 100 * place + number, style=style)
            for place, style in enumerate(styles)
            for number in range(20)
        ]
        # The held-out picture again, in the pool.
        copy = a_record(3000, seed=2000, captions=("a copy",))
        emoji = a_record(3001, kind=sources.EMOJI, style=web.VAL_STYLE)
        # Too small to be held out; the first and the last are one picture.
        small = [
            a_record(
                4000 + number,
                style="mono" if number < 9 else "delta",
                seed=4000 + number % 17,
                license="MIT" if number % 2 else "GPL-3.0",
            )
            for number in range(18)
        ]
        pool = [*POOL, *LOGOS, *sets, copy, emoji, *small]
        shards.write(data, "pool", pool, 2)
        held_out = "val_concept", "test_concept", "test_style"
        for place, split in enumerate(held_out):
            record = a_record(3100 + place, kind=sources.EMOJI, style=split)
            shards.write(data, split, [record], 1)
        (data / "stats.json").write_text("{}")
        with mock.patch.multiple(
            web,
            NUM_SHARDS=2,
            NUM_CURATED=30,
            FEWER_CURATED=(10,),
            NUM_FAMILIES={"test_sets": 2, "val_sets": 1},
            NUM_HELD_OUT={"test_sets": 25, "val_sets": 10},
            FAMILY_SIZES=range(20, 41),
        ):
            web.build(data, cls.out, {})
        cls.stats = json.loads((cls.out / "stats.json").read_text())

    def read(self, pattern):
        return [
            record
            for file in sorted(self.out.glob(pattern))
            for record in shards.read(file)
        ]

    def test_another_split_needs_another_folder(self):
        with self.assertRaisesRegex(RuntimeError, "`--split` must be 0"):
            web.build(self.out.parent, self.out, {}, seed=1)
        records = self.read("pool00/*")
        parts = [web.apart(records, seed)[0] for seed in (0, 1)]
        ids = [{record.identifier for record in part} for part in parts]
        self.assertNotEqual(*ids)

    def test_held_out_families_are_in_no_training_split(self):
        held_out = {
            style for some in self.stats["held_out"].values() for style in some
        }
        # A family is held out as a whole.
        self.assertEqual("beta" in held_out, "beta6-solid" in held_out)
        trained = self.read("pool00/*") + self.read("curated-*")
        styles = {record.row.style for record in trained}
        self.assertEmpty(styles & held_out)
        self.assertNotIn(web.VAL_STYLE, styles)
        self.assertNotIn("logos", styles)

    def test_the_curated_set_is_apart_from_the_pool(self):
        curated = {record.identifier for record in self.read("curated-*")}
        pool = {record.identifier for record in self.read("pool00/*")}
        self.assertLen(curated, 30)
        self.assertEmpty(curated & pool)
        fewer = {record.identifier for record in self.read("curated10-*")}
        self.assertLen(fewer, 10)
        self.assertContainsSubset(fewer, curated)

    def test_a_part_and_what_is_apart_share_no_family_and_no_picture(self):
        part, apart = self.read("part00/*"), self.read("apart-*")
        families = [
            {web.family(record.row.style) for record in some}
            for some in (part, apart)
        ]
        self.assertNotEmpty(part)
        self.assertNotEmpty(apart)
        self.assertEmpty(families[0] & families[1])
        self.assertEmpty(
            {record.png for record in part} & {record.png for record in apart}
        )

    def test_every_level_has_its_noise_in_the_metadata(self):
        names = [f"pool{level:02d}" for level in web.LEVELS["pool"]]
        names += [f"part{level:02d}" for level in web.LEVELS["part"]]
        for name in names:
            level = int(name[-2:])
            store = stores.open_store(
                f"{self.out}/{name}/*.tfrecord",
                index_dir=f"{self.get_temp_dir()}/{name}",
            )
            kinds = collections.Counter(store.columns(["noise"])["noise"])
            noisy = len(store) - kinds[b""]
            self.assertEqual(noisy, round(level / 100 * len(store)))
            counts = self.stats["sizes"][name]
            self.assertEqual(counts.get("pairs", 0), kinds[b""])
