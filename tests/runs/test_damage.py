"""Files of a run directory, damaged at random and by malice.

A reader says what is wrong, or reads what is there. Where a checksum guards a
file, it reads what was written. It writes nothing, and takes little memory.
"""

import contextlib
import dataclasses
import functools
import glob
import io
import json
import math
import os
import pathlib
import resource
import tempfile
import types

import numpy as np
import pytest
import shard_files
import tensorflow as tf
import test_strangers
import tiny

from jest_tf import config, runs
from jest_tf.data import artefacts, stores, tokenizers
from jest_tf.reports import run_page
from jest_tf.runs import (
    bootstrap,
    checkpoints,
    costs,
    directory,
    loading,
    provenance,
)

# In place of any value of a JSON file; DEEP is a list within a list, and so on.
VALUES = (
    *("../../new", "/new", "a\0b", "os:abort", "x" * 10**5, "", "DEEP"),
    *(-1, 10**400, 1e400, 2**63, None, True, [], {}, [[0]], {"step": 1}),
)


def mutate(content, rng):
    """A damaged copy; half of those of JSON are JSON, too."""
    lines = content.split(b"\n")
    line = int(rng.integers(len(lines)))
    for before, text, after in (
        ([], content, []),
        (lines[:line], lines[line], lines[line + 1 :]),
    ):
        with contextlib.suppress(ValueError):
            values = [json.loads(text)]
            if rng.integers(2):
                break
            _replace(values, rng)
            text = json.dumps(values[0]).replace('"DEEP"', "[" * 10**5)
            return b"\n".join([*before, text.encode(), *after])
    return shard_files.mutate(content, rng)[0]


def _replace(values, rng):
    """Replaces or renames a value somewhere in a list or an object."""
    keys = list(values if isinstance(values, dict) else range(len(values)))
    key = keys[rng.integers(len(keys))]
    inner = values[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
        return _replace(inner, rng)
    value = VALUES[rng.integers(len(VALUES))]
    if isinstance(values, dict) and rng.random() < 0.2:
        values[str(value)] = values.pop(key)
    else:
        values[key] = value


class DamageTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.workdir = os.path.join(self.folder, "run")
        self.pool = tiny.write_shard(f"{self.folder}/pool.tfrecord", rows=30)
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        # Temporary files are outside, too, and so is where the tests run.
        for name in ("here", "temporary"):
            os.mkdir(f"{self.folder}/{name}")
        self.enterContext(contextlib.chdir(f"{self.folder}/here"))
        self.addCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = f"{self.folder}/temporary"

    def outside(self):
        """A state that changes if anything is written outside of the run."""
        return os.path.lexists("/new"), {
            path: (os.lstat(path).st_size, os.lstat(path).st_mtime_ns)
            for root, _, names in os.walk(self.folder)
            if not root.startswith(self.workdir)
            for path in (root, *(os.path.join(root, name) for name in names))
        }

    def readers(self):
        """Files, what reads them, how often, and whether they are checked."""
        run, store = self.workdir, stores.open_store(self.pool)
        settings = directory.load_config(run)
        sources = types.SimpleNamespace(
            store=store, sidecars=None, fingerprint=""
        )

        def rows(name):
            return lambda: directory.read_rows(run, name)

        def learner():
            found, image_form = loading._read_learner(run, settings)
            return [
                tuple(variable.shape) for variable in found.variables
            ], image_form

        def weights():
            return [
                variable.numpy()
                for variable in loading.load(run).learner.variables
            ]

        def artefact(path, kind):
            def read():
                found = artefacts.read(path, kind, verify=True)
                return found.metadata, {**found.arrays}

            return os.path.relpath(path, run), read, 100, True

        yield "config.json", lambda: directory.load_config(run), 100, False
        # SentencePiece's parser is left out: damage may crash it.
        tokens = functools.partial(tokenizers.load_tokenizer, run, 3)
        yield "vocab.txt", tokens, 100, False
        yield "learner.json", learner, 20, False
        yield "final.weights.h5", weights, 20, True
        yield "final.json", weights, 20, False
        for name in ("metrics", "evaluation", "draws"):
            yield f"{name}.jsonl", rows(f"{name}.jsonl"), 100, False
        for name, read in (
            ("versions", lambda: provenance._compare_versions(run)),
            ("data", lambda: provenance.check_data(run, sources)),
            ("flops", lambda: costs.StepFlops(settings, run).at(4)),
        ):
            yield f"{name}.json", read, 100, False
        for path in glob.glob(f"{run}/checkpoints/*/state.*"):
            step = int(path.split("/")[-2].removeprefix("step-"))
            read = functools.partial(checkpoints.read, run, step)
            yield os.path.relpath(path, run), read, 100, True
        for path in glob.glob(f"{run}/references/*/renewal.json"):
            read = functools.partial(bootstrap.renewals, settings, run)
            yield os.path.relpath(path, run), read, 100, False
        for path in glob.glob(f"{run}/references/*/*.sidecar"):
            yield artefact(path, "sidecar")
        if os.path.exists(f"{run}/telemetry.jsonl"):
            page = functools.partial(run_page.write, run, f"{run}/x.html")
            yield "telemetry.jsonl", page, 1, False

    def damage(self, total):
        """Damages each file in turn; returns the names of the files."""
        random = np.random.default_rng(0)
        jobs = [
            job
            for job in self.readers()
            if os.path.exists(f"{self.workdir}/{job[0]}")
        ]
        share = total / sum(weight for _, _, weight, _ in jobs)
        start = self.memory()
        for name, read, weight, is_checked in jobs:
            path = pathlib.Path(self.workdir, name)
            content = path.read_bytes()
            whole, before = read(), self.outside()
            with self.subTest(name):
                for number in range(math.ceil(weight * share)):
                    damaged = mutate(content, random)
                    path.write_bytes(damaged)
                    try:
                        found = read()
                    except (ValueError, OSError):
                        continue
                    if is_checked or damaged == content:
                        equal = functools.partial(
                            self.assertAllEqual, msg=f"damage {number}"
                        )
                        tf.nest.map_structure(equal, found, whole)
            path.write_bytes(content)
            self.assertEqual(self.outside(), before, name)
            self.assertLess(self.memory() - start, 2**31, name)
        return {name for name, *_ in jobs}

    def memory(self):
        """The peak of the process, in bytes."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def test_a_hundred_damages_are_named_or_harmless(self):
        test_strangers.write_run(self.workdir)
        for name in ("metrics", "evaluation"):
            for step in (2, 4):
                row = {"step": step, "eval/pool/image_to_text/mrr": 0.5}
                directory.append(self.workdir, f"{name}.jsonl", row)
        self.damage(100)

    @pytest.mark.slow
    def test_ten_thousand_damages_of_a_run_are_named_or_harmless(self):
        initial = f"{self.folder}/initial"
        os.mkdir(initial)
        tiny.learner().save(f"{initial}/learner.keras")
        tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3).save(initial)
        stored = config.Stage(
            3, "stored", criterion="easy_reference", num_chunks=2
        )
        live = config.Stage(2, criterion="hard_learner", num_chunks=2)
        settings = test_strangers.SETTINGS
        settings = dataclasses.replace(
            settings,
            data=dataclasses.replace(settings.data, train=(self.pool,)),
            model=dataclasses.replace(
                settings.model, init_from=f"{initial}/learner.keras"
            ),
            selection=config.SelectionConfig(4, stages=(stored, live)),
            bootstrap=config.BootstrapConfig(renew_at=(2,)),
            evaluation=config.EvaluationConfig(
                data=(self.pool,), log_ids=True, log_every_steps=1
            ),
            checkpoint=config.CheckpointConfig(every_steps=2),
        )
        runs.train(settings, self.workdir)
        self.assertLen(self.damage(10_000), 18)
