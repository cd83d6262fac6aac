"""PhotoText: its builder on small repositories, faults, and its towers."""

import contextlib
import csv
import io
import json
import pathlib
import shutil
import subprocess
import tempfile
import zipfile
from unittest import mock

import numpy as np
import pyarrow
import tensorflow as tf
from PIL import Image
from pyarrow import parquet

import jest_tf
from benchmarks.icontext import shards
from benchmarks.phototext import build, repositories, sources, towers
from jest_tf import config as config_lib

COUNT = 40  # photographs of a source


def photo(seed, size=(80, 60)):
    """Bytes of a JPEG of some noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def rows_of(fields, rows):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def files_of_repositories():
    """The files of each repository by the name of its constant."""
    numbers = range(COUNT)
    split_of = dict.fromkeys(range(4), "test") | dict.fromkeys(
        range(4, 8), "dev"
    )
    flickr = {
        f"Flickr8k_text/Flickr_8k.{split}Images.txt": "".join(
            f"{n}.jpg\n" for n in numbers if split_of.get(n) == split
        ).encode()
        for split in ("test", "dev")
    }
    flickr["Flickr8k_text/Flickr8k.token.txt"] = "".join(
        f"{n}.jpg#{k}\tdog {n}  says {k} .\n" for n in numbers for k in range(5)
    ).encode()
    products = io.BytesIO()
    parquet.write_table(
        pyarrow.Table.from_pylist(
            [
                {
                    "product_id": str(n),
                    # Two products share each title.
                    "title": f"Shirt {n // 2}",
                    "description": "Men - Apparel - Shirts - Blue",
                }
                for n in numbers
            ]
        ),
        products,
    )
    aerial = {
        f"data/textaug_{split}_rsicd.jsonl": "".join(
            json.dumps(
                {
                    "filename": f"rsicd_images/{n}.jpg",
                    "captions": [f"field {n} .", f"A field, {n}."],
                }
            )
            + "\n"
            for n in numbers
            if split_of.get(n, "train").replace("dev", "valid") == split
        ).encode()
        for split in ("train", "valid", "test")
    }
    names = [f"{n}.jpg" for n in numbers]
    folder = "src/datasets/RSICD/raw_dataset/RSICD_images"
    web = {
        f"data/00000/{n:09d}.jpg": photo(2000 + n) for n in numbers if n != 3
    }
    web["data/00000/000000003.jpg"] = b"\xff\xd8 not a photograph"
    web |= {f"data/00000/{n:09d}.txt": f"view {n}".encode() for n in numbers}
    shop = [{"name": f"Phone {n}", "sub_category": "Phones"} for n in numbers]
    # The last two products have one photograph.
    of_shop = {
        f"data/images/{n}.jpg": photo(4000 + min(n, COUNT - 2)) for n in numbers
    }
    return {
        "FLICKR_TEXT": flickr,
        "FLICKR_PHOTOS": {
            f"data/images/{name}": photo(n) for n, name in enumerate(names)
        },
        "CONCEPTUAL": web,
        "FASHION": {
            "data/products.parquet": products.getvalue(),
            **{
                f"data/images/{name}": photo(1000 + n)
                for n, name in enumerate(names)
            },
        },
        "AERIAL_TEXT": aerial,
        "AERIAL_PHOTOS": {
            f"{folder}/{name}": photo(3000 + n) for n, name in enumerate(names)
        },
        "ELECTRONICS": {
            "data/raw/electronics_products.csv": rows_of(
                ["name", "sub_category"], shop
            ),
            **of_shop,
        },
    }


def git(folder, *arguments):
    done = subprocess.run(
        [
            *("git", "-C", folder, "-c", "user.name=a", "-c", "user.email=b"),
            *arguments,
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.strip()


class BuildTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.TemporaryDirectory()
        cls.clones = pathlib.Path(cls.folder.name) / "clones"
        cls.changed = {}
        for constant, files in files_of_repositories().items():
            repository = getattr(repositories, constant)
            clone = cls.clones / repository.folder
            for path, content in files.items():
                (clone / path).parent.mkdir(parents=True, exist_ok=True)
                (clone / path).write_bytes(content)
            git(clone, "init", "--quiet")
            git(clone, "add", "--all")
            git(clone, "commit", "--quiet", "--message", "all")
            commit = git(clone, "rev-parse", "HEAD")
            cls.changed[constant] = repository._replace(commit=commit)
            # The commit is in the history alone.
            git(clone, "rm", "-r", "--quiet", ".")
            git(clone, "commit", "--quiet", "--message", "none")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        super().tearDownClass()

    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.multiple(repositories, **self.changed))
        held_out = {sources.TEST: 4, sources.VALIDATION: 2}
        self.enter_context(mock.patch.object(build, "NUM_HELD_OUT", held_out))
        self.out = pathlib.Path(self.get_temp_dir()) / "photos"

    def records(self, name):
        return [
            record
            for path in sorted(self.out.glob(f"{name}-*.tfrecord"))
            for record in shards.read(path)
        ]

    def test_splits_share_no_title_and_no_photograph(self):
        build.build(self.out, self.clones)
        stats = json.loads((self.out / "stats.json").read_text())
        self.assertEqual(
            stats["dropped"],
            {
                **dict.fromkeys(("fashion", "flickr8k", "aerial"), {}),
                "cc3m": {"does not decode": 1},
                "electronics": {"repeated photograph": 1},
            },
        )
        parts = {
            name: self.records(name)
            for name in ("test_*", "val_*", "apart", "part00/pool")
        }
        self.assertLen(parts["test_*"], 4 * len(sources.SOURCES))
        self.assertLen(parts["val_*"], 2 * len(sources.SOURCES))
        seen = {}
        for name, records in parts.items():
            for record in records:
                for fact in (record.png, record.row.captions[0].lower()):
                    self.assertEqual(seen.setdefault(fact, name), name)
        # The official test of two sources.
        flickr = self.records("test_flickr8k")
        names = {f"{n}.jpg" for n in range(4)}
        self.assertEqual({record.row.name for record in flickr}, names)
        captions = {len(record.row.captions) for record in flickr}
        self.assertEqual(captions, {5})
        # Nobody's words that were translated back.
        for record in parts["apart"] + parts["part00/pool"]:
            if record.row.source == "aerial":
                self.assertLen(record.row.captions, 1)

    def test_captions_move_in_the_given_share(self):
        build.build(self.out, self.clones)
        whole = {r.identifier: r for r in self.records("part00/pool")}
        self.assertNotEmpty(whole)
        before = set()
        for level in (30, 70):
            pool = self.records(f"part{level}/pool")
            moved = {r.identifier for r in pool if r.noise}
            self.assertLen(moved, round(level / 100 * len(whole)))
            self.assertContainsSubset(before, moved)
            before = moved
            for record in pool:
                is_kept = record.row.captions == (
                    whole[record.identifier].row.captions
                )
                if record.identifier not in moved:
                    self.assertTrue(is_kept)
            clean = self.records(f"part_clean{level}/pool")
            self.assertEqual(
                {record.identifier for record in clean},
                {record.identifier for record in pool} - moved,
            )
            captions = sorted(record.row.captions for record in pool)
            expected = sorted(record.row.captions for record in whole.values())
            self.assertEqual(captions, expected)

    def test_packed_photographs_give_the_same_pairs(self):
        build.build(self.out, self.clones)
        packed = pathlib.Path(self.get_temp_dir()) / "packed"
        packed.mkdir(exist_ok=True)
        for source, (_, name) in sources.SOURCES.items():
            photos = list(sources.read(source, self.clones))
            with zipfile.ZipFile(packed / f"{name}.zip", "w") as file:
                lines = []
                for number, one in enumerate(photos):
                    file.writestr(f"{number:06d}.jpg", one.content)
                    row = {"file": one.name, "captions": one.captions}
                    row |= {"article": one.kind, "split": one.split}
                    lines.append(json.dumps(row))
                file.writestr("pairs.jsonl", "\n".join(lines))
        other = self.out.with_name("other")
        build.build(other, None, packed)
        for path in self.out.rglob("*.tfrecord"):
            twin = other / path.relative_to(self.out)
            self.assertEqual(path.read_bytes(), twin.read_bytes(), path)
        with self.assertRaisesRegex(RuntimeError, "made of clones. Received"):
            build.build(other, self.clones)

    def test_faults_of_clones_are_said_and_leave_nothing(self):
        fashion = self.changed["FASHION"]
        other = fashion._replace(commit="0" * 40)
        with mock.patch.object(repositories, "FASHION", other):
            with self.assertRaisesRegex(RuntimeError, "have the commit 000"):
                build.build(self.out, self.clones)
        nowhere = self.out.with_name("nowhere")
        with self.assertRaisesRegex(FileNotFoundError, "must be a clone of"):
            build.build(self.out, nowhere)
        # A clone that lacks a photograph.
        half = self.out.with_name("half")
        shutil.copytree(self.clones, half)
        clone = half / fashion.folder
        name = f"{fashion.commit}:data/images/7.jpg"
        digest = git(clone, "rev-parse", name)
        blob = clone / ".git" / "objects" / digest[:2] / digest[2:]
        blob.chmod(0o600)
        blob.unlink()
        with self.assertRaisesRegex(
            RuntimeError, "none of 'data/images/7.jpg'"
        ):
            build.build(self.out, half)
        full = OSError(28, "No space left on device")
        with mock.patch.object(shards, "write", side_effect=full):
            with self.assertRaisesRegex(OSError, "No space left"):
                build.build(self.out, self.clones)
        self.assertEqual([*self.out.parent.glob("**/.part-*")], [])
        self.assertFalse(self.out.exists())

    def test_repositories_are_cloned_once(self):
        clones = self.out.with_name("fetched")
        here = property(lambda one: str(self.clones / one.folder))
        everything = tuple(self.changed.values())
        with (
            mock.patch.object(repositories.Repository, "url", here),
            mock.patch.object(repositories, "ALL", everything),
            contextlib.redirect_stderr(io.StringIO()) as log,
        ):
            repositories.fetch(clones)
            repositories.fetch(clones)
        self.assertEqual(log.getvalue().count(" cloned"), len(everything))
        self.assertEqual(log.getvalue().count(" is there"), len(everything))
        build.build(self.out, clones)
        self.assertLen(self.records("test_*"), 4 * len(sources.SOURCES))


class TowersTest(tf.test.TestCase):
    def test_towers_see_order_and_are_saved(self):
        config = config_lib.TrainConfig(seed=3)
        image, text = towers.build_narrow(config, 50)
        learner = jest_tf.TwoTower(image, text)
        learner.build({"image": (None, 64, 64, 3), "text": (None, 8)})
        words = tf.constant([[5, 6, 7, 1, 0], [7, 6, 5, 1, 0], [5, 6, 7, 1, 0]])
        first, second, again = text(words).numpy()
        self.assertAllClose(first, again, atol=1e-5)
        self.assertGreater(np.abs(first - second).max(), 1e-3)
        # Padding does not count.
        self.assertAllClose(text(words[:, :4]), text(words), atol=1e-5)
        path = f"{self.get_temp_dir()}/learner.keras"
        learner.save(path)
        loaded = tf.keras.models.load_model(path)
        pixels = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3))
        pixels = pixels.astype(np.float32)
        self.assertAllEqual(loaded.image_tower(pixels), image(pixels))
