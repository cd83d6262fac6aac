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
import pandas as pd
import picture_files
import pyarrow
import tensorflow as tf
from pyarrow import parquet

import jest_tf
from benchmarks import report
from benchmarks.phototext import (
    build,
    judgements,
    repositories,
    sources,
    towers,
)
from benchmarks.protocol import records as pairs
from jest_tf import config as config_lib
from jest_tf.data import tokenizers

COUNT = 40  # photographs of a source
# Of four photographs with three captions each, and of three with two captions,
# of which the last is not of the tests.
JUDGED = {
    "ExpertAnnotations.txt": "".join(
        f"{n}.jpg\t{m}.jpg#2\t{n + 1}\t1\t{4 - m}\n"
        for n in range(4)
        for m in range(3)
    ),
    "CrowdFlowerAnnotations.txt": "".join(
        f"{n}.jpg\t{m}.jpg#2\t{m / 4}\t{m}\t{4 - m}\n"
        for n in (0, 1, 9)
        for m in range(2)
    ),
}


def photo(seed, size=(80, 60)):
    """Bytes of a JPEG of some noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    return picture_files.encode(pixels, "JPEG")


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
    flickr |= {f"Flickr8k_text/{k}": v.encode() for k, v in JUDGED.items()}
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
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.clones = pathlib.Path(folder) / "clones"
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
            for record in pairs.read(path)
        ]

    def test_splits_share_no_title_and_no_photograph(self):
        with mock.patch.object(report, "log") as log:
            build.build(self.out, self.clones)
        self.assertIn("left out: 1 (does not decode)", str(log.mock_calls))
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
                for fact in (record.image, record.row.captions[0].lower()):
                    self.assertEqual(seen.setdefault(fact, name), name)
        # The official test of two sources.
        flickr = self.records("test_flickr8k")
        names = {f"{n}.jpg" for n in range(4)}
        self.assertEqual({record.row.name for record in flickr}, names)
        captions = {len(record.row.captions) for record in flickr}
        self.assertEqual(captions, {5})
        self.assertEqual(
            stats["judged"],
            {"experts": 12, "crowd": 4, "photographs": 5}
            | {"left out, not of the tests": 1, "of these, in training": 1},
        )
        judged = pd.read_csv(self.out / build.JUDGEMENTS).to_numpy().tolist()
        self.assertEqual(
            judged[4:6] + judged[-1:],
            [
                ["experts", "1.jpg", "dog 1 says 2 .", True, "2.0 1.0 3.0"],
                ["experts", "1.jpg", "dog 2 says 2 .", False, "2.0 1.0 2.0"],
                ["crowd", "1.jpg", "dog 1 says 2 .", True, "0.25"],
            ],
        )
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
        packed = pathlib.Path(self.get_temp_dir())
        for source, (_, name) in sources.SOURCES.items():
            photos, lines = sources.read(source, self.clones), ""
            with zipfile.ZipFile(packed / f"{name}.zip", "w") as file:
                for number, one in enumerate(photos):
                    file.writestr(f"{number:06d}.jpg", one.content)
                    row = {"file": one.name, "captions": one.captions}
                    row |= {"article": one.kind, "split": one.split}
                    lines += f"{json.dumps(row)}\n"
                file.writestr("pairs.jsonl", lines)
        other = self.out.with_name("other")
        build.build(other, None, packed)
        for path in self.out.rglob("*.tfrecord"):
            twin = other / path.relative_to(self.out)
            self.assertEqual(path.read_bytes(), twin.read_bytes(), path)
        with self.assertRaisesRegex(RuntimeError, "made of clones. Received"):
            build.build(other, self.clones)
        (packed / f"{name}.zip").write_bytes(b"PK")
        with self.assertRaisesRegex(RuntimeError, f"{name}.zip' is damaged"):
            build.build(self.out.with_name("third"), None, packed)

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
        with mock.patch.object(pairs, "write", side_effect=full):
            with self.assertRaisesRegex(OSError, "No space left"):
                build.build(self.out, self.clones)
        self.assertEqual([*self.out.parent.glob("**/.part-*")], [])
        self.assertFalse(self.out.exists())

    def test_damaged_judgements_are_refused(self):
        read = repositories.Clone.read
        for line, message in (
            ("0.jpg\t1.jpg#2\t1\t2\t5", r"from 1 to 4.*\\t5'"),
            ("0.jpg\t1.jpg#9\t1\t2\t4", "the name of a caption.*#9"),
            ("0.jpg\t1.jpg#2\t1\t2", "between tabs"),
        ):

            def damaged(clone, path, line=line):
                return line.encode() if "Expert" in path else read(clone, path)

            with mock.patch.object(repositories.Clone, "read", damaged):
                with self.assertRaisesRegex(
                    RuntimeError, f"Line 1 of .*ExpertAnn.*{message}"
                ):
                    build.build(self.out, self.clones)
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
            half = clones.with_name("half")
            (half / everything[0].folder).mkdir(parents=True)
            with self.assertRaisesRegex(RuntimeError, "must have the commit"):
                repositories.fetch(half)
        self.assertEqual(log.getvalue().count(" cloned"), len(everything))
        self.assertEqual(log.getvalue().count(" is there"), len(everything))
        build.build(self.out, clones)
        self.assertLen(self.records("test_*"), 4 * len(sources.SOURCES))

    def test_people_are_compared_with_runs(self):
        build.build(self.out, self.clones)
        words = tokenizers.WordPieceTokenizer(
            ["[UNK]", "[EOS]", "dog", "says", *"01234"], 8
        )
        models = {}
        for seed, name in enumerate(("one", "two")):
            more = {"text_length": 8, "seed": seed}
            learner = jest_tf.build_two_tower(
                "tiny", **{"image_size": 32, "vocabulary_size": 9}, **more
            )
            config = config_lib.TrainConfig(steps=7, seed=seed)
            models[name] = jest_tf.Embedder(learner, words, config=config)
        model = models["two"]
        words = ["--work", str(self.out.parent), "--reference", "one"]
        path = self.out.parent / "results/photos/judgements.csv"
        load = mock.patch.object(
            jest_tf, "load", lambda path, trust: models[path.name]
        )
        with load, contextlib.redirect_stdout(io.StringIO()) as printed:
            judgements.main([*words, "--learner", "two"])
            before = pd.read_csv(path)
            # The reference alone has the same lines, which are replaced.
            judgements.main(words)
        table = pd.read_csv(path)
        self.assertLen(before, 16)
        old, new = (x.round(9).to_numpy().tolist() for x in (before, table))
        self.assertCountEqual(map(str, old), map(str, new))
        self.assertEqual(printed.getvalue().count("| learnability |"), 4)
        facts = table.loc[table["run"] == "two", ["steps", "seed", "count"]]
        self.assertAllEqual(facts.drop_duplicates(), [[7, 1, 9], [7, 1, 4]])
        # Without the photographs' own captions.
        pairs = [(n, m) for n in range(4) for m in range(3) if n != m]
        records = {r.row.name: r.image for r in self.records("test_flickr8k")}
        images = model.embed_images([records[f"{n}.jpg"] for n in range(4)])
        texts = model.embed_texts([f"dog {m} says 2 ." for m in range(3)])
        scores = [images[n] @ texts[m] for n, m in pairs for _ in range(3)]
        marks = [mark for n, m in pairs for mark in (n + 1, 1, 4 - m)]
        signs, others = (
            np.sign(np.subtract.outer(x, x)) for x in (scores, marks)
        )
        # 2 (P - Q) / (n^2 (m - 1) / m), with four different marks; each pair
        # of judgements is twice in the matrix.
        expected = (signs * others).sum() / (27**2 * 3 / 4)
        key = ["two", "similarity", "tau_c"]
        is_wanted = table[["run", "criterion", "measure"]] == key
        (found,) = table[is_wanted.all(axis=1)].itertuples()
        self.assertAllClose(found.value, expected)
        self.assertBetween(found.value, found.low, found.high)
        (self.out / build.JUDGEMENTS).unlink()
        with self.assertRaisesRegex(SystemExit, "judgements.csv' must be of"):
            judgements.main(words)


class JudgementsTest(tf.test.TestCase):
    def test_losses_are_of_batches_of_one_size(self):
        rows = np.random.default_rng(0).normal(size=(2, 4, 3))
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        reference = jest_tf.Embeddings(*rows.astype(np.float32), 10.0, -5.0)
        learner = reference._replace(image=reference.text, scale=4.0)
        config = config_lib.TrainConfig()
        self.assertEqual(config.model.loss, "sigmoid")
        found = judgements.pair_losses(reference, learner, config=config)
        for name, model in (("reference", reference), ("learner", learner)):
            logits = model.scale * model.image @ model.text.T + model.bias
            off = np.logaddexp(0, logits) * (1 - np.eye(4))
            expected = np.logaddexp(0, -np.diag(logits))
            expected += (off.sum(0) + off.sum(1)) / 2
            self.assertAllClose(found[name], expected, rtol=1e-5)
        same = reference._replace(image=rows[0, [0] * 4], text=rows[0, [0] * 4])
        with mock.patch.object(judgements, "BATCH_SIZE", 3):
            found = judgements.pair_losses(same, config=config)
        # Two negatives each, logits of 5.
        expected = np.logaddexp(0, -5) + 2 * np.logaddexp(0, 5)
        self.assertAllClose(found, {"reference": [expected] * 4}, rtol=1e-5)

    def test_photographs_are_resampled_whole(self):
        pairs = pd.DataFrame(
            {"photograph": ["a"] * 3, "ratings": [[0.0], [0.5], [1.0]]}
        )
        # Two of three comparisons agree and one does not.
        found = judgements.agreement(np.array([1, 3, 2]), pairs, "b")
        self.assertAllClose([*found["tau_b"]], [1 / 3] * 3)
        self.assertAllClose([*found["spearman"]], [1 / 2] * 3)


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
