"""The page of a run: charts of its selection, and rows kept and dropped.

The page is made from the run directory and the run's data, without a model; the
run may still be training. `runs/draw_log.py` writes the log that it shows.
"""

import copy
import os
import time
from collections.abc import Iterator, Sequence

import jinja2
import numpy as np
import tqdm

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.reports import charts, rendering
from jest_tf.runs import directory, draw_log, inputs, progress
from jest_tf.runs import evaluations as evaluations_lib
from jest_tf.selection import summary

_GROUPS = {
    "kept": ("kept", charts.KEPT),
    "dropped": ("dropped", charts.DROPPED),
    "uniform": ("a uniform draw", charts.UNIFORM),
}
_OFFERED = 8  # rows into the first stage that the page shows
_RATE_ROWS = 10  # last rows of the log, which give the rate for the time left
_MEASURES = (
    *(charts.KEPT, charts.UNIFORM, charts.DROPPED),
    *("#15803d", "#7e22ce"),
)
# Most times that a finished run's logs on a bucket are read again, before the
# last page is written without their missing lines.
_MOST_LATE = 20


def write(workdir: str, path: str, num_moments: int = 8) -> None:
    """Writes the page of a run, with pictures of `num_moments` logged draws.

    Raises:
        ValueError: the run has logged no selection, or its data has changed.
    """
    directory.load_config(workdir)
    logs = [tail.read() for tail in _tails(workdir)]
    _check_any(workdir, logs[0])
    with _of_logs(workdir):
        moments = _moments(workdir, logs[0], num_moments)
        _write(workdir, path, logs, moments)


def watch(
    workdir: str, path: str, num_moments: int = 8, seconds: int = 30
) -> None:
    """Writes the page whenever a run has logged more, until it has finished.

    The run may begin later, stop and continue. Until its end, the page shows
    the pictures of the newest logged draw, and browsers reload it every
    `seconds`. If pictures cannot be read, the page gives the reason instead.
    """
    tails, shown, sources = _tails(workdir), None, None
    if not directory.has(workdir, directory.CONFIG_FILE):
        progress.say(f"waiting for a run in {directory.received(workdir)}")
    late = 0
    while True:
        # Read before the logs: then they are complete, or on a bucket soon.
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
                count = num_moments if finished else 1
                with _of_logs(workdir):
                    moments = _moments(workdir, logs[0], count, sources)
            except (ValueError, OSError) as error:
                problem = str(error)
            refresh = None if finished else seconds
            with _of_logs(workdir):
                _write(workdir, path, logs, moments, problem, refresh)
            shown = now
        if finished:
            return
        time.sleep(seconds)


def read(workdir: str) -> list[dict]:
    """Returns the lines of a run's `telemetry.jsonl`.

    Raises:
        ValueError: there are none, or `workdir` is not a run directory.
    """
    directory.load_config(workdir)
    lines = directory.read_rows(workdir, directory.TELEMETRY_FILE)
    _check_any(workdir, lines)
    return lines


def add_pictures(
    workdir: str, lines: Sequence[dict], sources: inputs.Sources | None = None
) -> None:
    """Adds `image`, `caption` and `id` to the rows of lines from `read`.

    The rows are those under `highest` and `lowest` of every stage, and under
    `offered` of the line, if any. `sources` are those of the run's first step;
    None opens them.

    Raises:
        ValueError: the data is not the run's.
    """
    config = directory.load_config(workdir)
    first = _sources(config) if sources is None else sources
    for line in lines:
        number = line["super_batch"]
        here = inputs.at_step(config, first, workdir, number)
        rows = [*line.get("offered", ())]
        for stage in line["stages"]:
            rows += stage["highest"] + stage["lowest"]
        _add_examples(workdir, config, here, number, rows)


def _add_examples(workdir, config, sources, number, rows):
    """Adds their examples to rows of a super-batch, by position or row."""
    if any("position" not in row for row in rows):
        super_batch = _positions(config, sources, number)
    positions = [
        row["position"] if "position" in row else super_batch[row["row"]]
        for row in rows
    ]
    found = pipeline.at_positions(
        sources.store,
        np.array(positions, np.int64),
        seed=config.seed,
        image_size=config.data.image_size,
        options=inputs.options_of(config, sources),
    )
    for row, image, caption, key in zip(rows, *found, strict=True):
        if row.get("id", key) != key:
            raise ValueError(
                f"`data.train` must be the data that the run in {workdir!r} "
                f"was trained on, with id {row['id']} at "
                f"{row.get('position', row.get('row'))} of super-batch "
                f"{number}. Received: id {key}"
            )
        row |= {"image": image, "caption": caption, "id": key}


def _sources(config):
    """The data and the sidecars of a run's first step."""
    with stores.indexes_in_memory():
        store, sidecars = stores.open_stores(config.data), None
    if config.has_first_reference and config.reads_sidecars:
        sidecars = sidecars_lib.Sidecars(store, config.reference.sidecar_dir)
    return inputs.Sources(
        store,
        None,
        sidecars,
        config.segment_selection(0),
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


def _of_logs(workdir):
    return directory.as_written(workdir, "*.jsonl", jinja2.TemplateError)


def _check_any(workdir, lines):
    if not lines:
        raise ValueError(
            "There is no selection to show: expected a run with a stage that "
            f"scores. Received: {workdir!r} without a line of "
            f"{directory.TELEMETRY_FILE}"
        )


def _moments(workdir, lines, count, sources=None):
    """Up to `count` lines with pictures, newest first.

    The newest line also gets some of the rows offered to its first stage.
    """
    places = charts.evenly(len(lines), count) if lines else ()
    # Copied, because the caller's lines stay without pictures.
    moments = copy.deepcopy([lines[-1 - i] for i in places])
    if moments:
        config = directory.load_config(workdir)
        size = config.selection.hyper_batch_size(config.data.curated_rows)
        start = moments[0]["super_batch"] * size
        moments[0]["offered"] = [
            {"position": start + int(row), "score": None, "kept": False}
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
        funnel=draw_log.funnel(config, log),
        titles={
            stage.criterion: config_lib.criterion(stage.criterion)
            for stage in config.selection.stages
        },
        problem=problem,
        refresh=refresh,
    )
    files.write_whole(path, page)


def _time_left(config, log):
    """Time until the last step, by the rate of the last rows; "" if unknown."""
    if len(log) < 2 or log[-1]["step"] >= config.steps:
        return ""
    then, now = log[-_RATE_ROWS:][0], log[-1]
    rate = (now["seconds"] - then["seconds"]) / (now["step"] - then["step"])
    return tqdm.tqdm.format_interval(rate * (config.steps - now["step"]))


def _evaluated(rows):
    """The headline measures of the last evaluation, a line per store."""
    if not rows:
        return []
    last = rows[-1]
    return [
        f"Step {last['step']:,}, {evaluations_lib.describe(store, last)}"
        for store in _stores(rows)
    ]


def _stores(rows):
    names = (name for name in rows[-1] if name.startswith("eval/"))
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def _positions(config, sources, number):
    """Stream positions of a super-batch."""
    size = sources.selection.super_batch_size(sources.curated_rows)
    stages = inputs.stored_stages_of(config, sources)
    if stages is None:
        return range(number * size, (number + 1) * size)
    return next(iter(stages.positions(number, slice(0, size)).take(1))).numpy()


def _charts(
    lines: list[dict], log: list[dict], evaluations: list[dict]
) -> Iterator[charts.Chart]:
    kept, uniform = charts.KEPT, charts.UNIFORM
    by_stage: dict[int, list] = {}
    for line in lines:
        for stage in line["stages"]:
            own = by_stage.setdefault(stage["stage"], [])
            own.append({"step": line["step"]} | stage)
    for number in sorted(by_stage):
        path = f"stages/{number}"
        yield charts.draw(
            f"Stage {number}: score of the rows that pass",
            [
                _line(log, f"{path}/score", "chosen", kept),
                _line(log, f"{path}/uniform_score", "a uniform draw", uniform),
            ],
        )
        clean = _line(log, f"{path}/clean_out", "out", kept)
        if clean.x:
            offered = _line(log, f"{path}/clean_in", "in", charts.DROPPED)
            yield charts.draw(
                f"Stage {number}: clean share of its rows",
                [clean, offered],
                unit_range=True,
            )
    if log and not lines:
        yield charts.draw("Loss", [_line(log, "train/loss", "training", kept)])
    for store in _stores(evaluations) if len(evaluations) > 1 else ():
        measures = [
            _line(evaluations, f"eval/{store}/{measure}", title, colour)
            for (measure, title), colour in zip(
                evaluations_lib.HEADLINES, _MEASURES, strict=True
            )
        ]
        yield charts.draw(f"Evaluation on {store}", measures)
    for number in sorted(by_stage):
        yield from _charts_of_stage(number, by_stage[number])
    repeats = _line(
        log, "train/repeat_rate", "trained, not for the first time", kept
    )
    name = "select/effective_filter_ratio"
    if lines and repeats.x:
        yield charts.draw(
            "Records",
            [repeats, _line(log, name, "drawn, never trained", charts.DROPPED)],
            unit_range=True,
        )


def _charts_of_stage(number, lines):
    for quantity in summary.QUANTITIES:
        if quantity in lines[0]:
            name = quantity.replace("_", " ")
            yield charts.draw(
                f"Stage {number}: {name} of rows, median, "
                "5 to 95\N{NO-BREAK SPACE}%",
                [_quantiles(lines, quantity, group) for group in _GROUPS],
            )
    chance = [
        line | {"chance": line["rows_out"] / line["rows_in"]} for line in lines
    ]
    same = "same noise"
    yield charts.draw(
        f"Stage {number}: share of its draw that other draws contain",
        [
            _line(
                lines,
                "overlap_independent",
                f"independent, {same}",
                charts.KEPT,
            ),
            _line(lines, "overlap_uniform", f"uniform, {same}", charts.UNIFORM),
            _line(chance, "chance", "chance", charts.CHANCE),
        ],
        unit_range=True,
    )


def _line(rows, name, label, colour):
    rows = [row for row in rows if name in row]
    steps = [row["step"] for row in rows]
    return charts.Line(label, colour, steps, [row[name] for row in rows])


def _quantiles(lines, quantity, group):
    label, colour = _GROUPS[group]
    found = [
        (line["step"], line[quantity][group]["quantiles"])
        for line in lines
        if line.get(quantity, {}).get(group, {}).get("count")
    ]
    low, middle, high = (
        [values[summary.LEVELS.index(level)] for _, values in found]
        for level in (0.05, 0.5, 0.95)
    )
    band = None if group == "uniform" else (low, high)
    return charts.Line(label, colour, [step for step, _ in found], middle, band)
