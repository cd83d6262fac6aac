"""Data of suites: every form, class names, templates, and bad input."""

import json
import pathlib
import tempfile

import pandas as pd
import pyarrow as pa
import shard_files
import suite_files
import tensorflow as tf
from pyarrow import parquet

from jest_tf import config
from jest_tf.evaluation import data_sets


class DataSetsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)

    def entry(self, **fields):
        fields = {"data": (str(self.folder / "data"),)} | fields
        return config.Entry(**fields)

    def opened(self, **fields):
        entry = self.entry(**fields)
        return entry, data_sets.open_data(entry)

    def rows(self, **fields):
        entry, data = self.opened(**fields)
        classes = data_sets.read_classes(entry, data)
        rows = data_sets.labels_of(data, classes, entry.label_field)
        return classes.names, rows.tolist()

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def test_a_folder_of_classes_is_labelled_by_its_subfolders(self):
        suite_files.write_classes(self.folder / "data", {"b": [1], "a": [2, 3]})
        self.assertEqual(self.rows(), (("a", "b"), [0, 0, 1]))
        names = self.write("names.json", json.dumps({"b": "bee", "a": "ant"}))
        self.assertEqual(self.rows(classes=names), (("bee", "ant"), [1, 1, 0]))
        _, data = self.opened()
        pixels = [
            int(tf.io.decode_png(record.image)[0, 0, 0])
            for record in data.store.read([2, 0])
        ]
        self.assertEqual(pixels, [1, 2])

    def test_folders_named_by_number_are_not_sorted_as_text(self):
        # ImageNet v2's are "0" to "999", of which "10" sorts before "2".
        suite_files.write_classes(
            self.folder / "data", {"0": [1], "10": [2], "2": [3]}
        )
        lines = self.write(
            "names.txt", "\n".join(map("class {}".format, range(11)))
        )
        self.assertEqual(self.rows(classes=lines)[1], [0, 10, 2])

    def test_classes_that_the_data_lacks_are_left_out_if_asked_for(self):
        suite_files.write_classes(self.folder / "data", {"b": [1], "d": [2]})
        lines = self.write("names.txt", "a\nb\nc\nd\n")
        self.assertEqual(
            self.rows(classes=lines), (("a", "b", "c", "d"), [1, 3])
        )
        self.assertEqual(
            self.rows(classes=lines, classes_present=True), (("b", "d"), [0, 1])
        )

    def test_tars_have_numbers_and_come_with_names_and_templates(self):
        # The names are digits, but `.cls` is a place in the list.
        suite_files.write_tars(
            self.folder / "data",
            [(1, {"cls": "1"}), (2, {"cls": "0\n"})],
            {
                "classnames.txt": "1\n0\n",
                "zeroshot_classification_templates.txt": "a {c}.\nthe {c}\n",
            },
        )
        self.assertEqual(self.rows(), (("1", "0"), [1, 0]))
        entry, data = self.opened()
        self.assertEqual(
            data_sets.read_templates(entry, data), ("a {}.", "the {}")
        )

    def test_tables_and_records_may_have_labels_alone(self):
        (self.folder / "1.png").write_bytes(suite_files.picture(1))
        names = self.write("names.txt", "a\nb\nc\n")
        for ending, labels, expected in (
            ("csv", ["b", "a"], ("a", "b")),
            ("csv", ["2", "0"], ("0", "2")),
            ("parquet", [2, 0], None),
        ):
            path = self.folder / f"{labels[0]}.{ending}"
            table = pd.DataFrame({"image": ["1.png", "1.png"], "label": labels})
            if ending == "csv":
                table.to_csv(path, index=False)
            else:
                table.to_parquet(path)
            if expected:
                self.assertEqual(
                    self.rows(data=(str(path),)), (expected, [1, 0])
                )
            found = self.rows(data=(str(path),), classes=names)[1]
            self.assertEqual(found, [1, 0] if labels[0] == "b" else [2, 0])
        path = str(self.folder / "some.tfrecord")
        shard_files.write_shard(
            path,
            [
                shard_files.serialize(image=suite_files.picture(1), label=label)
                for label in (2, 1)
            ],
        )
        self.assertEqual(self.rows(data=(path,), classes=names)[1], [2, 1])

    def test_hugging_faces_tables_name_their_classes(self):
        picture = {"bytes": suite_files.picture(1), "path": None}
        table = pa.table({"image": [picture] * 2, "fine_label": [1, 0]})
        kind = {"_type": "ClassLabel", "names": ["zebra", "ape"]}
        about = {"info": {"features": {"fine_label": kind}}}
        path = str(self.folder / "test.parquet")
        parquet.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps(about)}),
            path,
        )
        self.assertEqual(
            self.rows(data=(path,), label_field="fine_label"),
            (("ape", "zebra"), [0, 1]),
        )

    def test_tars_of_captions_have_one_a_line(self):
        suite_files.write_tars(
            self.folder / "data",
            [(1, {"txt": "one\n \nuno\nun"}), (2, {"txt": "two"})],
            {"dataset_type.txt": "retrieval\n"},
        )
        _, data = self.opened(task=("retrieval",))
        texts, rows = data_sets.captions_of(data, None)
        self.assertEqual(texts, [b"one", b"uno", b"un", b"two"])
        self.assertEqual(rows.tolist(), [0, 0, 0, 1])
        texts, rows = data_sets.captions_of(data, 2)
        self.assertEqual(texts, [b"one", b"uno", b"two"])
        self.assertEqual(rows.tolist(), [0, 0, 1])

    def test_the_first_place_that_exists_is_taken(self):
        suite_files.write_classes(self.folder / "data", {"a": [1]})
        suite_files.write_classes(self.folder / "v1" / "2.0.0", {"b": [1]})
        found = self.rows(
            data=(f"{self.folder}/no", f"{self.folder}/v1/*", "/data")
        )
        self.assertEqual(found[0], ("b",))
        with self.assertRaisesRegex(ValueError, "is not there.*'/no/such'"):
            self.opened(data=("/no/such", "/no/*:test"))

    def test_labels_that_say_no_class_are_refused(self):
        names = self.write("names.txt", "a\nb\n")
        folder = str(self.folder / "classes")
        suite_files.write_classes(folder, {"a": [1], "x": [2, 3], "7": [4]})
        some, numbers, several = (
            str(self.folder / name) for name in ("some", "numbers", "several")
        )
        samples = [(1, {"cls": "0"}), (2, {"txt": "one"})]
        suite_files.write_tars(some, samples, {"classnames.txt": "a\n"})
        suite_files.write_tars(numbers, samples[:1])
        suite_files.write_tars(
            several, samples[:1], {"dataset_type.txt": "multilabel"}
        )
        for data, classes, message in (
            (
                folder,
                names,
                "2 classes, the first 'a', and 3 records.*'7', 'x'",
            ),
            (some, "", "must have a label, in `label`.*record 1 of"),
            (numbers, "", "`classes` must name a file"),
            (several, "", "several labels are not"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.rows(data=(data,), classes=classes)
        (self.folder / "classes" / "b.png").write_bytes(suite_files.picture(1))
        with self.assertRaisesRegex(ValueError, "must have its pic.*'b.png'"):
            self.opened(data=(folder,))

    def test_a_blank_class_name_is_refused(self):
        # It would move the numbers of the classes after it.
        suite_files.write_classes(self.folder / "data", {"a": [1]})
        for name, text in (
            ("names.txt", "a\n\nb\n"),
            ("names.json", '["a", 1]'),
            ("empty.txt", "\n"),
        ):
            with self.assertRaisesRegex(ValueError, "`classes` must be a file"):
                self.rows(classes=self.write(name, text))
        with self.assertRaisesRegex(ValueError, "is not a JSON file"):
            self.rows(classes=self.write("names.json", "a"))
        with self.assertRaisesRegex(ValueError, "nothing.txt cannot be read"):
            self.rows(classes=str(self.folder / "nothing.txt"))

    def test_a_template_without_a_slot_is_refused(self):
        suite_files.write_classes(self.folder / "data", {"a": [1]})
        for text in ("a {}\nphoto\n", "a {c}\n{} or {}\n"):
            path = self.write("templates.txt", text)
            entry, data = self.opened(templates=path)
            with self.assertRaisesRegex(ValueError, "`templates` .*number 2"):
                data_sets.read_templates(entry, data)
        path = self.write("templates.json", '["the {c}"]')
        entry, data = self.opened(templates=path)
        self.assertEqual(data_sets.read_templates(entry, data), ("the {}",))
