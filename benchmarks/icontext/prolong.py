"""Prolongs a copy of a finished run at its constant rate; `run.py` calls this.

    python -m benchmarks.icontext.prolong \
        --source icontext-work/runs/web_uniform_4500-0-0123abcd \
        --workdir icontext-work/runs/web_uniform_9000-0-89abcdef --steps 9000

The copy then equals a run of so many steps. Stopped, it continues when the
command is given again.
"""

import argparse
import pathlib
import shutil

from benchmarks.icontext import runner
from jest_tf import files, runs
from jest_tf.runs import directory


def main(arguments=None):
    """Copy, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--source", "--workdir"):
        parser.add_argument(flag, type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in all")
    options = parser.parse_args(arguments)
    workdir = options.workdir
    if not (workdir / directory.CONFIG_FILE).exists():
        _copy(options.source, workdir)
    config = directory.load_config(str(workdir))
    if config.steps < options.steps:
        # Without weights an earlier prolongation was killed as it began.
        if not directory.has(str(workdir), directory.WEIGHTS_FILE):
            runs.train(config, str(workdir))
        runs.extend(str(workdir), options.steps - config.steps)
    else:
        runs.train(config, str(workdir))


def _copy(source, workdir):
    """Copies a run; its settings come last, as the sign that all is there."""
    apart = (directory.CONFIG_FILE, runner.PROCESSOR_FILE)
    shutil.copytree(
        source,
        workdir,
        ignore=shutil.ignore_patterns(*apart),
        dirs_exist_ok=True,
    )
    theirs, ours = (
        path.read_text() if path.exists() else ""
        for folder in (source, workdir)
        for path in [folder / runner.PROCESSOR_FILE]
    )
    if not ours.startswith(theirs):  # as a copy that was killed has it
        (workdir / runner.PROCESSOR_FILE).write_text(theirs + ours)
    settings = (source / directory.CONFIG_FILE).read_bytes()
    files.write_whole(str(workdir / directory.CONFIG_FILE), settings)


if __name__ == "__main__":
    main()
