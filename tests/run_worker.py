"""`python -m trainers.train` on replicas, in a process, for test_workers.py.

    python tests/run_worker.py CONFIG WORKDIR
        [--stop-after N] [--damaged] [--embedding N]

runs a recipe with a learner that is the same on any number of replicas. With
`--stop-after` it gets SIGTERM once it has saved N checkpoints; with `--damaged`
about half of the images that it reads are cut. With `--embedding`, N processes
must embed at once.
"""

import argparse
import glob
import itertools
import os
import pathlib
import signal
import time
import zlib
from unittest import mock

import tiny

from jest_tf import cli, models
from jest_tf.data import images
from jest_tf.models import reference
from jest_tf.runs import checkpoints, notices


def build_learner(config, vocabulary_size):
    """A tiny learner, without dropout or means over the rows of a replica."""
    return tiny.learner(config.seed)


def stop_after(saves):
    """Saves as ever, and sends SIGTERM with the last of so many."""
    numbers, save = itertools.count(1), checkpoints.save

    def counted(*arguments):
        save(*arguments)
        if next(numbers) == saves:
            os.kill(os.getpid(), signal.SIGTERM)

    return counted


def cut_half_of_them():
    """Prepares images as ever, but cuts about half of them."""
    prepare = images.prepare

    def prepare_cut(encoded):
        is_cut = zlib.crc32(encoded) % 2
        return prepare(encoded[: len(encoded) // (1 + is_cut)])

    return prepare_cut


def embed_together(workdir, count):
    """Embeds as ever, but waits until so many processes embed records."""
    make = reference.encoder

    def encoder(run):
        encode = make(run)

        def encode_together(*arguments):
            pathlib.Path(f"{workdir}-{os.getpid()}.embeds").touch()
            while len(glob.glob(f"{workdir}-*.embeds")) < count:
                time.sleep(0.02)
            return encode(*arguments)

        return encode_together

    return encoder


def main():
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("workdir")
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--damaged", action="store_true")
    parser.add_argument("--embedding", type=int, default=0)
    flags = parser.parse_args()
    encoder = embed_together(flags.workdir, flags.embedding)
    saves = stop_after(flags.stop_after)
    prepare = cut_half_of_them() if flags.damaged else images.prepare
    with (
        mock.patch.object(models, "build_learner", build_learner),
        mock.patch.object(checkpoints, "save", saves),
        mock.patch.object(images, "prepare", prepare),
        mock.patch.object(reference, "encoder", encoder),
        # The steps find what is damaged.
        mock.patch.object(notices, "_SAMPLED", 1),
    ):
        words = ["--config", flags.config, "--workdir", flags.workdir]
        cli.execute([*words, "--trust"], "train")


if __name__ == "__main__":
    main()
