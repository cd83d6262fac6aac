"""A run: from settings to final weights, in a resumable directory.

A process may be killed at any time. Another with the same settings continues
from the newest checkpoint to a bit-identical result on the same hardware.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, evaluation, files, training
from jest_tf.config import imports
from jest_tf.data import loading as loading_lib
from jest_tf.data import pipeline
from jest_tf.files import disks
from jest_tf.models import reference
from jest_tf.runs import (
    bootstrap,
    directory,
    draw_log,
    evaluations,
    inputs,
    interruptions,
    loading,
    notices,
    progress,
    provenance,
    step_timing,
    steps,
)
from jest_tf.runs import checkpoints as checkpoints_lib
from jest_tf.runs import log as log_lib
from jest_tf.selection import summary
from jest_tf.training import stepper


def train(
    config: config_lib.TrainConfig, workdir: str, *, trust: bool = False
) -> dict[str, float]:
    """Runs `config` in `workdir`, from its newest checkpoint if any.

    Returns the measures of the final evaluation. `trust` calls the functions
    that the reference and `model.init_from` name, if they are runs; those of
    `config` are always called.

    Raises:
        interruptions.Preempted: after SIGTERM or SIGINT to any worker, with the
            state saved.
    """
    with interruptions.Signals() as signals:
        local = [] if files.is_remote(workdir) else [workdir]
        try:
            with (
                disks.room_for(tempfile.gettempdir(), *local),
                imports.trusting(trust),
            ):
                return _train(config, workdir, signals)
        except (interruptions.Preempted, Exception) as error:
            if not signals.received:
                raise
            # The signal, or the outage behind it, may have caused an error.
            cause = ""
            if not isinstance(error, interruptions.Preempted):
                text = " ".join(str(error).split())[:200]
                cause = f", and by {type(error).__name__}: {text}"
            progress.say(
                f"{workdir}: stopped by {signals.received}{cause}; the same "
                f"command goes on from {_last_step(workdir)}"
            )
            raise interruptions.Preempted(interruptions.EXIT_CODE) from error


def extend(
    workdir: str, steps: int, *, trust: bool = False
) -> dict[str, float]:
    """Trains a finished run for `steps` more steps, like `train`.

    A constant learning rate continues. Any other schedule begins anew, with its
    warm-up, and `config.json` gets the step. `trust` is for the run, too.
    """
    with imports.trusting(trust):
        return train(provenance.extend(workdir, steps), workdir)


class _Run(NamedTuple):
    """The parts of a run that outlive renewals; opened once.

    With several workers, `output` is the run directory on the first worker and
    a temporary folder on the others.
    """

    config: config_lib.TrainConfig
    workdir: str
    output: str
    signals: interruptions.Signals
    opened: inputs.Inputs
    tokenizer: Callable
    started: float

    @property
    def writes(self) -> bool:
        """True on the worker that writes the run directory."""
        return self.output == self.workdir


class _Part(NamedTuple):
    """The inputs of a `fit`, from a checkpoint to the next renewal."""

    restored: checkpoints_lib.Restored
    began: float  # before the renewal
    funnel: training.Funnel
    stream: Callable[..., tf.data.Dataset]
    summaries: summary.Summaries
    faults: pipeline.FaultLog
    dataset: tf.data.Dataset
    input_wait: step_timing.InputWait | None

    @property
    def step(self) -> int:
        """The steps done before."""
        return self.restored.step


class _Callbacks(NamedTuple):
    """The callbacks that follow a `fit`; `own` are the user's."""

    log: log_lib.Ledger
    checkpoints: checkpoints_lib.Checkpoints
    evaluate: evaluations.Evaluation
    own: list[keras.callbacks.Callback]


def _train(config, workdir, signals):
    """Opens a run, trains it from renewal to renewal, and closes it."""
    with contextlib.ExitStack() as stack:
        run = _open(config, workdir, signals, stack)
        model, encoder = _build(run)
        log = None
        while True:
            with run.opened.strategy.scope():
                restored = checkpoints_lib.restore(model, run.workdir)
            part = _renew(run, model, restored)
            callbacks = _follow(run, model, encoder, part, log)
            stack.callback(callbacks.log.close)
            stop = _fit(run, model, part, callbacks)
            if stop == config.steps:
                signals.release()
                return _close(run, model, part, callbacks)
            log = callbacks.log


def _open(config, workdir, signals, stack):
    """Opens and checks what the whole run reads, and claims its directory."""
    # For towers that draw weights with `tf.random`. Done first: it clears
    # TensorFlow's kernels, and with them existing SentencePiece tokenizers.
    tf.random.set_seed(config.seed)
    strategy = distribution.build_strategy(config.distribution)
    if distribution.has_workers(strategy):
        signals.stop_together(distribution.any_worker(strategy))
    opened = inputs.open_inputs(config, workdir, strategy)
    opened = notices.check_data(config, opened)
    provenance.check_data(workdir, opened.sources)
    # After all checks, so that a refusal prints nothing but its own message.
    kind = config.distribution.strategy
    devices = distribution.describe(strategy)
    if (kind, devices) == ("mirrored", "CPU:0"):
        progress.say(
            f"warning: `distribution.strategy={kind}` found no GPU: the run "
            "uses one CPU"
        )
    progress.say(f"{workdir}: strategy {kind} on {devices}")
    if distribution.share(strategy)[0] == 0:
        output = stack.enter_context(provenance.claimed(workdir, config))
        provenance.record_data(output, opened.sources)
    else:  # writing reduces some values over all workers
        output = stack.enter_context(tempfile.TemporaryDirectory())
    tokenizer = loading.make_tokenizer(
        config, opened.sources.store, workdir, output, opened.start.tokenizer
    )
    started = time.monotonic()
    return _Run(config, workdir, output, signals, opened, tokenizer, started)


def _build(run):
    """Builds the model, with first weights, and the encoder of evaluations."""
    config = run.config
    size = run.tokenizer.vocabulary_size
    model = inputs.build_model(config, run.opened, run.workdir, size)
    start = run.opened.start
    if start.fingerprint:
        loading.write_learner(run.output, model.learner, start)
    encoder = evaluation.Encoder(
        model.learner,
        run.tokenizer,
        start.image_form,
        strategy=run.opened.strategy,
    )
    return model, encoder


def _renew(run, model, restored):
    """Renews the reference if it is due; opens the inputs of the next `fit`."""
    config, began = run.config, time.monotonic()
    learner = reference.Run(
        config,
        run.tokenizer,
        model.learner,
        f"the learner after {restored.step} steps",
        run.opened.start.image_form,
    )
    with (
        _together(run, lambda: f"the renewal after step {restored.step}"),
        model.averaged(),
    ):
        bootstrap.renew(
            learner,
            run.workdir,
            run.opened.sources.store,
            restored.step,
            run.opened.sources.sidecars,
            writes=run.writes,
            meet=run.signals.meet,
            share=distribution.share(run.opened.strategy),
        )
    if run.writes:
        directory.cut_back(run.workdir, restored.step)
    summaries = summary.Summaries()
    funnel = inputs.funnel_at(
        config, run.opened.sources, run.workdir, restored.step, summaries
    )
    with run.opened.strategy.scope():
        model.bind(funnel)
    stream = functools.partial(
        funnel.super_batches,
        run.tokenizer,
        run.opened.start.image_form,
        seed=config.seed,
    )
    # None on other workers: a message must not name a temporary file.
    path = directory.path(run.workdir, directory.FAULTS_FILE)
    faults = pipeline.FaultLog(
        path if run.writes else None,
        lost_share=run.opened.sources.store.lost_share,
    )
    dataset = distribution.distribute(
        run.opened.strategy,
        lambda host, num_hosts: stream(
            start_step=restored.step,
            host=host,
            num_hosts=num_hosts,
            faults=faults,
        ),
    )
    input_wait = None
    strategy = config_lib.STRATEGIES[config.distribution.strategy]
    if not strategy.fetches_ahead:
        input_wait = step_timing.InputWait()
        dataset = input_wait.watch(dataset)
    return _Part(
        restored, began, funnel, stream, summaries, faults, dataset, input_wait
    )


def _follow(run, model, encoder, part, before):
    """Makes the callbacks of a `fit`; `before` is the last one's ledger."""
    config, first = run.config, run.opened.sources.sidecars
    is_renewed = part.step in config.bootstrap.renew_at
    telemetry = draw_log.Telemetry(
        run.output,
        summaries=part.summaries,
        clean=run.opened.sources.clean,
        state=part.restored.parts.get("telemetry"),
    )
    renewals = bootstrap.renewals(config, run.workdir)
    log = log_lib.Ledger(
        config,
        run.output,
        start_step=part.step,
        telemetry=telemetry,
        input_wait=part.input_wait,
        stored_flops=functools.partial(
            bootstrap.stored_flops,
            config,
            renewals,
            first.dim if first else 0,
            model.learner.embedding_dim,
        ),
        renewals=renewals,
        state=part.restored.parts.get("log"),
        started=part.began if is_renewed else None,
        before=before,
        # Of the callbacks below.
        spent={
            "time/evaluation_seconds": lambda: evaluate.seconds,
            "time/save_seconds": lambda: checkpoints.seconds,
        },
    )
    log.set_model(model)  # for the costs
    checkpoints = checkpoints_lib.Checkpoints(
        run.output,
        config,
        start_step=part.step,
        parts={"log": log.state, "telemetry": telemetry.state},
        guard=run.signals.deferred,
    )
    own = steps.named_callbacks(config, run.workdir)
    if before is None:
        own.append(notices.Notices(config, run.opened.sources, part.step))

    def report(step, measures):
        log.log_scalars(step, measures)
        for callback in own:
            if hasattr(callback, "on_evaluation"):
                callback.on_evaluation(step, measures)

    evaluate = evaluations.Evaluation(
        run.opened.held_out,
        encoder,
        run.output,
        every_steps=config.evaluation.every_steps,
        start_step=part.step,
        costs=log.costs_at,
        report=report,
        weights=model.averaged,
        follows=is_renewed,
        from_start=bool(config.model.init_from),
    )
    return _Callbacks(log, checkpoints, evaluate, own)


def _fit(run, model, part, callbacks):
    """Trains to the next renewal or the end; returns the steps done there."""
    config, start_step, plan = run.config, part.step, part.funnel.plan
    stop = plan[-1].last + 1
    if start_step == config.steps:
        return stop
    progress.say(f"{run.workdir}: steps {start_step:,} to {stop:,}")
    for line in config_lib.segment_at(plan, start_step).describe():
        progress.say(line)
    if model.train_function is None:
        progress.say("compiling the step, once")
    check = interruptions.FiniteCheck(start_step)
    try:
        place = lambda: f"the step after {check.step}"  # noqa: E731
        with _together(run, place, part.faults), loading_lib.plain_errors():
            model.fit(
                part.dataset,
                steps_per_epoch=stop - start_step,
                verbose=0,
                callbacks=[
                    check,
                    callbacks.log,
                    callbacks.checkpoints,
                    run.signals,
                    callbacks.evaluate,
                    *callbacks.own,
                ],
            )
    except stepper.NotFinite as error:
        again = part.stream(
            start_step=check.step - 1, faults=pipeline.FaultLog(None, 1.0)
        )
        raise interruptions.not_finite_error(
            check.step,
            next(iter(again.take(1)))["id"].numpy().tolist(),
            error,
            float(model.optimizer.learning_rate),
            run.workdir if run.writes else None,
        ) from None
    except interruptions.Preempted:
        if callbacks.checkpoints.step > start_step:
            callbacks.checkpoints.save()
        raise
    return stop


@contextlib.contextmanager
def _together(run, place, faults=None):
    """Explains errors of workers that have lost another, in `place()`."""
    try:
        yield
    except Exception as error:
        if not distribution.has_lost_worker(error):
            raise
        if faults is not None:
            faults.check()  # too many of them may have ended the step
        if not distribution.has_workers(run.opened.strategy):
            raise
        (first, *_) = str(error).strip().splitlines() or [""]
        raise ValueError(
            "All workers must run together, but another has ended or cannot "
            "be reached; its last output tells why. Received: "
            f"{type(error).__name__} in {place()}: {first[:200]}"
        ) from error


def _close(run, model, part, callbacks):
    """Writes the final weights, evaluates them, and reports the results."""
    config, workdir, faults = run.config, run.workdir, part.faults
    is_finished = part.step == config.steps and directory.has(
        workdir, directory.WEIGHTS_FILE
    )
    callbacks.checkpoints.delete_old()  # a kill may have left some
    faults.close(config.steps)
    if faults.num_replaced:
        lines = (
            f": {directory.FAULTS_FILE} has a line for each unreadable record, "
            f"{faults.num_lines:,} in all"
        )
        progress.say(
            f"{faults.num_replaced:,} of {faults.num_drawn:,} records drawn "
            "could not be read and were replaced" + lines * run.writes
        )
    if is_finished and (fault := _fault_of_weights(workdir)):
        progress.say(f"{fault}; they are written again from the checkpoint")
    with model.averaged():
        directory.save_learner(run.output, model.learner)
    measures = callbacks.evaluate.run(config.steps)
    rows = directory.read_rows(run.output, directory.METRICS_FILE)
    spent = None
    if not is_finished:
        spent = time.monotonic() - run.started
        for stage in draw_log.funnel(config, rows):
            progress.say(str(stage))
    store = run.opened.sources.store
    evaluated = directory.read_rows(run.output, directory.EVALUATION_FILE)
    scores = evaluations.summarize(evaluated, measures)
    line = _closing_line(config, workdir, scores, spent, store)
    if rows and rows[-1].get("train/at_chance"):
        line += f"; but {log_lib.AT_CHANCE}"
    progress.say(line)
    return measures


def _fault_of_weights(workdir):
    """Describes damage to the final weights; returns "" if there is none."""
    path = directory.path(workdir, directory.WEIGHTS_FILE)
    try:
        with files.staged(path) as local:
            directory.check_weights(workdir, local)
    except ValueError as error:
        return f"{path} was damaged: {error}"
    return ""


def _closing_line(config, workdir, scores, seconds, store):
    state = f"finished, {config.steps:,} steps"
    if seconds is None:
        state = f"already {state}"
    else:
        minutes, rest = divmod(round(seconds), 60)
        state += f", {minutes}:{rest:02d} in this process"
    if scores:
        state += f"; {scores}"
    if store.num_lost:
        state += f"; lost in damaged shards: about {store.num_lost:,} records"
    name = "page" if config.selection.stages else "evaluate"
    command = directory.command(name, workdir)
    if name == "evaluate" and not config.evaluation.named:
        command += " --data SHARDS"
    return f"{workdir}: {state}; next: {command}"


def _last_step(workdir):
    try:
        return f"step {max(checkpoints_lib.saved_steps(workdir), default=0):,}"
    except OSError:
        return "its last checkpoint"
