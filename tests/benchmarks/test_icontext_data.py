"""IconText's data: the set that ships."""

import collections
import hashlib
import io
import json
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks.protocol import records as records_lib

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
SPLITS = ("curated", "pool", "val", "test")
TRAINING = ("curated", "pool")
HELD_OUT = ("val", "test")
ICONS = {"mono icon", "colour icon"}
# Kinds of noise with their shares of it.
NOISE = {
    "moved": 10 / 14,
    "uninformative": 2 / 14,
    "wrong domain": 1 / 14,
    "near-duplicate": 1 / 14,
}
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-PDDC"}


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
            split: [
                record for file in files for record in records_lib.read(file)
            ]
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
        for split, records in self.records.items():
            kinds = collections.Counter(record.row.kind for record in records)
            found = {"pairs": len(records), "bytes": sizes[split]}
            found["kinds"] = kinds
            self.assertEqual(found, self.stats["splits"][split])
        self.assertEqual(sum(sizes.values()), self.stats["bytes"])
        every = self.every(*SPLITS)
        noise = (record.noise or "pairs" for record in self.records["pool"])
        for name, values in (
            ("noise_of_pool", noise),
            ("licenses", (record.row.license for record in every)),
            ("styles", (record.row.style for record in every)),
        ):
            self.assertEqual(collections.Counter(values), self.stats[name])

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
            image = Image.open(io.BytesIO(record.image))
            self.assertEqual(image.convert("RGB").size, (32, 32))
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

    def test_the_pool_has_its_noise_and_the_other_splits_have_none(self):
        for record in self.every("curated", *HELD_OUT):
            self.assertEqual(record.noise, "")
        pool = self.records["pool"]
        kinds = collections.Counter(record.noise for record in pool)
        self.assertEqual(kinds[""], round((1 - 0.7) * len(pool)))
        for kind, share in NOISE.items():
            expected = share * (len(pool) - kinds[""])
            # Four standard deviations of a binomial number.
            spread = 4 * np.sqrt(expected * (1 - share))
            self.assertNear(kinds[kind], expected, spread)
