"""Runs every command on one of Keras' backends, for `test_runs.py`.

KERAS_BACKEND=... python commands.py FOLDER
"""

import contextlib
import dataclasses
import os
import shutil
import sys

from jest_tf import cli, config

DATA = "examples/icontext_mini"
POOL, TESTS = f"{DATA}/pool-*.tfrecord", f"{DATA}/test-*.tfrecord"


def recipe(name, sidecars):
    """A recipe of few steps; the one that distils has all there is."""
    whole = config.load_config(f"configs/quickstart_{name}.py")
    changed = {}
    if name == "distilled":
        stages = (
            *whole.selection.stages,
            config.Stage(candidates=2, num_chunks=4),
        )
        changed = {
            "selection": config.SelectionConfig(128, stages),
            "reference": dataclasses.replace(
                whole.reference, sidecar_dir=sidecars
            ),
            "model": dataclasses.replace(
                whole.model, false_negatives="reference"
            ),
        }
    else:
        changed["bootstrap"] = dataclasses.replace(
            whole.bootstrap, renew_at=(3,)
        )
    return dataclasses.replace(
        whole,
        steps=6,
        optimizer=dataclasses.replace(whole.optimizer, warmup_steps=2),
        evaluation=dataclasses.replace(
            whole.evaluation, every_steps=6, log_every_steps=2
        ),
        checkpoint=config.CheckpointConfig(every_steps=3),
        **changed,
    )


def main(folder):
    """Runs the commands, with the folder for all that they write."""

    def at(name):
        return os.path.join(folder, name)

    def run(command, *words):
        code = cli.main([command, *words, "--trust"])
        if code:
            sys.exit(f"{command} {' '.join(words)}: exit code {code}")

    reference = f"{DATA}/reference"
    stored = "--sidecar-dir", at("sidecars")
    embed = "embed", "--model", reference
    run(*embed, "--data", POOL, "--output", at("sidecars"))
    run(*embed, "--data", TESTS, "--output", at("sidecars"))
    run(
        *("curate", "--data", POOL, "--output", at("manifest")),
        *("--workdir", reference, *stored),
    )
    with open(at("advice.txt"), "w") as said, contextlib.redirect_stdout(said):
        run(
            *("advise", "--pool", POOL, "--curated", TESTS),
            *("--output", at("advice"), "--reference", reference, *stored),
        )
    for name in ("distilled", "bootstrap"):
        path = at(f"{name}.json")
        config.save_config(recipe(name, at("sidecars")), path)
        run("train", "--config", path, "--workdir", at(name))
    shutil.copytree(at("distilled"), at("begun"))
    run("train", "--workdir", at("distilled"), "--extend", "2")
    run("evaluate", "--workdir", at("distilled"), "--output", at("evaluated"))
    run("page", "--workdir", at("distilled"))


if __name__ == "__main__":
    main(*sys.argv[1:])
