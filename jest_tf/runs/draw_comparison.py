"""Comparison of a run's draws with other samplers, views and noise.

Measured on demand, on super-batches of the run's data with its weights; nothing
is trained. `runs/draw_log.py` follows the draws of training.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.config import checks, overrides
from jest_tf.data import augmentation
from jest_tf.data.sidecars import recognition
from jest_tf.models import patches
from jest_tf.runs import directory, draw_log, inputs
from jest_tf.training import step as step_lib

# Salts for the noise of a second draw and for crops.
_OTHER_NOISE, _CROPS = 1, 2


@dataclasses.dataclass(frozen=True)
class Look(config_lib.View, path="view"):
    """A view of pictures, augmented by its own `flip` and `min_crop_area`.

    Both are as in `config.DataConfig`.

    The reference's pictures are never augmented.
    """

    flip: bool = False
    min_crop_area: Annotated[float, checks.within("(0, 1]")] = 1.0

    @property
    def view(self) -> config_lib.View:
        """Returns the view alone."""
        return config_lib.View(
            self.patch_size, self.keep_tokens, self.image_size
        )

    def augment(self, super_batch: dict, seed: tuple[int, int]) -> dict:
        """Augments the learner's pictures."""
        image = super_batch["image"]
        augment = augmentation.Augmentation(
            flip=self.flip, min_area=self.min_crop_area
        )
        augmented = augment(image, tf.constant(seed, tf.int32))
        return {"image_for_reference": image, **super_batch, "image": augmented}


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
        views: besides the run's view, fields of `Look` such as
            `image_size=64,keep_tokens=0.5`, or `min_crop_area=0.6,flip=true`.

    Returns:
        `step`, `super_batches`, `settings` of the draws, and `draws` and
        `views` as in `compare`, with `mean` and `std` over super-batches.

    Raises:
        ValueError: there is no such run, it scores nothing, or its learner
            cannot take a view.
    """
    checks.check("num_super_batches", num_super_batches, checks.at_least(1))
    looks = [parse_view(text) for text in views]
    sizes = [look.patch_size for look in looks if look.patch_size]
    opened = inputs.open_training(workdir, step, patch_sizes=sizes)
    settings = _that_scores(opened.config.selection, opened.step, workdir)
    run_look = Look(**dataclasses.asdict(settings.view))
    every = {describe_view(look): look for look in (run_look, *looks)}
    every.pop("full", None)  # which is what they are compared with
    for look in every.values():
        if look.view != config_lib.View():
            patches.check_view(opened.model.learner, look.view)
    found = compare(
        opened.model,
        opened.super_batches(opened.step).take(num_super_batches),
        opened.step,
        settings=settings,
        views=every,
    )
    curated_rows = opened.model.curated_rows
    size = opened.config.data.super_batch_size - curated_rows
    results = {
        "step": opened.step,
        "super_batches": num_super_batches,
        "settings": {
            "method": settings.method,
            "criterion": settings.criterion,
            "batch_size": settings.batch_size - curated_rows,
            "scored": settings.candidates or size,
            "view": describe_view(run_look),
        },
        **tf.nest.map_structure(lambda *values: _summary(values), *found),
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
    for title in ("draws", "views"):
        if results[title]:
            parts.append(_table(title[:-1], results[title]))
    return "\n\n".join(parts)


def parse_view(text: str) -> Look:
    """Parses a view, `a=b,c=d`.

    Raises:
        ValueError: a field is unknown or a value out of range.
    """
    values: dict = {}
    for part in text.split(","):
        overrides.override(Look, values, part)
    return overrides.build(Look, values)


def describe_view(look: Look) -> str:
    """Inverts `parse_view`; "full" is unchanged images."""
    plain = dataclasses.asdict(Look())
    changed = [
        f"{name}={json.dumps(value)}"
        for name, value in dataclasses.asdict(look).items()
        if value != plain[name]
    ]
    return ",".join(changed) or "full"


def compare(
    model,
    super_batches: tf.data.Dataset,
    first: int,
    *,
    settings: config_lib.SelectionConfig,
    views: Mapping[str, Look],
) -> Iterator[dict[str, dict[str, dict[str, float]]]]:
    """Draws from super-batches in several ways, and compares the draws.

    Args:
        model: a `JESTModel` with its reference, on one replica.
        super_batches: dicts as of a training step, of static size.
        first: number of the first of them; numbers seed the noise.
        settings: of the selection, of one kind that scores.
        views: of the learner, by name.

    Yields:
        For each super-batch, values by kind, name and measure. `draws`, by
        sampler: `score`, and the shares of its rows that are also in the run's
        draw (`overlap_run`), in a uniform draw from the same noise
        (`overlap_uniform`), and in its draw from other noise
        (`overlap_other_noise`). `views`, by name, {} for a criterion without
        learner: `spearman_own`, the rank correlation of the scores of single
        pairs in the view with those of full images; `spearman_conditional`,
        that of the scores given the full draw, over the rows outside it;
        `overlap`, the share of the full
        draw that is also in the view's from the same noise, and
        `overlap_other_noise`, that in a full draw from other noise;
        `score_kept`, the ratio of the view's gain over a uniform draw to the
        full draw's, by full scores.
    """
    embed, draw, score = _graphs(model, settings)
    step = dataclasses.replace(model.step, selection=settings)
    for number, super_batch in enumerate(super_batches, first):
        super_batch, _ = step_lib.candidates(step, super_batch)
        seeds = [
            tf.constant([seed, number], tf.int32)
            for seed in (model.seed, model.seed ^ _OTHER_NOISE)
        ]
        learner, frozen = embed(settings.view)(super_batch)
        own, other = (draw(learner, frozen, seed) for seed in seeds)
        found: dict = {"draws": {}, "views": {}}
        for name in own:
            found["draws"][name] = {
                "score": float(own[name].score),
                "overlap_run": _overlap(own[name], own[settings.method]),
                "overlap_uniform": _overlap(own[name], own["uniform"]),
                "overlap_other_noise": _overlap(own[name], other[name]),
            }
        if learner is None or not views:
            yield found
            continue
        full, _ = embed(config_lib.View())(super_batch)
        own, other = (draw(full, frozen, seed) for seed in seeds)
        by_full, uniform = own[settings.method], own["uniform"].score
        _, given = score(full, frozen, by_full.indices)
        left = ~by_full.kept.numpy()
        for name, look in views.items():
            seen = look.augment(super_batch, (model.seed ^ _CROPS, number))
            coarse, _ = embed(look.view)(seen)
            by_view = draw(coarse, frozen, seeds[0])[settings.method]
            gained, _ = score(full, frozen, by_view.indices)
            _, given_view = score(coarse, frozen, by_full.indices)
            found["views"][name] = {
                "spearman_own": recognition.spearman(
                    by_full.own_score, by_view.own_score
                ),
                "spearman_conditional": recognition.spearman(
                    given.numpy()[left], given_view.numpy()[left]
                ),
                "overlap": _overlap(by_full, by_view),
                "overlap_other_noise": _overlap(
                    by_full, other[settings.method]
                ),
                "score_kept": float(
                    (gained - uniform) / (by_full.score - uniform)
                ),
            }
        yield found


def _graphs(model, settings):
    """How a step embeds in a view, draws by each sampler, and scores rows."""
    settings = dataclasses.replace(
        settings,
        candidates=None,
        batch_size=settings.batch_size - model.curated_rows,
    )
    kind = {
        "criterion": settings.criterion,
        "loss": settings.loss or model.step.loss,
    }

    @functools.cache
    def embed(view):
        step = dataclasses.replace(
            model.step, selection=dataclasses.replace(settings, view=view)
        )
        return tf.function(
            functools.partial(step_lib.score, step), autograph=False
        )

    @tf.function(autograph=False)
    def draw(learner, frozen, seed):
        return {
            name: sampler(
                learner,
                frozen,
                seed=seed,
                batch_size=settings.batch_size,
                num_chunks=settings.num_chunks,
                first_chunk=settings.first_chunk,
                gain=settings.gain,
                **kind,
            )
            for name, sampler in selection.SAMPLERS.items()
        }

    @tf.function(autograph=False)
    def score(learner, frozen, rows):
        return selection.sub_batch_score(learner, frozen, rows, **kind)

    return embed, draw, score


def _that_scores(settings, step, workdir):
    """The selection of a step, or the last kind that scores."""
    kinds = [one for one in (*settings.kinds, settings.at(step)) if one.scores]
    if not kinds:
        raise ValueError(
            "There is no selection to measure: expected a run whose "
            f"`selection` scores. Received: {workdir!r} with method "
            f"{settings.method!r}, batch_size={settings.batch_size}"
        )
    return kinds[-1]


def _summary(values):
    """Mean and standard deviation, 0 of a single value."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": float(deviation)}


def _table(title, by_name):
    columns = list(next(iter(by_name.values())))
    first, width = (2 + max(map(len, names)) for names in (by_name, columns))
    rows = {title: [column.replace("_", " ") for column in columns]} | {
        name: [f"{of['mean']:.3f} ± {of['std']:.3f}" for of in values.values()]
        for name, values in by_name.items()
    }
    return "\n".join(
        f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell in cells)
        for name, cells in rows.items()
    )


def _overlap(left, right):
    return draw_log.overlap(left.indices.numpy(), right.indices.numpy())
