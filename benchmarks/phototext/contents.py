"""PhotoText's tables and figure: the methods that they compare."""

import numpy as np
import pandas as pd

from benchmarks.phototext import cells, sources
from benchmarks.protocol import figures, measures, tables
from benchmarks.protocol.benchmark import GIVEN, TUNED

BENCHMARK = cells.BENCHMARK
# Shares of moved captions.
_MOVED_LEVEL, _STEERED_LEVEL, _TUNED_LEVEL = 0.7, 0.0, 0.6
_OTHER_LEVELS = {"moved_00": 0.0, "moved_30": 0.3}
_PARTS = {2: "half", 3: "third", 5: "fifth"}
_ALONE_OR_DISTILLED = ("", ""), ("_distilled", ", distillation")
# What methods are, at 70 % moved captions.
_MOVED = {
    "uniform": "uniform, the target",
    "uniform_annealed": "uniform, annealed",
    "reference_data": "the reference's clean pairs alone",
    "mixed_2": "the reference's clean pairs, half a batch",
    "clean": "the clean pairs of the pool alone",
    "distilled_reference_data": "the reference's clean pairs, distillation",
    "jest": "JEST, f = 0.8",
    "jest_distilled": "JEST, f = 0.8, distillation",
    "distilled": "distillation alone",
    **{
        f"stored_{n}{name}": f"stored stage, {n} candidates{what}"
        for n in _PARTS
        for name, what in _ALONE_OR_DISTILLED
    },
    **{
        f"top_{n}{name}": f"the pool cut once to a {part}{what}"
        for n, part in _PARTS.items()
        for name, what in _ALONE_OR_DISTILLED
    },
    "top_3_jest_distilled": "the pool cut once to a third, JEST, distillation",
}
_BEST = "jest", "stored_3_distilled", "top_3_distilled"
_AT_OTHER_LEVELS = "reference_data", "distilled", "stored_3", "top_3", *_BEST
# Rows of the README's table: group, method, and how FLOPs are counted.
_OFFERS = (
    (
        "a model of your domain, and a smaller learner",
        "the pool cut once, then distillation",
        *("moved", "top_3_distilled", "paper"),
    ),
    (
        "a model of your domain, used for selection only",
        *("JEST, for the higher score", "moved", "jest", "paper"),
    ),
    (
        "the same",
        *("a cut to a fifth, for fewer FLOPs", "moved", "top_5", "paper"),
    ),
    (
        "31,000 clean pairs of your domain, and no model",
        "these alone, everything counted",
        *("moved", "reference_data", "all"),
    ),
)
# Steered to the domain of the reference; no caption is moved.
_STEERED = {
    "uniform": "uniform, the target",
    "own_pairs": "the source's own pairs of the pool",
    "own_pairs_distilled": "the source's own pairs, distillation",
    "reference_data": "the reference's pairs alone",
    "jest": "JEST, f = 0.8",
    "distilled": "distillation alone",
    "stored_10": "stored stage, 10 candidates",
    "stored_10_distilled": "stored stage, 10 candidates, distillation",
    "top_10": "the pool cut once to a tenth",
    "top_10_distilled": "the pool cut once to a tenth, distillation",
    "stored_2_distilled": "stored stage, 2 candidates, distillation",
    "top_2_distilled": "the pool cut once to a half, distillation",
}
# Lengths of uniform training that set the target.
_TARGETS = 2000, 4000
# Rows of the table of sources: what, method, steps, level.
_BY_SOURCE = (
    ("the reference", "reference", 2000, _MOVED_LEVEL),
    ("uniform, no caption moved", "uniform", None, _STEERED_LEVEL),
    ("uniform, 70 % moved", "uniform", None, _MOVED_LEVEL),
    *(
        (f"{_MOVED[method]}, 70 % moved", method, None, _MOVED_LEVEL)
        for method in _BEST
    ),
)
# Tuning a general model on shop photographs: what, the method and its steps.
_TUNED = (
    ("plain", "plain", 500),
    ("plain, for longer", "plain", 875),
    ("the image tower frozen (LiT)", "lit", 500),
    ("LoRA, rank 16", "lora", 500),
    ("distilled from the start", "plain_distilled", 500),
    ("the checked pairs alone", "checked", 300),
    ("the checked pairs alone, for longer", "checked", 900),
    *(
        (f"{what} by {by}", f"{method}_by_{name}", 500)
        for name, by in (("start", "the start"), ("copy", "a tuned copy"))
        for what, method in (
            ("JEST, f = 0.8,", "jest"),
            ("stored stage, 3 candidates,", "stored_3"),
            ("the pool cut once to a third", "top_3"),
        )
    ),
    (
        "stored stage, 3 candidates, distillation, by a tuned copy",
        *("stored_3_distilled_by_copy", 500),
    ),
    ("plain, with replay", "plain_replayed", 500),
    (
        "the checked pairs alone, with replay, for longer",
        *("checked_replayed", 900),
    ),
    (
        "stored stage, 3 candidates, by a tuned copy, with replay",
        *("stored_3_by_copy_replayed", 500),
    ),
    *(
        (f"{what}, with replay{longer}", f"{method}_replayed", steps)
        for what, method in (
            (
                "stored stage, 3 candidates, by a tuned copy, renewed",
                "stored_3_by_copy_renewed",
            ),
            ("the pool cut once to a third by a tuned copy", "top_3_by_copy"),
            (
                "the pool cut to a third by a second copy",
                "top_3_by_second_copy",
            ),
        )
        for steps, longer in ((500, ""), (1000, ", for longer"))
    ),
)
_CURVES = {
    "uniform": ("uniform", "0.6", "-", "."),
    "jest": ("JEST", "tab:blue", "-", "o"),
}
_CURVES_MOVED = _CURVES | {
    "clean": ("the pool's\nclean pairs", "0.6", "--", "D"),
    "top_3_distilled": ("cut once, distillation", "tab:red", "-", "v"),
    "stored_3_distilled": ("stored stage, distillation", "black", "-", "o"),
}
_CURVES_STEERED = _CURVES | {
    "own_pairs": ("the source's\nown pairs", "0.6", "--", "D"),
    "top_10_distilled": ("cut once, distillation", "tab:red", "-", "v"),
    "stored_10_distilled": ("stored stage, distillation", "black", "-", "o"),
}
_CURVES_TUNED = {
    ("plain", 500): ("plain", "0.6", "-", "."),
    ("lit", 500): ("LiT", "0.6", "--", "."),
    ("lora", 500): ("LoRA", "0.6", ":", "."),
    ("checked", 300): ("checked pairs alone", "tab:orange", "-", "D"),
    ("stored_3_by_start", 500): ("stage by the start", "tab:blue", "-", "v"),
    ("top_3_by_copy", 500): ("cut by a tuned copy", "tab:red", "-", "v"),
    ("stored_3_by_copy", 500): ("stage by a tuned copy", "black", "-", "o"),
    ("plain_replayed", 500): ("plain, with replay", "0.6", "-", "s"),
    ("checked_replayed", 900): (
        *("checked, with replay", "tab:orange", "-", "s"),
    ),
    ("top_3_by_copy_replayed", 1000): (
        *("the cut, with replay", "tab:red", "-", "s"),
    ),
    ("stored_3_by_copy_renewed_replayed", 1000): (
        *("the stage renewed, with replay", "black", "-", "s"),
    ),
}
_MIX = 0.75  # of the table
_SHOP = "test_fashion"
_SHOWN = "aerial"  # the domain in the figure


def groups(folder=None):
    """The `tables.Group`s of a folder of tables, by name."""
    about = {"benchmark": BENCHMARK.name, "arm": "moved", "domain": None}
    about |= {"regime": GIVEN, "learner": "half width", "batch_size": 256}
    costs = "paper", "all"
    found = {
        "moved": tables.Group(
            measures.Results(BENCHMARK, folder, GIVEN),
            *(_methods(_MOVED), _MOVED_LEVEL, measures.COSTS, about),
        )
    }
    for name, level in _OTHER_LEVELS.items():
        methods = _methods(_MOVED, ("uniform", *_AT_OTHER_LEVELS))
        found[name] = found["moved"]._replace(methods=methods, noise=level)
    for domain in BENCHMARK.domains:
        found[domain] = tables.Group(
            measures.Results(BENCHMARK, folder, GIVEN, domain=domain),
            *(_methods(_STEERED), _STEERED_LEVEL, costs),
            about | {"arm": "steering", "domain": domain},
        )
    found["large"] = tables.Group(
        measures.Results(BENCHMARK, folder, GIVEN, cells.LARGE),
        *(_methods(_MOVED, ("uniform", "top_5", *_BEST)), _MOVED_LEVEL),
        *(costs, about | {"batch_size": 1024}),
    )
    found["tuned"] = tables.Group(
        measures.Results(BENCHMARK, folder, TUNED),
        *((), _TUNED_LEVEL, costs, about | {"arm": "tuned"}),
    )
    return found


def _methods(what, names=None, steps=None):
    """Methods of a `tables.Group`, all of `what` without names."""
    return tuple((what[name], name, steps) for name in names or what)


# Groups whose methods are in summary.json.
SUMMARY = "moved", *_OTHER_LEVELS, "large", *BENCHMARK.domains


def panels(found):
    """The `figures.Panel`s of the figure, of the arms that were run."""
    both = (
        figures.Panel(
            found["moved"],
            "70 % of the captions moved",
            *(_CURVES_MOVED, cells.REFERENCE),
        ),
        figures.Panel(
            found[_SHOWN],
            f"None moved, a reference of {_SHOWN} photographs",
            *(_CURVES_STEERED, cells.OF_DOMAIN[_SHOWN]),
        ),
    )
    return [panel for panel in both if [*panel.group.lines()]]


def _steered(found, header, cells):
    """A row for each method, with two cells for each reference's domain."""
    header = [each.format(x) for x in BENCHMARK.domains for each in header]
    rows = {what: [what] for what in _STEERED.values()}
    for domain in BENCHMARK.domains:
        lines = dict(found[domain].lines())
        for what, row in rows.items():
            line = lines.get(what)
            row += cells(domain, found[domain], line) if line else ("", "")
    shown = (row for row in rows.values() if any(row[1:]))
    return tables.rows_under(("training", *header), shown)


def _steering(found):
    """Scores on the tests of each reference's domain, and on the others."""

    def cells(domain, group, line):
        others = (name for name in BENCHMARK.tests if domain not in name)
        scores = [group.results.mean(line, test) for test in others]
        yield tables.score(group.results, line)
        yield f"{100 * np.mean(scores):.1f}"

    return _steered(found, ("{}", "others"), cells)


def _steering_ratios(found):
    """Median ratios to two lengths, of the methods that reach the longer."""

    def cells(domain, group, line):
        for steps in _TARGETS:
            yield tables.medians(group.results.by_seed(line, steps=steps))

    rows = _steered(found, [f"{{}}, {n:,} steps" for n in _TARGETS], cells)
    return rows[:1] + [row for row in rows[2:] if "x" in "".join(row[2::2])]


def _by_source(found):
    """Scores on the tests of each source."""
    results, rows = found["moved"].results, []
    for what, method, steps, level in _BY_SOURCE:
        line = found["moved"]._replace(noise=level).line(method, steps)
        if line:
            scores = [results.mean(line, test) for test in BENCHMARK.tests]
            scores.append(np.mean(scores))
            shown = (f"{100 * score:.1f}" for score in scores)
            rows.append((what, f"{line.steps:,}", *shown))
    return tables.rows_under(
        ("training", "steps", *sources.SOURCES, "mean"), rows
    )


def tuning(found):
    """Gain on shop photographs and forgetting elsewhere, by method and mix.

    Returns:
        `{(method, steps): {mix: (gain, forgotten) of each seed, [seeds, 2]}}`,
        in MRR x 100; empty without the start.
    """
    by_method = {}
    for _, method, steps in _TUNED:
        changes = {
            mix: _changes(found, method, steps, mix)
            for mix in (*cells.MIXES[1:], 1.0)
        }
        if changes[1.0] is not None:
            by_method[method, steps] = {
                mix: change
                for mix, change in changes.items()
                if change is not None
            }
    return by_method


def _changes(found, method, steps, mix=1.0):
    """Gain and forgetting of each seed, [seeds, 2]; None without a run.

    The start is measured beside a run, as none of its weights; elsewhere once.
    """
    starts, results = found["moved"].results.runs, found["tuned"].results
    mixed = f"_mixed_{mix:g}" * (mix < 1)
    line = results.line(method + mixed, _TUNED_LEVEL, steps)
    if cells.START not in starts.index or not line:
        return None
    start = line.cell.removesuffix(mixed) + "_mixed_0"
    changes = []
    for seed in line.seeds:
        before = starts.loc[cells.START, 0]
        if (start, seed) in results.runs.index:
            before = results.runs.loc[start, seed]
        after = results.runs.loc[line.cell, seed]
        changes.append(_shop_and_general(after) - _shop_and_general(before))
    return 100 * np.array(changes) * (1, -1)


def _shop_and_general(row):
    """The score on shop photographs, and the mean of the other tests."""
    others = [test for test in BENCHMARK.tests if test != _SHOP]
    return np.array([row[_SHOP], np.mean([row[test] for test in others])])


def _tuning(found):
    """Gain and forgetting of each method, alone and mixed with the start."""
    by_method, rows = tuning(found), []
    for what, *way in _TUNED:
        if tuple(way) in by_method:
            alone, mixed = (by_method[*way].get(mix) for mix in (1.0, _MIX))
            mixed = [] if mixed is None else mixed.mean(0)
            results = found["tuned"].results
            line = results.line(way[0], _TUNED_LEVEL, way[1])
            # The start is given; copies are tuned for this.
            by = results.runs.loc[line.cell, "reference"]
            by_copy = by.isin((cells.COPY, cells.SECOND_COPY)).all()
            spent = results.flops(line, "all" if by_copy else "paper")
            rows.append(
                (
                    *(what, f"{line.steps:,}", f"{spent / 1e12:.1f}"),
                    str(len(alone)),
                    *map(_by_seed, alone.T),
                    *([f"{value:+.1f}" for value in mixed] or ["", ""]),
                )
            )
    return tables.rows_under(
        (
            *("tuning", "steps", "TFLOPs", "seeds", "gain", "forgotten"),
            *("gain, mixed", "forgotten, mixed"),
        ),
        rows,
    )


def _rates(found):
    """Gain, and what is forgotten, by learning rate; of the first seed."""
    rows = []
    for what, method, steps in _TUNED:
        names = [
            method + f"_at_{rate}" * (rate != cells.RATE)
            for rate in cells.RATES
        ]
        changes = [_changes(found, name, steps) for name in names]
        if all(change is not None for change in changes):
            shown = (
                "/".join(f"{value:+.1f}" for value in change[0])
                for change in changes
            )
            rows.append((what, f"{steps}", *shown))
    return tables.rows_under(("tuning", "steps", *cells.RATES), rows)


def _by_seed(values):
    """The mean of changes, and each seed's if there are several."""
    each = ", ".join(f"{value:+.1f}" for value in values)
    return f"{np.mean(values):+.1f}" + f" ({each})" * (len(values) > 1)


def _people(found):
    """Agreement of scores of pairs with people, Kendall's tau x 100."""
    path = found["moved"].results.folder / "judgements.csv"
    if not path.exists():
        return []
    judged = pd.read_csv(path, keep_default_na=False)
    judged = judged[judged["measure"].str.startswith("tau")]
    key, rows = ["run", "reference", "criterion"], []
    for (run, by, criterion), some in judged.groupby(key, sort=False):
        some = some.set_index("judges")[["value", "low", "high"]]
        shown = (
            tables.told(measures.Estimate(*some.loc[judges]), 100)
            for judges in ("experts", "crowd")
        )
        rows.append((criterion, run, by, *shown))
    return tables.rows_under(
        ("score of a pair", "model", "beside", "experts", "crowd"), rows
    )


def _draw_tuning(found, path):
    if by_method := tuning(found):
        figures.draw_changes(by_method, _CURVES_TUNED, path)


# Functions of the groups and a path that draw a figure, by its file's name.
FIGURES = {
    "photos.png": lambda found, path: figures.draw(panels(found), path),
    "tuning.png": _draw_tuning,
}
# Functions of the groups that return rows of text, by the table's name.
TABLES = {
    "moved": lambda found: tables.ratios(found["moved"]),
    "large": lambda found: tables.ratios(found["large"]),
    "readme": lambda found: tables.offers(found, _OFFERS),
    "noise": lambda found: tables.over_noise(
        found["moved"]._replace(
            methods=_methods(_MOVED, _AT_OTHER_LEVELS, 800), costs=("paper",)
        ),
        "moved",
    ),
    "steering": _steering,
    "steering_ratios": _steering_ratios,
    "two_targets": lambda found: tables.two_targets(
        found["moved"]._replace(
            methods=_methods(_MOVED, ("reference_data", *_BEST))
        ),
        _TARGETS,
    ),
    "sources": _by_source,
    "tuning": _tuning,
    "rates": _rates,
    "people": _people,
}
