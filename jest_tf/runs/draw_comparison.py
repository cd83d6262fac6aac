"""Comparison of a run's draws with other samplers, views and noise.

Measured on demand, on super-batches of the run's data with its weights; nothing
is trained. `runs/draw_log.py` follows the draws of training.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.config import checks, overrides
from jest_tf.data import augmentation
from jest_tf.embeddings import Embeddings
from jest_tf.models import patches
from jest_tf.runs import directory, draw_log, opening

# Salts for the noise of a second draw and for crops.
_OTHER_NOISE, _CROPS = 1, 2


@dataclasses.dataclass(frozen=True)
class Augmented(checks.Checked, path="view"):
    """A view of pictures augmented by `data.flip`, `data.min_crop_area`."""

    flip: bool = False
    min_crop_area: Annotated[float, checks.within("(0, 1]")] = 1.0

    def __call__(self, super_batch: dict, seed: tuple[int, int]) -> dict:
        """Augments the pictures, except the reference's."""
        image = super_batch["image"]
        return {
            "image_for_reference": image,
            **super_batch,
            "image": augmentation.augment(
                image,
                tf.constant(seed, tf.int32),
                flip=self.flip,
                min_area=self.min_crop_area,
            ),
        }


def measure(
    workdir: str,
    *,
    step: int | None = None,
    num_super_batches: int = 8,
    views: Sequence[str] = (),
) -> dict:
    """Compares the draws of a run and writes its `selection.json`.

    Super-batches and noise are those of the run's next steps.

    Args:
        workdir: the run directory.
        step: of the checkpoint; None takes the final weights.
        num_super_batches: to draw from.
        views: besides the run's views, `patch_size=32`,
            `image_size=64,keep_tokens=0.5`, or `min_crop_area=0.6,flip=true`.

    Returns:
        `step`, `super_batches`, `settings` of the draws, and `draws` and
        `views` as in `compare`, with `mean` and `std` over super-batches.

    Raises:
        ValueError: there is no such run, it scores nothing, or its learner
            cannot take a view.
    """
    if num_super_batches < 1:
        raise ValueError(
            "`num_super_batches` must be at least 1. "
            f"Received: {num_super_batches}"
        )
    asked = [parse_view(text) for text in views]
    opened = opening.open_training(
        workdir,
        step,
        patch_sizes=[
            view.patch_size
            for view in asked
            if isinstance(view, config_lib.View) and view.patch_size
        ],
    )
    settings = _that_scores(opened.config.selection, opened.step, workdir)
    every = {describe_view(view): view for view in (settings.view, *asked)}
    every.pop("full", None)  # which is what they are compared with
    for view in every.values():
        if isinstance(view, config_lib.View):
            patches.check_view(opened.model.learner, view)
    numbers = range(opened.step, opened.step + num_super_batches)
    values = compare(
        opened.model,
        opened.super_batches(opened.step),
        numbers,
        settings=settings,
        views=every,
    )
    results = {
        "step": opened.step,
        "super_batches": num_super_batches,
        "settings": {
            "method": settings.method,
            "criterion": settings.criterion,
            "batch_size": settings.batch_size,
            "scored": settings.candidates
            or opened.config.data.super_batch_size,
            "view": describe_view(settings.view),
        },
        **{
            part: {
                name: {key: summarize(of) for key, of in columns.items()}
                for name, columns in of_part.items()
            }
            for part, of_part in values.items()
        },
    }
    directory.write(workdir, directory.SELECTION_FILE, results)
    return results


def tables(results: dict) -> str:
    """Formats the results of `measure` as text."""
    settings = results["settings"]
    share = settings["batch_size"] / settings["scored"]
    parts = [
        f"step {results['step']:,}: {settings['method']} draws of "
        f"{settings['batch_size']:,} of {settings['scored']:,} rows by "
        f"{settings['criterion']}, view {settings['view']}; mean and standard "
        f"deviation over {results['super_batches']} super-batches.\n"
        f"Draws without anything in common share {share:.1%} of their rows."
    ]
    for part, title in (("draws", "draw"), ("views", "view")):
        columns = list(next(iter(results[part].values()), {}))
        if not columns:
            continue
        rows = [
            [name, *(_with_spread(of[column]) for column in columns)]
            for name, of in results[part].items()
        ]
        heads = [title, *(column.replace("_", " ") for column in columns)]
        parts.append(_aligned([heads, *rows]))
    return "\n\n".join(parts)


def parse_view(text: str) -> config_lib.View | Augmented:
    """Parses a view, `a=b,c=d`.

    Raises:
        ValueError: a field is unknown or a value out of range.
    """
    parts = text.split(",")
    of_augmented = {field.name for field in dataclasses.fields(Augmented)}
    names = {part.partition("=")[0] for part in parts}
    if names & of_augmented and names - of_augmented:
        raise ValueError(
            f"A view is of augmented pictures, {sorted(of_augmented)}, or of "
            f"coarser ones, and not of both. Received: {text!r}"
        )
    kind = Augmented if names <= of_augmented else config_lib.View
    values: dict = {}
    for part in parts:
        overrides.override(kind, values, part)
    return overrides.build(kind, values)


def describe_view(view: config_lib.View | Augmented) -> str:
    """Inverts `parse_view`; "full" is unchanged images."""
    plain = type(view)()
    return (
        ",".join(
            f"{field.name}={json.dumps(getattr(view, field.name))}"
            for field in dataclasses.fields(view)
            if getattr(view, field.name) != getattr(plain, field.name)
        )
        or "full"
    )


def compare(
    model,
    super_batches: tf.data.Dataset,
    numbers: Sequence[int],
    *,
    settings: config_lib.SelectionConfig,
    views: Mapping[str, config_lib.View | Augmented],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Draws from super-batches in several ways, and compares the draws.

    Args:
        model: a `JESTModel` with its reference, on one replica.
        super_batches: dicts as of a training step, of static size.
        numbers: of those super-batches; they seed the noise.
        settings: of the selection, of one kind that scores.
        views: of the learner, by name.

    Returns:
        A list of values, one a super-batch, by kind, name and measure. `draws`,
        by sampler: `score`, and the shares of its rows that are also in the
        run's draw (`overlap_run`), in a uniform draw from the same noise
        (`overlap_uniform`), and in its draw from other noise
        (`overlap_other_noise`). `views`, by name: `compare_view`; {} for a
        criterion without learner.
    """
    sampler = Sampler(model, settings)
    draws: dict = {name: {} for name in selection.SAMPLERS}
    by_view: dict = {name: {} for name in views}
    dataset = super_batches.take(len(numbers))
    for number, super_batch in zip(numbers, dataset, strict=True):
        super_batch = _candidates(super_batch, settings)
        seeds = [(model.seed, number), (model.seed ^ _OTHER_NOISE, number)]
        learner, frozen = sampler.embed(super_batch, settings.view)
        found = {
            name: [sampler.draw(learner, frozen, seed, name) for seed in seeds]
            for name in draws
        }
        for name, (own, other) in found.items():
            values = {
                "score": float(own.score),
                "overlap_run": _overlap(own, found[settings.method][0]),
                "overlap_uniform": _overlap(own, found["uniform"][0]),
                "overlap_other_noise": _overlap(own, other),
            }
            _append(draws[name], values)
        if learner is None or not views:
            continue
        full, _ = sampler.embed(super_batch, config_lib.View())
        for name, view in views.items():
            seen = super_batch
            if isinstance(view, Augmented):
                seed = model.seed ^ _CROPS, number
                seen, view = view(super_batch, seed), config_lib.View()
            coarse, _ = sampler.embed(seen, view)
            _append(
                by_view[name],
                compare_view(sampler, full, coarse, frozen, seeds),
            )
    return {"draws": draws, "views": by_view if by_view and learner else {}}


def compare_view(
    sampler: "Sampler",
    full: Embeddings,
    coarse: Embeddings,
    frozen: Embeddings | None,
    seeds: Sequence[tuple[int, int]],
) -> dict[str, float]:
    """Compares scores of a view with those of full images.

    Args:
        sampler: makes the draws.
        full: the learner's embeddings of the images unchanged, `[B, dim]`.
        coarse: the same of coarser or augmented images.
        frozen: the reference's, or None.
        seeds: of two draws.

    Returns:
        `spearman_own`, the rank correlation of the scores of single pairs;
        `spearman_conditional`, that of the scores given the full draw, over
        the other rows; `overlap`, the share of the full draw that is also in
        the coarse draw from the same noise, and `overlap_other_noise`, that
        in a full draw from other noise; `score_kept`, the ratio of the coarse
        draw's gain over a uniform draw to the full draw's, by full scores.
    """
    by_full, other = (sampler.draw(full, frozen, seed) for seed in seeds)
    by_coarse = sampler.draw(coarse, frozen, seeds[0])
    uniform = sampler.draw(full, frozen, seeds[0], "uniform").score
    gained, _ = sampler.score(full, frozen, by_coarse.indices)
    left = ~by_full.kept.numpy()
    conditional = [
        sampler.score(learner, frozen, by_full.indices)[1].numpy()[left]
        for learner in (full, coarse)
    ]
    return {
        "spearman_own": spearman(
            by_full.own_score.numpy(), by_coarse.own_score.numpy()
        ),
        "spearman_conditional": spearman(*conditional),
        "overlap": _overlap(by_full, by_coarse),
        "overlap_other_noise": _overlap(by_full, other),
        "score_kept": float((gained - uniform) / (by_full.score - uniform)),
    }


class Sampler:
    """Embeds and draws as a step does, in graphs of one replica.

    The settings are of one kind that scores.
    """

    def __init__(self, model, settings: config_lib.SelectionConfig):
        self._model = model
        self._settings = dataclasses.replace(settings, candidates=None)
        self._kind = {
            "criterion": settings.criterion,
            "loss": settings.loss or model.loss_name,
        }
        self._graphs: dict[tuple, Callable] = {}

    def embed(self, super_batch: dict, view: config_lib.View):
        """Returns the learner's and reference's `Embeddings` of all rows."""
        settings = dataclasses.replace(self._settings, view=view)
        return self._run(
            ("embed", view, *sorted(super_batch)),
            lambda batch: self._model.score(batch, settings),
            super_batch,
        )

    def draw(
        self,
        learner: Embeddings | None,
        frozen: Embeddings | None,
        seed: tuple[int, int],
        name: str | None = None,
    ) -> selection.Draw:
        """Draws by the settings, with the sampler `name` if given."""
        settings = self._settings
        name = name or settings.method

        def draw(learner, frozen, seed):
            return selection.SAMPLERS[name](
                learner,
                frozen,
                batch_size=settings.batch_size,
                num_chunks=settings.num_chunks,
                seed=seed,
                first_chunk=settings.first_chunk,
                gain=settings.gain,
                **self._kind,
            )

        seed = tf.constant(seed, tf.int32)
        return self._run(("draw", name), draw, learner, frozen, seed)

    def score(
        self,
        learner: Embeddings | None,
        frozen: Embeddings | None,
        rows: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the `selection.sub_batch_score` of `rows`."""

        def score(learner, frozen, rows):
            return selection.sub_batch_score(
                learner, frozen, rows, **self._kind
            )

        return self._run(("score",), score, learner, frozen, rows)

    def _run(self, key, function, *inputs):
        """Runs `function(*inputs)` in a graph made once for each `key`."""
        if key not in self._graphs:
            # Concrete, as TensorFlow would warn of retracing.
            self._graphs[key] = tf.function(
                function, autograph=False
            ).get_concrete_function(*inputs)
        return self._graphs[key](*inputs)


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the rank correlation of two vectors; NaN of a constant."""
    ranks = []
    for values in (left, right):
        _, groups, counts = np.unique(
            values, return_inverse=True, return_counts=True
        )
        middles = np.cumsum(counts) - (counts - 1) / 2
        ranks.append(middles[groups] - (len(values) + 1) / 2)
    norm = np.sqrt(np.prod([(one**2).sum() for one in ranks]))
    return float((ranks[0] * ranks[1]).sum() / norm) if norm else np.nan


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Returns mean and standard deviation, 0 of a single value."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": float(deviation)}


def _that_scores(settings, step, workdir):
    """The selection of a step, or the last kind that scores."""
    kinds = [kind for kind in settings.kinds if kind.scores]
    now = settings.at(step)
    if not kinds:
        raise ValueError(
            "There is no selection to measure: expected a run whose "
            f"`selection` scores. Received: {workdir!r} with method "
            f"{settings.method!r}, batch_size={settings.batch_size}"
        )
    return now if now.scores else kinds[-1]


def _with_spread(summary):
    return f"{summary['mean']:.3f} ± {summary['std']:.3f}"


def _aligned(rows):
    """A table in columns, the first flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _candidates(super_batch, settings):
    size = super_batch["image"].shape[0]
    stride = size // (settings.candidates or size)
    return {name: value[::stride] for name, value in super_batch.items()}


def _overlap(left, right):
    return draw_log.overlap(left.indices.numpy(), right.indices.numpy())


def _append(columns, values):
    for name, value in values.items():
        columns.setdefault(name, []).append(value)
