"""A run: from settings to final weights, in a resumable directory.

A process may be killed at any time. Another with the same settings continues
from the newest checkpoint to a bit-identical result on the same hardware.
"""

import contextlib
import dataclasses
import functools
import tempfile
import time

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, files, training
from jest_tf.data import batches, pipeline
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
    progress,
    provenance,
    step_timing,
    steps,
)
from jest_tf.runs import checkpoints as checkpoints_lib
from jest_tf.runs import log as log_lib
from jest_tf.training import finite


def train(
    config: config_lib.TrainConfig, workdir: str, *, overwrite: bool = False
) -> dict[str, float]:
    """Runs `config` in `workdir`, from its newest checkpoint if any.

    With `overwrite`, a run whose checkpoints are all damaged begins again.

    Returns:
        The measures of the final evaluation.

    Raises:
        ValueError: settings do not fit together, data is unreadable, the
            directory holds another run or is in use, or numbers are not finite.
        interruptions.Preempted: after SIGTERM or SIGINT to any worker, with the
            state saved.
    """
    with interruptions.Signals() as signals:
        local = [] if files.is_remote(workdir) else [workdir]
        try:
            with disks.room_for(tempfile.gettempdir(), *local):
                return _train(config, workdir, signals, overwrite)
        except (interruptions.Preempted, Exception) as error:
            if not signals.received:
                raise
            # The signal, or the outage behind it, may have caused an error.
            found = ""
            if not isinstance(error, interruptions.Preempted):
                text = " ".join(str(error).split())[:200]
                found = f", and by {type(error).__name__}: {text}"
            progress.say(
                f"{workdir}: stopped by {signals.received}{found}; the same "
                f"command goes on from {_last_step(workdir)}"
            )
            raise interruptions.Preempted(interruptions.EXIT_CODE) from error


def extend(workdir: str, steps: int) -> dict[str, float]:
    """Trains a finished run for `steps` more steps, like `train`.

    The result equals that of a run of all these steps.

    Raises:
        ValueError: as `train`; or the run has not finished, or its learning
            rate is not constant.
    """
    return train(provenance.extend(workdir, steps), workdir)


def _train(config, workdir, signals, overwrite):
    # For towers that draw weights with `tf.random`. Done first: it clears
    # TensorFlow's kernels, and with them existing SentencePiece tokenizers.
    tf.random.set_seed(config.seed)
    strategy = distribution.build_strategy(config.distribution)
    _warn_of_one_cpu(config, strategy)
    if distribution.has_workers(strategy):
        signals.stop_together(distribution.any_worker(strategy))
    start = loading.open_start(config, workdir)
    sources = inputs.open_sources(config, strategy)
    if config.reference.distillation_weight and not config.model.towers:
        with keras.StatelessScope(initialize_variables=False):
            learner = start.build(config.data.vocabulary_size)
        inputs.check_widths(config, sources, learner)
    opened = evaluations.open_data(config)
    # After all checks, so that a refusal prints nothing but its own message.
    progress.say(
        f"{workdir}: strategy {config.distribution.strategy} on "
        f"{distribution.describe(strategy)}"
    )
    with contextlib.ExitStack() as stack:
        if strategy.extended.should_checkpoint:
            output = stack.enter_context(provenance.claimed(workdir, config))
            if overwrite:
                checkpoints_lib.begin_anew(output)
            provenance.check_data(output, sources)
            evaluations.keep_suite(output, opened)
        else:  # writing reduces some values over all workers
            output = stack.enter_context(tempfile.TemporaryDirectory())
        run = _Run(
            config,
            workdir,
            output,
            strategy,
            signals,
            start,
            sources,
            opened,
        )
        measures = None
        while measures is None:
            measures = run.attempt()
        return measures


def _warn_of_one_cpu(config, strategy):
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        return
    devices = strategy.extended.worker_devices
    if len(devices) == 1 and "CPU" in devices[0]:
        progress.say(
            "warning: `distribution.strategy=mirrored` found no GPU: the run "
            "uses one CPU"
        )


@dataclasses.dataclass
class _Run:
    """Parts of a run that are opened once and outlive renewals.

    With several workers, `output` is the run directory on the first worker and
    a temporary folder on the others.
    """

    config: config_lib.TrainConfig
    workdir: str
    output: str
    strategy: tf.distribute.Strategy
    signals: interruptions.Signals
    start: loading.Start
    sources: inputs.Sources
    evaluated: evaluations.Opened

    def __post_init__(self):
        self.writes = self.output == self.workdir
        self.tokenizer = loading.tokenizer_of(
            self.config,
            self.sources.store,
            self.workdir,
            self.output,
            self.start.tokenizer,
        )
        self.started = time.monotonic()
        self.log = None  # ledger of the steps up to the next renewal
        self.model = None  # kept over renewals, with its compiled step

    def attempt(self) -> dict[str, float] | None:
        """Trains to the end, or until another attempt must continue.

        Returns:
            The final measures; None if the reference must be renewed now.
        """
        config, workdir = self.config, self.workdir
        newest = checkpoints_lib.newest_step(workdir)
        with self.strategy.scope():
            self._build(config.segment_selection(newest))
            model = self.model
            restored = checkpoints_lib.restore(model, workdir)
        start_step = restored.step
        opened = None
        if start_step in config.bootstrap.renew_at:
            opened = time.monotonic()
        self._open_segment(model, start_step)
        if self.writes:
            directory.cut_back(workdir, start_step)
        # None on other workers: a message must not name a temporary file.
        path = directory.path(workdir, directory.FAULTS_FILE)
        faults = pipeline.FaultLog(
            path if self.writes else None,
            config.data.max_fault_rate,
            self.sources.store.lost_share,
        )
        dataset, input_wait = self._dataset(start_step, faults)
        self.own_callbacks = steps.named_callbacks(config, workdir)
        log, checkpoints, evaluate = self._callbacks(
            model, restored, input_wait, opened
        )
        is_finished = start_step == config.steps and directory.has(
            workdir, directory.WEIGHTS_FILE
        )
        stop = bootstrap.end_of(config, start_step)
        if start_step < config.steps:
            progress.say(f"{workdir}: steps {start_step:,} to {stop:,}")
            for line in config.segment_selection(start_step).describe(
                config.curated_rows(start_step)
            ):
                progress.say(line)
            if model.train_function is None:
                progress.say("compiling the step, once")
            check = interruptions.FiniteCheck(start_step)
            callbacks = [check, log, checkpoints, self.signals, evaluate]
            callbacks += self.own_callbacks
            try:
                _fit(model, dataset, callbacks, faults, stop)
            except finite.NotFinite as error:
                rate = float(model.optimizer.learning_rate)
                error.values["learning_rate"] = rate
                self._stop_at(range(check.previous, check.step), error)
            except interruptions.Preempted:
                if checkpoints.step > start_step:
                    checkpoints.save()
                raise
        if stop < config.steps:
            return None
        checkpoints.delete_old()  # a kill may have left some
        faults.close(config.steps)
        if faults.num_replaced:
            progress.say(
                f"{faults.num_replaced:,} of {faults.num_drawn:,} records "
                "drawn could not be read and were replaced: "
                f"{directory.FAULTS_FILE}"
            )
        with model.averaged():
            directory.save_learner(self.output, model.learner)
        measures = evaluate.run(config.steps)
        spent = None
        if not is_finished:
            spent = time.monotonic() - self.started
            rows = directory.read_rows(self.output, directory.METRICS_FILE)
            for stage in draw_log.funnel(config, rows):
                progress.say(str(stage))
        lost = self.sources.store.num_lost
        progress.say(_closing_line(config, workdir, measures, spent, lost))
        return measures

    def _build(self, selection):
        """Builds the model of the steps up to the next renewal, if it changes.

        The caller restores the checkpoint, also into a model that is kept.
        """
        config, last = self.config, self.model
        if last is not None and last.selection.in_step == selection.in_step:
            return
        learner = self.start.build(self.tokenizer.vocabulary_size)
        if config.model.init_from:
            loading.write_learner(self.output, learner, self.start.picture)
        self.model = training.build_model(config, learner, selection=selection)
        inputs.check_widths(config, self.sources, learner)
        self.reference = None
        self.evaluations = evaluations.Evaluations(
            config,
            self.evaluated,
            learner,
            self.tokenizer,
            self.start.picture,
            self.strategy,
        )

    def _open_segment(self, model, step):
        """Opens the inputs of the steps up to the next renewal."""
        config = self.config
        run = reference.Run(
            config,
            self.tokenizer,
            model.learner,
            f"the learner after {step} steps",
            self.start.picture,
        )
        with model.averaged():
            bootstrap.renew(
                run,
                self.workdir,
                self.sources.store,
                step,
                self.sources.sidecars,
            )
        self.segment = inputs.at_step(config, self.sources, self.workdir, step)
        if config.steps_need_reference:
            self._attach_reference(model)
        self.stream = inputs.Stream(
            config,
            self.segment,
            self.tokenizer,
            self.start.picture,
        )

    def _attach_reference(self, model):
        teacher, sidecars = self.segment.teacher, self.segment.sidecars
        if self.reference is not None and sidecars is not None:
            self.reference.assign(sidecars.scale, sidecars.bias)
        elif self.reference is None and sidecars is not None:
            with self.strategy.scope():
                self.reference = reference.Cached(sidecars.scale, sidecars.bias)
            model.attach_reference(self.reference)
        elif teacher is not None:
            model.attach_reference(teacher.learner)

    def _callbacks(self, model, restored, input_wait, opened):
        config, first = self.config, self.sources.sidecars
        telemetry = self._telemetry(restored)
        renewals = bootstrap.renewals(config, self.workdir)
        self.log = log = log_lib.Ledger(
            config,
            self.output,
            start_step=restored.step,
            telemetry=telemetry,
            input_wait=input_wait,
            stored_flops=functools.partial(
                bootstrap.stored_flops,
                config,
                renewals,
                first.dim if first else 0,
                model.learner.embedding_dim,
            ),
            renewals=renewals,
            state=restored.parts.get("log"),
            started=opened,
            before=self.log,
        )
        log.set_model(model)  # for the costs
        parts = {"log": log.state, "telemetry": telemetry.state}
        checkpoints = checkpoints_lib.Checkpoints(
            self.output,
            config,
            start_step=restored.step,
            parts=parts,
            guard=self.signals.deferred,
        )

        def report(step, measures):
            log.log_scalars(step, measures)
            for callback in self.own_callbacks:
                if hasattr(callback, "on_evaluation"):
                    callback.on_evaluation(step, measures)

        evaluate = evaluations.Evaluation(
            self.evaluations,
            self.output,
            every_steps=config.evaluation.every_steps,
            start_step=restored.step,
            costs=log.costs_at,
            report=report,
            weights=model.averaged,
            follows=restored.step in config.bootstrap.renew_at,
        )
        log.spent = {
            "time/evaluation_seconds": lambda: evaluate.seconds,
            "time/save_seconds": lambda: checkpoints.seconds,
        }
        return log, checkpoints, evaluate

    def _telemetry(self, restored):
        config, sources = self.config, self.segment
        order = None  # where rows do not give stream positions
        if not sources.selection.stored and not config.is_clean(restored.step):
            order = inputs.order_of(config, sources)
        return draw_log.Telemetry(
            config,
            self.output,
            start_step=restored.step,
            order=order,
            summaries=self.stream.summaries,
            clean=sources.clean,
            state=restored.parts.get("telemetry"),
        )

    def _dataset(self, start_step, faults):
        dataset = distribution.distribute(
            self.strategy,
            lambda host, num_hosts: self.stream.super_batches(
                start_step, faults, host, num_hosts
            ),
        )
        name = self.config.distribution.strategy
        if config_lib.STRATEGIES[name].fetches_ahead:
            return dataset, None
        input_wait = step_timing.InputWait()
        return input_wait.watch(dataset), input_wait

    def _stop_at(self, numbers, error):
        """Raises ValueError with the super-batches at fault."""
        ids = [
            self.stream.read(number)["id"].numpy().tolist()
            for number in numbers
        ]
        case, message = interruptions.case_of(
            numbers[-1] + 1, [*numbers], ids, error
        )
        if self.writes:
            directory.write(self.workdir, directory.NOT_FINITE_FILE, case)
            path = directory.path(self.workdir, directory.NOT_FINITE_FILE)
            message += f". Their ids are in {path}"
        raise ValueError(
            f"{message}; begin another run with a lower "
            "`optimizer.learning_rate`"
        ) from None


def _fit(model, dataset, callbacks, faults, last_step):
    check = callbacks[0]
    try:
        with batches.plain_errors():
            model.fit(
                dataset,
                steps_per_epoch=last_step - check.step,
                verbose=0,
                callbacks=callbacks,
            )
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        faults.check()
        if not distribution.has_workers(model.distribute_strategy):
            raise
        raise ValueError(
            "All workers must run together, but another has ended or cannot "
            "be reached; its last output tells why. Received: "
            f"{type(error).__name__} in the step after {check.step}"
        ) from error


def _closing_line(config, workdir, measures, seconds, num_lost):
    state = f"finished, {config.steps:,} steps"
    if seconds is None:
        state = f"already {state}"
    else:
        minutes, rest = divmod(round(seconds), 60)
        state += f", {minutes}:{rest:02d} in this process"
    if measures:
        ranks = [name for name in measures if name.endswith("/mrr")]
        name = [*ranks, *measures][0]
        state += f"; {name} {measures[name]:.4f}"
    if num_lost:
        state += f"; lost in damaged shards: about {num_lost:,} records"
    command = f"jest-tf {'page' if config.selection.stages else 'evaluate'}"
    return f"{workdir}: {state}; next: {command} --workdir {workdir}"


def _last_step(workdir):
    try:
        return f"step {checkpoints_lib.newest_step(workdir):,}"
    except OSError:
        return "its last checkpoint"
