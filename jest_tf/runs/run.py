"""A run: from settings to final weights, in a directory that it continues in.

Everything that a run needs again is written whole or not at all, so a process
may be killed at any instant; the next one with the same settings goes on from
the newest checkpoint to the same end, bit for bit on the same hardware.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, evaluation, files, models, training
from jest_tf.data import cascade, pipeline, preprocessing
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.models import reference
from jest_tf.runs import checkpoints as checkpoints_lib
from jest_tf.runs import (
    directory,
    draw_log,
    interruptions,
    progress,
    resources,
    step_timing,
)
from jest_tf.runs import log as log_lib


def train(config: config_lib.TrainConfig, workdir: str) -> dict[str, float]:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one.

    Returns:
        What the final evaluation measured.

    Raises:
        ValueError: on settings that do not fit together, data that cannot be
            read, a directory that holds another run or is in use, or numbers
            that are not finite.
        stopping.Preempted: after SIGTERM or SIGINT, also to another worker,
            with the state saved.
    """
    with interruptions.Signals() as signals:
        try:
            return _train(config, workdir, signals)
        except interruptions.Preempted:
            newest = max(checkpoints_lib.saved_steps(workdir), default=0)
            _say(
                f"{workdir}: stopped by {signals.received}; the same command "
                f"goes on from step {newest:,}"
            )
            raise


class _Inputs(NamedTuple):
    """What is opened once and outlives a rollback.

    Attributes:
        strategy: what the model is made and trained under.
        store: the examples.
        teacher: the reference's run, None where there is none.
        sidecars: the reference's embeddings, None where it runs itself.
        cascade: what chooses the super-batches, None where nothing does.
        evaluation_stores: what is evaluated on, by name.
        tokenizer: the learner's.
        skipped: the super-batches to leave out.
        output: where this process writes: the run directory, or a folder that
            is thrown away, for all of several workers but one.
        energy: measures it; None where nobody asks.
    """

    strategy: tf.distribute.Strategy
    store: stores_lib.Store
    teacher: reference.Run | None
    sidecars: sidecars_lib.Sidecars | None
    cascade: cascade.Cascade | None
    evaluation_stores: dict[str, stores_lib.Store]
    tokenizer: Callable
    skipped: interruptions.Skipped
    output: str
    energy: resources.EnergyMeter | None


class Opened(NamedTuple):
    """A run that is opened to be looked at.

    Attributes:
        config: the resolved settings.
        model: the compiled `JESTModel`, with its reference.
        step: of its weights.
        super_batches: from the number of the first to a dataset of them, from
            the stream of the run.
    """

    config: config_lib.TrainConfig
    model: training.JESTModel
    step: int
    super_batches: Callable[[int], tf.data.Dataset]


def open_run(
    workdir: str,
    *,
    step: int | None = None,
    patch_sizes: Sequence[int] = (),
) -> Opened:
    """Opens a run, on one device, with its data and its reference.

    Args:
        workdir: the run directory.
        step: of the checkpoint to take the weights from; None takes those that
            the run ended with.
        patch_sizes: that views will ask for beside those of the settings.

    Raises:
        ValueError: where there is no run, no such checkpoint, or data that
            cannot be read.
    """
    if step is None:
        config, tokenizer, learner = reference.load_run(workdir, patch_sizes)
    else:
        config, tokenizer, learner = reference.open_run(workdir, patch_sizes)
    store = stores_lib.open_stores(config.data)
    teacher, sidecars = _reference(config, store)
    inputs = _Inputs(
        tf.distribute.get_strategy(),
        store,
        teacher,
        sidecars,
        cascade.of_run(config, sidecars),
        {},
        tokenizer,
        interruptions.Skipped(workdir, writes=False),
        workdir,
        None,
    )
    model = training.build_model(config, learner, _frozen(inputs))
    model.build(None)
    if step is not None:
        model.optimizer.build(model.trainable_variables)
        checkpoints_lib.load(model, workdir, step)

    def super_batches(first):
        faults = pipeline.FaultLog(None, config.data.max_fault_rate)
        return _super_batches(config, inputs, first, faults)

    return Opened(config, model, step or config.steps, super_batches)


def load_run(workdir: str, step: int | None = None) -> reference.Run:
    """A run's learner, alone: as it ended, or as it was at a checkpoint.

    It needs nothing but the run directory.

    Args:
        workdir: the run directory.
        step: of the checkpoint; None is the end.

    Raises:
        ValueError: where there is no run, there is no such checkpoint, or,
            without `step`, the run has not finished.
    """
    if step is None:
        return reference.load_run(workdir)
    run = reference.open_run(workdir)
    # A checkpoint is of the whole model; whatever scores is not in it.
    model = training.build_model(
        run.config, run.learner, reference.cached(1.0, 0.0)
    )
    model.build(None)
    model.optimizer.build(model.trainable_variables)
    checkpoints_lib.load(model, workdir, step)
    return run


class _Diverged(Exception):
    """Numbers of these steps, counted from 0, are not finite.

    `is_shared` is whether every worker has come to know.
    """

    def __init__(self, steps, names, values, is_shared=True):
        super().__init__()
        self.steps, self.names, self.values = steps, names, values
        self.is_shared = is_shared


def _train(config, workdir, signals):
    strategy = distribution.build_strategy(config.distribution)
    if distribution.has_workers(strategy):
        signals.stop_together(distribution.any_worker(strategy))
    store = stores_lib.open_stores(
        config.data, progress.Progress("indexing", "bytes")
    )
    with strategy.scope():
        teacher, sidecars = _reference(config, store)
    _warn_of_repeats(config, store)
    evaluation_stores = evaluation.open_stores(
        config.evaluation.data, config.evaluation_data
    )
    _check_keep_best(config, evaluation_stores)
    energy = resources.EnergyMeter() if config.evaluation.energy else None
    writes = strategy.extended.should_checkpoint
    with (
        directory.claimed(workdir, config)
        if writes
        else directory.thrown_away()
    ) as output:
        if writes:
            directory.check_data(
                output,
                store,
                _fingerprint(teacher, sidecars),
                "" if sidecars is None else sidecars.identity,
            )
        inputs = _Inputs(
            strategy,
            store,
            teacher,
            sidecars,
            cascade.of_run(config, sidecars),
            evaluation_stores,
            _tokenizer(config, store, workdir, output),
            interruptions.Skipped(workdir, writes=writes),
            output,
            energy,
        )
        try:
            while True:
                try:
                    return _attempt(config, workdir, inputs, signals)
                except _Diverged as diverged:
                    _leave_out(config, workdir, inputs, diverged)
        finally:
            if energy is not None:
                energy.close()


def _fingerprint(teacher, sidecars):
    if sidecars is not None:
        return sidecars.fingerprint
    return "" if teacher is None else reference.describe(teacher).fingerprint


def _reference(config, store):
    """The reference's run and its sidecars, as far as there are any."""
    if not (config.steps_need_reference or config.cascade.hyper_batch_size):
        return None, None
    settings = config.reference
    teacher = settings.workdir and reference.load_run(settings.workdir)
    if teacher:
        _warn_of_losses(config, teacher.config.model.loss)
    if not settings.sidecars:
        return teacher, None
    expected = reference.describe(teacher) if teacher else None
    return teacher or None, sidecars_lib.Sidecars(
        store, settings.sidecar_dir, expected
    )


def _warn_of_losses(config, learned):
    """Says so if a score takes a loss that the reference has not learned.

    It has a scale and a bias for its own alone; by another its part of a score
    may be so large that the learner's has no say.
    """
    asked = {}
    if config.selection.needs_reference:
        asked["selection.loss"] = config.selection.loss
    if config.cascade.hyper_batch_size:
        asked["cascade.loss"] = config.cascade.loss
    for setting, loss in asked.items():
        loss = loss or config.model.loss
        if loss != learned:
            _say(
                f"warning: scores are of the {loss} loss, and the reference in "
                f"{config.reference.workdir} has learned by the {learned} loss:"
                f" `{setting}={learned}` scores by that"
            )


def _warn_of_repeats(config, store):
    """Says so if a super-batch holds more than there is, records twice over.

    A record that is there twice is its own hardest negative.
    """
    data = config.data
    order = pipeline.order(
        store, data.weights, config.seed, data.shuffle_block_size
    )
    if data.super_batch_size > order.num_drawn:
        _say(
            f"warning: `data.super_batch_size`={data.super_batch_size:,} is "
            f"more than the {order.num_drawn:,} records to draw from, so that "
            "every super-batch holds some of them several times"
        )


def _attempt(config, workdir, inputs, signals):
    """From the newest checkpoint to the end.

    Raises:
        _Diverged: at numbers that are not finite.
    """
    with inputs.strategy.scope():
        learner = models.build_learner(config, inputs.tokenizer.vocabulary_size)
        model = training.build_model(config, learner, _frozen(inputs))
        model.build(None)
        model.optimizer.build(model.trainable_variables)
        if inputs.output == workdir:
            start_step = checkpoints_lib.restore(model, workdir)
        else:
            start_step = checkpoints_lib.load(model, workdir)
    _check_rest(config, start_step)
    path = os.path.join(workdir, checkpoints_lib.FAULTS_FILE)
    faults = pipeline.FaultLog(
        # What is thrown away nobody can be sent to.
        path if inputs.output == workdir else None,
        config.data.max_fault_rate,
    )
    dataset, input_wait = _dataset(config, inputs, start_step, faults)
    log, checkpoints, evaluate = _writers(
        config, inputs, model, start_step, input_wait, signals
    )
    if start_step < config.steps:
        _say(f"{workdir}: steps {start_step:,} to {config.steps:,}")
        try:
            _fit(
                model,
                dataset,
                [
                    interruptions.FiniteCheck(start_step),
                    *(log, checkpoints, signals, evaluate),
                ],
                config.steps - start_step,
                faults,
            )
        except interruptions.Preempted:
            if checkpoints.step > start_step:
                checkpoints.save()
            raise
    faults.close(inputs.skipped.at(config.steps))
    if faults.num_replaced:
        _say(
            f"{faults.num_replaced:,} of {faults.num_drawn:,} records drawn "
            "could not be read and were replaced: "
            f"{checkpoints_lib.FAULTS_FILE}"
        )
    path = os.path.join(inputs.output, reference.WEIGHTS_FILE)
    checkpoints_lib.save_weights(learner, path)
    return evaluate.run(config.steps)


def _frozen(inputs):
    """What `JESTModel` takes for its reference."""
    if inputs.sidecars is not None:
        return reference.cached(inputs.sidecars.scale, inputs.sidecars.bias)
    return inputs.teacher and inputs.teacher.learner


def _cascade_flops(config, inputs):
    """FLOPs of a step's stage 0; 0 without a cascade."""
    if inputs.cascade is None:
        return 0
    return cascade.flops(
        config.cascade, config.data.super_batch_size, inputs.sidecars.dim
    )


def _check_rest(config, start_step):
    """Refuses a rest of a run that its executions do not divide."""
    together = config.distribution.steps_per_execution
    if (config.steps - start_step) % together:
        raise ValueError(
            "`distribution.steps_per_execution` must divide the steps that are "
            f"left. Received: {together}, to continue from step {start_step} "
            f"of {config.steps}"
        )


def _writers(config, inputs, model, start_step, input_wait, signals):
    """The callbacks that log, save and evaluate."""
    meters_of_run = log_lib.Meters(
        energy=inputs.energy,
        cascade_flops=_cascade_flops(config, inputs),
    )
    log = log_lib.Ledger(
        config,
        inputs.output,
        start_step=start_step,
        input_wait=input_wait,
        meters=meters_of_run,
        telemetry=_telemetry(config, inputs, start_step),
    )
    log.set_model(model)  # which tells it what steps have cost
    if config.evaluation.time_parts:
        meters_of_run.probe = step_timing.Probe(
            model, lambda: _super_batch(config, inputs, log.step)
        )
    settings = config.checkpoint
    any_worker = distribution.any_worker(inputs.strategy)
    writes = inputs.strategy.extended.should_checkpoint
    checkpoints = checkpoints_lib.Checkpoints(
        inputs.output,
        every_steps=settings.every_steps,
        every_minutes=settings.every_minutes,
        keep=settings.keep,
        keep_best=settings.keep_best,
        start_step=start_step,
        last_step=config.steps,
        guard=signals.deferred,
        # What the worker that writes finds is what counts.
        agree=lambda wish: any_worker(wish and writes),
    )

    def on_evaluation(step, measures):
        log.log_scalars(step, measures)
        checkpoints.on_evaluation(step, measures)

    evaluate = evaluation.Evaluation(
        model.learner,
        inputs.evaluation_stores,
        config.evaluation,
        tokenizer=inputs.tokenizer,
        image_size=config.data.image_size,
        max_image_pixels=config.data.max_image_pixels,
        workdir=inputs.output,
        start_step=start_step,
        costs=log.costs_at,
        log=on_evaluation,
    )
    meters_of_run.clocks = {"evaluation": evaluate, "save": checkpoints}
    return log, checkpoints, evaluate


def _telemetry(config, inputs, start_step):
    """What follows the selection, if the settings want it."""
    if not config.evaluation.telemetry:
        return None
    data, order = config.data, None
    if inputs.cascade is None:  # else positions don't follow from rows
        order = pipeline.order(
            inputs.store, data.weights, config.seed, data.shuffle_block_size
        )
    return draw_log.Telemetry(
        config,
        inputs.output,
        start_step=start_step,
        order=order,
        super_batch_at=inputs.skipped.at,
    )


def _fit(model, dataset, callbacks, steps, faults):
    """`model.fit`; says of which steps numbers were not finite."""
    finite = callbacks[0]
    try:
        model.fit(
            dataset, steps_per_epoch=steps, verbose=0, callbacks=callbacks
        )
        return
    except checkpoints_lib.NotFinite as error:
        steps = range(finite.previous, finite.step)
        diverged = _Diverged(steps, error.names, error.values)
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        faults.check()
        if not distribution.has_workers(model.distribute_strategy):
            raise
        raise ValueError(
            "All workers must go on together, but another one has ended, or "
            "can't be reached: what it said last tells why. Received: "
            f"{type(error).__name__} in the step after {finite.step}"
        ) from error
    except tf.errors.InvalidArgumentError as error:
        # The stream's errors come as TensorFlow's.
        faults.check()
        found = re.search(r"\bValueError: (.*)", error.message)
        if found is None:
            raise
        raise ValueError(found[1]) from error
    except ValueError as error:
        # Embeddings that can't be scored break a step off, with some of its
        # work done or none.
        if not isinstance(error.__cause__, tf.errors.InvalidArgumentError):
            raise
        steps = range(finite.step, finite.step + model.steps_per_execution)
        # Only a worker's own embeddings are looked at, in the midst of a step.
        is_shared = not distribution.has_workers(model.distribute_strategy)
        names = [str(error).split(" hold")[0]]
        diverged = _Diverged(steps, names, {}, is_shared)
    rate = float(model.optimizer.learning_rate)
    diverged.values["learning_rate"] = rate
    raise diverged


def _leave_out(config, workdir, inputs, diverged):
    """Leaves out the super-batches at fault, or raises if that won't do."""
    numbers = [inputs.skipped.at(step) for step in diverged.steps]
    case = {
        "step": diverged.steps[-1] + 1,
        "super_batches": numbers,
        "not_finite": list(diverged.names),
        # JSON knows no NaN.
        **{name: str(value) for name, value in diverged.values.items()},
        "ids": [_ids(config, inputs, number) for number in numbers],
    }
    message = _describe(case, diverged)
    newest = max(checkpoints_lib.saved_steps(workdir), default=0)
    if not diverged.is_shared:
        way_out = "one of several workers can't go back from within a step"
    elif config.checkpoint.on_non_finite == "rollback":
        if inputs.skipped.add(case):
            _say(
                f"{message}. Leaving it out and going on from step {newest:,}; "
                f"its ids are in {interruptions.SKIPPED_FILE}"
            )
            return
        way_out = "leaving out the ones before did not help"
    else:
        way_out = (
            "with checkpoint.on_non_finite=rollback the same command goes on "
            f"from step {newest:,} without it"
        )
    if inputs.output == workdir:
        path = os.path.join(workdir, interruptions.NOT_FINITE_FILE)
        interruptions.write_json(path, case)
        message += f". Its ids are in {path}"
    raise ValueError(
        f"{message}; a lower `optimizer.learning_rate` or "
        f"`optimizer.clip_norm` may help; {way_out}"
    )


def _describe(case, diverged):
    shown = ", ".join(diverged.names[:3])
    if len(diverged.names) > 3:
        shown += f" and {len(diverged.names) - 3} more"
    values = ", ".join(
        f"{name.replace('_', ' ')} {value:.6g}"
        for name, value in diverged.values.items()
    )
    numbers = ", ".join(map(str, case["super_batches"]))
    return (
        f"Step {case['step']} (super-batch {numbers}): expected finite "
        f"numbers. Received: {shown} not finite; {values}"
    )


def _ids(config, inputs, number):
    """The ids of a super-batch."""
    return _read(config, inputs, number)["id"].numpy().tolist()


def _super_batch(config, inputs, step):
    """What the step after `step` steps will get."""
    return _read(config, inputs, inputs.skipped.at(step))


def _read(config, inputs, number):
    """A super-batch by its number, read apart from the stream of `fit`."""
    uncounted = pipeline.FaultLog(None, 1.0)
    dataset = _super_batches(config, inputs, number, uncounted)
    return next(iter(dataset.take(1)))


def _dataset(config, inputs, start_step, faults):
    """What `fit` reads, and what measures how long it waits for it."""

    def stream(host, num_hosts):
        return _stream(config, inputs, start_step, faults, host, num_hosts)

    dataset = distribution.distribute(
        inputs.strategy, stream, config.data.super_batch_size
    )
    if config.distribution.strategy != "default":
        return dataset, None
    input_wait = log_lib.InputWait()
    return input_wait.watch(dataset), input_wait


def _stream(config, inputs, start_step, faults, host, num_hosts):
    """The super-batches of the steps from `start_step` on."""
    first = inputs.skipped.at(start_step)
    skipped = [number for number in inputs.skipped.numbers if number > first]
    stream = None
    # From the end, so that the faults are those before the very first.
    for start, stop in zip(
        [*(number + 1 for number in reversed(skipped)), first],
        [None, *reversed(skipped)],
        strict=True,
    ):
        part = _super_batches(config, inputs, start, faults, host, num_hosts)
        if stop is None:
            stream = part
        else:
            stream = part.take(stop - start).concatenate(stream)
    return stream


def _super_batches(config, inputs, start, faults, host=0, num_hosts=1):
    """The stream from super-batch `start` on, nothing left out."""
    reference_view = {}
    if inputs.sidecars is None and inputs.teacher is not None:
        reference_view = {
            "reference_tokenizer": inputs.teacher.tokenizer,
            "reference_image_size": inputs.teacher.config.data.image_size,
        }
    data = config.data
    return pipeline.super_batches(
        inputs.store,
        super_batch_size=data.super_batch_size,
        seed=config.seed,
        tokenizer=inputs.tokenizer,
        image_size=data.image_size,
        start_step=start,
        weights=data.weights,
        shuffle_block_size=data.shuffle_block_size,
        host=host,
        num_hosts=num_hosts,
        sidecars=inputs.sidecars if config.steps_need_reference else None,
        cascade=inputs.cascade,
        faults=faults,
        max_image_pixels=data.max_image_pixels,
        **reference_view,
    )


def _check_keep_best(config, stores):
    """Refuses a measure that no evaluation can yield, before anything runs."""
    wanted = config.checkpoint.keep_best
    if not wanted:
        return
    one = np.ones([1, 1])
    measures = (
        *evaluation.retrieval(one, one, [0], [0]),
        *evaluation.zero_shot(one, np.array([0]), one),
    )
    names = [f"eval/{store}/{one}" for store in stores for one in measures]
    if wanted not in names:
        raise ValueError(
            "`checkpoint.keep_best` must be a measure of `evaluation.data`: "
            f"{', '.join(names) or 'there is none without data'}. "
            f"Received: {wanted!r}"
        )


def _tokenizer(config, store, workdir, output):
    """The run's tokenizer: from the directory, a given file, or built."""
    length = config.data.text_length
    if preprocessing.has_tokenizer(workdir):
        return preprocessing.load_tokenizer(workdir, length)
    if config.data.vocabulary:
        tokenizer = preprocessing.read_tokenizer(config.data.vocabulary, length)
    else:
        _say(f"{workdir}: building a vocabulary from {len(store):,} records")
        vocabulary = preprocessing.build_wordpiece_vocabulary(
            store.captions(), config.data.vocabulary_size
        )
        tokenizer = preprocessing.WordPieceTokenizer(vocabulary, length)
    # It writes one file, under a name of its own.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for name in os.listdir(folder):
            path = os.path.join(output, name)
            with files.written_whole(path) as partial:
                shutil.copyfile(os.path.join(folder, name), partial)
    return tokenizer


def _say(text):
    print(text, file=sys.stderr, flush=True)
