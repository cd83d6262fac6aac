"""Damaged shards of every format: what is left of them, and what is not."""

import os

import numpy as np
import pyarrow.parquet
import shard_files

from jest_tf import files
from jest_tf.data import stores

NUM_RECORDS, NUM_MUTATIONS = 12, 200


class FuzzTest(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        self.rng = np.random.default_rng(0)
        self.images = [
            self.rng.bytes(int(self.rng.integers(1, 3000)))
            for _ in range(NUM_RECORDS)
        ]

    def examples(self):
        return [
            shard_files.serialize(image=image, caption=f"caption {i}", id=i)
            for i, image in enumerate(self.images)
        ]

    def survivors(self, path):
        """The records left of a damaged shard; none if it is refused.

        None for a table with too little text that is UTF-8.
        """
        try:
            store = stores.open_store(path)
        except ValueError as error:
            self.assertIn(os.path.basename(path), str(error))
            return None if "must be UTF-8" in str(error) else []
        rows = np.arange(len(store))
        found = store.read(rows)
        for record in found:
            self.assertIsInstance(record, stores.Record | stores.Fault)
            if isinstance(record, stores.Fault):
                self.assertNotIn("\n", record.reason)
                self.assertLess(len(record.reason), 1000)
        self.assertEqual(store.ids(rows).shape, rows.shape)
        return found

    def fuzz(self, path, ends=(), checked=False):
        """Damages a shard and checks what is left.

        Args:
            path: a sound shard.
            ends: of its records; those before the damage must be left.
            checked: whether records have checksums, so that none is left
                that was not there before.
        """
        data = files.read_whole(path)
        whole = self.survivors(path)
        self.assertLen(whole, NUM_RECORDS)
        for _ in range(NUM_MUTATIONS):
            damaged, start = shard_files.mutate(data, self.rng)
            with open(path, "wb") as file:
                file.write(damaged)
            found = self.survivors(path)
            if found is None:
                continue
            kept = int(np.searchsorted(ends, start, "right"))
            # Not assertEqual, which would print the images.
            self.assertTrue(found[:kept] == whole[:kept], f"damage at {start}")
            if checked:
                for record in found:
                    is_known = (
                        isinstance(record, stores.Fault) or record in whole
                    )
                    self.assertTrue(is_known, f"damage at {start}")

    def test_tfrecords(self):
        payloads = self.examples()
        path = shard_files.write_shard(self.path("a.tfrecord"), payloads)
        ends = np.cumsum([len(payload) + 16 for payload in payloads])
        self.fuzz(path, ends, checked=True)

    def test_tars(self):
        members, ends = [], []
        for i, image in enumerate(self.images):
            members += shard_files.tar_sample(
                f"{i:04}", image=image, caption=f"{i}", number=str(i)
            )
            blocks = sum(1 + -(-len(data) // 512) for _, data in members)
            # Damage of the next sample's first header costs this sample, too.
            ends.append(blocks * 512 + 512)
        self.fuzz(shard_files.write_tar(self.path("a.tar"), members), ends)

    def test_tables(self):
        rows = [b"image,caption,note\n"]
        for i in range(NUM_RECORDS):
            files.write_whole(self.path(f"{i}.jpg"), b"%d" % i)
            text = (b'"a, b"', "ü".encode(), b'"two\nlines"', b'"""x"""')[i % 4]
            rows.append(b"%d.jpg,%s,n%d\n" % (i, text, i))
        files.write_whole(self.path("a.csv"), *rows)
        self.fuzz(self.path("a.csv"), np.cumsum([len(row) for row in rows])[1:])
        table = pyarrow.table(
            {
                "image": self.images,
                "caption": [f"caption {i}" for i in range(NUM_RECORDS)],
                "tags": [["a", "b"]] * NUM_RECORDS,
                "id": np.arange(NUM_RECORDS),
            }
        )
        path = self.path("a.parquet")
        pyarrow.parquet.write_table(table, path, row_group_size=4)
        # Its footer, at the end, says where everything is.
        self.fuzz(path)
