"""Damaged shards of every format, and damaged indexes."""

import os
import shutil
import tempfile

import numpy as np
import pyarrow.parquet
import pytest
import shard_files
import tensorflow as tf

from jest_tf.data import stores

NUM_RECORDS = 12
NUM_MUTATIONS = 200  # of each format


def mutate(data, rng):
    """A damaged copy, and the range of `data` outside of which it is equal."""
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(2 ** rng.uniform(0, 10)))
    old = data[start:stop]
    kind = rng.integers(7)
    if kind == 0:  # one bit
        stop = start + 1
        new = bytes([data[start] ^ 1 << int(rng.integers(8))])
    elif kind == 1:
        new = rng.bytes(len(old))
    elif kind == 2:
        new = b""
    elif kind == 3:
        new = b"\0" * len(old)
    elif kind == 4:
        new = old + rng.bytes(len(old))
    elif kind == 5:
        new = old + old
    else:
        new, stop = b"", len(data)
    return data[:start] + new + data[stop:], start, stop


class FuzzTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.rng = np.random.default_rng(0)

    def texts(self, i):
        return self.rng.bytes(int(self.rng.integers(1, 3000))), f"caption {i}"

    def write(self, path, data):
        with open(path, "wb") as file:
            file.write(data)

    def survivors(self, path):
        """What is left of a damaged shard; None if it is refused."""
        try:
            store = stores.open_store(path)
        except ValueError as error:
            self.assertIn(os.path.basename(path), str(error))
            return None
        found = store.read(np.arange(len(store)))
        for one in found:
            self.assertIsInstance(one, stores.Record | stores.Fault)
            if isinstance(one, stores.Fault):
                self.assertNotIn("\n", one.reason)
                self.assertLess(len(one.reason), 1000)
        self.assertEqual(store.ids(np.arange(len(store))).shape, (len(store),))
        return found

    def fuzz(self, path, unharmed, checked=False):
        """Damages a shard and checks what is left.

        Args:
            path: a sound shard.
            unharmed: a function of the range of damage that gives the rows
                that must be left.
            checked: whether records have checksums, so that none is left
                that was not there before.
        """
        with open(path, "rb") as file:
            data = file.read()
        whole = self.survivors(path)
        self.assertLen(whole, NUM_RECORDS)
        for _ in range(NUM_MUTATIONS):
            damaged, start, stop = mutate(data, self.rng)
            self.write(path, damaged)
            found = self.survivors(path)
            if found is None:
                self.assertEmpty(unharmed(start, stop, damaged))
                continue
            for row in unharmed(start, stop, damaged):
                # Not assertIn, which would print the pictures.
                self.assertTrue(
                    whole[row] in found,
                    f"record {row} is lost to damage of [{start}, {stop})",
                )
            if checked:
                for one in found:
                    self.assertTrue(
                        isinstance(one, stores.Fault) or one in whole,
                        f"damage of [{start}, {stop}) passes for a record",
                    )

    def test_samples_before_the_damage_survive(self):
        path = os.path.join(self.directory, "a.tar")
        members, ends = [], []
        for i in range(NUM_RECORDS):
            image, caption = self.texts(i)
            members += shard_files.tar_sample(
                f"{i:04}", image=image, caption=caption, number=str(i)
            )
            shard_files.write_tar(path, members)
            blocks = sum(1 + -(-len(data) // 512) for _, data in members)
            ends.append(blocks * 512)

        def unharmed(start, stop, damaged):
            del damaged
            # Damage of the next sample's first header costs this one, too.
            return [i for i in range(NUM_RECORDS) if ends[i] + 512 <= start]

        self.fuzz(path, unharmed)

    def test_no_damage_crashes_or_makes_a_wrong_record(self):
        module = pytest.importorskip("array_record.python.array_record_module")
        path = os.path.join(self.directory, "a.array_record")
        writer = module.ArrayRecordWriter(path, "group_size:1")
        for i in range(NUM_RECORDS):
            image, caption = self.texts(i)
            writer.write(
                shard_files.serialize(image=image, caption=caption, id=i)
            )
        writer.close()
        # Which records survive is the package's business. None may be another.
        self.fuzz(path, lambda *damage: [], checked=True)

    def test_rows_of_csv_outside_of_the_damage_survive(self):
        for i in range(NUM_RECORDS):
            self.write(os.path.join(self.directory, f"{i}.jpg"), b"%d" % i)
        path = os.path.join(self.directory, "a.csv")
        rows = [b"image,caption,note\n"]
        for i in range(NUM_RECORDS):
            text = (b'"a, b"', b"plain", b'"two\nlines"', b'"""x"""')[i % 4]
            rows.append(b"%d.jpg,%s,n%d\n" % (i, text, i))
        self.write(path, b"".join(rows))
        ends = np.cumsum([len(row) for row in rows])  # header first

        def unharmed(start, stop, damaged):
            if start < ends[0]:
                return []
            before = [i for i in range(NUM_RECORDS) if ends[i + 1] <= start]
            data = b"".join(rows)
            new = damaged[start : len(damaged) - (len(data) - stop)]
            if b'"' in new or b'"' in data[start:stop]:
                # A quotation mark may join rows up to the next one.
                return before
            return before + [i for i in range(NUM_RECORDS) if ends[i] > stop]

        self.fuzz(path, unharmed)

    def test_row_groups_of_parquet_outside_of_the_damage_survive(self):
        path = os.path.join(self.directory, "a.parquet")
        table = pyarrow.table(
            {
                "image": [self.texts(i)[0] for i in range(NUM_RECORDS)],
                "caption": [f"caption {i}" for i in range(NUM_RECORDS)],
                "tags": [["a", "b"]] * NUM_RECORDS,
                "id": np.arange(NUM_RECORDS),
            }
        )
        pyarrow.parquet.write_table(table, path, row_group_size=4)
        metadata = pyarrow.parquet.read_metadata(path)
        ends = []
        for group in range(3):
            found = metadata.row_group(group)
            last = found.column(found.num_columns - 1)
            ends.append(
                (last.dictionary_page_offset or last.data_page_offset)
                + last.total_compressed_size
            )
        size = os.path.getsize(path)

        def unharmed(start, stop, damaged):
            # The footer says where everything is, from the start.
            if stop > ends[-1] or len(damaged) != size:
                return []
            return [
                row
                for row in range(NUM_RECORDS)
                if ends[row // 4] <= start
                or (row >= 4 and ends[row // 4 - 1] >= stop)
            ]

        self.fuzz(path, unharmed)
