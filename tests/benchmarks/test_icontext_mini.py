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
    packages,
    pictures,
    selection,
    shards,
    sources,
)

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
SPLITS = ("reference", "pool", "val_concept", "test_concept")
TRAINING = ("reference", "pool")
HELD_OUT = ("val_concept", "test_concept")
KINDS = {"emoji", "mono icon", "logo", "colour icon", "clip art"}
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-PDDC"}
TEXTS = ("concept", "label", "kind", "style", "source", "license", "name")


def read_record(serialized):
    """Features of a record, each with exactly the type that is promised."""
    features = tf.train.Example.FromString(serialized).features.feature
    record = {name: features[name].bytes_list.value for name in TEXTS}
    record = {name: value.decode() for name, (value,) in record.items()}
    record["captions"] = list(features["caption"].bytes_list.value)
    (record["id"],) = features["id"].int64_list.value
    (record["image"],) = features["image"].bytes_list.value
    record["names"] = set(features)
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
            split: [
                tf.io.decode_image(record["image"], channels=3).numpy()
                for record in records
            ]
            for split, records in cls.records.items()
        }

    def every_record(self):
        return [record for split in SPLITS for record in self.records[split]]

    def test_all_shards_belong_to_a_split_and_fit_in_eight_megabytes(self):
        listed = [file for files in self.files.values() for file in files]
        self.assertCountEqual(listed, FOLDER.rglob("*.tfrecord"))
        sizes = {
            split: sum(file.stat().st_size for file in files)
            for split, files in self.files.items()
        }
        self.assertLessEqual(sum(sizes.values()), 8_000_000)
        self.assertEqual(sum(sizes.values()), self.stats["bytes"])
        for split, size in sizes.items():
            self.assertEqual(size, self.stats["splits"][split]["bytes"])

    def test_every_picture_decodes_to_32_pixels_and_shows_something(self):
        for split in SPLITS:
            for pixels in self.pixels[split]:
                self.assertEqual(pixels.shape, (32, 32, 3))
                self.assertEqual(pixels.dtype, np.uint8)
            deviations = np.std(self.pixels[split], axis=(1, 2, 3))
            self.assertGreaterEqual(deviations.min(), 1.5)

    def test_every_record_has_the_features_of_the_schema_and_no_other(self):
        names = {"image", "caption", "id", *TEXTS}
        for record in self.every_record():
            self.assertEqual(record["names"], names)
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

    def test_the_label_of_an_emoji_is_one_of_its_captions(self):
        for record in self.every_record():
            if record["kind"] == "emoji":
                self.assertIn(record["label"].encode(), record["captions"])

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
            self.assertEqual(cells[5], record["source"])
            file = cells[2].partition("(")[2].rstrip(")")
            self.assertGreater(FOLDER.joinpath(file).stat().st_size, 500)

    def test_no_group_of_concepts_is_on_two_sides_of_the_split(self):
        groups = collections.defaultdict(set)
        for split in SPLITS:
            for record in self.records[split]:
                if record["concept"]:
                    group = concepts.group_of(record["concept"])
                    groups[group].add("train" if split in TRAINING else split)
                    sides = {"train": TRAINING, "val": HELD_OUT[:1]}
                    side = concepts.split_of_group(group)
                    self.assertIn(split, sides.get(side, HELD_OUT[1:]))
        self.assertEqual({len(sides) for sides in groups.values()}, {1})

    def test_the_held_out_splits_have_many_concepts_in_several_styles(self):
        for split, least in (("val_concept", 80), ("test_concept", 250)):
            records = self.records[split]
            self.assertGreaterEqual(len({r["concept"] for r in records}), least)
            self.assertGreaterEqual(len({r["style"] for r in records}), 3)

    def test_no_training_picture_has_the_pixels_of_a_held_out_one(self):
        held_out = [
            pixels.tobytes() for s in HELD_OUT for pixels in self.pixels[s]
        ]
        training = {
            pixels.tobytes() for s in TRAINING for pixels in self.pixels[s]
        }
        self.assertLen(set(held_out), len(held_out))
        self.assertEmpty(training.intersection(held_out))

    def test_no_training_icon_draws_the_same_as_a_held_out_picture(self):
        held_out = np.stack(
            [
                pictures.shape_vector(pixels)
                for split in HELD_OUT
                for pixels in self.pixels[split]
            ]
        )
        for split in TRAINING:
            shapes = np.stack(
                [pictures.shape_vector(p) for p in self.pixels[split]]
            )
            closest = (shapes @ held_out.T).max(axis=1)
            limit = {"emoji": 0.995, "clip art": 0.93}
            limits = [limit.get(r["kind"], 0.97) for r in self.records[split]]
            self.assertAllLess(closest - np.array(limits), 1e-5)

    def test_the_curated_share_of_the_pool_is_the_one_stated(self):
        kinds = [record["kind"] for record in self.records["pool"]]
        share = kinds.count("emoji") / len(kinds)
        self.assertBetween(share, 0.08, 0.12)
        self.assertAllClose(self.stats["curated_share_of_pool"], share, 1e-3)
        readme = FOLDER.joinpath("README.md").read_text()
        self.assertIn("between 8 and 12 % of this pool", readme)
        self.assertIn(f"Emoji art is {share:.1%} of the pool.", readme)

    def test_the_reference_has_emoji_only_and_the_pool_every_kind(self):
        self.assertGreaterEqual(len(self.records["pool"]), 8_000)
        for split, kinds in (("reference", {"emoji"}), ("pool", KINDS)):
            found = {record["kind"] for record in self.records[split]}
            self.assertEqual(found, kinds)

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


class SelectionTest(tf.test.TestCase):
    def test_quotas_are_proportional_above_the_floor(self):
        # "c" has 2 rows and keeps both. 28 are left for 150 rows, hence
        # 18.67 and 9.33: 18 and 9, and one more to the larger remainder.
        self.assertEqual(
            selection.quotas({"a": 100, "b": 50, "c": 2}, 30, floor=4),
            {"a": 19, "b": 9, "c": 2},
        )

    def test_quotas_add_up_and_never_exceed_what_there_is(self):
        generator = np.random.default_rng(1)
        for _ in range(50):
            sizes = {
                str(i): int(n)
                for i, n in enumerate(generator.integers(0, 300, 20))
            }
            total = int(generator.integers(80, sum(sizes.values()) + 1))
            shares = selection.quotas(sizes, total, floor=4)
            self.assertEqual(sum(shares.values()), total)
            for name, size in sizes.items():
                self.assertBetween(shares[name], min(4, size), size)

    def test_sampling_does_not_depend_on_the_order_of_the_rows(self):
        rows = [a_row(name=str(i)) for i in range(50)]
        drawn = selection.sampled(rows, 0)
        self.assertEqual(drawn, selection.sampled(rows[::-1], 0))
        self.assertNotEqual(drawn, rows)
        self.assertNotEqual(drawn, selection.sampled(rows, 1))
        self.assertCountEqual(drawn, rows)


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
