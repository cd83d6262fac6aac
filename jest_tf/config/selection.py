"""Settings of what is chosen: views, phases, the selection and its stage 0.

They are part of `config/run.py`, by whose name everybody calls them; a module
of their own because there is much to say. Nothing here imports TensorFlow.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field

from jest_tf.config import overrides

SAMPLERS = ("uniform", "joint", "independent", "top")
CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")
FIRST_CHUNKS = ("diagonal", "uniform")
QUOTAS = ("global", "per_replica")


@dataclass(frozen=True)
class View:
    """How an image tower looks at images; by default as it was built to.

    A learner that only scores may look coarsely, as in Flexi-JEST (Evans et
    al., 2024, arXiv 2406.17711). The three approximations may be combined.
    Texts have no view: they are never approximated.

    Attributes:
        patch_size: side of a patch in pixels; None is the tower's own.
        keep_tokens: share of the patches that become tokens, in (0, 1].
        image_size: side in pixels that the images are resized to; None leaves
            them as they come.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> coarse = View(patch_size=32)
    """

    patch_size: int | None = None
    keep_tokens: float = 1.0
    image_size: int | None = None

    def __post_init__(self):
        overrides.check_types(self, "view")
        overrides.check_at_least(self, "view", 1, "patch_size", "image_size")
        if not 0.0 < self.keep_tokens <= 1.0:
            raise ValueError(
                "`view.keep_tokens` must be in (0, 1]. "
                f"Received: {self.keep_tokens!r}"
            )


@dataclass(frozen=True)
class Phase:
    """What a selection is like from some step on; None leaves it as it is.

    Attributes:
        start: the first step of the phase, from 0.
        method: as in `SelectionConfig`; "uniform" scores nothing.
        criterion: as in `SelectionConfig`.
        candidates: as in `SelectionConfig`.
    """

    start: int = 0
    method: str | None = None
    criterion: str | None = None
    candidates: int | None = None

    def __post_init__(self):
        overrides.check_types(self, "selection.phases")
        overrides.check_at_least(self, "selection.phases", 0, "start")


@dataclass(frozen=True)
class SelectionConfig:
    """How the sub-batch is chosen from the super-batch, and when.

    Attributes:
        method: "joint" (the paper's), "independent", "top", or "uniform",
            which scores nothing.
        batch_size: b, examples trained a step; None trains on the whole
            super-batch, with nothing scored.
        num_chunks: N, chunks that a joint draw is made in.
        criterion: "learnability", "easy_reference" or "hard_learner".
        loss: pair loss of the scores, "sigmoid" or "softmax"; None is the
            loss that the model is trained with.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: multiplies every score; 0 is uniform.
        view: how the learner looks at the images that it scores; texts it
            sees as ever, and the reference looks in its own way.
        candidates: rows of a super-batch that are scored and drawn from,
            evenly spread; must divide B. None takes all of them. The filter
            ratio is 1 - b / candidates.
        scoring_batch_size: examples a forward pass while scoring; must divide
            a replica's share of the candidates. None scores it at once.
        quota: on several replicas, "global" draws what one replica would and
            exchanges rows; "per_replica" draws b/R rows from each replica's
            own, and no picture moves.
        phases: what is different from some step on, in the order of their
            starts; each says what differs from the settings above, not from
            the phase before.
        uniform_every: every so many steps one takes a uniform draw, steps
            k - 1, 2k - 1, ...; None never does.
        stop_when_passed: steps in succession on which the learner's loss on
            uniform rows is no more than the reference's, after which all draws
            are uniform; None goes on selecting.
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
        overrides.check_types(self, "selection")
        overrides.check_one_of(self, "selection", "method", SAMPLERS)
        overrides.check_one_of(self, "selection", "criterion", CRITERIA)
        overrides.check_one_of(self, "selection", "loss", (*LOSSES, None))
        overrides.check_one_of(self, "selection", "first_chunk", FIRST_CHUNKS)
        overrides.check_one_of(self, "selection", "quota", QUOTAS)
        overrides.check_at_least(
            self, "selection", 1, "batch_size", "num_chunks"
        )
        overrides.check_at_least(
            self, "selection", 1, "candidates", "scoring_batch_size"
        )
        overrides.check_at_least(self, "selection", 2, "uniform_every")
        overrides.check_at_least(self, "selection", 1, "stop_when_passed")
        if self.batch_size and self.method == "joint":
            if self.num_chunks > self.batch_size:
                raise ValueError(
                    "`selection.num_chunks` must be at most "
                    "`selection.batch_size`, so that every chunk draws a row. "
                    f"Received: num_chunks={self.num_chunks}, "
                    f"batch_size={self.batch_size}"
                )
        if self.is_scheduled:
            self._check_schedule()

    def _check_schedule(self):
        if self.batch_size is None:
            raise ValueError(
                "A schedule of draws needs `selection.batch_size` (b). "
                "Received: batch_size=None with `selection.phases`, "
                "`selection.uniform_every` or `selection.stop_when_passed`"
            )
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(
                "`selection.phases` must stand in the order of their starts, "
                f"each later than the one before. Received: {starts}"
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
        """Whether some steps choose otherwise than others."""
        return bool(self.phases or self.uniform_every or self.stop_when_passed)

    def at(self, step: int) -> "SelectionConfig":
        """What step `step`, from 0, chooses by; itself without a schedule.

        `stop_when_passed`, which is no function of the step, is left aside.
        """
        phase = None
        for one in self.phases:
            if one.start <= step:
                phase = one
        every = self.uniform_every
        return self._kind(phase, bool(every) and (step + 1) % every == 0)

    @property
    def stopped(self) -> "SelectionConfig":
        """What steps choose by after the learner has passed the reference."""
        return dataclasses.replace(
            self,
            method="uniform",
            phases=(),
            uniform_every=None,
            stop_when_passed=None,
        )

    @property
    def kinds(self) -> tuple["SelectionConfig", ...]:
        """Everything that some step may choose by."""
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
        changes = {} if phase is None else dataclasses.asdict(phase)
        changes.pop("start", None)
        changes = {
            name: value for name, value in changes.items() if value is not None
        }
        if is_uniform:
            changes["method"] = "uniform"
        return dataclasses.replace(
            self,
            **changes,
            phases=(),
            uniform_every=None,
            stop_when_passed=None,
        )

    @property
    def scores(self) -> bool:
        """Whether rows are scored before they are drawn, on some step."""
        if self.is_scheduled:
            return any(kind.scores for kind in self.kinds)
        return self.batch_size is not None and self.method != "uniform"

    @property
    def needs_reference(self) -> bool:
        """Whether scores are made with a reference, on some step."""
        if self.is_scheduled:
            return any(kind.needs_reference for kind in self.kinds)
        return self.scores and self.criterion != "hard_learner"

    @property
    def needs_learner(self) -> bool:
        """Whether scores are made with the learner, on some step."""
        if self.is_scheduled:
            return any(kind.needs_learner for kind in self.kinds)
        return self.scores and self.criterion != "easy_reference"

    def steps_by_kind(
        self, steps: int, stopped_at: int | None = None
    ) -> dict["SelectionConfig", int]:
        """How many of the first `steps` steps choose by each of `kinds`.

        Args:
            steps: from step 0 on.
            stopped_at: the first step after the learner has passed the
                reference; None where it has not.
        """
        last = steps if stopped_at is None else min(steps, stopped_at)
        counts: dict[SelectionConfig, int] = {}

        def count(kind, number):
            if number:
                counts[kind] = counts.get(kind, 0) + number

        starts = [0, *(phase.start for phase in self.phases), last]
        every = self.uniform_every
        for phase, (start, stop) in zip(
            (None, *self.phases), itertools.pairwise(starts), strict=True
        ):
            start, stop = min(start, last), min(stop, last)
            uniform = stop // every - start // every if every else 0
            count(self._kind(phase, False), stop - start - uniform)
            count(self._kind(phase, True), uniform)
        count(self.stopped, steps - last)
        return counts

    def num_scored(
        self, steps: int, super_batch_size: int, stopped_at: int | None = None
    ) -> int:
        """Examples scored in the first `steps` steps.

        Args:
            steps: from step 0 on.
            super_batch_size: B.
            stopped_at: as of `steps_by_kind`.
        """
        return sum(
            number * (kind.candidates or super_batch_size)
            for kind, number in self.steps_by_kind(steps, stopped_at).items()
            if kind.scores
        )

    def check_super_batch(self, size: int) -> None:
        """Raises ValueError unless a super-batch of `size` rows will do."""
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
                    "candidates, which are the super-batch, "
                    "`data.super_batch_size`, or `selection.candidates`. "
                    f"Received: {self.scoring_batch_size}, B={size}, "
                    f"candidates={candidates}"
                )


@dataclass(frozen=True)
class CascadeConfig:
    """Stage 0: what of the stream is read at all, chosen by sidecars alone.

    Attributes:
        hyper_batch_size: K B, positions of the stream that a step chooses its
            super-batch of B from; None reads every position.
        num_chunks: N, chunks that the joint draw is made in.
        criterion: "easy_reference", the only one that needs no learner.
        loss: pair loss of the scores, "sigmoid" or "softmax"; None is the
            loss that the model is trained with.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: multiplies every score, the inverse of a temperature; 0 is
            uniform.
        uniform_share: of the B, in [0, 1): drawn uniformly from what the joint
            draw of the others has left.
        num_groups: G, equal parts of a hyper-batch, of each of which B / G are
            chosen, jointly within it. G of them cost a G-th of one, and hosts
            share them.
    """

    hyper_batch_size: int | None = None
    num_chunks: int = 16  # as of the selection
    criterion: str = "easy_reference"
    loss: str | None = None
    first_chunk: str = "diagonal"
    gain: float = 1.0
    uniform_share: float = 0.0
    num_groups: int = 1

    def __post_init__(self):
        overrides.check_types(self, "cascade")
        overrides.check_at_least(self, "cascade", 1, "hyper_batch_size")
        overrides.check_at_least(self, "cascade", 1, "num_chunks", "num_groups")
        if self.criterion != "easy_reference":
            raise ValueError(
                "`cascade.criterion` must be 'easy_reference': before anything "
                "is read there is no learner's embedding to score with. "
                f"Received: {self.criterion!r}"
            )
        overrides.check_one_of(self, "cascade", "loss", (*LOSSES, None))
        overrides.check_one_of(self, "cascade", "first_chunk", FIRST_CHUNKS)
        if not 0.0 <= self.uniform_share < 1.0:
            raise ValueError(
                "`cascade.uniform_share` must be in [0, 1). "
                f"Received: {self.uniform_share}"
            )

    def num_uniform(self, super_batch_size: int) -> int:
        """How many of each group are drawn uniformly."""
        return round(self.uniform_share * super_batch_size / self.num_groups)

    def check_super_batch(self, size: int) -> None:
        """Raises ValueError unless super-batches of `size` can be chosen."""
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
                "`cascade.num_chunks` must be at most what is drawn jointly, "
                "so that every chunk draws a row. Received: num_chunks="
                f"{self.num_chunks} for {jointly} rows, B={size} with "
                f"uniform_share={self.uniform_share}, num_groups="
                f"{self.num_groups}"
            )
