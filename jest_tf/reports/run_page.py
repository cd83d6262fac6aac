"""The page of a run: charts of its selection, and what it kept and dropped.

Made from the run directory and the run's data, without a model; the run may
still be training. `runs/draw_log.py` writes what is shown.
"""

import copy
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from jest_tf import files
from jest_tf.config import checks
from jest_tf.data import cascade, pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.reports import charts, rendering
from jest_tf.runs import directory, draw_log, inputs, interruptions, progress
from jest_tf.runs import evaluations as evaluations_lib

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
_OFFERED = 8  # rows of a super-batch that the page opens with
_RATE_ROWS = 10  # of the log, for the time left
_MEASURES = (charts.KEPT, charts.UNIFORM, charts.DROPPED, "#15803d", "#7e22ce")
# How often a finished run's logs on a bucket are read again before the last
# page is written without their missing lines.
_MOST_LATE = 20


def write(workdir: str, path: str, num_moments: int = 8) -> None:
    """Writes the page of a run, with pictures of `num_moments` logged draws.

    Raises:
        ValueError: `num_moments` is below 1, the run has logged no selection,
            or its data has changed.
    """
    checks.check("num_moments", num_moments, checks.at_least(1))
    directory.load_config(workdir)
    logs = [tail.read() for tail in _tails(workdir)]
    _check_any(workdir, logs[0])
    moments = _moments(workdir, logs[0], num_moments)
    _write(workdir, path, logs, moments)


def watch(
    workdir: str, path: str, num_moments: int = 8, seconds: int = 30
) -> None:
    """Writes the page whenever a run has logged more, until it has finished.

    The run may begin later, stop and continue. Until its end the page shows
    the pictures of the newest logged draw, and browsers load it again every
    `seconds`. Pictures that cannot be read are left out with the reason.

    Raises:
        ValueError: `num_moments` or `seconds` is below 1.
    """
    checks.check("num_moments", num_moments, checks.at_least(1))
    checks.check("seconds", seconds, checks.at_least(1))
    tails, shown, sources = _tails(workdir), None, None
    if not directory.has(workdir, directory.CONFIG_FILE):
        progress.say(f"waiting for a run in {directory.received(workdir)}")
    late = 0
    while True:
        # Before the logs, which are then complete, or on a bucket will be soon.
        finished = directory.has(workdir, directory.WEIGHTS_FILE)
        logs = [tail.read() for tail in tails]
        if finished and files.is_remote(workdir) and late < _MOST_LATE:
            steps = directory.load_config(workdir).steps
            finished = [row["step"] for row in logs[1][-1:]] == [steps]
            late += not finished
        now = finished, [rows[-1:] for rows in logs]
        if now != shown and directory.has(workdir, directory.CONFIG_FILE):
            moments, problem = [], ""
            try:
                if logs[0] and sources is None:
                    sources = _sources(directory.load_config(workdir))
                moments = _moments(
                    workdir, logs[0], num_moments if finished else 1, sources
                )
            except (ValueError, OSError) as error:
                problem = str(error)
            refresh = None if finished else seconds
            _write(workdir, path, logs, moments, problem, refresh)
            shown = now
        if finished:
            return
        time.sleep(seconds)


def read(workdir: str) -> list[dict]:
    """Returns the lines of a run's `telemetry.jsonl`.

    Raises:
        ValueError: there are none, or it is no run directory.
    """
    directory.load_config(workdir)
    lines = directory.read_rows(workdir, directory.TELEMETRY_FILE)
    _check_any(workdir, lines)
    return lines


def add_pictures(
    workdir: str, lines: Sequence[dict], sources: inputs.Sources | None = None
) -> None:
    """Adds `image`, `caption` and `id` to the rows of lines as from `read`.

    These are the rows under `highest`, `lowest` and, if any, `offered`.
    `sources` are those of the run's first step; None opens them.

    Raises:
        ValueError: the data is not the run's.
    """
    shown = [
        (line["super_batch"], row)
        for line in lines
        for row in (
            *line["highest"],
            *line["lowest"],
            *line.get("offered", ()),
        )
    ]
    places = [(number, row["row"]) for number, row in shown]
    found = examples(workdir, places, sources)
    for (number, row), image, caption, key in zip(shown, *found, strict=True):
        if row.get("id", key) != key:
            raise ValueError(
                f"`data.train` must be the data that the run in {workdir!r} "
                f"was trained on, with id {row['id']} in row {row['row']} of "
                f"super-batch {number}. Received: id {key}"
            )
        row |= {"image": image, "caption": caption, "id": key}


def examples(
    workdir: str,
    places: Sequence[tuple[int, int]],
    sources: inputs.Sources | None = None,
) -> pipeline.Examples:
    """Reads examples of a run, by super-batch number and row of each.

    `sources` are those of the run's first step; None opens them.
    """
    config = directory.load_config(workdir)
    data = config.data
    first = _sources(config) if sources is None else sources
    store = first.store
    found = [None] * len(places)
    skipped = interruptions.Skipped(workdir, writes=False)
    for number in {number for number, _ in places}:
        step = skipped.step(number)
        sources = inputs.at_step(config, first, workdir, step)
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


def _sources(config):
    """The data and the sidecars of a run's first step."""
    store, sidecars = stores.open_stores(config.data), None
    if config.reference.sidecars and (
        config.steps_need_reference or config.cascade.hyper_batch_size
    ):
        sidecars = sidecars_lib.Sidecars(
            store, config.reference.sidecar_dir, None
        )
    return inputs.Sources(
        store,
        None,
        sidecars,
        sidecars and cascade.of_run(config, sidecars),
        curated_rows=config.curated_rows(0),
    )


def _tails(workdir):
    """Readers of the logs: telemetry, metrics and evaluations."""
    return [
        directory.Tail(workdir, name)
        for name in (
            directory.TELEMETRY_FILE,
            directory.METRICS_FILE,
            directory.EVALUATION_FILE,
        )
    ]


def _check_any(workdir, lines):
    if not lines:
        raise ValueError(
            "There is no selection to show: expected a run that scores, with "
            f"`evaluation.telemetry`. Received: {workdir!r} without a line of "
            f"{directory.TELEMETRY_FILE}"
        )


def _moments(workdir, lines, count, sources=None):
    """Up to `count` lines with pictures, newest first and with offered rows."""
    if not lines:
        return []
    # `evenly` starts at 0, so the newest line is first, even if alone.
    chosen = [lines[-1 - i] for i in charts.evenly(len(lines), count)]
    moments = copy.deepcopy(chosen)  # lines without pictures are kept
    size = directory.load_config(workdir).data.super_batch_size
    moments[0]["offered"] = [
        {"row": int(row), "score": None, "kept": False}
        for row in charts.evenly(size, _OFFERED)
    ]
    add_pictures(workdir, moments, sources)
    return moments


def _write(workdir, path, logs, moments, problem="", refresh=None):
    lines, log, evaluations = logs
    config = directory.load_config(workdir)
    metrics = directory.path(workdir, directory.METRICS_FILE)
    logged_at = ""
    if log:
        changed = time.localtime(files.stat(metrics)[1] / 1e9)
        logged_at = time.strftime("%d %b, %H:%M:%S %Z", changed)
    page = rendering.render(
        "run.html",
        name=os.path.basename(files.absolute(workdir).rstrip("/")),
        workdir=workdir,
        config=config,
        step=log[-1]["step"] if log else 0,
        last=log[-1] if log else {},
        time_left=_time_left(config, log),
        logged_at=logged_at,
        evaluated=_evaluated(evaluations),
        charts=_charts(lines, log, evaluations),
        moments=moments,
        titles=_TITLES,
        problem=problem,
        refresh=refresh,
    )
    files.write_whole(path, page)


def _time_left(config, log):
    """Time to the last step, by the rate of the last rows; "" if unknown."""
    if len(log) < 2 or log[-1]["step"] >= config.steps:
        return ""
    then, now = log[-_RATE_ROWS:][0], log[-1]
    rate = (now["seconds"] - then["seconds"]) / (now["step"] - then["step"])
    return tqdm.tqdm.format_interval(rate * (config.steps - now["step"]))


def _evaluated(rows):
    """The headline measures of the last evaluation, a line a store."""
    if not rows:
        return []
    return [
        f"Step {rows[-1]['step']:,}, {evaluations_lib.describe(one, rows[-1])}"
        for one in _stores(rows)
    ]


def _stores(rows):
    names = (name for name in rows[-1] if name.startswith("eval/"))
    return list(dict.fromkeys(name.split("/")[1] for name in names))


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


def _charts(
    lines: list[dict], log: list[dict], evaluations: list[dict]
) -> Iterator[charts.Chart]:
    kept, uniform = charts.KEPT, charts.UNIFORM

    def line(rows, name, label, colour):
        rows = [row for row in rows if name in row]
        steps = [row["step"] for row in rows]
        return charts.Line(label, colour, steps, [row[name] for row in rows])

    if lines:
        yield charts.draw(
            "Score of the sub-batch",
            [
                line(log, "select/score", "the draw", kept),
                line(log, "select/uniform_score", "a uniform draw", uniform),
            ],
        )
    elif log:
        yield charts.draw("Loss", [line(log, "train/loss", "training", kept)])
    for store in _stores(evaluations) if len(evaluations) > 1 else ():
        measures = [
            line(evaluations, f"eval/{store}/{measure}", title, colour)
            for (measure, title), colour in zip(
                evaluations_lib.HEADLINES, _MEASURES, strict=True
            )
        ]
        yield charts.draw(f"Evaluation on {store}", measures)
    if not lines:
        return
    for quantity in draw_log.QUANTITIES:
        if quantity in lines[0]:
            name = quantity.replace("_", " ").capitalize()
            yield charts.draw(
                f"{name} of rows: median, 5 to 95\N{NO-BREAK SPACE}%",
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
