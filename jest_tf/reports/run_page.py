"""The page of a run: charts of its selection, and what it kept and dropped.

Made from the run directory and the run's data, without a model; the run may
still be training. `runs/draw_log.py` writes what is shown.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import cascade, pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.reports import charts, rendering
from jest_tf.runs import directory, draw_log

# Headings of the highest and the lowest scores, by criterion.
_TITLES = {
    "learnability": ("Most learnable", "Least learnable"),
    "easy_reference": ("Easiest for the reference", "Hardest for it"),
    "hard_learner": ("Hardest for the learner", "Easiest for it"),
}
_GROUPS = {
    "kept": ("kept", charts.KEPT),
    "dropped": ("dropped", charts.DROPPED),
    "uniform": ("a uniform draw", charts.UNIFORM),
}


class Moment(NamedTuple):
    """The extremes of a logged draw: cards, the most extreme first."""

    step: int
    criterion: str
    highest: list[rendering.Card]
    lowest: list[rendering.Card]


def write(workdir: str, path: str, num_moments: int = 8) -> None:
    """Writes the page of a run, with pictures of `num_moments` logged draws.

    Raises:
        ValueError: `num_moments` is below 1, the run has logged no selection,
            or its data has changed.
    """
    if num_moments < 1:
        raise ValueError(
            f"`num_moments` must be at least 1. Received: {num_moments}"
        )
    lines = read(workdir)
    config = directory.load_config(workdir)
    log = directory.read_rows(workdir, directory.METRICS_FILE)
    page = rendering.render(
        "run.html",
        name=os.path.basename(os.path.abspath(workdir)),
        config=config,
        step=lines[-1]["step"],
        charts=_charts(lines, log),
        moments=moments(workdir, evenly(lines, num_moments))[::-1],
        titles=_TITLES,
    )
    files.write_whole(path, page)


def read(workdir: str) -> list[dict]:
    """Returns the lines of a run's `telemetry.jsonl`.

    Raises:
        ValueError: there are none.
    """
    lines = directory.read_rows(workdir, directory.TELEMETRY_FILE)
    if not lines:
        raise ValueError(
            "There is no selection to show: expected a run that scores, with "
            f"`evaluation.telemetry`. Received: {workdir!r} without a line of "
            f"{directory.TELEMETRY_FILE}"
        )
    return lines


def evenly(lines: Sequence[dict], count: int) -> list[dict]:
    """Returns at most `count` of the lines, with the first and the last."""
    places = np.linspace(0, len(lines) - 1, min(count, len(lines)))
    return [lines[place] for place in np.unique(np.round(places).astype(int))]


def moments(workdir: str, lines: Sequence[dict]) -> list[Moment]:
    """Reads the pictures and captions of logged draws, lines as from `read`.

    Raises:
        ValueError: the data is not the run's.
    """
    places = [
        (line["super_batch"], row["row"])
        for line in lines
        for row in (*line["highest"], *line["lowest"])
    ]
    found = zip(*examples(workdir, places), strict=True)
    shown = []
    for line in lines:
        extremes = [
            [_card(workdir, line, row, *next(found)) for row in line[name]]
            for name in ("highest", "lowest")
        ]
        shown.append(Moment(line["step"], line["criterion"], *extremes))
    return shown


def examples(
    workdir: str, places: Sequence[tuple[int, int]]
) -> pipeline.Examples:
    """Reads examples of a run, by super-batch number and row of each."""
    config = directory.load_config(workdir)
    data = config.data
    store = stores.open_stores(data)
    sidecars = None
    if config.reference.sidecars and (
        config.steps_need_reference or config.cascade.hyper_batch_size
    ):
        sidecars = sidecars_lib.Sidecars(
            store, config.reference.sidecar_dir, None
        )
    stage_0 = cascade.of_run(config, sidecars)
    positions = {
        number: _positions(config, store, stage_0, number)
        for number in {number for number, _ in places}
    }
    return pipeline.at_positions(
        store,
        np.array([positions[number][row] for number, row in places], np.int64),
        step_size=stage_0.size if stage_0 else data.super_batch_size,
        seed=config.seed,
        image_size=data.image_size,
        options=pipeline.Options(
            weights=data.weights,
            shuffle_block_size=data.shuffle_block_size,
            sidecars=sidecars,
        ),
    )


def _positions(config, store, stage_0, number):
    """Stream positions of a super-batch, as chosen by a cascade if any."""
    data = config.data
    size = data.super_batch_size
    if stage_0 is None:
        return number * size + np.arange(size)
    order = pipeline.order(
        store, data.weights, config.seed, data.shuffle_block_size
    )
    chosen = stage_0.positions(
        number,
        slice(0, size),
        store=store,
        order=order,
        seed=config.seed,
        super_batch_size=size,
    )
    return next(iter(chosen.take(1))).numpy()


def _card(workdir, line, row, image, caption, key):
    if row.get("id", key) != key:
        raise ValueError(
            f"`data.train` must be the data that the run in {workdir!r} was "
            f"trained on, with id {row['id']} in row {row['row']} of "
            f"super-batch {line['super_batch']}. Received: id {key}"
        )
    return rendering.Card(image, caption, int(key), row["score"], row["kept"])


def _charts(lines: list[dict], log: list[dict]) -> Iterator[charts.Chart]:
    kept, dropped, uniform = charts.KEPT, charts.DROPPED, charts.UNIFORM
    steps = [line["step"] for line in lines]

    def logged(name, label, colour):
        rows = [row for row in log if name in row]
        x = [row["step"] for row in rows]
        return charts.Line(label, colour, x, [row[name] for row in rows])

    def overlap(name, label, colour):
        return charts.Line(label, colour, steps, [line[name] for line in lines])

    yield charts.draw(
        "Score of the sub-batch",
        [
            logged("select/score", "the draw", kept),
            logged("select/uniform_score", "a uniform draw", uniform),
        ],
    )
    for quantity in draw_log.QUANTITIES:
        if quantity in lines[0]:
            name = quantity.replace("_", " ").capitalize()
            yield charts.draw(
                f"{name} of rows: median, and 5 to 95 %",
                [_quantiles(lines, quantity, group) for group in _GROUPS],
            )
    chance = [1 - line["filter_ratio"] for line in lines]
    yield charts.draw(
        "Share of the draw that other draws contain",
        [
            overlap("overlap_independent", "independent, same noise", kept),
            overlap("overlap_uniform", "uniform, same noise", uniform),
            charts.Line("chance", charts.CHANCE, steps, chance),
        ],
        unit_range=True,
    )
    repeats = logged(
        "train/repeat_rate", "trained, not for the first time", kept
    )
    name = "select/effective_filter_ratio"
    if repeats.x:
        yield charts.draw(
            "Records",
            [repeats, logged(name, "drawn, never trained", dropped)],
            unit_range=True,
        )


def _quantiles(lines, quantity, group):
    label, colour = _GROUPS[group]
    found = [
        (line["step"], line[quantity][group]["quantiles"])
        for line in lines
        if line.get(quantity, {}).get(group, {}).get("count")
    ]
    low, middle, high = (
        [values[draw_log.LEVELS.index(level)] for _, values in found]
        for level in (0.05, 0.5, 0.95)
    )
    band = None if group == "uniform" else (low, high)
    return charts.Line(label, colour, [step for step, _ in found], middle, band)
