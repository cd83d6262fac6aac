"""The page of a run: its funnel, rows kept and dropped, score against cost.

The page is made from the run directory and the run's data, without a model; the
run may still be training. A run without a stage has scores alone. Numbers over
the steps are TensorBoard's.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import jinja2
import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import pipeline, stores
from jest_tf.evaluation import slices
from jest_tf.reports import charts, rendering
from jest_tf.runs import bootstrap, directory, draw_log, inputs
from jest_tf.runs import evaluations as evaluations_lib

_MOMENTS = 8  # logged draws that the page shows
_OFFERED = 8  # rows into the first stage that the page shows
_SLICES = 50
_COSTS = ("flops/step", "flops/stored", "flops/renewals")
_COLOURS = (
    *(charts.KEPT, charts.UNIFORM, charts.DROPPED),
    *("#15803d", "#7e22ce"),
)


def write(
    workdir: str, path: str, *, by: Sequence[str] = (), trust: bool = False
) -> None:
    """Writes the page of a run, with images of some logged draws.

    `by` names fields of the records, whose values are slices. `trust` is as in
    `jest_tf.load`.
    """
    config = directory.load_config(workdir, trust=trust)
    lines = directory.read_rows(workdir, directory.TELEMETRY_FILE)
    log = directory.read_rows(workdir, directory.METRICS_FILE)
    evaluations = directory.read_rows(workdir, directory.EVALUATION_FILE)
    with directory.as_written(workdir, "*.jsonl", jinja2.TemplateError):
        page = rendering.render(
            "run.html",
            name=os.path.basename(files.absolute(workdir).rstrip("/")),
            config=config,
            step=log[-1]["step"] if log else 0,
            loss=log[-1].get("train/loss") if log else None,
            evaluated=_evaluated(evaluations),
            charts=list(_charts(evaluations)),
            slices=_slices(workdir, config, by) if by else None,
            moments=_moments(workdir, config, lines),
            funnel=draw_log.funnel(config, log),
            titles={
                stage.criterion: config_lib.criterion(stage.criterion)
                for stage in config.selection.stages
            },
        )
    files.write_whole(path, page)


def add_images(
    workdir: str, lines: Sequence[dict], *, trust: bool = False
) -> None:
    """Adds `image`, `caption` and `id` to the rows of lines of telemetry.

    The rows are those under `highest` and `lowest` of every stage, and under
    `offered` of the line, if any.
    """
    config = directory.load_config(workdir, trust=trust)
    first = _sources(config)
    for line in lines:
        number = line["super_batch"]
        here = inputs.funnel_at(config, first, workdir, number)
        rows = [*line.get("offered", ())]
        for stage in line["stages"]:
            rows += stage["highest"] + stage["lowest"]
        _add_examples(workdir, config, here, number, rows)


def _add_examples(workdir, config, funnel, number, rows):
    """Adds their examples to rows of a super-batch, by position or row."""
    if any("position" not in row for row in rows):
        super_batch = _positions(config, funnel, number)
    positions = [
        row["position"] if "position" in row else super_batch[row["row"]]
        for row in rows
    ]
    examples = pipeline.at_positions(
        funnel.store,
        np.array(positions, np.int64),
        seed=config.seed,
        image_size=config.data.image_size,
        embedded=funnel.inputs.embedded,
        options=funnel.options,
    )
    for row, image, caption, key in zip(rows, *examples, strict=True):
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
        sidecars = inputs.open_sidecars(config, store)
    return inputs.Sources(store, None, sidecars)


def _moments(workdir, config, lines):
    """Some lines with images, newest first.

    The newest line also gets some of the rows offered to its first stage.
    """
    # Sidecars of earlier renewals are deleted.
    lines = [
        line
        for line in lines
        if bootstrap.has_sidecars(config, workdir, line["super_batch"])
    ]
    moments = [lines[-1 - i] for i in charts.evenly(len(lines), _MOMENTS)]
    if not moments:
        return []
    size = config.selection.hyper_batch_size(config.data.curated_rows)
    start = moments[0]["super_batch"] * size
    moments[0]["offered"] = [
        {"position": start + int(row), "score": None, "kept": False}
        for row in charts.evenly(size, _OFFERED)
    ]
    # `write` has checked the trust.
    add_images(workdir, moments, trust=True)
    return moments


def _slices(workdir, config, fields):
    """What selection does to each slice, those that it changes most first.

    Counts rows of the logged steps in which a stage scores: those into the
    first stage, and those of them that are trained on.
    """
    first = _sources(config)
    store = first.store
    (columns,) = slices.read_columns([store], fields)
    options = inputs.funnel_at(config, first, workdir, 0).options

    @functools.cache
    def order_at(step):
        rows = bootstrap.rows_at(config, store, workdir, step)
        of_step = dataclasses.replace(options, rows=rows)
        return pipeline.order(store, config.seed, of_step)

    counts = np.zeros([2, len(store)], np.int64)  # offered and kept
    steps = 0
    for row in directory.each_row(workdir, directory.DRAWS_FILE):
        number = row["step"] - 1
        segment = config_lib.segment_at(config.plan, number)
        if not segment.scoring:
            continue
        size = segment.sizes[0]
        positions = np.arange(number * size, (number + 1) * size)
        rows = order_at(segment.reference or 0).rows(positions)
        with directory.as_written(workdir, directory.DRAWS_FILE, ValueError):
            trained = np.array(row["ids"], np.int64)
        # A small pool offers an id several times, and not all need pass.
        ids, places, times = np.unique(
            store.ids(rows), return_index=True, return_counts=True
        )
        others, kept = np.unique(trained, return_counts=True)
        _, here, there = np.intersect1d(ids, others, True, True)
        np.add.at(counts[0], rows, 1)
        counts[1, rows[places[here]]] += np.minimum(times[here], kept[there])
        steps += 1
    if not counts[1].any():
        raise ValueError(
            "Slices need a stage and the ids of the rows that were trained on: "
            "train with `evaluation.log_ids=true`. Received: no scored step in "
            f"{directory.path(workdir, directory.DRAWS_FILE)}"
        )
    totals, found = counts.sum(1).tolist(), []
    for field, column in columns.items():
        names, members = slices.find_members(column)
        of_slices = (
            np.bincount(members, each).astype(int).tolist() for each in counts
        )
        for name, offered, kept in zip(names, *of_slices, strict=True):
            if offered:
                share = offered / totals[0]
                after = slices.estimate(kept / totals[1], totals[1])
                found.append((f"{field}={name}", offered, share, kept, after))
    found.sort(key=lambda row: -abs(row[-1].value - row[2]))
    return {"rows": found[:_SLICES], "of": len(found), "steps": steps}


def _evaluated(rows):
    """The headline measures of the last evaluation, a line per store.

    A run that evaluated its start also has a line on the changes since.
    """
    if not rows:
        return []
    last = rows[-1]
    lines = [
        f"Step {last['step']:,}, {evaluations_lib.describe(store, last)}"
        for store in _stores(rows)
    ]
    change = evaluations_lib.summarize(rows, {})
    return [*lines, f"{change[0].upper()}{change[1:]}"] if change else lines


def _stores(rows):
    names = (name for name in rows[-1] if name.startswith("eval/"))
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def _positions(config, funnel, number):
    size = funnel.plan[0].super_batch_size
    stages = inputs.make_stored_stages(config, funnel)
    if stages is None:
        return range(number * size, (number + 1) * size)
    return next(iter(stages.positions(number, slice(0, size)).take(1))).numpy()


def _charts(evaluations) -> Iterator[charts.Chart]:
    """Headline measures against the FLOPs that they cost, by store."""
    # Nothing is spent before the first step.
    rows = [
        row for row in evaluations if "flops/step" in row or not row["step"]
    ]
    for store in _stores(rows) if len(rows) > 1 else ():
        shown = []
        for (measure, title), colour in zip(
            evaluations_lib.HEADLINES, _COLOURS, strict=True
        ):
            name = f"eval/{store}/{measure}"
            measured = [row for row in rows if name in row]
            flops = [sum(row.get(c, 0) for c in _COSTS) for row in measured]
            shown.append(
                charts.Line(
                    title,
                    colour,
                    [number / 1e12 for number in flops],
                    [row[name] for row in measured],
                )
            )
        yield charts.draw(f"Score on {store}", shown, "TFLOPs")
