"""What the web-like data say, in the words of the report and of pages.

All numbers are those of summary.json; a name of `WebWords` is a word of the
templates.
"""

import collections

from benchmarks.icontext import (
    claims,
    estimates,
    gains,
    matrix,
    summary,
    web_runs,
)
from benchmarks.icontext import comparison as comparison_lib
from benchmarks.icontext import web as web_lib

# Rows of the web-like table: method and its training in words.
_ROWS = {
    "uniform": "uniform, the target",
    "longer": "uniform, longer",
    "mixture": "{} of every batch curated, {}",
    "filtered_50": "the best-matching half of the pool, cut once by a "
    "reference of the curated set",
    "cascade_curated": "cascade by a reference of the curated set",
    "renewed": "cascade begun by a reference of the curated set, then renewed",
    "bootstrapped": "**bootstrapped cascade**",
    "for longer": "bootstrapped cascade, longer",
    "oracle": "uniform on the clean pairs alone, the oracle",
}
# Of summary.json.
_Entries = collections.namedtuple(
    "_Entries",
    "rows bills held_out first_crossings uniform_ends equal_scores",
)
# A run's score ratio at equal FLOPs.
_Ratio = collections.namedtuple("_Ratio", "noise steps seeds value")
# How much of a batch each mixture takes from the curated set.
_SHARES = {
    "mixed_16": "a sixteenth",
    "mixed_8": "an eighth",
    "mixed_4": "a quarter",
    "mixed_2": "a half",
}
_MISSED = "not reached"
# A bill of so many times the target's is of equal cost.
_EQUAL_COST = 1.03
_MOST = 50  # a ratio by a slope that is told
_METHOD = "bootstrapped"  # of which the goals are asked
# What is asked: the least value, its digits, what it is of, and its name.
_GOALS = (
    (13.1, 1, "x fewer examples than uniform training", "examples"),
    (9.9, 1, "x fewer FLOPs than uniform training", "flops"),
    (5.0, 1, "x fewer examples than the best mixture", "mixture"),
    (5.0, 1, "x fewer FLOPs than the best mixture", "mixture_flops"),
    (
        1.5,
        2,
        " times uniform training's best score at equal cost",
        "equal_cost",
    ),
    (0.9, 2, " of the oracle's score", "oracle"),
)


def lines_of(web, method, level=claims.LEVEL):
    """A method's `_Entries` for each length, shortest first."""
    lists = [web[name] for name in _Entries._fields] if web else []
    return sorted(
        (
            line
            for line in map(_Entries._make, zip(*lists, strict=True))
            if (line[0]["noise"], line[0]["method"]) == (level, method)
        ),
        key=lambda line: line[0]["steps"],
    )


class WebWords(web_runs.RunWords):
    """Results on the web-like data in words.

    Args:
        web: the content of summary.json, or None.
        folder: of the results.
    """

    def __init__(self, web, folder):
        self._web = web
        super().__init__(folder)
        self._validation = summary.load(folder, ("val",))

    def web(self, method, is_given):
        """Score ratios of a method's shortest and longest runs, in words.

        Args:
            method: as in summary.json.
            is_given: leave the training of the reference out of the FLOPs.
        """
        found = [
            one
            for one in self._ratios(method, is_given)
            if one.noise == claims.LEVEL
        ]
        if not found:
            return claims.NOT_RUN
        words = gains.series(
            f"{self._told(one)} after {one.steps:,} steps"
            for one in (*found[:1], *found[1:][-1:])
        )
        level = web_runs.percent(claims.LEVEL)
        return f"a score ratio of {words} at {level} noise"

    def web_levels(self):
        """Levels of noise with score ratios of bootstrapping, in words."""
        ratios = self._ratios(_METHOD, False)
        return [*map(web_runs.percent, sorted({one.noise for one in ratios}))]

    def web_ratios(self, method, is_given):
        """Score ratios at the length that most levels share, in words.

        Args:
            method: as in summary.json.
            is_given: leave the training of the reference out of the FLOPs.

        Returns:
            the length, and a ratio for each of `web_levels`.
        """
        ratios = self._ratios(method, is_given)
        common = gains.shared_length(ratios)
        found = {
            web_runs.percent(one.noise): self._told(one)
            for one in ratios
            if one.steps == common
        }
        shown = [found.get(level, "") for level in self.web_levels()]
        return f"{common or 0:,}", shown

    def _ratios(self, method, is_given):
        """A method's `_Ratio`s at all levels of noise, shortest runs first."""
        name = "over_uniform" + "_given_reference" * is_given
        rows, bills = (
            self._web[part] if self._web else () for part in ("rows", "bills")
        )
        found = [
            _Ratio(row["noise"], row["steps"], row["seeds"], bill[name])
            for row, bill in zip(rows, bills, strict=True)
            if row["method"] == method and bill[name]
        ]
        return sorted(found, key=lambda one: one.steps)

    def _told(self, ratio):
        """A `_Ratio` in words, with its seeds and its split."""
        notes = [claims.seeds(ratio.seeds)] * (ratio.seeds > 1)
        notes += ["validation"] * (self.web_split() == "val")
        words = claims.told(ratio.value)
        return words + f" ({', '.join(notes)})" * bool(notes)

    def web_rows(self, is_short=False):
        """`web_row` of each method of the table that was run.

        Args:
            is_short: leave out cascades by a separate reference.
        """
        target = self.web_target() or {"steps": None, "mixture": None}
        places = {
            summary.UNIFORM: (summary.UNIFORM, target["steps"]),
            "mixture": (target["mixture"], None),
            "filtered_50": ("filtered_50", self._best_length("filtered_50")),
        }
        words = _SHARES.get(target["mixture"]), self._among_mixtures(target)
        rows = {
            name: self.web_row(*places.get(name, (name, None)))
            for name in _ROWS
        }
        rows["longer"] = self.longer_uniform()
        rows[_METHOD] = self.method_row()
        rows["for longer"] = self.longer_method()
        method = rows[_METHOD]
        for name in ("cascade_curated", "renewed"):
            row = rows[name]
            # Not run for as long.
            is_other = row and method and row["steps"] != method["steps"]
            if is_other or is_short:
                del rows[name]
        return [
            _with_own_end(row) | {"what": _ROWS[name].format(*words)}
            for name, row in rows.items()
            if row
        ]

    def _best_length(self, method):
        """Steps of the run of a method that validation prefers, or None."""
        lines = lines_of(self._validation, method)
        scores = {
            line.rows["steps"]: line.rows["score"]["mean"] for line in lines
        }
        return max(scores, key=scores.get, default=None)

    def _among_mixtures(self, target):
        """What the mixture is that the summary calls the best one, in words."""
        longest = {
            name: lines_of(self._web, name)[-1][0]["steps"]
            for name in self._methods_run("mixed_")
        }
        steps = longest.pop(target["mixture"], 0)
        if not longest:
            return "the only mixture run"
        as_long = [one for one in longest.values() if one >= steps]
        if not as_long:
            others = max(longest.values())
            return f"the only mixture run beyond {others:,} steps"
        words = f"the best of {1 + len(as_long)} mixtures"
        is_part = len(as_long) < len(longest)
        return words + f" run to {steps:,} steps" * is_part

    def method_row(self):
        """`web_row` of the method at the length that is spoken of.

        It is the longest at which the oracle was run, too.
        """
        line = self._method_line()
        return line and self.web_row(_METHOD, line[0]["steps"])

    def longer_method(self):
        """`web_row` of the method's longest run; None if it is `method_row`."""
        line = self._method_line()
        if not line or line == lines_of(self._web, _METHOD)[-1]:
            return None
        # Ratios are of the way to the target, which shorter runs have passed.
        ratios = dict.fromkeys(("examples", "flops", "mixture"), "as above")
        return self.web_row(_METHOD) | ratios | {"flops_parts": ""}

    def _method_line(self, web=None):
        web = web or self._web
        lines = lines_of(web, _METHOD)
        oracle = [line[0]["steps"] for line in lines_of(web, summary.ORACLE)]
        beside = [line for line in lines if line[0]["steps"] in oracle]
        return (beside or lines or [None])[-1]

    def other_methods(self):
        """`web_row` of the longest run of each method that has no other row.

        With the method in words, `what`, and the clean share of its choice.
        """
        cells = {
            summary.method_of(cell.cell): cell
            for cell in matrix.cells("web")
            if cell.level == claims.LEVEL
        }
        target = self.web_target() or {"mixture": None}
        shown = {*_ROWS, target["mixture"]}
        rows = []
        for method in cells:
            row = None if method in shown else self.web_row(method)
            if row is None:
                continue
            steps = lines_of(self._web, method)[-1].rows["steps"]
            clean = self.clean(f"web_{method}_{steps}")
            rows.append(
                row
                | {"what": cells[method].what}
                | {"clean": " to ".join(clean) if clean else ""}
            )
        return rows

    def filtered_shares(self):
        """How many shares of the pool, cut once, have results."""
        return len(self._methods_run("filtered_"))

    def mixtures(self):
        """Score ratios of each share of curated rows by length, in words."""
        found = []
        for method, share in _SHARES.items():
            ratios = [
                f"{claims.told(ratio)} after {line.rows['steps']:,}"
                for line in lines_of(self._web, method)
                if (ratio := line.bills["over_uniform"])
            ]
            if ratios:
                found.append((share, ", ".join(ratios)))
        return found

    def longer_uniform(self):
        """`web_row` of the uniform run beyond the target's; None without it."""
        lines = lines_of(self._web, summary.UNIFORM)
        if not lines or lines[-1][0]["steps"] == self.web_target()["steps"]:
            return None
        # To reach the target it takes no more steps than the target's run.
        ratios = dict.fromkeys(("examples", "flops", "flops_parts"), "")
        return self.web_row(summary.UNIFORM) | ratios

    def higher_uniform(self):
        """What validation did not choose, though it is higher on the tests.

        Returns:
            `web_row`s of the length and of the target, and both scores on
            validation in words; None if the target is the highest.
        """
        target = self.web_target()
        lines = lines_of(self._web, summary.UNIFORM)
        if not target or not self._validation:
            return None
        scores = {
            line.rows["steps"]: line.rows["score"]["mean"]
            for line in lines
            if line.rows["seeds"] >= comparison_lib.LEAST_SEEDS
        }
        best = max(scores, key=scores.get, default=target["steps"])
        if best == target["steps"]:
            return None
        steps = best, target["steps"]
        tried = {
            line.rows["steps"]: f"{100 * line.rows['score']['mean']:.1f}"
            for line in lines_of(self._validation, summary.UNIFORM)
        }
        rows = [self.web_row(summary.UNIFORM, one) for one in steps]
        return *rows, *[tried.get(one, claims.NOT_RUN) for one in steps]

    def ends(self, method):
        """Scores of a method at all lengths, in words."""
        return gains.series(
            f"{100 * line.rows['score']['mean']:.1f} after "
            f"{line.rows['steps']:,}"
            for line in lines_of(self._web, method)
        )

    def uniform_reached(self):
        """Steps at which uniform training first has the target's score."""
        reached = self.web_target()["reached"]
        mean, low, high = (
            "?" if reached[end] is None else _rounded(reached[end])
            for end in ("mean", "low", "high")
        )
        return f"{mean} [{low}, {high}]"

    def points_over(self, other, split, steps=None):
        """The method's points over another cell on a split, in words.

        Args:
            other: as of summary.json, with its steps: `uniform_18000`.
            split: "sets", "concept" or "style".
            steps: of the method's run; None is the length spoken of.
        """
        tables = self._tables
        if tables is None:
            return claims.NOT_RUN
        steps = steps or self._method_line()[0]["steps"]
        found = comparison_lib.Comparison(tables).difference(
            f"web_{_METHOD}_{steps}",
            f"web_{other}",
            (f"{self.web_split()}_{split}",),
        )
        if found is None:
            return claims.NOT_RUN
        estimate = dict(zip(("mean", "low", "high"), found, strict=True))
        return f"{claims.told(estimate, factor=100, sign='+')} points"

    def seconds_at_equal_cost(self):
        """Processor seconds of the longest run and of uniform training.

        Returns:
            in words: the run's, the steps of the longest uniform run that cost
            no more, and its seconds. None without them.
        """
        row, bill, *_ = lines_of(self._web, _METHOD)[-1]
        spent = bill["uniform_steps"]["all"]
        lengths = [
            line[0]["steps"]
            for line in lines_of(self._web, summary.UNIFORM)
            if line[0]["steps"] <= spent
        ]
        if not lengths:
            return None
        cells = _METHOD, row["steps"], summary.UNIFORM, lengths[-1]
        seconds = self.processor_seconds(
            *("web_{}_{}".format(*cells[place : place + 2]) for place in (0, 2))
        )
        if not seconds:
            return None
        return seconds[0], f"{lengths[-1]:,}", seconds[1]

    def by_end(self):
        """The method's ratios to the ends of all uniform runs, in words.

        Returns:
            `(end, ratio of examples, ratio of FLOPs)` of each end that is
            neither the target nor below the method's shortest run.
        """
        line = self._method_line()
        if not line:
            return []
        target = self.web_target()["steps"]
        return [
            (
                f"{end['steps']:,} uniform steps"
                + f" ({claims.seeds(end['seeds'])})"
                * (end["seeds"] < comparison_lib.LEAST_SEEDS),
                claims.told(end["examples_ratio"], "x"),
                claims.told(end["all"], "x"),
            )
            for end in line.uniform_ends["ends"]
            if end["examples_ratio"]
            and not end["is_bound"]
            and end["steps"] != target
        ]

    def on_validation(self):
        """The method's ratios on validation, `(examples, FLOPs)` in words."""
        if self.web_split() != "test":
            return None
        line = self._validation and self._method_line(self._validation)
        if not line:
            return None
        row = line[0]
        found = row["examples_ratio"], row["flops_ratio"]["all"]
        return [claims.told(one, "x") or _MISSED for one in found]

    def web_row(self, method, steps=None, level=claims.LEVEL):
        """What the web-like data say of a method, in words.

        Args:
            method: as in summary.json.
            steps: None is the longest length.
            level: share of noise.

        Returns:
            dict; None if it was not run.
        """
        lines = lines_of(self._web, method, level)
        if steps:
            lines = [line for line in lines if line[0]["steps"] == steps]
        if not lines:
            return None
        row, bill, held_out, crossing, other, own = lines[-1]
        share, lead, slope = row["oracle_share"], row["lead"], row["slope"]
        headroom = lead and gains.Gains(self._web).headroom(
            level, row["steps"], 100 * lead["mean"]
        )
        told, ratios = claims.told, row["mixture_ratio"]
        times = claims.bound if other["is_bound"] else claims.told
        own_mixture = other["mixture"]
        spent = bill["uniform_steps"]
        doublings = _doublings(lead, slope)
        flops, reached = row["flops_ratio"], ""
        if other["reached"] and not other["is_bound"]:
            reached = _rounded(other["reached"])
        parts = [
            f"{part['mean']:.1f}x" if part and not other["is_bound"] else ""
            for part in (flops["scores"], flops["reference"])
        ]
        return {
            "steps": f"{row['steps']:,}",
            "seeds": row["seeds"],
            "score": told(row["score"], factor=100),
            "examples": times(row["examples_ratio"], "x") or _MISSED,
            "flops": times(flops["all"], "x") or _MISSED,
            "reached": reached,
            "own_examples": told(own["examples_ratio"], "x"),
            "own_flops": told(own["flops_ratio"]["all"], "x"),
            "flops_parts": " / ".join(parts) if all(parts) else "",
            "lead_slope": _lead_over_slope(lead, slope),
            "mixture": times(ratios["examples"], "x") or _MISSED,
            "mixture_flops": times(ratios["all"], "x") or _MISSED,
            "own_mixture": told(own_mixture["examples"], "x") or _MISSED,
            "own_mixture_flops": told(own_mixture["all"], "x") or _MISSED,
            "crossing": told(crossing["examples_ratio"], "x") or _MISSED,
            "crossing_flops": told(crossing["flops_ratio"]["all"], "x")
            or _MISSED,
            "oracle": f"{share['mean']:.2f}" if share else "",
            "headroom": "" if headroom is None else f"{headroom:.2f}",
            "lead": told(lead, factor=100),
            "slope": f"{100 * slope['mean']:.1f}" if slope else "",
            "doublings": f"{doublings:.1f}" if doublings else "",
            "times": _times(doublings) if doublings else "",
            "bill": f"{spent['all']:,}",
            "a_step": f"{spent['without_references'] / row['steps']:.1f}",
            "over_uniform": told(bill["over_uniform"]),
            "over_target": told(bill["over_target"]),
            "concepts": told(
                held_out["concepts_over_target"], factor=100, sign="+"
            ),
            "styles": told(
                held_out["styles_over_target"], factor=100, sign="+"
            ),
        }

    def goals(self):
        """`(goal, value, whether it is met)` of each goal, in words."""
        lines = lines_of(self._web, _METHOD)
        if not lines:
            return []
        row, _, held_out, *_ = self._method_line()
        most = self.web_target()["steps"]
        cheap = [
            line
            for line in lines
            if line[1]["uniform_steps"]["all"] <= _EQUAL_COST * most
        ]
        where = {}
        if cheap:
            longest, bill, *_ = cheap[-1]
            spent = bill["uniform_steps"]["all"]
            where["equal_cost"] = (
                f" ({longest['steps']:,} steps, the FLOPs of {spent:,} uniform "
                f"ones; {claims.seeds(longest['seeds'])})"
            )
        shorter = [
            f"{line[0]['oracle_share']['mean']:.2f} after {line[0]['steps']:,}"
            for line in lines
            if line[0]["oracle_share"] and line[0]["steps"] < row["steps"]
        ]
        where["oracle"] = f" ({', '.join(shorter)})" if shorter else ""
        values = {
            "examples": row["examples_ratio"],
            "flops": row["flops_ratio"]["all"],
            "mixture": row["mixture_ratio"]["examples"],
            "mixture_flops": row["mixture_ratio"]["all"],
            "equal_cost": cheap and _at_equal_cost(cheap[-1].bills),
            "oracle": row["oracle_share"],
        }
        found = [
            (
                f"{least:g}{what}{where.get(name, '')}",
                claims.told(values[name], digits=digits) or "never there",
                bool(values[name]) and values[name]["mean"] >= least,
            )
            for least, digits, what, name in _GOALS
        ]
        concepts = held_out["concepts_over_target"]
        if concepts:
            told = claims.told(concepts, factor=100, sign="+")
            what = "nothing lost on held-out concepts, in points"
            found.append((what, told, concepts["mean"] >= 0))
        for steps in dict.fromkeys((row["steps"], lines[-1][0]["steps"])):
            above = self.over_references(f"web_{_METHOD}_{steps}")
            if above:
                words = f"{100 * min(above):+.2f} to {100 * max(above):+.2f}"
                what = (
                    f"after {steps:,} steps above all its earlier references, "
                    f"in points on validation, of {claims.seeds(len(above))}"
                )
                found.append((what, words, min(above) > 0))
        return found

    def web_target(self, level=claims.LEVEL):
        """The entry of `targets` in summary.json at a level of noise."""
        found = self._web["targets"] if self._web else ()
        return next((t for t in found if t["noise"] == level), None)

    def web_run(self, start=""):
        """How many methods of matrix `web` have results, of how many.

        Args:
            start: of the methods' names.
        """
        methods = {summary.method_of(c.cell) for c in matrix.cells("web")}
        methods = {name for name in methods if name.startswith(start)}
        return f"{len(methods & self._methods_run(start))} of {len(methods)}"

    def _methods_run(self, start):
        rows = self._web["rows"] if self._web else ()
        return {
            row["method"]
            for row in rows
            if row["noise"] == claims.LEVEL and row["method"].startswith(start)
        }

    def map(self):
        """Levels of noise and `gains.Gains.words`; None of a single level."""
        found = self._web and gains.Gains(self._web)
        if not found or len(found.levels) < 2:
            return None
        return {"levels": found.levels} | found.words(_METHOD, claims.LEVEL)

    def web_pool(self):
        """Pairs of the pool, share of noise and curated pairs, in words."""
        sizes = matrix.WEB_POOL_SIZE, web_lib.NUM_CURATED
        pool, curated = (f"{size:,}" for size in sizes)
        target = self.web_target() or {"steps": 0}
        return {
            "pool": pool,
            "curated": curated,
            "passes": f"{target['steps'] * web_runs.BATCH / sizes[0]:.0f}",
            "noise": web_runs.percent(claims.LEVEL),
            "level": claims.LEVEL,
        }

    def web_split(self):
        """The split of the web-like results, "test" or "val"."""
        return self._web["split"] if self._web else None

    def estimated(self, level):
        """The matched share that is estimated at a level of noise."""
        found = estimates.read(self._folder).get(level)
        if not found:
            return claims.NOT_RUN
        return "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**found["matched"])


def _with_own_end(row):
    """A row whose ratios are to its own end where the target is missed."""
    return row | {
        name: f"{row[f'own_{name}']} to its own end"
        for name in ("examples", "flops")
        if row[name] == _MISSED and row[f"own_{name}"]
    }


def _rounded(steps):
    """Interpolated steps to three digits."""
    return f"{float(f'{steps:.3g}'):,.0f}"


def _at_equal_cost(bill):
    """Score over the best of uniform training at the bill.

    Of a bill a little beyond the longest uniform run, over that run's end.
    """
    return bill["over_uniform"] or bill["over_target"]


def _doublings(lead, slope):
    """How many doublings of uniform training a lead is worth, or None."""
    if not (lead and slope) or slope["mean"] <= 0:
        return None
    return lead["mean"] / slope["mean"]


def _lead_over_slope(lead, slope):
    """Both in points, and 2^(lead / slope), in words."""
    if not (lead and slope):
        return ""
    doublings = _doublings(lead, slope)
    words = " / ".join(f"{100 * one['mean']:.1f}" for one in (lead, slope))
    return words if doublings is None else f"{words} = {_times(doublings)}"


def _times(doublings):
    """So many doublings as a ratio; on a plateau they say little."""
    ratio = 2**doublings
    return f"over {_MOST}x" if ratio > _MOST else f"{ratio:.1f}x"
