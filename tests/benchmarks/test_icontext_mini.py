"""The shipped data set and the rules of its builder.

Neither a network nor packages nor a rasteriser are needed.
"""

import collections
import hashlib
import json
import pathlib
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.icontext import (
    build,
    concepts,
    manifest,
    mini,
    noise,
    packages,
    pictures,
    selection,
    shards,
    sources,
)

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
SPLITS = ("reference", "pool", "val", "test")
TRAINING = ("reference", "pool")
HELD_OUT = ("val", "test")
ICONS = {"mono icon", "colour icon"}
KINDS = {*ICONS, "emoji", "logo", "clip art"}
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-PDDC"}
TEXTS = ("concept", "label", "kind", "style", "source", "license", "name")


def a_record(number, **changes):
    """An icon with random pixels, with changes of its row."""
    random = np.random.default_rng(number)
    png = pictures.encode(random.integers(0, 200, [32, 32, 3], np.uint8))
    icon = {
        "kind": "mono icon",
        "style": "lines",
        "name": f"icon {number}",
        "captions": (f"icon {number}",),
        "drawing": None,
        "concept": "",
        "label": "",
    }
    return selection.Record(a_row(**(icon | changes)), number, png)


def read_record(serialized):
    """Features of a record, each with exactly the type that is promised."""
    features = tf.train.Example.FromString(serialized).features.feature
    record = {name: features[name].bytes_list.value for name in TEXTS}
    record = {name: value.decode() for name, (value,) in record.items()}
    record["captions"] = list(features["caption"].bytes_list.value)
    (record["id"],) = features["id"].int64_list.value
    (record["image"],) = features["image"].bytes_list.value
    record["names"] = set(features)
    if "noise" in features:
        (kind,) = features["noise"].bytes_list.value
        record["noise"] = kind.decode()
    return record


def a_row(**changes):
    """A row of emoji art, with changes."""
    fields = {
        "kind": "emoji",
        "style": "noto",
        "source": "some@1.0",
        "license": "MIT",
        "name": "fox",
        "captions": ("fox: animal", "fox"),
        "drawing": sources.Drawing("svg", ""),
        "concept": "1F98A",
        "label": "fox",
    }
    return sources.Row(**(fields | changes))


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
                read_record(serialized)
                for serialized in tf.data.TFRecordDataset(
                    [str(file) for file in files]
                ).as_numpy_iterator()
            ]
            for split, files in cls.files.items()
        }
        cls.pixels = {
            split: [pictures.decode(record["image"]) for record in records]
            for split, records in cls.records.items()
        }

    def every_record(self):
        return [record for split in SPLITS for record in self.records[split]]

    def styles(self, *splits):
        return {r["style"] for split in splits for r in self.records[split]}

    def test_all_shards_belong_to_a_split_and_fit_in_16_megabytes(self):
        listed = [file for files in self.files.values() for file in files]
        self.assertCountEqual(listed, FOLDER.rglob("*.tfrecord"))
        sizes = {
            split: sum(file.stat().st_size for file in files)
            for split, files in self.files.items()
        }
        self.assertLessEqual(sum(sizes.values()), 16_000_000)
        self.assertEqual(sum(sizes.values()), self.stats["bytes"])
        for split, size in sizes.items():
            self.assertEqual(size, self.stats["splits"][split]["bytes"])

    def test_every_picture_decodes_to_32_pixels_and_shows_something(self):
        for split in SPLITS:
            # One array, so that all have one shape.
            pixels = np.stack(self.pixels[split])
            self.assertEqual(pixels.shape[1:], (32, 32, 3))
            self.assertEqual(pixels.dtype, np.uint8)
            rows = pixels.reshape(len(pixels), -1).astype(np.float32)
            self.assertGreaterEqual(rows.std(axis=1).min(), 1.5)

    def test_every_record_has_the_features_of_the_schema_and_no_other(self):
        names = {"image", "caption", "id", *TEXTS}
        for record in self.every_record():
            self.assertEqual(record["names"] - {"noise"}, names)
            self.assertIn(record["kind"], KINDS)
            for name in ("style", "source", "license", "name"):
                self.assertNotEqual(record[name], "")
            is_emoji = record["kind"] == "emoji"
            self.assertEqual(record["concept"] != "", is_emoji)
            self.assertEqual(record["label"] != "", is_emoji)

    def test_captions_are_distinct_tidy_lines_of_text(self):
        for record in self.every_record():
            texts = [caption.decode("utf-8") for caption in record["captions"]]
            self.assertGreaterEqual(len(texts), 1)
            self.assertLen(set(texts), len(texts))
            for text in texts:
                self.assertNotEmpty(text)
                self.assertEqual(text, " ".join(text.split()))
                self.assertNotIn("\ufffd", text)

    def test_ids_are_unique_hashes_of_the_origin(self):
        seen = set()
        for record in self.every_record():
            origin = f"{record['source']}|{record['style']}|{record['name']}"
            start = hashlib.sha256(origin.encode()).hexdigest()[:16]
            self.assertEqual(record["id"], int(start, 16) % 2**63)
            seen.add(record["id"])
        self.assertLen(seen, len(self.every_record()))

    def test_every_licence_is_permissive_and_its_text_is_there(self):
        text = FOLDER.joinpath("LICENSES.md").read_text()
        rows = {
            cells[0]: cells
            for line in text.splitlines()
            if line.startswith("| ")
            for cells in [[cell.strip() for cell in line.split("|")[1:-1]]]
        }
        for record in self.every_record():
            self.assertIn(record["license"], PERMISSIVE)
            cells = rows[record["style"]]
            self.assertStartsWith(cells[2], f"[{record['license']}]")
            self.assertNotEqual(cells[4], "")
            self.assertEqual(cells[5], record["source"])
            file = cells[2].partition("(")[2].rstrip(")")
            self.assertGreater(FOLDER.joinpath(file).stat().st_size, 500)

    def test_the_sets_of_val_and_test_are_in_no_other_split(self):
        training = self.styles(*TRAINING)
        self.assertEmpty(training & self.styles(*HELD_OUT))
        self.assertEmpty(self.styles("val") & self.styles("test"))
        self.assertGreaterEqual(len(self.styles("val")), 8)
        self.assertGreaterEqual(len(self.styles("test")), 8)

    def test_val_and_test_are_icons_with_distinct_captions(self):
        for split in HELD_OUT:
            records = self.records[split]
            self.assertBetween(len(records), 1_000, 1_300)
            self.assertContainsSubset({r["kind"] for r in records}, ICONS)
            captions = {r["captions"][0].lower() for r in records}
            self.assertLen(captions, len(records))

    def test_no_training_picture_has_the_pixels_of_a_held_out_one(self):
        held_out, training = (
            {
                pixels.tobytes()
                for split in splits
                for pixels in self.pixels[split]
            }
            for splits in (HELD_OUT, TRAINING)
        )
        self.assertEmpty(training & held_out)

    def test_no_training_picture_draws_the_same_as_a_held_out_one(self):
        held_out = np.stack(
            [
                pictures.shape_vector(pixels)
                for split in HELD_OUT
                for pixels in self.pixels[split]
            ]
        )
        for split in TRAINING:
            some = slice(None, None, 4)  # all of them take four times as long
            shapes = np.stack(
                [pictures.shape_vector(p) for p in self.pixels[split][some]]
            )
            closest = (shapes @ held_out.T).max(axis=1)
            limit = {"emoji": 0.995, "clip art": 0.93}
            limits = [
                limit.get(r["kind"], 0.97) for r in self.records[split][some]
            ]
            self.assertAllLess(closest - np.array(limits), 1e-5)

    def test_the_pool_has_its_noise_and_the_other_splits_have_none(self):
        for split in ("reference", *HELD_OUT):
            for record in self.records[split]:
                self.assertNotIn("noise", record["names"])
        pool = self.records["pool"]
        self.assertLen(pool, 18_000)
        kinds = collections.Counter(r.get("noise", "pairs") for r in pool)
        self.assertEqual(self.stats["noise_of_pool"], dict(kinds))
        self.assertEqual(kinds["pairs"], round((1 - 0.7) * 18_000))
        for kind, share in noise.CRAWL.items():
            expected = share * (18_000 - kinds["pairs"])
            # Four standard deviations of a binomial number.
            spread = 4 * np.sqrt(expected * (1 - share))
            self.assertNear(kinds[kind], expected, spread)
        self.assertEqual(
            {r["kind"] for r in pool if r.get("noise") == noise.WRONG_DOMAIN},
            {"logo"},
        )

    def test_the_reference_is_of_the_kind_of_the_clean_pool(self):
        self.assertLen(self.records["reference"], 2_000)
        kinds = {record["kind"] for record in self.records["reference"]}
        self.assertEqual(kinds, ICONS)
        clean = [r for r in self.records["pool"] if "noise" not in r]
        icons = [r["kind"] in ICONS for r in clean]
        self.assertGreater(np.mean(icons), 0.9)
        self.assertContainsSubset(self.styles("reference"), self.styles("pool"))

    def test_statistics_are_those_of_the_shards(self):
        for split in SPLITS:
            entry = self.stats["splits"][split]
            self.assertEqual(entry["pairs"], len(self.records[split]))
            kinds = collections.defaultdict(list)
            for record in self.records[split]:
                kinds[record["kind"]].append(record)
            self.assertEqual(set(entry["kinds"]), set(kinds))
            for kind, records in kinds.items():
                counts = entry["kinds"][kind]
                firsts = [record["captions"][0] for record in records]
                found = {
                    "pairs": len(records),
                    "pictures": len({r["image"] for r in records}),
                    "captions": len(set(firsts)),
                    "concepts": len({r["concept"] for r in records} - {""}),
                    "styles": len({r["style"] for r in records}),
                }
                self.assertEqual(found, {name: counts[name] for name in found})
        licenses = collections.Counter(
            record["license"] for record in self.every_record()
        )
        self.assertEqual(self.stats["licenses"], dict(licenses))

    def test_the_tables_of_the_readme_are_those_of_the_statistics(self):
        readme = FOLDER.joinpath("README.md").read_text()
        self.assertIn(manifest.tables(self.stats), readme)
        for split in SPLITS:
            size = self.stats["splits"][split]["bytes"]
            row = f"| {split} | {len(self.records[split]):,} | {size:,} |"
            self.assertIn(row, readme)

    def test_records_are_not_sorted_by_style(self):
        styles = [record["style"] for record in self.records["pool"]]
        runs = 1 + sum(a != b for a, b in zip(styles, styles[1:], strict=False))
        # In a random order two neighbours agree with the probability that
        # two random rows do.
        counts = np.array(list(collections.Counter(styles).values()))
        agree = ((counts / counts.sum()) ** 2).sum()
        self.assertAllClose(runs / len(styles), 1 - agree, atol=0.02)


class ConceptsTest(tf.test.TestCase):
    def test_keys_have_no_variation_selectors_and_no_leading_zeros(self):
        self.assertEqual(concepts.key_of_text("\U0001f98a"), "1F98A")
        self.assertEqual(concepts.key_of_text("\u2764\ufe0f"), "2764")
        self.assertEqual(concepts.key_of_codes("0023-fe0f-20e3"), "23-20E3")
        self.assertEqual(
            concepts.key_of_text("\U0001f3c4\u200d\u2640\ufe0f"),
            concepts.key_of_codes("1f3c4-200d-2640-fe0f"),
        )

    def test_skin_tones_are_recognised(self):
        self.assertTrue(concepts.has_skin_tone("1F44B-1F3FD"))
        self.assertFalse(concepts.has_skin_tone("1F44B"))

    def test_gender_age_hair_and_direction_do_not_change_the_group(self):
        for group, keys in {
            "1F3C4": ("1F3C4", "1F3C4-200D-2640", "1F3C4-1F3FF-200D-2642"),
            "P-1F692": ("1F468-200D-1F692", "1F9D1-200D-1F692"),
            "1F6B6": ("1F6B6-200D-27A1", "1F6B6-200D-2640-200D-27A1"),
            "1F934": ("1F934", "1F478", "1FAC5"),
            "1F385": ("1F385", "1F936", "1F9D1-200D-1F384"),
            "plain person": ("1F475", "1F469-200D-1F9B0", "1F471-200D-2642"),
            "family": ("1F46A", "1F468-200D-2764-200D-1F468"),
            "holding hands": ("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"),
            "keycap": ("23-20E3", "31-20E3"),
            "clock face": ("1F550", "1F567"),
        }.items():
            with self.subTest(group):
                self.assertEqual({concepts.group_of(k) for k in keys}, {group})

    def test_signs_that_are_emoji_themselves_keep_their_group(self):
        for key in ("2640", "2642", "27A1", "1F98A", "2764-200D-1F525"):
            with self.subTest(key):
                expected = key.replace("-200D", "")
                self.assertEqual(concepts.group_of(key), expected)

    def test_the_split_is_a_percentile_of_a_hash(self):
        parts = np.repeat(["test", "val", "train"], [20, 7, 73])
        for group in ("1F98A", "1F692", "1F3C4", "P-1F692", "2640"):
            digest = hashlib.sha256(f"icontext-1|{group}".encode()).digest()
            percentile = int.from_bytes(digest, "big") % 100
            self.assertEqual(concepts.split_of_group(group), parts[percentile])

    def test_look_alikes_and_flags_are_never_held_out(self):
        for group in ("keycap", "clock face", "family", "plain person"):
            self.assertEqual(concepts.split_of_group(group), "train")
        flags = [
            concepts.Concept(f"1F1E6-1F1{i:X}", "flag", (), (), "Flags")
            for i in range(0xE6, 0xFF)
        ]
        self.assertEqual({flag.split for flag in flags}, {"train"})

    def test_emoji_captions_list_each_keyword_once(self):
        concept = concepts.Concept(
            key="1F98A",
            name="fox face",
            keywords=("animal", "face", "Fox", "red"),
            more_keywords=("red", "fox face", "nature", "sly"),
            category="Animals & Nature",
        )
        # "face" and "fox" are in the name; "red" does not fit in the first.
        self.assertEqual(
            concepts.emoji_captions(concept, num_keywords=1),
            ("fox face: animal", "fox face", "fox face: red"),
        )
        self.assertEqual(
            concepts.emoji_captions(concept, num_keywords=3),
            ("fox face: animal, red", "fox face", "fox face: nature, sly"),
        )

    def test_an_emoji_without_keywords_has_its_name_as_only_caption(self):
        concept = concepts.Concept("1F98A", "fox", (), (), "")
        self.assertEqual(concepts.emoji_captions(concept), ("fox",))

    def test_icon_captions_lose_words_of_size_and_style_at_the_end_only(self):
        for name, tags, expected in (
            (
                "arrow-left-20-filled",
                ["Back", "back"],
                ("arrow left 20 filled", "arrow left: back", "arrow left"),
            ),
            ("line-chart", [], ("line chart",)),
            ("outline", [], ("outline",)),
            ("a__b.c", [], ("a b c",)),
        ):
            with self.subTest(name):
                self.assertEqual(concepts.icon_captions(name, tags), expected)

    def test_captions_become_distinct_single_lines_without_markup(self):
        self.assertEqual(
            concepts.tidy_captions(
                ("salt &amp;\n pepper", "salt & pepper", "\x00 \t", "a\ufffdb")
            ),
            ("salt & pepper", "ab"),
        )

    def test_slugs_are_ascii(self):
        self.assertEqual(concepts.slug("Piñata & Co."), "pinata-and-co")


def similarity(first, second):
    """Correlation of two pictures' drawings."""
    return pictures.shape_vector(first) @ pictures.shape_vector(second)


class PicturesTest(tf.test.TestCase):
    def test_similarity_ignores_place_and_scale(self):
        small = np.full([32, 32, 3], 255, np.uint8)
        small[4:8, 4:8] = 0
        small[8:12, 8:12] = (255, 0, 0)
        large = np.full([32, 32, 3], 255, np.uint8)
        large[8:20, 2:14] = 0
        large[20:32, 14:26] = (255, 0, 0)
        self.assertGreater(similarity(small, large), 0.97)

    def test_similarity_of_a_drawing_and_its_negative_is_minus_one(self):
        # Both have ink in every corner, so that both are compared whole.
        checks = np.kron([[0, 244], [244, 0]], np.ones([16, 16]))
        first = np.repeat(checks[..., np.newaxis], 3, -1).astype(np.uint8)
        self.assertAllClose(similarity(first, first), 1.0, 1e-4)
        self.assertAllClose(similarity(first, 244 - first), -1.0, 1e-4)

    def test_shapes_of_equal_size_compare_as_correlations(self):
        # 14 pixels and inked all over: neither cropped nor scaled.
        generator = np.random.default_rng(0)
        first, second = generator.integers(0, 240, [2, 14, 14, 3], np.uint8)
        expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        self.assertAllClose(similarity(first, second), expected, 1e-4, 1e-4)

    def test_a_picture_of_one_colour_resembles_nothing(self):
        blank = np.full([32, 32, 3], 255, np.uint8)
        self.assertAllClose(similarity(blank, blank), 0.0)


class MiniTest(tf.test.TestCase):
    DESCRIPTIONS = {
        "lines": {"license": {"url": "https://example.com"}},
        "nameless": {"license": {}},
    }

    def sampled(self, reverse=False):
        pool = [a_record(number) for number in range(50)]
        # Each for a reason of its own.
        pool += [
            a_record(50, license="GPL-3.0"),
            a_record(51, style="nameless"),
        ]
        pool += [a_record(52, license=""), a_record(53, license="CC-BY-4.0")]
        # Two of the logos are drawn like held-out icons.
        logos = [
            a_record(number, kind="logo", name=f"logo {number}")
            for number in (100, 101, 110, *range(300, 310))
        ]
        whole = {
            "curated": [a_record(number) for number in range(60, 80)],
            "pool": pool[::-1] if reverse else pool,
            "val_sets": [a_record(number) for number in range(100, 103)],
            "test_sets": [a_record(number) for number in range(110, 113)],
        }
        splits = {
            "reference": ("curated", 7),
            "pool": ("pool", 40),
            "val": ("val_sets", 9),
            "test": ("test_sets", 2),
        }
        with mock.patch.object(mini, "_SPLITS", splits):
            return mini.sampled(whole, logos, self.DESCRIPTIONS)

    def test_splits_have_at_most_their_sizes(self):
        splits, _ = self.sampled()
        sizes = {name: len(records) for name, records in splits.items()}
        self.assertEqual(
            sizes, {"reference": 7, "pool": 40, "val": 3, "test": 2}
        )

    def test_what_is_not_permissive_is_left_out_and_counted(self):
        splits, left_out = self.sampled()
        self.assertEqual(
            left_out,
            {
                "GPL-3.0": 1,
                "no address of the licence": 1,
                "none": 1,
                "CC-BY-4.0": 1,
            },
        )
        for record in splits["pool"]:
            self.assertEqual(record.row.license, "MIT")
            self.assertEqual(record.row.style, "lines")

    def test_seven_tenths_of_the_pool_are_noise(self):
        splits, _ = self.sampled()
        noisy = {
            name: sum(record.noise != "" for record in records)
            for name, records in splits.items()
        }
        self.assertEqual(
            noisy, {"reference": 0, "pool": 28, "val": 0, "test": 0}
        )

    def test_a_logo_like_a_held_out_icon_is_no_noise(self):
        with mock.patch.object(noise, "add", wraps=noise.add) as add:
            splits, _ = self.sampled()
        foreign = add.call_args.args[2]
        tests = {record.identifier for record in splits["val"] + splits["test"]}
        expected = {100, 101, 110, *range(300, 310)} - tests
        self.assertEqual({record.identifier for record in foreign}, expected)

    def test_the_order_of_the_pool_does_not_matter(self):
        self.assertEqual(self.sampled(), self.sampled(reverse=True))

    def test_the_whole_data_set_must_be_there(self):
        folder = self.get_temp_dir()
        with self.assertRaisesRegex(
            SystemExit, "error: .*whole data set.*build full.*--data"
        ):
            build.main(["mini", "--data", folder, "--out", folder])


class BuilderTest(tf.test.TestCase):
    def test_kinds_follow_category_then_palette(self):
        for category, palette, kind in (
            ("Logos", True, "logo"),
            ("Logos", False, "logo"),
            ("UI 24px", False, "mono icon"),
            ("Emoji", True, "colour icon"),
        ):
            description = {"category": category, "palette": palette}
            self.assertEqual(sources.kind_of_set(description), kind)

    def test_a_missing_package_is_named_with_its_remedy(self):
        with self.assertRaisesRegex(FileNotFoundError, "emojilib.*fetch"):
            packages.path(self.get_temp_dir(), packages.EMOJILIB)

    def test_a_missing_tool_is_named(self):
        with (
            mock.patch.dict("os.environ", PATH=""),
            self.assertRaisesRegex(RuntimeError, "`npm` is not installed"),
        ):
            packages.fetch(self.get_temp_dir())

    def test_a_written_record_reads_back(self):
        record = selection.Record(a_row(), 7, b"png")
        folder = pathlib.Path(self.get_temp_dir())
        size = shards.write(folder, "x", [record, record])
        (path,) = folder.iterdir()
        self.assertEqual(size, path.stat().st_size)
        dataset = tf.data.TFRecordDataset([str(path)])
        first, second = map(read_record, dataset.as_numpy_iterator())
        self.assertEqual(first, second)
        self.assertEqual(first["captions"], [b"fox: animal", b"fox"])
        self.assertEqual((first["id"], first["image"]), (7, b"png"))
        self.assertEqual(first["concept"], "1F98A")

    def test_the_command_names_what_is_missing_in_one_line(self):
        folder = self.get_temp_dir()
        with self.assertRaisesRegex(
            SystemExit, "error: .*is not in the cache.*fetch"
        ):
            build.main(["full", "--cache", folder, "--out", folder])


if __name__ == "__main__":
    tf.test.main()
