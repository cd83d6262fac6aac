"""Settings of the funnel, its stages and views, and the plan of a run.

The plan has the steps of a run in segments that select in the same way. It is
made once, from the settings. Stream, step, costs, logs, pages and renewals read
its segments.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from jest_tf.config import checks, groups, tables


@dataclass(frozen=True)
class View(checks.Checked, path="view"):
    """An approximation of images; by default, the images themselves.

    Scores may be computed on a coarse view, as in Flexi-JEST (Evans et al.,
    2024, arXiv 2406.17711). A view may set both sizes. Texts are never
    approximated.

    Attributes:
        patch_size: side of a patch in pixels. None takes the tower's.
        image_size: side in pixels to which images are resized. None keeps
            their size.

    Example:
        >>> coarse = View(patch_size=32)
    """

    patch_size: checks.Count | None = None
    image_size: checks.ImageSize | None = None


@dataclass(frozen=True)
class Stage(checks.Checked, path="selection.stages"):
    """A stage of the funnel: it passes one of every `candidates` rows.

    Attributes:
        candidates: rows that come in for each row that passes. The filter
            ratio f is 1 - 1 / candidates: the paper's 0.8 is 5 candidates.
        embeddings: "live" runs the models on the rows within the step.
            "stored" reads the reference's embeddings from sidecars, on the
            host, before a record is read; while a run has no reference yet,
            the first rows pass.
        method: "joint" (the paper's), "independent", "top", or "uniform",
            which scores nothing.
        criterion: "learnability", "easy_reference", "hard_learner", or the
            "module:function" that returns a `config.Criterion`. The criterion
            of a stored stage cannot need the learner.
        num_chunks: N, chunks of a joint draw.
        gain: factor of the scores before noise is added; 0 draws uniformly.
            "top" and "uniform" do not use it.
        view: view of the images for the learner's scores in a live stage. The
            reference and texts are not approximated.
        scoring_batch_size: examples per forward pass while scoring in a live
            stage; must divide a replica's share of the rows. None scores all
            at once.
        captions: the caption by which a stored stage scores a record: "best"
            is the most similar to the image, so that records are chosen and
            not captions; "drawn" is the caption that is trained on.
        first_step: first step that scores, counted from 0. Earlier steps pass
            rows on unscored.
        last_step: last step that scores. None scores to the end.

    Example:
        >>> jest = Stage(candidates=5)
        >>> flexi_jest = Stage(candidates=5, view=View(patch_size=32))
    """

    candidates: checks.Count
    embeddings: Annotated[str, checks.among("live", "stored")] = "live"
    method: Annotated[str, checks.among(*tables.METHODS)] = "joint"
    criterion: Annotated[str, checks.name_or_function(*tables.CRITERIA)] = (
        "learnability"
    )
    num_chunks: checks.Count = 16  # arXiv 2406.17711, algorithm 1
    gain: float = 1.0
    view: View = field(default_factory=View)
    scoring_batch_size: checks.Count | None = None
    captions: Annotated[str, checks.among("best", "drawn")] = "best"
    first_step: Annotated[int, checks.at_least(0)] = 0
    last_step: Annotated[int, checks.within("[0, 2147483647]")] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.last_step is None or self.first_step <= self.last_step,
            "`selection.stages.first_step` must be at most "
            "`selection.stages.last_step`",
        )
        self._expect(
            not self.is_stored
            or self.view == View()
            and self.scoring_batch_size is None,
            "`selection.stages.view` and `selection.stages.scoring_batch_size` "
            "are only for live stages: leave them out with "
            "`selection.stages.embeddings` 'stored'",
        )
        self._expect(
            self.is_stored or self.captions == "best",
            "`selection.stages.captions` is only for stored stages: live "
            "stages score the caption that is trained on",
        )

    @property
    def is_stored(self) -> bool:
        """True if the stage reads sidecars."""
        return self.embeddings == "stored"

    @property
    def scores(self) -> bool:
        """True if the stage scores rows."""
        return tables.METHODS[self.method].scores

    @property
    def in_chunks(self) -> bool:
        """True if the stage draws in chunks, each given those before it."""
        return tables.METHODS[self.method].in_chunks

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that the stage scores with.

        Imports the module of a criterion that is a "module:function".
        """
        return tables.criterion(self.criterion).needs if self.scores else ()

    @property
    def view_and_steps(self) -> str:
        """The view and the steps of the stage in words, "" by default."""
        words = [
            f"{name} {value}"
            for name, value in (
                ("patch size", self.view.patch_size),
                ("image size", self.view.image_size),
                ("from step", self.first_step or None),
                ("to step", self.last_step),
            )
            if value is not None
        ]
        return f" ({', '.join(words)})" if words else ""

    @property
    def end_step(self) -> int | None:
        """The step after the last that scores; None if it scores to the end."""
        return None if self.last_step is None else self.last_step + 1

    def is_active(self, step: int) -> bool:
        """True if the stage scores in a step, counted from 0."""
        end = math.inf if self.end_step is None else self.end_step
        return self.first_step <= step < end


@dataclass(frozen=True)
class SelectionConfig(checks.Checked, path="selection"):
    """The funnel: the stages that rows pass, and the rows trained on.

    Sizes follow from b and the stages. Without curated rows, the last stage
    chooses the b rows trained on from b x its `candidates` rows, and so on
    upwards. The rows into the first live stage are the super-batch, B; the
    rows into the first stored stage are the hyper-batch.

    Attributes:
        batch_size: b, examples trained on per step.
        stages: stages in the order in which rows pass them. Stored stages come
            first. () trains on every row.
        loss: pair loss of the scores: "sigmoid", "softmax" or a
            "module:function". None takes `model.loss`.
        quota: on several replicas, "global" draws as one replica would and
            exchanges rows; "per_replica" draws equally many of each replica's
            rows, so that no image moves.

    Example:
        >>> easy = Stage(3, "stored", criterion="easy_reference")
        >>> SelectionConfig(256, stages=(easy, Stage(5))).sizes()
        (3840, 1280, 256)
    """

    batch_size: checks.Count
    stages: tuple[Stage, ...] = ()
    loss: tables.Loss | None = None
    quota: Annotated[str, checks.among(*tables.QUOTAS)] = "global"

    def __post_init__(self):
        super().__post_init__()
        kinds = [stage.is_stored for stage in self.stages]
        self._expect(
            kinds == sorted(kinds, reverse=True),
            "`selection.stages` with stored embeddings must come before live "
            "stages, as records are read between them",
        )
        for number, stage in enumerate(self.stages):
            self._expect(
                # A user's criterion is not imported here.
                not stage.is_stored
                or stage.criterion not in tables.CRITERIA
                or "learner" not in stage.needs,
                f"`selection.stages.{number}.embeddings` 'stored' has no "
                f"learner: take `selection.stages.{number}.criterion` "
                "'easy_reference'",
            )
        self.sizes()

    @property
    def stored(self) -> tuple[Stage, ...]:
        """The stages that choose by sidecars."""
        return tuple(stage for stage in self.stages if stage.is_stored)

    @property
    def live(self) -> tuple[Stage, ...]:
        """The stages within the step."""
        return tuple(stage for stage in self.stages if not stage.is_stored)

    def sizes(self, curated_rows: int = 0) -> tuple[int, ...]:
        """Returns the rows into each stage in turn, and out of the last.

        Of the b rows, `curated_rows` (c) are not chosen.
        """
        size = self.batch_size - curated_rows
        self._expect(
            size > 0,
            "`data.curated_rows` (c) must be less than `selection.batch_size` "
            "(b), to leave rows to choose",
            c=curated_rows,
        )
        sizes = [size]
        for number, stage in reversed([*enumerate(self.stages)]):
            self._expect(
                not stage.in_chunks or stage.num_chunks <= size,
                f"`selection.stages.{number}.num_chunks` must be at most the "
                "rows that pass the stage, so that every chunk draws a row; "
                f"here for example num_chunks={max(size // 2, 1)}",
                rows=size,
            )
            size *= stage.candidates
            self._expect(
                size < 2**31,
                "`selection.batch_size` (b) times the `candidates` of all "
                "stages must be less than 2^31",
                rows=size,
            )
            sizes.append(size)
        return tuple(reversed(sizes))

    def super_batch_size(self, curated_rows: int = 0) -> int:
        """Returns B, the rows into the first live stage; none are curated."""
        return self.sizes(curated_rows)[len(self.stored)]

    def hyper_batch_size(self, curated_rows: int = 0) -> int:
        """Returns the rows into the first stored stage; B if there is none."""
        return self.sizes(curated_rows)[0]

    @property
    def functions(self) -> list[tuple[str, str]]:
        """The settings that name code, each with its "module:function"."""
        named = [
            ("selection.loss", self.loss or ""),
            *(
                (f"selection.stages.{number}.criterion", stage.criterion)
                for number, stage in enumerate(self.stages)
            ),
        ]
        return [pair for pair in named if ":" in pair[1]]

    @property
    def scores(self) -> bool:
        """True if some stage scores rows."""
        return any(stage.scores for stage in self.stages)

    def needs(self, model: str) -> bool:
        """True if some stage scores with a model, "learner" or "reference"."""
        return any(model in stage.needs for stage in self.stages)

    @property
    def needs_stored(self) -> bool:
        """True if some stage scores by sidecars."""
        return any(stage.scores for stage in self.stored)


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
        scoring = [n for n, _ in self.live if n in self.scoring]
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
    bootstrap: groups.BootstrapConfig | None = None,
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
    bootstrap = bootstrap or groups.BootstrapConfig()
    ends = {stage.end_step for stage in selection.stages} - {None}
    starts = {stage.first_step for stage in selection.stages}
    starts |= {0, *ends, *bootstrap.renew_at}
    starts = sorted(start for start in starts if steps is None or start < steps)
    segments = []
    for first, end in itertools.pairwise([*starts, steps]):
        renewals = bootstrap.num_renewals(first)
        none_yet = 0 if has_reference else None
        reference = (none_yet, *bootstrap.renew_at)[renewals]
        is_clean = bootstrap.clean_start and not renewals
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
    lines, before = [], None
    for segment in segments:
        end = "on" if segment.last is None else f"to {segment.last:,}"
        text = f"steps {segment.first:,} {end}"
        if segment.reference:
            text += f", reference: the learner after step {segment.reference:,}"
        elif segment.reference is None:
            text += ", no reference yet"
        how = [tuple(line.split(": ", 1)) for line in segment.describe()]
        lines.append(("plan", text + ", stages as before" * (how == before)))
        lines += how if how != before else []
        before = how
    return lines
