"""The page of a run: charts of its selection, and what it kept and dropped.

Made from the run directory and the run's data, without a model; the run may
still be training. `runs/draw_log.py` writes what is shown.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from jest_tf import files
from jest_tf.config import checks
from jest_tf.data import cascade, pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.reports import charts, rendering
from jest_tf.runs import directory, draw_log, inputs

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


def write(workdir: str, path: str, num_moments: int = 8) -> None:
    """Writes the page of a run, with pictures of `num_moments` logged draws.

    Raises:
        ValueError: `num_moments` is below 1, the run has logged no selection,
            or its data has changed.
    """
    checks.check("num_moments", num_moments, checks.at_least(1))
    lines = read(workdir)
    config = directory.load_config(workdir)
    log = directory.read_rows(workdir, directory.METRICS_FILE)
    moments = [lines[i] for i in charts.evenly(len(lines), num_moments)][::-1]
    add_pictures(workdir, moments)
    page = rendering.render(
        "run.html",
        name=os.path.basename(files.absolute(workdir).rstrip("/")),
        config=config,
        step=lines[-1]["step"],
        charts=_charts(lines, log),
        moments=moments,
        titles=_TITLES,
    )
    files.write_whole(path, page)


def read(workdir: str) -> list[dict]:
    """Returns the lines of a run's `telemetry.jsonl`.

    Raises:
        ValueError: there are none, or it is no run directory.
    """
    directory.load_config(workdir)
    lines = directory.read_rows(workdir, directory.TELEMETRY_FILE)
    if not lines:
        raise ValueError(
            "There is no selection to show: expected a run that scores, with "
            f"`evaluation.telemetry`. Received: {workdir!r} without a line of "
            f"{directory.TELEMETRY_FILE}"
        )
    return lines


def add_pictures(workdir: str, lines: Sequence[dict]) -> None:
    """Adds `image`, `caption` and `id` to the rows of lines as from `read`.

    Raises:
        ValueError: the data is not the run's.
    """
    shown = [
        (line["super_batch"], row)
        for line in lines
        for row in (*line["highest"], *line["lowest"])
    ]
    found = examples(workdir, [(number, row["row"]) for number, row in shown])
    for (number, row), image, caption, key in zip(shown, *found, strict=True):
        if row.get("id", key) != key:
            raise ValueError(
                f"`data.train` must be the data that the run in {workdir!r} "
                f"was trained on, with id {row['id']} in row {row['row']} of "
                f"super-batch {number}. Received: id {key}"
            )
        row |= {"image": image, "caption": caption, "id": key}


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
    first = inputs.Sources(
        store,
        None,
        sidecars,
        sidecars and cascade.of_run(config, sidecars),
        curated_rows=config.curated_rows(0),
    )
    found = [None] * len(places)
    for number in {number for number, _ in places}:
        sources = inputs.at_step(config, first, workdir, number)
        positions, step_size = _positions(config, sources, number)
        here = [i for i, place in enumerate(places) if place[0] == number]
        some = pipeline.at_positions(
            store,
            positions[[places[i][1] for i in here]],
            step_size=step_size,
            seed=config.seed,
            image_size=data.image_size,
            options=inputs.options_of(config, sources),
        )
        for i, *example in zip(here, *some, strict=True):
            found[i] = example
    image, caption, ids = zip(*found, strict=True)
    return pipeline.Examples(np.stack(image), list(caption), np.array(ids))


def _positions(config, sources, number):
    """Stream positions of a super-batch, and how many a step has."""
    size, stage_0 = config.data.super_batch_size, sources.cascade
    if stage_0 is None:
        return number * size + np.arange(size), size
    chosen = stage_0.positions(
        number,
        slice(0, size),
        store=sources.store,
        order=inputs.order_of(config, sources),
        seed=config.seed,
        super_batch_size=size,
    )
    return next(iter(chosen.take(1))).numpy(), stage_0.size


def _charts(lines: list[dict], log: list[dict]) -> Iterator[charts.Chart]:
    kept, uniform = charts.KEPT, charts.UNIFORM

    def line(rows, name, label, colour):
        rows = [row for row in rows if name in row]
        steps = [row["step"] for row in rows]
        return charts.Line(label, colour, steps, [row[name] for row in rows])

    yield charts.draw(
        "Score of the sub-batch",
        [
            line(log, "select/score", "the draw", kept),
            line(log, "select/uniform_score", "a uniform draw", uniform),
        ],
    )
    for quantity in draw_log.QUANTITIES:
        if quantity in lines[0]:
            name = quantity.replace("_", " ").capitalize()
            yield charts.draw(
                f"{name} of rows: median, and 5 to 95 %",
                [_quantiles(lines, quantity, group) for group in _GROUPS],
            )
    chance = [one | {"chance": 1 - one["filter_ratio"]} for one in lines]
    same = "same noise"
    yield charts.draw(
        "Share of the draw that other draws contain",
        [
            line(lines, "overlap_independent", f"independent, {same}", kept),
            line(lines, "overlap_uniform", f"uniform, {same}", uniform),
            line(chance, "chance", "chance", charts.CHANCE),
        ],
        unit_range=True,
    )
    repeats = line(
        log, "train/repeat_rate", "trained, not for the first time", kept
    )
    name = "select/effective_filter_ratio"
    if repeats.x:
        yield charts.draw(
            "Records",
            [repeats, line(log, name, "drawn, never trained", charts.DROPPED)],
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
