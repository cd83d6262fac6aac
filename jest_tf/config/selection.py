"""Settings of the selection: views, phases, sub-batches and the cascade."""

import collections
import dataclasses
import itertools
from dataclasses import dataclass, field

from jest_tf.config.checks import at_least, check, one_of, within

SAMPLERS = ("uniform", "joint", "independent", "top")
CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")
FIRST_CHUNKS = ("diagonal", "uniform")
QUOTAS = ("global", "per_replica")


@dataclass(frozen=True)
class View:
    """An approximation of images; the default is none.

    Scores may be computed on a coarse view, as in Flexi-JEST (Evans et al.,
    2024, arXiv 2406.17711). The three approximations may be combined. Texts
    are never approximated.

    Attributes:
        patch_size: side of a patch in pixels. None takes the tower's.
        keep_tokens: share of the patches that become tokens, in (0, 1].
        image_size: side in pixels to which images are resized. None keeps
            their size.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> coarse = View(patch_size=32)
    """

    patch_size: int | None = None
    keep_tokens: float = 1.0
    image_size: int | None = None

    def __post_init__(self):
        check(
            self,
            "view",
            patch_size=at_least(1),
            keep_tokens=within("(0, 1]"),
            image_size=at_least(1),
        )


@dataclass(frozen=True)
class Phase:
    """Changes of a selection from a step on; None changes nothing.

    Attributes:
        start: first step of the phase, counted from 0.
        method: as in `SelectionConfig`; "uniform" scores nothing.
        criterion: as in `SelectionConfig`.
        candidates: as in `SelectionConfig`.
    """

    start: int = 0
    method: str | None = None
    criterion: str | None = None
    candidates: int | None = None

    def __post_init__(self):
        check(self, "selection.phases", start=at_least(0))


@dataclass(frozen=True)
class SelectionConfig:
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
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
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

    method: str = "uniform"
    batch_size: int | None = None
    num_chunks: int = 16  # arXiv 2406.17711, algorithm 1
    criterion: str = "learnability"
    loss: str | None = None
    first_chunk: str = "diagonal"
    gain: float = 1.0
    view: View = field(default_factory=View)
    candidates: int | None = None
    scoring_batch_size: int | None = None
    quota: str = "global"
    phases: tuple[Phase, ...] = ()
    uniform_every: int | None = None
    stop_when_passed: int | None = None

    def __post_init__(self):
        check(
            self,
            "selection",
            method=one_of(*SAMPLERS),
            batch_size=at_least(1),
            num_chunks=at_least(1),
            criterion=one_of(*CRITERIA),
            loss=one_of(*LOSSES, None),
            first_chunk=one_of(*FIRST_CHUNKS),
            candidates=at_least(1),
            scoring_batch_size=at_least(1),
            quota=one_of(*QUOTAS),
            uniform_every=at_least(2),
            stop_when_passed=at_least(1),
        )
        most = self.batch_size if self.method == "joint" else None
        if most and self.num_chunks > most:
            raise ValueError(
                "`selection.num_chunks` must be at most "
                "`selection.batch_size`, so that every chunk draws a row. "
                f"Received: num_chunks={self.num_chunks}, batch_size={most}"
            )
        if self.is_scheduled:
            self._check_schedule()

    def _check_schedule(self):
        if self.batch_size is None:
            raise ValueError(
                "A schedule (`selection.phases`, `uniform_every` or "
                "`stop_when_passed`) needs `selection.batch_size` (b). "
                "Received: batch_size=None"
            )
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(
                "`selection.phases` must be in the order of their starts, "
                f"which must differ. Received: {starts}"
            )
        scoring = [kind for kind in self.kinds if kind.scores]
        if not scoring:
            raise ValueError(
                "A schedule of draws must score on some step. Received: "
                "`selection.method='uniform'` throughout"
            )
        criteria = {kind.criterion for kind in scoring}
        if self.stop_when_passed and criteria != {"learnability"}:
            raise ValueError(
                "`selection.stop_when_passed` compares the learner with the "
                "reference, so it needs criterion 'learnability' throughout. "
                f"Received: {sorted(criteria)}"
            )

    @property
    def is_scheduled(self) -> bool:
        """True if the settings change during a run."""
        return bool(self.phases or self.uniform_every or self.stop_when_passed)

    def at(self, step: int) -> "SelectionConfig":
        """Returns the settings of a step, counted from 0, without a schedule.

        Ignores `stop_when_passed`, which does not depend on the step alone.
        """
        begun = [phase for phase in self.phases if phase.start <= step]
        every = self.uniform_every
        is_uniform = bool(every) and (step + 1) % every == 0
        return self._kind(begun[-1] if begun else None, is_uniform)

    @property
    def stopped(self) -> "SelectionConfig":
        """Returns the settings after the learner has passed the reference."""
        return self._unscheduled(method="uniform")

    @property
    def kinds(self) -> tuple["SelectionConfig", ...]:
        """Returns all distinct settings that a step may have."""
        phases = list(self.phases)
        if not phases or phases[0].start > 0:
            phases = [None, *phases]
        kinds = [self._kind(phase, False) for phase in phases]
        if self.uniform_every:
            kinds += [self._kind(phase, True) for phase in phases]
        if self.stop_when_passed:
            kinds.append(self.stopped)
        return tuple(dict.fromkeys(kinds))

    def _kind(self, phase, is_uniform):
        if not self.is_scheduled:
            return self
        changes = {}
        if phase is not None:
            changes = dataclasses.asdict(phase)
            del changes["start"]
        if is_uniform:
            changes["method"] = "uniform"
        return self._unscheduled(**changes)

    def _unscheduled(self, **changes):
        """Removes the schedule and applies the changes that are not None."""
        changes = {
            name: value for name, value in changes.items() if value is not None
        }
        return dataclasses.replace(
            self,
            **changes,
            phases=(),
            uniform_every=None,
            stop_when_passed=None,
        )

    def _any(self, name):
        return any(getattr(kind, name) for kind in self.kinds)

    @property
    def scores(self) -> bool:
        """True if some step scores rows before it draws."""
        if self.is_scheduled:
            return self._any("scores")
        return self.batch_size is not None and self.method != "uniform"

    @property
    def needs_reference(self) -> bool:
        """True if some step scores with the reference."""
        if self.is_scheduled:
            return self._any("needs_reference")
        return self.scores and self.criterion != "hard_learner"

    @property
    def needs_learner(self) -> bool:
        """True if some step scores with the learner."""
        if self.is_scheduled:
            return self._any("needs_learner")
        return self.scores and self.criterion != "easy_reference"

    def steps_by_kind(
        self, steps: int, stopped_at: int | None = None
    ) -> dict["SelectionConfig", int]:
        """Counts the first `steps` steps by their settings, those that occur.

        `stopped_at` is the first step after the learner has passed the
        reference; None if it has not.
        """
        last = steps if stopped_at is None else min(steps, stopped_at)
        counts: collections.Counter[SelectionConfig] = collections.Counter()
        starts = [0, *(phase.start for phase in self.phases), last]
        every = self.uniform_every
        for phase, (start, stop) in zip(
            (None, *self.phases), itertools.pairwise(starts), strict=True
        ):
            start, stop = min(start, last), min(stop, last)
            uniform = stop // every - start // every if every else 0
            counts[self._kind(phase, False)] += stop - start - uniform
            counts[self._kind(phase, True)] += uniform
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

    def check_super_batch(self, size: int) -> None:
        """Raises ValueError unless super-batches of `size` rows fit."""
        if self.batch_size is None:
            return
        if self.batch_size > size:
            raise ValueError(
                "`selection.batch_size` (b) must be at most the super-batch, "
                f"`data.super_batch_size` (B). Received: b={self.batch_size}, "
                f"B={size}"
            )
        for kind in self.kinds:
            candidates = kind.candidates or size
            if size % candidates or candidates < self.batch_size:
                raise ValueError(
                    "`selection.candidates` must divide the super-batch, "
                    "`data.super_batch_size` (B), and be at least "
                    "`selection.batch_size` (b). Received: "
                    f"candidates={candidates}, B={size}, b={self.batch_size}"
                )
            if candidates % (self.scoring_batch_size or candidates):
                raise ValueError(
                    "`selection.scoring_batch_size` must divide the "
                    "candidates: `selection.candidates`, or the super-batch, "
                    "`data.super_batch_size`. "
                    f"Received: {self.scoring_batch_size}, B={size}, "
                    f"candidates={candidates}"
                )


@dataclass(frozen=True)
class CascadeConfig:
    """Stage 0: chooses the super-batch by sidecars, before images are read.

    Attributes:
        hyper_batch_size: K B, positions of the stream from which a step
            chooses its super-batch of B. None reads every position.
        num_chunks: N, chunks of the joint draw.
        criterion: "easy_reference", the only one that needs no learner.
        loss: pair loss of the scores, "sigmoid" or "softmax". None takes
            `model.loss`.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: factor of every score; 0 draws uniformly.
        uniform_share: share of the B rows, in [0, 1), drawn uniformly from the
            rows that the joint draw leaves.
        num_groups: G, equal parts of a hyper-batch. B / G rows are chosen
            jointly within each, at 1/G of the cost; hosts share the groups.
    """

    hyper_batch_size: int | None = None
    num_chunks: int = 16  # as in `SelectionConfig`
    criterion: str = "easy_reference"
    loss: str | None = None
    first_chunk: str = "diagonal"
    gain: float = 1.0
    uniform_share: float = 0.0
    num_groups: int = 1

    def __post_init__(self):
        if self.criterion != "easy_reference":
            raise ValueError(
                "`cascade.criterion` must be 'easy_reference': no learner "
                "embeddings exist before the images are read. "
                f"Received: {self.criterion!r}"
            )
        check(
            self,
            "cascade",
            hyper_batch_size=at_least(1),
            num_chunks=at_least(1),
            loss=one_of(*LOSSES, None),
            first_chunk=one_of(*FIRST_CHUNKS),
            uniform_share=within("[0, 1)"),
            num_groups=at_least(1),
        )

    def num_uniform(self, super_batch_size: int) -> int:
        """Returns the number of rows of each group that are drawn uniformly."""
        return round(self.uniform_share * super_batch_size / self.num_groups)

    def check_super_batch(self, size: int) -> None:
        """Raises ValueError unless super-batches of `size` rows fit."""
        if self.hyper_batch_size is None:
            return
        if self.hyper_batch_size < size:
            raise ValueError(
                "`cascade.hyper_batch_size` (K B) must be at least the "
                "super-batch, `data.super_batch_size` (B). Received: "
                f"{self.hyper_batch_size}, B={size}"
            )
        if self.hyper_batch_size % self.num_groups or size % self.num_groups:
            raise ValueError(
                "`cascade.num_groups` must divide `cascade.hyper_batch_size` "
                "(K B) and `data.super_batch_size` (B). Received: "
                f"num_groups={self.num_groups}, K B={self.hyper_batch_size}, "
                f"B={size}"
            )
        jointly = size // self.num_groups - self.num_uniform(size)
        if self.num_chunks > jointly:
            raise ValueError(
                "`cascade.num_chunks` must be at most the rows drawn jointly, "
                "so that every chunk draws one. Received: num_chunks="
                f"{self.num_chunks} for {jointly} rows, B={size} with "
                f"uniform_share={self.uniform_share}, num_groups="
                f"{self.num_groups}"
            )
