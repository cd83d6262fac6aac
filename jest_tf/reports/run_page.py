"""A page that shows what a run selects: pictures, captions, charts.

One HTML file without scripts that needs no server and no network: pictures are
in it at the pixels that the learner sees, charts are SVG. It is rendered from
what a run has written (`runs/draw_log.py`) and from its data; no model runs.
"""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import cascade, pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.models import reference
from jest_tf.runs import checkpoints, draw_log
from jest_tf.runs import log as log_lib

_CHART_WIDTH, _CHART_HEIGHT = 400, 220
# Left, right, top, bottom of a chart's lines.
_MARGINS = (46, 12, 10, 24)
_LEGEND = {
    "kept": "kept",
    "dropped": "dropped",
    "uniform": "a uniform draw",
}
_EXTREMES_OF = {
    "learnability": ("Most learnable", "Least learnable"),
    "easy_reference": ("Easiest for the reference", "Hardest for it"),
    "hard_learner": ("Hardest for the learner", "Easiest for it"),
}


class Card(NamedTuple):
    """An example with an extreme score.

    Attributes:
        image: uint8 [S, S, 3].
        caption: the one that was drawn with it.
        id: of the record.
        score: the criterion given the sub-batch.
        kept: whether it was trained on.
    """

    image: np.ndarray
    caption: str
    id: int
    score: float
    kept: bool


class Moment(NamedTuple):
    """A logged draw of a run.

    Attributes:
        step: steps done.
        criterion: that it was drawn by.
        highest: the cards with the highest scores, highest first.
        lowest: those with the lowest, lowest first.
    """

    step: int
    criterion: str
    highest: list[Card]
    lowest: list[Card]


def moments(workdir: str, lines: Sequence[dict]) -> list[Moment]:
    """Finds the examples that lines of `telemetry.jsonl` speak of.

    Args:
        workdir: the run directory.
        lines: some lines, see `read`.

    Raises:
        ValueError: where the data is not what the run was trained on.
    """
    config = _config(workdir)
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
    spoken_of = []
    for line in lines:
        rows = [*line["highest"], *line["lowest"]]
        positions = _positions(config, store, stage_0, line["super_batch"])
        spoken_of += [(int(positions[row["row"]]), row) for row in rows]
    examples = pipeline.at_positions(
        store,
        np.array([position for position, _ in spoken_of], np.int64),
        step_size=stage_0.size if stage_0 else data.super_batch_size,
        seed=config.seed,
        image_size=data.image_size,
        weights=data.weights,
        shuffle_block_size=data.shuffle_block_size,
        sidecars=sidecars,
        max_image_pixels=data.max_image_pixels,
    )
    cards = []
    for (position, row), image, caption, key in zip(
        spoken_of, *examples, strict=True
    ):
        if row.get("id", key) != key:
            raise ValueError(
                f"`data.train` must be the data that the run in {workdir!r} "
                f"was trained on, with id {row['id']} at position {position}. "
                f"Received: id {key}"
            )
        cards.append(Card(image, caption, int(key), row["score"], row["kept"]))
    found, cards = [], iter(cards)
    for line in lines:
        extremes = [
            [next(cards) for _ in line[name]] for name in ("highest", "lowest")
        ]
        found.append(Moment(line["step"], line["criterion"], *extremes))
    return found


def _positions(config, store, stage_0, number):
    """The positions of a super-batch, of which a cascade makes a choice."""
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


def read(workdir: str) -> list[dict]:
    """The lines of a run's `telemetry.jsonl`.

    Raises:
        ValueError: where there are none.
    """
    path = os.path.join(workdir, checkpoints.TELEMETRY_FILE)
    lines = log_lib.read_log(path) if os.path.isfile(path) else []
    if not lines:
        raise ValueError(
            "There is no selection to show: expected a run that scores, with "
            f"`evaluation.telemetry`. Received: {workdir!r} without a line of "
            f"{checkpoints.TELEMETRY_FILE}"
        )
    return lines


def evenly(lines: Sequence[dict], count: int) -> list[dict]:
    """At most `count` of the lines, the first and the last among them."""
    places = np.linspace(0, len(lines) - 1, min(count, len(lines)))
    return [lines[place] for place in np.unique(np.round(places).astype(int))]


def write(workdir: str, path: str, num_moments: int = 8) -> None:
    """Renders the page of a run.

    Args:
        workdir: the run directory, of a run that may still be going on.
        path: the HTML file.
        num_moments: logged draws whose pictures are shown.

    Raises:
        ValueError: as `read` and `moments`.
    """
    if num_moments < 1:
        raise ValueError(
            f"`num_moments` must be at least 1. Received: {num_moments}"
        )
    lines = read(workdir)
    shown = moments(workdir, evenly(lines, num_moments))
    log = log_lib.read_log(os.path.join(workdir, checkpoints.METRICS_FILE))
    text = _page(_config(workdir), workdir, lines, log, shown)
    with files.written_whole(path) as partial:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)


def _config(workdir):
    path = os.path.join(workdir, reference.CONFIG_FILE)
    if not os.path.isfile(path):
        raise ValueError(
            f"Expected a run directory, with {reference.CONFIG_FILE}. "
            f"Received: {workdir!r}"
        )
    return config_lib.load_config(path)


def _page(config, workdir, lines, log, shown):
    selection = config.selection
    facts = {
        "draw": f"{selection.method}, by {selection.criterion}",
        "super-batch B": f"{config.data.super_batch_size:,}",
        "sub-batch b": f"{config.batch_size:,}",
        "steps": f"{lines[-1]['step']:,} of {config.steps:,}",
        "seed": str(config.seed),
        "learner": config.model.towers or config.model.preset,
    }
    charts = "".join(_charts(lines, log))
    gallery = "".join(_moment(moment) for moment in reversed(shown))
    return document(
        ("What ", os.path.basename(os.path.abspath(workdir)), " selects"),
        facts,
        f'<section class="charts">{charts}</section>\n'
        "<h2>Extremes of the scored rows, newest first</h2>\n"
        '<p class="note">Of logged super-batches the rows with the highest and '
        "the lowest score given the sub-batch, with the pixels that the "
        "learner scores. Framed ones were kept and trained on.</p>\n"
        f"{gallery}",
    )


def document(
    title: tuple[str, str, str], facts: Mapping[str, str], body: str
) -> str:
    """A whole page.

    Args:
        title: before, in and after what is coloured.
        facts: names and values beneath the title.
        body: HTML.
    """
    before, name, after = map(html.escape, title)
    listed = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
        for key, value in facts.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{before}{name}{after}</title>\n"
        f"<style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{before}<em>{name}</em>{after}</h1>"
        f"<dl>{listed}</dl></header>\n"
        f"{body}</body></html>\n"
    )


def _charts(lines, log):
    """The figures of those charts that the run has numbers for."""
    steps = [line["step"] for line in lines]

    def of_log(*names):
        rows = [row for row in log if all(name in row for name in names)]
        points = [[row["step"] for row in rows]]
        return points + [[row[name] for row in rows] for name in names]

    at, score, uniform = of_log("select/score", "select/uniform_score")
    yield chart(
        "Score of the sub-batch",
        {"kept": (at, score), "uniform": (at, uniform)},
        legend={"kept": "the draw", "uniform": "a uniform draw"},
    )
    for quantity in draw_log.QUANTITIES:
        if quantity not in lines[0]:
            continue
        series, bands = {}, {}
        for group in draw_log.GROUPS:
            found = [
                (line["step"], line[quantity][group]["quantiles"])
                for line in lines
                if line.get(quantity, {}).get(group, {}).get("count")
            ]
            if not found:
                continue
            at = [step for step, _ in found]
            low, middle, high = (
                [values[draw_log.LEVELS.index(level)] for _, values in found]
                for level in (0.05, 0.5, 0.95)
            )
            series[group] = (at, middle)
            if group != "uniform":
                bands[group] = (at, low, high)
        yield chart(
            f"{quantity.replace('_', ' ').capitalize()} of rows: median, and "
            "5 to 95 %",
            series,
            bands=bands,
        )
    yield chart(
        "Share of the draw that other draws hold too",
        {
            "kept": (steps, [line["overlap_independent"] for line in lines]),
            "uniform": (steps, [line["overlap_uniform"] for line in lines]),
            "chance": (steps, [1 - line["filter_ratio"] for line in lines]),
        },
        legend={
            "kept": "independent, same noise",
            "uniform": "uniform, same noise",
            "chance": "chance",
        },
        unit_range=True,
    )
    at, repeats = of_log("train/repeat_rate")
    of_ratio, ratio = of_log("select/effective_filter_ratio")
    if at:
        yield chart(
            "Records",
            {"kept": (at, repeats), "dropped": (of_ratio, ratio)},
            legend={
                "kept": "trained, and trained before",
                "dropped": "drawn so far and never trained",
            },
            unit_range=True,
        )


def chart(
    title: str,
    series: Mapping[str, tuple],
    bands: Mapping[str, tuple] | None = None,
    legend: Mapping[str, str] = _LEGEND,
    unit_range: bool = False,
    across: str = "by step",
) -> str:
    """A figure with an SVG: lines by name, over bands by name.

    Args:
        title: above it.
        series: steps, or what else goes across, and values; named as the
            styles of the page, "kept", "dropped", "uniform" and "chance".
        bands: steps, lower and upper values.
        legend: what to call them.
        unit_range: whether values are from 0 to 1.
        across: what goes across.
    """
    bands = bands or {}
    every = [values for _, values in series.values()]
    every += [values for band in bands.values() for values in band[1:]]
    left, right, top, bottom = _MARGINS
    steps = [step for at, _ in series.values() for step in at]
    low, high, ticks = round_ticks(0.0, 1.0) if unit_range else _range(every)
    begin, end = min(steps), max(steps)
    step_ticks = round_ticks(min(0, begin), end)[2]

    def x(step):
        share = (step - begin) / ((end - begin) or 1)
        return left + share * (_CHART_WIDTH - left - right)

    def y(value):
        share = (value - low) / (high - low)
        return _CHART_HEIGHT - bottom - share * (_CHART_HEIGHT - top - bottom)

    def path(points):
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)

    drawn = [
        f'<line class="grid" x1="{left}" x2="{_CHART_WIDTH - right}" '
        f'y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" class="tick end">'
        f"{tick:g}</text>"
        for tick in ticks
    ]
    drawn += [
        f'<text x="{x(tick):.1f}" y="{_CHART_HEIGHT - 6}" class="tick mid">'
        f"{tick:,g}</text>"
        for tick in step_ticks
        if begin <= tick <= end
    ]
    drawn += [
        f'<polygon class="band {name}" points="'
        f"{path(zip(at, lower, strict=True))} "
        f'{path(reversed(list(zip(at, upper, strict=True))))}"/>'
        for name, (at, lower, upper) in bands.items()
    ]
    drawn += [
        f'<polyline class="line {name}" '
        f'points="{path(zip(at, values, strict=True))}"/>'
        for name, (at, values) in series.items()
        if at
    ]
    keys = "".join(
        f'<span class="key {name}">{html.escape(legend[name])}</span>'
        for name, (at, _) in series.items()
        if at
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(drawn)}</svg>'
        f'<div class="keys">{keys}<span>{html.escape(across)}</span>'
        "</div></figure>"
    )


def _range(every):
    values = np.concatenate([np.asarray(one, np.float64) for one in every])
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 1.0
    return round_ticks(low - margin, high + margin)


def round_ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """The range, and round numbers in it, about five."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    size = min(
        (one * power for one in (1, 2, 5, 10)), key=lambda s: abs(s - rough)
    )
    first = int(np.ceil(low / size - 1e-9))
    last = int(np.floor(high / size + 1e-9))
    return low, high, [round(n * size, 10) for n in range(first, last + 1)]


def _moment(moment):
    titles = _EXTREMES_OF[moment.criterion]
    rows = "".join(
        f'<h4>{title}</h4><div class="cards">'
        f"{''.join(figure(card) for card in cards)}</div>"
        for title, cards in zip(
            titles, (moment.highest, moment.lowest), strict=True
        )
    )
    return (
        f'<section class="moment"><h3>Step {moment.step:,}</h3>{rows}'
        "</section>\n"
    )


def figure(card: Card) -> str:
    """A card as HTML; framed where it was kept."""
    png = base64.b64encode(tf.io.encode_png(card.image).numpy()).decode()
    caption = html.escape(card.caption)
    kept = " kept" if card.kept else ""
    return (
        f'<figure class="card{kept}" title="id {card.id}&#10;{caption}">'
        f'<img src="data:image/png;base64,{png}" alt="{caption}">'
        f"<b>{card.score:+.2f}</b>"
        f'<figcaption dir="auto">{caption}</figcaption></figure>'
    )


_STYLE = """
:root { color-scheme: light dark; --kept: #c2410c; --dropped: #64748b;
  --uniform: #2563eb; --chance: #a1a1aa; --grid: #8883; --soft: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 24px;
  max-width: 1280px; }
h1 { font-weight: 650; margin: 0 0 8px; } h1 em { color: var(--kept);
  font-style: normal; }
h2 { margin: 36px 0 4px; } h3 { margin: 0 0 4px; }
h4 { margin: 10px 0 6px; font-weight: 500; opacity: .75; }
.note { margin: 0 0 16px; opacity: .75; }
dl { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0 0 20px; }
dt { font-size: 12px; opacity: .65; } dd { margin: 0; font-weight: 600; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); }
.charts figure { margin: 0; padding: 12px; background: var(--soft);
  border-radius: 10px; }
.charts figcaption { font-weight: 600; font-size: 14px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--grid); }
.tick { font-size: 11px; fill: currentColor; opacity: .65; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.band { opacity: .16; }
.line.kept { stroke: var(--kept); } .band.kept { fill: var(--kept); }
.line.dropped { stroke: var(--dropped); }
.band.dropped { fill: var(--dropped); }
.line.uniform { stroke: var(--uniform); }
.line.chance { stroke: var(--chance); stroke-dasharray: 5 4; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; }
.keys span:last-child { margin-left: auto; opacity: .65; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px;
  margin-right: 6px; vertical-align: middle; background: currentColor; }
.key.kept::before { background: var(--kept); }
.key.dropped::before { background: var(--dropped); }
.key.uniform::before { background: var(--uniform); }
.key.chance::before { background: var(--chance); }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
td, th { padding: 2px 6px; text-align: right; white-space: nowrap; }
td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; }
.moment { border-top: 1px solid var(--grid); padding: 16px 0 8px; }
.cards { display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); }
.card { margin: 0; padding: 6px; border: 2px solid transparent;
  border-radius: 8px; background: var(--soft); font-size: 12px; }
.card.kept { border-color: var(--kept); }
.card img { width: 100%; aspect-ratio: 1; image-rendering: pixelated;
  display: block; border-radius: 4px; }
.card b { font-variant-numeric: tabular-nums; }
.card figcaption { overflow: hidden; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
"""
