"""The plan of a run: its steps in segments that select in the same way.

The plan is made once, from the settings. Stream, step, costs, logs, pages and
renewals read its segments.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jest_tf.config.selection import BootstrapConfig, SelectionConfig, Stage


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of a run that select in the same way.

    A stage that does not score passes rows on: a stored stage its first rows,
    which costs nothing, a live stage a uniform draw.

    Attributes:
        selection: the funnel.
        first: the first step, counted from 0.
        last: the last step; None if there is no end.
        scoring: numbers of the stages that score.
        curated_rows: c of the b rows trained on are curated. If c = b, no row
            is chosen, and rows pass no stage.
        reference: whose embeddings the stages score by: 0 for the reference of
            the settings, s > 0 for the learner after s steps, or, if that was
            rejected, the reference before it. None if there is none yet.
    """

    selection: SelectionConfig
    first: int = 0
    last: int | None = None
    scoring: tuple[int, ...] = ()
    curated_rows: int = 0
    reference: int | None = 0

    @property
    def num_steps(self) -> int:
        """The number of steps of a segment that ends."""
        return self.last + 1 - self.first

    @property
    def stages(self) -> tuple[tuple[int, Stage], ...]:
        """The stages that rows pass, with their numbers."""
        return tuple(enumerate(self.selection.stages)) if self.chooses else ()

    @property
    def stored(self) -> tuple[tuple[int, Stage], ...]:
        """The stored stages that rows pass, with their numbers."""
        return tuple(pair for pair in self.stages if pair[1].is_stored)

    @property
    def live(self) -> tuple[tuple[int, Stage], ...]:
        """The live stages that rows pass, with their numbers."""
        return tuple(pair for pair in self.stages if not pair[1].is_stored)

    @property
    def chooses(self) -> bool:
        """True unless all rows trained on are curated."""
        return self.curated_rows < self.selection.batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the pool into each stage, and out of the last."""
        if not self.chooses:
            return (0,)
        return self.selection.sizes(self.curated_rows)

    @property
    def super_batch_size(self) -> int:
        """B, the rows of the pool into the first live stage."""
        return self.sizes[len(self.stored)]

    @property
    def scores_by_sidecars(self) -> bool:
        """True if a stored stage scores."""
        return any(number in self.scoring for number, _ in self.stored)

    @property
    def step_kind(self) -> tuple:
        """Equal for segments whose steps are the same program."""
        live = [number for number, _ in self.live]
        scoring = [number for number in live if number in self.scoring]
        return self.chooses, tuple(scoring)

    def describe(self) -> list[str]:
        """Describes in lines of text how rows pass the funnel in a step."""
        c, b = self.curated_rows, self.selection.batch_size
        if not self.chooses:
            return [f"trained: {b:,} curated rows"]
        lines, sizes = [], self.sizes
        for number, stage in self.stages:
            rows = "hyper-batch" if stage.is_stored else "super-batch"
            is_first = number in (0, len(self.stored))
            how = f"{stage.method} by {stage.criterion}{stage.view_and_steps}"
            if number not in self.scoring:
                how = "unscored, " + (
                    "the first rows" if stage.is_stored else "a uniform draw"
                )
            lines.append(
                f"stage {number}, {stage.embeddings}: {sizes[number]:,} rows"
                + f", the {rows}," * is_first
                + f" -> {sizes[number + 1]:,}, {how}"
            )
        chosen = f"{sizes[-1]:,} chosen rows and {c:,} curated"
        return [*lines, f"trained: {chosen if c else f'{b:,} rows'}"]


def plan(
    selection: SelectionConfig,
    *,
    steps: int | None = None,
    curated_rows: int = 0,
    bootstrap: BootstrapConfig | None = None,
    has_reference: bool = True,
) -> tuple[Segment, ...]:
    """Returns the segments of a run, in order; the first begins at step 0.

    Args:
        selection: the funnel.
        steps: number of steps; None if there is no end.
        curated_rows: c, curated rows among the b trained on.
        bootstrap: the renewals of the reference, if any. A renewal begins a
            segment.
        has_reference: whether there is a reference before the first renewal.
            Until there is one, stages that need it pass rows on.
    """
    bootstrap = bootstrap or BootstrapConfig()
    starts = {*_turns(selection), *bootstrap.renew_at}
    starts = sorted(start for start in starts if steps is None or start < steps)
    segments = []
    for first, end in itertools.pairwise([*starts, steps]):
        reference = bootstrap.renewed_at(first)
        if not reference and not has_reference:
            reference = None
        is_clean = bootstrap.clean_start and not bootstrap.num_renewals(first)
        scoring = () if is_clean else _scoring(selection, first, reference)
        segments.append(
            Segment(
                selection,
                first,
                None if end is None else end - 1,
                scoring,
                selection.batch_size if is_clean else curated_rows,
                reference,
            )
        )
    return tuple(segments)


def _turns(selection):
    """Returns the steps at which stages begin or have ended, and 0."""
    ends = {stage.end_step for stage in selection.stages} - {None}
    return {0, *(stage.first_step for stage in selection.stages), *ends}


def _scoring(selection, step, reference):
    return tuple(
        number
        for number, stage in enumerate(selection.stages)
        if stage.scores
        and stage.is_active(step)
        # A user's criterion is not imported unless there is no reference.
        and (reference is not None or "reference" not in stage.needs)
    )


def segment_at(segments: Sequence[Segment], step: int) -> Segment:
    """Returns the segment of a step, counted from 0.

    The last segment has all later steps, and the first all earlier.
    """
    begun = [segment for segment in segments if segment.first <= step]
    return begun[-1] if begun else segments[0]


def cut(segments: Sequence[Segment], steps: int) -> Iterator[Segment]:
    """Yields the segments that the first `steps` steps consist of."""
    for segment in segments:
        if segment.first < steps:
            last = segment.last
            is_whole = last is not None and last < steps
            yield segment if is_whole else replace(segment, last=steps - 1)


def between_renewals(
    segments: Sequence[Segment], step: int
) -> tuple[Segment, ...]:
    """Returns the segments with the reference of a step, from it on.

    They are those of one `fit`: at a renewal, `fit` ends.
    """
    here = segment_at(segments, step)
    return tuple(
        segment
        for segment in segments
        if segment.reference == here.reference and segment.first >= here.first
    )


def describe_plan(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    """Describes a plan in lines of text, each with its heading."""
    lines = []
    for segment in segments:
        end = "on" if segment.last is None else f"to {segment.last:,}"
        steps = f"from step {segment.first:,} {end}"
        if segment.reference:
            steps += (
                f", reference: the learner after step {segment.reference:,}"
            )
        elif segment.reference is None:
            steps += ", no reference yet"
        lines.append(("plan", steps))
        lines += [tuple(line.split(": ", 1)) for line in segment.describe()]
    return lines
