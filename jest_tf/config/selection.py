"""Settings of the funnel: its stages, and the views of live stages."""

import math
from dataclasses import dataclass, field
from typing import Annotated

from jest_tf.config import methods
from jest_tf.config.checks import (
    SHARES,
    Checked,
    Count,
    at_least,
    name_or_function,
    one_of,
    within,
)
from jest_tf.config.tables import QUOTAS

Loss = Annotated[str, name_or_function(*methods.LOSSES)]


@dataclass(frozen=True)
class View(Checked, path="view"):
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

    patch_size: Count | None = None
    image_size: Count | None = None


@dataclass(frozen=True)
class Stage(Checked, path="selection.stages"):
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
        uniform_share: share of the rows that pass, in [0, 1), drawn uniformly
            from the rows that the criterion did not choose; it keeps breadth.
        view: view of the images for the learner's scores in a live stage. The
            reference and texts are not approximated.
        scoring_batch_size: examples per forward pass while scoring in a live
            stage; must divide a replica's share of the rows. None scores all
            at once.
        captions: the caption by which a stored stage scores a record: "best"
            is the most similar to the picture, so that records are chosen and
            not captions; "drawn" is the caption that is trained on.
        first_step: first step that scores, counted from 0. Earlier steps pass
            rows on unscored.
        last_step: last step that scores. None scores to the end.

    Example:
        >>> jest = Stage(candidates=5)
        >>> flexi_jest = Stage(candidates=5, view=View(patch_size=32))
    """

    candidates: Count
    embeddings: Annotated[str, one_of("live", "stored")] = "live"
    method: Annotated[str, one_of(*methods.METHODS)] = "joint"
    criterion: Annotated[str, name_or_function(*methods.CRITERIA)] = (
        "learnability"
    )
    num_chunks: Count = 16  # arXiv 2406.17711, algorithm 1
    gain: float = 1.0
    uniform_share: Annotated[float, within("[0, 1)")] = 0.0
    view: View = field(default_factory=View)
    scoring_batch_size: Count | None = None
    captions: Annotated[str, one_of("best", "drawn")] = "best"
    first_step: Annotated[int, at_least(0)] = 0
    last_step: Annotated[int, at_least(0)] | None = None

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
        return methods.METHODS[self.method].scores

    @property
    def in_chunks(self) -> bool:
        """True if the stage draws in chunks, each given those before it."""
        return methods.METHODS[self.method].in_chunks

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that the stage scores with.

        Imports the module of a criterion that is a "module:function".
        """
        return methods.criterion(self.criterion).needs if self.scores else ()

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

    def num_uniform(self, size: int) -> int:
        """Returns how many of `size` rows that pass are drawn uniformly."""
        return round(self.uniform_share * size)

    @property
    def end_step(self) -> int | None:
        """The step after the last that scores; None if it scores to the end."""
        return None if self.last_step is None else self.last_step + 1

    def is_active(self, step: int) -> bool:
        """True if the stage scores in a step, counted from 0."""
        end = math.inf if self.end_step is None else self.end_step
        return self.first_step <= step < end


@dataclass(frozen=True)
class SelectionConfig(Checked, path="selection"):
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
        >>> funnel = SelectionConfig(
        ...     256,
        ...     stages=(
        ...         Stage(3, "stored", criterion="easy_reference"),
        ...         Stage(5),
        ...     ),
        ... )
        >>> funnel.sizes()
        (3840, 1280, 256)
    """

    batch_size: Count
    stages: tuple[Stage, ...] = ()
    loss: Loss | None = None
    quota: Annotated[str, one_of(*QUOTAS)] = "global"

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
                or stage.criterion not in methods.CRITERIA
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

        Raises:
            ValueError: c is not less than b, or a stage passes fewer rows than
                it has chunks.
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
            passed = size - stage.num_uniform(size)
            self._expect(
                not stage.in_chunks or stage.num_chunks <= passed,
                f"`selection.stages.{number}.num_chunks` must be at most the "
                "rows that the stage draws by score, so that every chunk draws "
                "a row: those that pass it, less "
                f"`selection.stages.{number}.uniform_share`; here for example "
                f"num_chunks={max(passed // 2, 1)}",
                num_chunks=stage.num_chunks,
                rows=passed,
            )
            self._expect(
                not stage.uniform_share or stage.num_uniform(size) > 0,
                f"`selection.stages.{number}.uniform_share` must be 0, or more "
                "than half a row of those that pass",
                uniform_share=stage.uniform_share,
                rows=size,
            )
            size *= stage.candidates
            sizes.append(size)
        return tuple(reversed(sizes))

    def super_batch_size(self, curated_rows: int = 0) -> int:
        """Returns B, the rows into the first live stage; none are curated."""
        return self.sizes(curated_rows)[len(self.stored)]

    def hyper_batch_size(self, curated_rows: int = 0) -> int:
        """Returns the rows into the first stored stage; B if there is none."""
        return self.sizes(curated_rows)[0]

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
class BootstrapConfig(Checked, path="bootstrap"):
    """Renewal of the reference: the learner's own embeddings replace it.

    Attributes:
        renew_at: steps, ascending, after which the learner embeds the records
            of `data.train` and becomes the reference of the steps that follow;
            with `optimizer.ema`, by its averaged weights. Empty keeps the first
            reference, that of `reference`. If there is none, stages that need a
            reference begin to score with the first renewal.
        shares: share of the records that each renewal embeds, chosen anew each
            time; only these records are drawn until the next renewal. A single
            share applies to all renewals. A small share costs little, and
            still offers new records to each step; late renewals, which serve
            more steps and have a better learner, are worth a larger share.
        clean_start: train on `data.curated` alone before the first renewal,
            when nothing is chosen yet.
    """

    renew_at: tuple[int, ...] = ()
    shares: Annotated[tuple[float, ...], SHARES] = (1.0,)
    clean_start: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            len(self.shares) in (1, len(self.renew_at)),
            "`bootstrap.shares` must be a single share, or a share for each of "
            f"the {len(self.renew_at)} steps of `bootstrap.renew_at`",
        )
        self._expect(
            [*self.renew_at] == sorted({*self.renew_at})
            and min(self.renew_at, default=1) > 0,
            "`bootstrap.renew_at` must be ascending steps from 1 on",
        )
        self._expect(
            not self.clean_start or bool(self.renew_at),
            "`bootstrap.clean_start` ends with the first of "
            "`bootstrap.renew_at`: set both",
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
        return sum(renewal <= step for renewal in self.renew_at)

    def renewed_at(self, step: int) -> int:
        """Returns the last entry of `renew_at` up to `step`; 0 if none."""
        return (0, *self.renew_at)[self.num_renewals(step)]
