"""Trains a recipe, or continues the run that a directory holds.

    python -m trainers.train --config configs/quickstart_jest.py \
        --workdir runs/jest --set reference.workdir=runs/reference

The run directory gets `config.json` (every setting, resolved),
`versions.json`, the vocabulary, `checkpoints/`, `final.weights.h5` (the
learner), `tensorboard/`, `metrics.jsonl` (one JSON object a logged step) and
`evaluation.jsonl`.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

from jest_tf import checkpoint, evaluation, ledger, models, reference, training
from jest_tf import config as config_lib
from jest_tf.data import pipeline, preprocessing, records

_PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-text",
    "tf-models-official",
    "numpy",
    "jest-tf",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, help="a recipe, configs/*.py"
    )
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="A.B=C",
        help="settings to override, e.g. selection.batch_size=64",
    )
    flags = parser.parse_args(argv)
    try:
        train(config_lib.load_config(flags.config, flags.set), flags.workdir)
    except ValueError as error:
        sys.exit(f"error: {error}")


def train(config: config_lib.TrainConfig, workdir: str) -> dict[str, float]:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one.

    Returns:
        What the final evaluation measured.

    Raises:
        ValueError: on settings that do not fit together, data that cannot be
            read, or a directory that holds another run.
    """
    store = records.TFRecordStore(config.data.train)
    teacher = None
    if config.selection.needs_reference:
        teacher = reference.load_run(config.reference.workdir)
    evaluation_stores = evaluation.open_stores(config.evaluation.data)
    _claim(workdir, config)
    tokenizer = _tokenizer(config, store, workdir)

    learner = models.build_learner(config, tokenizer.vocabulary_size)
    model = training.build_model(config, learner, teacher and teacher.learner)
    model.build(None)
    model.optimizer.build(model.trainable_variables)
    start_step = checkpoint.restore(model, workdir)
    log = ledger.Ledger(config, workdir, start_step=start_step)
    evaluate = evaluation.Evaluation(
        learner,
        evaluation_stores,
        config.evaluation,
        tokenizer=tokenizer,
        image_size=config.data.image_size,
        workdir=workdir,
        start_step=start_step,
        log=log.log_scalars,
    )
    if start_step < config.steps:
        _say(f"{workdir}: steps {start_step:,} to {config.steps:,}")
        model.fit(
            _stream(config, store, start_step, tokenizer, teacher),
            steps_per_epoch=config.steps - start_step,
            verbose=0,
            callbacks=[
                log,
                checkpoint.Checkpoints(
                    workdir,
                    every_steps=config.checkpoint.every_steps,
                    keep=config.checkpoint.keep,
                    start_step=start_step,
                    last_step=config.steps,
                ),
                evaluate,
            ],
        )
    weights = os.path.join(workdir, reference.WEIGHTS_FILE)
    checkpoint.save_weights(learner, weights)
    return evaluate.run(config.steps)


def _stream(config, store, start_step, tokenizer, teacher):
    """The training stream, with what the reference sees where that differs."""
    reference_view = {}
    if teacher is not None:
        reference_view = {
            "reference_tokenizer": teacher.tokenizer,
            "reference_image_size": teacher.config.data.image_size,
        }
    return pipeline.super_batches(
        store,
        super_batch_size=config.data.super_batch_size,
        seed=config.seed,
        tokenizer=tokenizer,
        image_size=config.data.image_size,
        start_step=start_step,
        **reference_view,
    )


def _claim(workdir, config):
    """Makes the run directory, or checks that it holds this very run."""
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, reference.CONFIG_FILE)
    if not os.path.isfile(path):
        config_lib.save_config(config, path)
        with open(os.path.join(workdir, "versions.json"), "w") as file:
            json.dump(_versions(), file, indent=2)
        return
    before = dataclasses.asdict(config_lib.load_config(path))
    for name, here, there in _differences(dataclasses.asdict(config), before):
        raise ValueError(
            f"`--workdir` {workdir!r} holds a run with other settings. "
            f"Expected {name}={there!r}, to continue it. Received: "
            f"{name}={here!r}; take another directory for another run"
        )


def _differences(here, there, path=""):
    for name, value in here.items():
        if isinstance(value, dict):
            yield from _differences(value, there[name], f"{path}{name}.")
        elif value != there[name]:
            yield path + name, value, there[name]


def _tokenizer(config, store, workdir):
    """The run's tokenizer: from the directory, a given file, or built."""
    length = config.data.text_length
    if preprocessing.has_tokenizer(workdir):
        return preprocessing.load_tokenizer(workdir, length)
    if config.data.vocabulary:
        tokenizer = preprocessing.read_tokenizer(config.data.vocabulary, length)
    else:
        _say(f"{workdir}: building a vocabulary from {len(store):,} records")
        captions = store.columns(["caption"])["caption"]
        vocabulary = preprocessing.build_wordpiece_vocabulary(
            (text for texts in captions for text in texts),
            config.data.vocabulary_size,
        )
        tokenizer = preprocessing.WordPieceTokenizer(vocabulary, length)
    tokenizer.save(workdir)
    return tokenizer


def _versions():
    """What the run ran with: versions, machine, and the code's revision."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # used from a checkout, say
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _git(*arguments):
    """What git says of the checkout that this file lies in; None without."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=os.path.dirname(os.path.abspath(__file__)),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
