"""What the runs on the web-like data say, in the words of the report.

All numbers are those of the tables in `web/`; a name of `RunWords` is a word of
the templates.
"""

import functools
import re

import pandas as pd

from benchmarks.icontext import bootstrap, matrix, results, summary

# The parts of a trial's name that tell it from what was kept.
_TRIAL = re.compile(
    r"_(k\d|gain4|often|half|distinct|"
    r"cosine|crops|decay|slow|slower|fast|ema)(?=_)"
)
_VALIDATION = "val_sets"
# Of configs/icontext_web_bootstrap.py, where a cell does not say.
_HYPER_BATCH, BATCH = 768, 256


class RunWords:
    """Runs on the web-like data in words.

    Args:
        folder: of the results.
    """

    def __init__(self, folder):
        self._folder = folder

    @functools.cached_property
    def _tables(self):
        """`results.Tables` of the web-like data; None without them."""
        found = results.load(self._folder / "web")
        return found and found._replace(runs=summary.current(found.runs))

    def over_references(self, name):
        """By how much each run ends above the best of its references."""
        cell = matrix.load().get(name)
        if cell is None or self._tables is None:
            return []
        (renewals,) = (
            one.partition("=")[2].split(",")
            for one in cell.settings
            if one.startswith("bootstrap.renew_at=")
        )
        curves = self._tables.curves
        curves = curves[curves["cell"] == cell.cell]
        found = []
        for _, curve in curves.groupby("seed"):
            is_due = curve["step"].isin([int(one) for one in renewals])
            # Older runs have no record of which learners were rejected.
            kept = curve.get("is_kept", pd.Series(index=curve.index)).dropna()
            if len(kept):
                is_due &= (
                    kept.astype(str)
                    .eq("True")
                    .reindex(curve.index, fill_value=False)
                )
            scores = curve[_VALIDATION]
            found.append(scores.iloc[-1] - scores[is_due].max())
        return found

    def renewals(self, cell):
        """What the renewals of a cell's runs found without labels, in words.

        Returns:
            `(step, recognised share, runs that kept it, clean share of the
            choice up to the next evaluation, validation)`, means over the seeds
            that have them; none if no seed has.
        """
        if self._tables is None or "recognised" not in self._tables.curves:
            return []
        curves = self._tables.curves
        rows = curves[curves["cell"] == cell].dropna(subset=["recognised"])
        kept = rows["is_kept"].astype(str).eq("True").groupby(rows["step"])
        found = rows.groupby("step")[["recognised", "clean", _VALIDATION]]
        found = found.mean().assign(kept=kept.sum(), seeds=kept.size())
        return [
            (
                f"{row.Index:,}",
                f"{100 * row.recognised:.1f}",
                f"{row.kept} of {row.seeds}",
                f"{row.clean:.2f}",
                f"{100 * getattr(row, _VALIDATION):.1f}",
            )
            for row in found.itertuples()
        ]

    def clean(self, cell):
        """The clean share of a cell's choice, of its first and last steps."""
        if self._tables is None:
            return None
        runs = self._tables.runs
        ends = runs[runs["cell"] == cell][["clean_first", "clean_last"]].mean()
        return None if ends.isna().any() else [f"{one:.2f}" for one in ends]

    def agreement(self, cell):
        """Rank correlations of old and fresh similarities of pairs, in words.

        Returns:
            `(step, correlation)` of the first and of the last renewal that
            followed another; None without them.
        """
        if self._tables is None or "agreement" not in self._tables.curves:
            return None
        curves = self._tables.curves
        rows = curves[curves["cell"] == cell].dropna(subset=["agreement"])
        found = rows.groupby("step")["agreement"].mean()
        if len(found) < 2:
            return None
        ends = found.index[0], found.index[-1]
        return [(f"{step:,}", f"{found[step]:.2f}") for step in ends]

    def processor_seconds(self, *cells):
        """Mean processor seconds of cells that ran on the same machines.

        Returns:
            as words; none if they ran on different ones.
        """
        if self._tables is None:
            return []
        runs = self._tables.runs
        runs = runs[runs["cell"].isin(cells)]
        if runs["machine"].nunique() != 1 or {*runs["cell"]} != {*cells}:
            return []
        means = runs.groupby("cell")["processor_seconds"].mean()
        return [f"{means[cell]:,.0f}" for cell in cells]

    def pairs(self, split):
        """Pictures of a held-out split and the score of a random ranking.

        Returns:
            both in words; None without results.
        """
        if self._tables is None:
            return None
        concepts = self._tables.concepts
        concepts = concepts[concepts["split"] == split]
        _, run = next(iter(concepts.groupby(["cell", "seed"], observed=True)))
        columns = run[list(bootstrap.Concepts._fields)]
        chance = bootstrap.chance([bootstrap.Concepts(*columns.to_numpy().T)])
        return f"{int(run['image_queries'].sum()):,}", f"{100 * chance:.1f}"

    def trials(self):
        """Settings that were tried on validation beside those kept, in words.

        Returns:
            `(training, noise, steps, its score, that of what was kept)` of each
            trial that was run.
        """
        if self._tables is None:
            return []
        scores = self._tables.runs.set_index(["cell", "seed"])[_VALIDATION]
        found = []
        for cell in matrix.cells("web_tuning"):
            kept = _TRIAL.sub("", cell.cell)
            runs = [(name, cell.seeds[0]) for name in (cell.cell, kept)]
            if all(run in scores for run in runs):
                steps = cell.cell.rpartition("_")[2]
                tried, of_kept = (f"{100 * scores[run]:.1f}" for run in runs)
                level = percent(cell.level)
                found.append(
                    (cell.what, level, f"{int(steps):,}", tried, of_kept)
                )
        return found

    def factors(self, method):
        """K of a method's runs by level of noise, in words: K = 3 and so on."""
        by_level = {}
        for cell in matrix.load().values():
            is_main = {"web", "web_levels"} & {*cell.matrices}
            if is_main and summary.method_of(cell.cell) == method:
                sizes = [
                    int(one.partition("=")[2])
                    for one in cell.settings
                    if one.startswith("cascade.hyper_batch_size=")
                ]
                size = sizes[0] if sizes else _HYPER_BATCH
                by_level.setdefault(size // BATCH, set()).add(cell.level)
        usual = max(by_level, key=lambda factor: len(by_level[factor]))
        rest = [
            f"K = {factor} at {percent(level)}"
            for factor, levels in by_level.items()
            for level in sorted(levels)
            if factor != usual
        ]
        return f"K = {usual}" + "".join(f", {one} noise" for one in rest)


def percent(share):
    """A share in words, 70 %."""
    return f"{100 * share:.0f} %"
