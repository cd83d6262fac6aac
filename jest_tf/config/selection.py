"""Settings of the selection: views, phases, sub-batches and the cascade."""

import bisect
import collections
import dataclasses
import functools
import itertools
from dataclasses import dataclass, field
from typing import Annotated

from jest_tf.config.checks import (
    SHARES,
    Checked,
    Count,
    at_least,
    one_of,
    within,
)

SAMPLERS = ("uniform", "joint", "independent", "top")
CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")
FIRST_CHUNKS = ("diagonal", "uniform")
QUOTAS = ("global", "per_replica")

Method = Annotated[str, one_of(*SAMPLERS)]
Criterion = Annotated[str, one_of(*CRITERIA)]
Loss = Annotated[str | None, one_of(*LOSSES, None)]
FirstChunk = Annotated[str, one_of(*FIRST_CHUNKS)]
# What the embeddings of a renewal are for.
ROLES = ("reference", "learner")
# The captions that stage 0 scores.
CAPTIONS = ("drawn", "best")


@dataclass(frozen=True)
class View(Checked, path="view"):
    """An approximation of images; the default is none.

    Scores may be computed on a coarse view, as in Flexi-JEST (Evans et al.,
    2024, arXiv 2406.17711). The three approximations may be combined. Texts
    are never approximated.

    Attributes:
        patch_size: side of a patch in pixels. None takes the tower's.
        keep_tokens: share of the patches that become tokens, in (0, 1].
        image_size: side in pixels to which images are resized. None keeps
            their size.

    Example:
        >>> coarse = View(patch_size=32)
    """

    patch_size: Count | None = None
    keep_tokens: Annotated[float, within("(0, 1]")] = 1.0
    image_size: Count | None = None


@dataclass(frozen=True)
class Phase(Checked, path="selection.phases"):
    """Changes of a selection from a step on; None changes nothing.

    Attributes:
        start: first step of the phase, counted from 0.
        method: as in `SelectionConfig`; "uniform" scores nothing.
        criterion: as in `SelectionConfig`.
        candidates: as in `SelectionConfig`.
    """

    start: Annotated[int, at_least(0)] = 0
    method: Method | None = None
    criterion: Criterion | None = None
    candidates: Count | None = None


@dataclass(frozen=True)
class SelectionConfig(Checked, path="selection"):
    """Selection of the sub-batch from the super-batch, and its schedule.

    Attributes:
        method: "joint" (the paper's), "independent", "top", or "uniform",
            which scores nothing.
        batch_size: b, examples trained per step. None trains on the whole
            super-batch and scores nothing.
        num_chunks: N, chunks of a joint draw.
        criterion: "learnability", "easy_reference" or "hard_learner".
        loss: pair loss of the scores, "sigmoid" or "softmax". None takes
            `model.loss`.
        first_chunk: "diagonal" draws the first chunk by each row's own
            pair, "uniform" draws it uniformly.
        gain: factor of every score; 0 draws uniformly.
        view: view of the images for the learner's scores. The reference and
            texts are not approximated.
        candidates: rows of a super-batch, evenly spread, that are scored and
            drawn from; must divide B. None takes all. The filter ratio is
            1 - b / candidates.
        scoring_batch_size: examples per forward pass while scoring; must
            divide a replica's share of the candidates. None scores all at
            once.
        quota: on several replicas, "global" draws as one replica would and
            exchanges rows; "per_replica" draws b/R of each replica's rows, so
            that no image moves.
        phases: changes from a step on, in the order of their starts. Each is
            relative to the settings above, not to the previous phase.
        uniform_every: k, draw uniformly on steps k - 1, 2k - 1, ... None never
            does.
        stop_when_passed: draw uniformly for the rest of the run once the
            learner's loss on uniform rows has been at most the reference's for
            this many consecutive steps. None never stops selecting.
    """

    method: Method = "uniform"
    batch_size: Count | None = None
    num_chunks: Count = 16  # arXiv 2406.17711, algorithm 1
    criterion: Criterion = "learnability"
    loss: Loss = None
    first_chunk: FirstChunk = "diagonal"
    gain: float = 1.0
    view: View = field(default_factory=View)
    candidates: Count | None = None
    scoring_batch_size: Count | None = None
    quota: Annotated[str, one_of(*QUOTAS)] = "global"
    phases: tuple[Phase, ...] = ()
    uniform_every: Annotated[int, at_least(2)] | None = None
    stop_when_passed: Count | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.method != "joint"
            or self.num_chunks <= (self.batch_size or self.num_chunks),
            "`selection.num_chunks` must be at most `selection.batch_size`, so "
            "that every chunk draws a row",
        )
        if not self.is_scheduled:
            return
        self._expect(
            self.batch_size is not None,
            "A schedule (`selection.phases`, `selection.uniform_every` or "
            "`selection.stop_when_passed`) needs `selection.batch_size` (b)",
        )
        starts = [phase.start for phase in self.phases]
        self._expect(
            starts == sorted(set(starts)),
            "`selection.phases` must be in the order of their starts, which "
            "must differ",
        )
        self._expect(
            self.scores,
            "A schedule of draws must score on some step: `selection.method` "
            "must not be 'uniform' throughout",
        )
        self._expect(
            not self.stop_when_passed
            or all(
                kind.criterion == "learnability"
                for kind in self.kinds
                if kind.scores
            ),
            "`selection.stop_when_passed` compares the learner with the "
            "reference, so it needs `selection.criterion` 'learnability' "
            "throughout `selection.phases`",
        )

    @property
    def is_scheduled(self) -> bool:
        """True if the settings change during a run."""
        return bool(self.phases or self.uniform_every or self.stop_when_passed)

    def at(self, step: int) -> "SelectionConfig":
        """Returns the settings of a step, counted from 0, without a schedule.

        Ignores `stop_when_passed`, which does not depend on the step alone.
        """
        begun = [kind for start, kind in self._by_phase if start <= step]
        every = self.uniform_every
        is_uniform = every and (step + 1) % every == 0
        return _uniform(begun[-1]) if is_uniform else begun[-1]

    @property
    def stopped(self) -> "SelectionConfig":
        """Returns the settings after the learner has passed the reference."""
        return _uniform(self._unscheduled(Phase()))

    @property
    def kinds(self) -> tuple["SelectionConfig", ...]:
        """Returns all distinct settings that a step may have."""
        kinds = [kind for _, kind in self._by_phase]
        if self.uniform_every:
            kinds += [_uniform(kind) for kind in kinds]
        if self.stop_when_passed:
            kinds.append(self.stopped)
        return tuple(dict.fromkeys(kinds))

    @functools.cached_property
    def _by_phase(self) -> list[tuple[int, "SelectionConfig"]]:
        """The first step and the settings of all phases, from step 0 on."""
        if not self.is_scheduled:
            return [(0, self)]
        phases = self.phases
        if not phases or phases[0].start:
            phases = (Phase(), *phases)
        return [(phase.start, self._unscheduled(phase)) for phase in phases]

    def _unscheduled(self, phase):
        changes = {
            name: value
            for name, value in dataclasses.asdict(phase).items()
            if name != "start" and value is not None
        }
        return dataclasses.replace(
            self,
            **changes,
            phases=(),
            uniform_every=None,
            stop_when_passed=None,
        )

    @property
    def scores(self) -> bool:
        """True if some step scores rows before it draws."""
        return self.batch_size is not None and any(
            kind.method != "uniform" for kind in self.kinds
        )

    @property
    def needs_reference(self) -> bool:
        """True if some step scores with the reference."""
        return self._scores_by("learnability", "easy_reference")

    @property
    def needs_learner(self) -> bool:
        """True if some step scores with the learner."""
        return self._scores_by("learnability", "hard_learner")

    def _scores_by(self, *criteria):
        return any(
            kind.scores and kind.criterion in criteria for kind in self.kinds
        )

    def steps_by_kind(
        self, steps: int, stopped_at: int | None = None
    ) -> dict["SelectionConfig", int]:
        """Counts the first `steps` steps by their settings, those that occur.

        `stopped_at` is the first step after the learner has passed the
        reference; None if it has not.
        """
        last = steps if stopped_at is None else min(steps, stopped_at)
        counts: collections.Counter[SelectionConfig] = collections.Counter()
        every = self.uniform_every
        by_phase = [*self._by_phase, (last, None)]
        for (start, kind), (stop, _) in itertools.pairwise(by_phase):
            start, stop = min(start, last), min(stop, last)
            uniform = stop // every - start // every if every else 0
            counts[kind] += stop - start - uniform
            counts[_uniform(kind)] += uniform
        counts[self.stopped] += steps - last
        return dict(+counts)

    def num_scored(
        self, steps: int, super_batch_size: int, stopped_at: int | None = None
    ) -> int:
        """Counts the examples scored in the first `steps` steps of B rows.

        `stopped_at` is as in `steps_by_kind`.
        """
        return sum(
            number * (kind.candidates or super_batch_size)
            for kind, number in self.steps_by_kind(steps, stopped_at).items()
            if kind.scores
        )

    def check_super_batch(self, size: int, curated_rows: int = 0) -> None:
        """Raises ValueError unless super-batches of `size` rows fit.

        `curated_rows` of them, c, are in every sub-batch.
        """
        if self.batch_size is None:
            return
        self._expect(
            self.batch_size <= size,
            "`selection.batch_size` (b) must be at most the super-batch, "
            "`data.super_batch_size` (B)",
            B=size,
        )
        self._expect(
            not curated_rows or not any(kind.candidates for kind in self.kinds),
            "`selection.candidates` can't be combined with curated rows, "
            "`data.curated_rows`",
        )
        self._expect(
            not curated_rows
            or curated_rows + self.num_chunks <= self.batch_size,
            "`selection.num_chunks` must be at most `selection.batch_size` (b) "
            "less the curated rows, `data.curated_rows` (c), so that every "
            "chunk draws a row",
            c=curated_rows,
        )
        for kind in self.kinds:
            candidates = kind.candidates or size
            kind._expect(
                size % candidates == 0 and candidates >= self.batch_size,
                "`selection.candidates` must divide the super-batch, "
                "`data.super_batch_size` (B), and be at least "
                "`selection.batch_size` (b)",
                B=size,
            )
            kind._expect(
                candidates % (self.scoring_batch_size or candidates) == 0,
                "`selection.scoring_batch_size` must divide the candidates: "
                "`selection.candidates`, or the super-batch, "
                "`data.super_batch_size` (B)",
                B=size,
            )


def _uniform(kind: SelectionConfig) -> SelectionConfig:
    return dataclasses.replace(kind, method="uniform")


@dataclass(frozen=True)
class CascadeConfig(Checked, path="cascade"):
    """Stage 0: chooses the super-batch by sidecars, before images are read.

    Attributes:
        hyper_batch_size: K B, positions of the stream from which a step
            chooses its super-batch of B. None reads every position.
        num_chunks: N, chunks of the joint draw.
        criterion: "easy_reference" needs no learner. The others score by the
            learner's embeddings of the last renewal, so they need
            `bootstrap.renews` "learner"; steps before the first renewal choose
            by "easy_reference".
        captions: "drawn" scores a record with the caption that the step would
            train on. "best" scores it with the caption most similar to its
            picture; the step trains on the drawn one all the same. Records
            are then chosen, not captions, and hard captions of good records
            are learned too.
        loss: pair loss of the scores, "sigmoid" or "softmax". None takes
            `model.loss`.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: factor of every score; 0 draws uniformly.
        uniform_share: share of the B rows, in [0, 1), drawn uniformly from the
            rows that the joint draw leaves.
        num_groups: G, equal parts of a hyper-batch. B / G rows are chosen
            jointly within each, at 1/G of the cost; hosts share the groups.
    """

    hyper_batch_size: Count | None = None
    num_chunks: Count = 16  # as in `SelectionConfig`
    criterion: Criterion = "easy_reference"
    captions: Annotated[str, one_of(*CAPTIONS)] = "drawn"
    loss: Loss = None
    first_chunk: FirstChunk = "diagonal"
    gain: float = 1.0
    uniform_share: Annotated[float, within("[0, 1)")] = 0.0
    num_groups: Count = 1

    def num_uniform(self, size: int) -> int:
        """Counts the rows of each group that are drawn uniformly.

        `size` is B without the curated rows.
        """
        return round(self.uniform_share * size / self.num_groups)

    def check_super_batch(self, size: int, curated_rows: int = 0) -> None:
        """Raises ValueError unless super-batches of `size` rows fit.

        `curated_rows` of them, c, are not chosen.
        """
        if self.hyper_batch_size is None:
            return
        self._expect(
            self.hyper_batch_size >= size,
            "`cascade.hyper_batch_size` (K B) must be at least the "
            "super-batch, `data.super_batch_size` (B)",
            B=size,
        )
        self._expect(
            not (self.hyper_batch_size % self.num_groups)
            and not (size % self.num_groups),
            "`cascade.num_groups` must divide `cascade.hyper_batch_size` (K B) "
            "and `data.super_batch_size` (B)",
            B=size,
        )
        self._expect(
            not curated_rows
            or not (self.hyper_batch_size % curated_rows)
            and not (curated_rows % self.num_groups),
            "The curated rows (c) must divide `cascade.hyper_batch_size` (K B) "
            "and be a multiple of `cascade.num_groups`",
            c=curated_rows,
        )
        jointly = size - curated_rows
        jointly = jointly // self.num_groups - self.num_uniform(jointly)
        self._expect(
            self.num_chunks <= jointly,
            "`cascade.num_chunks` must be at most the rows of a group, of "
            "`cascade.num_groups`, less `cascade.uniform_share`, so that every "
            "chunk draws a row",
            B=size,
            rows=jointly,
        )


@dataclass(frozen=True)
class BootstrapConfig(Checked, path="bootstrap"):
    """A run that embeds records with its own learner, again and again.

    Attributes:
        renew_at: steps, ascending, after which the learner embeds the records
            of `data.train` and is the reference of the steps that follow; with
            `optimizer.ema`, by its averaged weights. Empty keeps the first
            reference, of `reference`. Without one, the steps before the first
            renewal have no cascade, and `selection.phases` must begin with the
            method "uniform".
        renews: "reference", as above; or "learner", whose embeddings are the
            learner's part of stage 0's score until the next renewal. The
            reference is then that of `reference.sidecars` throughout.
        shares: share of the records that each renewal embeds, chosen anew
            each time; only these are drawn until the next renewal. A single
            share holds for all renewals. A small share costs little, and
            still offers each step other records; late renewals, which serve
            more steps by a better learner, are worth a larger one.
        curated_rows: `data.curated_rows` before the first renewal, when nothing
            is chosen yet. None keeps it.
    """

    renew_at: tuple[int, ...] = ()
    renews: Annotated[str, one_of(*ROLES)] = "reference"
    shares: Annotated[tuple[float, ...], SHARES] = (1.0,)
    curated_rows: Annotated[int, at_least(0)] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            len(self.shares) in (1, len(self.renew_at)),
            "`bootstrap.shares` must be a single share, or one for each of "
            f"the {len(self.renew_at)} steps of `bootstrap.renew_at`",
        )
        self._expect(
            [*self.renew_at] == sorted({*self.renew_at})
            and min(self.renew_at, default=1) > 0,
            "`bootstrap.renew_at` must be ascending steps from 1 on",
        )

    def share(self, step: int) -> float:
        """Returns the share that the renewal after `step` steps embeds.

        Raises:
            ValueError: `step` is not in `renew_at`.
        """
        number = self.renew_at.index(step)
        return self.shares[number if len(self.shares) > 1 else 0]

    def num_renewals(self, step: int) -> int:
        """Returns the number of renewals before the step after `step` steps."""
        return bisect.bisect_right(self.renew_at, step)

    def renewed_at(self, step: int) -> int:
        """Returns the last entry of `renew_at` up to `step`; 0 without one."""
        return (0, *self.renew_at)[self.num_renewals(step)]
