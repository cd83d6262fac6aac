"""Rounds: a chain of runs, each the reference of the next.

A round embeds the records with its reference, trains a learner on what these
embeddings choose, and hands the learner on. In the directory:

    round-1/               an ordinary run, by the recipe's reference
    references/round-2/    sidecars of round 1, by which round 2 chooses
    round-2/
    rounds.json            what each reference recognises and costs

The rounds end early when a learner recognises no more pairs than the reference
that chose for it, which needs no labels.
"""

import dataclasses
import os
from typing import NamedTuple

from jest_tf import config as config_lib
from jest_tf.config import checks
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.runs import bootstrap, directory, loading, progress, run


class Round(NamedTuple):
    """A round on record, in `rounds.json`.

    Attributes:
        workdir: of its run.
        recognised: share of the pairs that its reference recognises, see
            `recognition.recognised_share`; None if it has no sidecars.
        cost: of embedding the records with its reference, a
            `bootstrap.Cost`; None for the first round.
        measures: of the final evaluation; None if it was not run, because its
            reference recognises no more than the one before.
    """

    workdir: str
    recognised: float | None
    cost: dict[str, float] | None
    measures: dict[str, float] | None


def train_rounds(
    config: config_lib.TrainConfig, workdir: str, rounds: int
) -> list[Round]:
    """Trains a chain of runs, or goes on with one.

    Args:
        config: of every round; later ones have the learner of the round before
            as their reference, by sidecars.
        workdir: the directory of the rounds.
        rounds: at most so many.

    Returns:
        The rounds on record.

    Raises:
        ValueError: there is no reference, or as `train`.
    """
    checks.check("--rounds", rounds, checks.at_least(1))
    _check(config)
    found: list[Round] = []
    store = stores_lib.open_stores(
        config.data, progress.Progress("indexing", "bytes")
    )
    for number in range(1, rounds + 1):
        folder = os.path.join(workdir, f"round-{number}")
        settings, cost = config, None
        if number > 1:
            settings, cost = _with_reference(
                config,
                store,
                found[-1].workdir,
                directory.path(
                    directory.path(workdir, directory.REFERENCES_FOLDER),
                    f"round-{number}",
                ),
            )
        recognised = _recognised(settings, store)
        # None for a first reference without sidecars: nothing to compare.
        before = found[-1].recognised if found else None
        if before is not None and recognised <= before:
            progress.say(
                f"{workdir}: the learner of round {number - 1} recognises "
                f"{recognised:.1%} of the pairs, no more than its reference, "
                f"{before:.1%}: no further round"
            )
            found.append(Round(folder, recognised, cost, None))
            _write(workdir, found)
            break
        progress.say(
            f"{workdir}: round {number} of {rounds}"
            + (
                f", by a reference that recognises {recognised:.1%} of the "
                "pairs"
                if recognised is not None
                else ""
            )
        )
        measures = run.train(settings, folder)
        found.append(Round(folder, recognised, cost, measures))
        _write(workdir, found)
    last = [one for one in found if one.measures is not None][-1]
    progress.say(f"{workdir}: the last learner is in {last.workdir}")
    return found


def _check(config):
    uses = config.cascade.hyper_batch_size or config.steps_need_reference
    if not config.has_first_reference or not uses:
        raise ValueError(
            "`--rounds` needs a first reference that chooses: set "
            "`reference.model` or `reference.sidecars`, and "
            "`cascade.hyper_batch_size` or `selection.criterion`. A run that "
            "has none renews its own, `bootstrap.renew_at`. Received: "
            f"reference.model={config.reference.name!r}, reference.sidecars="
            f"{config.reference.sidecars}"
        )
    if config.reference.projection:
        raise ValueError(
            "`reference.projection` must be empty with `--rounds`: the "
            "reference of a later round is a learner, whose embeddings need "
            f"none. Received: {config.reference.projection}"
        )


def _with_reference(config, store, name, folder):
    """The settings of a round with a run as its reference, and what it cost."""
    if directory.has(folder, directory.RENEWAL_FILE):
        cost = directory.read(folder, directory.RENEWAL_FILE)
    else:
        rows = bootstrap.drawn_rows(store)
        number = len(store) if rows is None else int(rows.sum())
        progress.say(f"{name}: its learner embeds {number:,} records")
        learner = loading.load_run(name)
        cost = bootstrap.embed_records(learner, store, folder, rows)._asdict()
        directory.write(folder, directory.RENEWAL_FILE, cost)
    reference = dataclasses.replace(
        config.reference,
        model="",
        workdir=name,
        sidecars=True,
        sidecar_dir=folder,
    )
    return dataclasses.replace(config, reference=reference), cost


def _recognised(config, store):
    if not config.reference.sidecars:
        return None
    sidecars = sidecars_lib.Sidecars(store, config.reference.sidecar_dir)
    rows = bootstrap.drawn_rows(store)
    return bootstrap.recognised_share(config, store, sidecars, rows)


def _write(workdir, found):
    content = [one._asdict() for one in found]
    directory.write(workdir, directory.ROUNDS_FILE, content)
