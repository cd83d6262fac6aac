"""Tests of prepared TFDS data sets, written here and by TFDS itself."""

import json
import os
import tempfile

import numpy as np
import pytest
import shard_files
import tensorflow as tf

from jest_tf import config, files
from jest_tf.data import stores

ARRAY_RECORD = "array_record.python.array_record_module"


class PreparedTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = os.path.join(directory, "coco", "1.0.0")
        os.makedirs(self.folder)

    def payload(self, i):
        return shard_files.serialize(
            **{
                "image": b"picture %d" % i,
                "captions/text": [f"caption {i}", "more"],
                "captions/id": [i, 5],
                "label": i % 3,
                "name": f"n{i}",
            }
        )

    def expected(self, i):
        metadata = {"name": b"n%d" % i}
        if i % 3 < 2:
            metadata["label"] = (b"cat", b"dog")[i % 3]
        return stores.Record(
            b"picture %d" % i, (b"caption %d" % i, b"more"), metadata
        )

    def write(self, splits, kind="tfrecord"):
        """A prepared folder; `splits` is a dict of lists of lengths."""
        info = {
            "name": "coco",
            "version": "1.0.0",
            "fileFormat": kind,
            "splits": [
                {"name": name, "shardLengths": [str(n) for n in lengths]}
                for name, lengths in splits.items()
            ],
        }
        module = "tensorflow_datasets.core.features"
        features = {
            "image": {"pythonClassName": f"{module}.image_feature.Image"},
            "label": {"pythonClassName": f"{module}.labels.ClassLabel"},
        }
        self.write_json("dataset_info.json", info)
        self.write_json(
            "features.json", {"featuresDict": {"features": features}}
        )
        with open(os.path.join(self.folder, "label.labels.txt"), "w") as file:
            file.write("cat\ndog\n")
        for name, lengths in splits.items():
            first = 0
            for k, length in enumerate(lengths):
                path = os.path.join(
                    self.folder,
                    f"coco-{name}.{kind}-{k:05}-of-{len(lengths):05}",
                )
                payloads = map(self.payload, range(first, first + length))
                self.write_shard(path, payloads)
                first += length

    def write_json(self, name, value):
        with open(os.path.join(self.folder, name), "w") as file:
            json.dump(value, file)

    def write_shard(self, path, payloads):
        shard_files.write_shard(path, payloads)

    def read(self, pattern, **settings):
        store = stores.open_store(pattern, **settings)
        return store.read(np.arange(len(store)))

    def refuse(self, message, pattern, **settings):
        with self.assertRaisesRegex(ValueError, message):
            stores.open_store(pattern, **settings)


class PreparedTest(PreparedTestCase):
    def test_the_folder_is_its_training_split_in_order(self):
        self.write({"train": [3, 2], "val": [4]})
        for pattern in (self.folder, self.folder + "/", self.folder + ":train"):
            self.assertEqual(
                self.read(pattern), [self.expected(i) for i in range(5)]
            )
        self.assertEqual(
            self.read(self.folder + ":val", format="tfds"),
            [self.expected(i) for i in range(4)],
        )

    def test_a_folder_on_a_bucket_is_read_by_any_library(self):
        self.write({"train": [3, 2], "val": [4]})
        expected = self.read(self.folder)
        for scheme in ("ram", "memory"):  # TensorFlow's and fsspec's
            bucket = f"{scheme}://{self.id()}"
            for name in files.list_folder(self.folder):
                files.write_whole(
                    f"{bucket}/{name}",
                    files.read_whole(f"{self.folder}/{name}"),
                )
            self.assertEqual(self.read(f"{bucket}:train"), expected)

    def test_the_only_split_needs_no_name_and_empty_shards_have_no_rows(self):
        self.write({"test": [2, 0, 1]})
        self.assertLen(self.read(self.folder), 3)

    def test_another_picture_is_found_by_its_type_or_name(self):
        self.write({"train": [1]})
        module = "tensorflow_datasets.core.features.image_feature"
        self.write_json(
            "features.json",
            {
                "featuresDict": {
                    "features": {
                        "photo": {"pythonClassName": f"{module}.Image"}
                    }
                }
            },
        )
        self.refuse("no picture: expected photo among", self.folder)
        found = self.read(self.folder, image_field="image")
        self.assertEqual(found[0].image, b"picture 0")
        self.assertEqual(found[0].metadata, {"name": b"n0", "cls": b"0"})

    def test_mismatches_are_refused(self):
        self.write({"a": [1], "b": [1]})
        self.refuse("a split 'train'.*Received: a, b", self.folder)
        self.refuse("a split 'c'", self.folder + ":c")
        self.write({"train": [0, 0]})
        self.refuse("'train' of .*1.0.0 is empty", self.folder)
        self.write({"train": [1, 1]})
        os.remove(
            os.path.join(self.folder, "coco-train.tfrecord-00001-of-00002")
        )
        self.refuse("must have 2 shards.*Received: 1 files", self.folder)
        info = os.path.join(self.folder, "dataset_info.json")
        for text, message in (
            ("{", "dataset_info.json cannot be read"),
            ("[3]", "dataset_info.json cannot be read"),
            ('{"fileFormat": "riegeli"}', "file format 'riegeli'"),
        ):
            with open(info, "w") as file:
                file.write(text)
            self.refuse(message, self.folder)
        os.remove(info)
        self.refuse("'tfds' must be the folder", self.folder, format="tfds")


class ArrayRecordTest(PreparedTestCase):
    def setUp(self):
        super().setUp()
        self.module = pytest.importorskip(ARRAY_RECORD)

    def write_shard(self, path, payloads):
        writer = self.module.ArrayRecordWriter(path, "group_size:1")
        for payload in payloads:
            writer.write(payload)
        writer.close()

    def test_records_are_read_in_any_order(self):
        self.write({"train": [300, 2]}, "array_record")
        store = stores.open_store(self.folder)
        rows = np.array([301, 0, 299, 299, 7])
        self.assertEqual(
            store.read(rows), [self.expected(row) for row in rows.tolist()]
        )
        self.assertLen(set(store.ids(np.arange(302)).tolist()), 302)


class RemoteArrayRecordTest(PreparedTestCase):
    def test_shards_on_a_bucket_are_refused_before_any_is_read(self):
        local = shard_files.write_shard(
            os.path.join(self.folder, "a.tfrecord"), [self.payload(0)]
        )
        shard = f"ram://{self.id()}/a.array_record-00000-of-00001"
        files.write_whole(shard, b"records")
        with self.assertRaisesRegex(ValueError, "must be on a local disk: "):
            stores.open_stores(config.DataConfig(train=(local, shard)))
        self.assertFalse(os.path.exists(f"{local}.index"))


class WrittenByTFDSTest(PreparedTestCase):
    @pytest.mark.filterwarnings("ignore")
    def test_a_data_set_that_tfds_prepared_is_read_as_tfds_reads_it(self):
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(None, None, 3), encoding_format="png"
                ),
                "captions": tfds.features.Sequence(
                    {"text": tfds.features.Text(), "id": np.int64}
                ),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
        )

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(6):
                    yield (
                        i,
                        {
                            "image": np.full((2, 3, 3), i, np.uint8),
                            "captions": [
                                {"text": f"c{i}", "id": i},
                                {"text": "more", "id": 0},
                            ],
                            "label": i % 2,
                        },
                    )

        for kind in ("tfrecord", "array_record"):
            builder = Tiny(
                data_dir=os.path.join(self.folder, kind), file_format=kind
            )
            builder.download_and_prepare()
            source = (
                builder.as_data_source("train")
                if (kind == "array_record")
                else builder.as_dataset("train").as_numpy_iterator()
            )
            found = self.read(str(builder.data_path))
            self.assertLen(found, 6)
            for record, example in zip(found, source, strict=True):
                self.assertAllEqual(
                    tf.io.decode_image(record.image), example["image"]
                )
                self.assertEqual(
                    list(record.captions), list(example["captions"]["text"])
                )
                self.assertEqual(
                    record.metadata["label"].decode(),
                    ["cat", "dog"][example["label"]],
                )
