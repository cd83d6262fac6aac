"""Suite files: entries, defaults by name, and mistakes."""

import json
import os

import tensorflow as tf

from jest_tf import config


class SuiteTest(tf.test.TestCase):
    def load(self, content, name="suite.toml"):
        path = os.path.join(self.get_temp_dir(), name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        return config.load_suite(path)

    def test_toml_and_json_are_the_same(self):
        values = {
            "root": "/data",
            "digits": {
                "task": ["zero_shot", "retrieval"],
                "data": ["digits/test", "gs://bucket/digits"],
                "prompts": "a {}",
                "classes": "~/names.txt",
            },
        }
        found = self.load(json.dumps(values), "suite.json")
        self.assertEqual(
            found,
            self.load(
                'root = "/data"\n[digits]\ntask = ["zero_shot", "retrieval"]\n'
                'data = ["digits/test", "gs://bucket/digits"]\n'
                'prompts = ["a {}"]\nclasses = "~/names.txt"\n'
            ),
        )
        self.assertEqual(
            found["digits"],
            config.Entry(
                task=("zero_shot", "retrieval"),
                data=("/data/digits/test", "gs://bucket/digits"),
                prompts=("a {}",),
                classes=os.path.expanduser("~/names.txt"),
            ),
        )

    def test_paths_start_from_the_file_without_a_root(self):
        entry = self.load('[a]\ndata = "b"\n')["a"]
        self.assertEqual(entry.data, (f"{self.get_temp_dir()}/b",))

    def test_named_entries_know_their_places(self):
        found = self.load(
            'root = "/d"\n[imagenet]\n[imagenet_r]\n[coco]\nmax_captions = 1\n'
        )
        self.assertIn("/d/imagenet/val", found["imagenet"].data)
        self.assertEqual(found["imagenet"].classes, "imagenet")
        self.assertFalse(found["imagenet"].classes_present)
        self.assertTrue(found["imagenet_r"].classes_present)
        self.assertEqual(found["coco"].data, ("/d/wds_mscoco_captions",))
        self.assertEqual(found["coco"].task, ("retrieval",))
        self.assertEqual(found["coco"].max_captions, 1)

    def test_mistakes_name_the_entry(self):
        for text, message in (
            ("", "must have an entry"),
            ("a = 3\n", r"\[a\]: expected a table. Received: 3"),
            ("[a]\n", r"\[a\]: `data` must name examples.*imagenet"),
            ('[a]\ndata = "b"\ntask = "sing"\n', r"`task` must be one or more"),
            ('[a]\ndata = "b"\ntsk = "c"\n', "No setting `tsk`.*mean `task`"),
            ('[a]\ndata = "b"\nprompts = ["photo"]\n', "`prompts` must be"),
            (
                '[a]\ndata = "b"\nprompts = ["{}"]\ntemplates = "c"\n',
                "`prompts` and `templates` are two",
            ),
            ('[a]\ndata = "b"\nmax_captions = 0\n', "`max_captions` must be"),
            ("[a\n", "suite.toml cannot be read"),
            ("root = 3\n[coco]\n", "`root` must be a folder. Received: 3"),
        ):
            with (
                self.subTest(text),
                self.assertRaisesRegex(ValueError, message),
            ):
                self.load(text)
        with self.assertRaisesRegex(ValueError, "must be a .toml or .json"):
            config.load_suite("/nowhere/suite.txt")
        with self.assertRaisesRegex(ValueError, "no file '/nowhere/suite.t"):
            config.load_suite("/nowhere/suite.toml")
