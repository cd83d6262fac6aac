"""How `JESTModel` runs its step on TensorFlow, on any number of replicas.

Fixes of Keras' `fit` on several replicas are in `distribution/keras_fit.py`.
"""

import functools

import tensorflow as tf

from jest_tf import distribution
from jest_tf.distribution import keras_fit
from jest_tf.training import finite, step_outputs


class Trainer(keras_fit.TrainerHooks):
    """Mixin of `JESTModel`, before `keras.Model`."""

    def make_train_function(self, force=False):
        """Makes the function for `fit`, which keeps the row outputs."""
        if self.train_function is not None and not force:
            return
        self._recent_draws = None
        settings = self.selection
        chooses = settings is not None and bool(settings.live)
        if chooses and self.steps_per_execution > 1:
            self._recent_draws = step_outputs.recent_draws(
                self.distribute_strategy,
                self.steps_per_execution,
                settings.batch_size,
            )

        @functools.cache
        def execution(settings):
            def step(data):
                super_batch = self._super_batch(data)
                if not tf.executing_eagerly():
                    self._specs[settings] = tf.nest.map_structure(
                        tf.TensorSpec.from_tensor, super_batch
                    )
                    self._flops.pop(settings, None)
                # When the data end, operations that need no batch, such as
                # weight decay, must not run: TensorFlow inlines the step into
                # the loop.
                with tf.control_dependencies([super_batch["image"]]):
                    return self._with_logs(super_batch, settings)

            return self._make_function(step)

        def function(iterator):
            # Checks the last execution, so that devices don't wait for Python.
            finite.check_scores(self._last_logs)
            equal, rows = execution(self._next_selection())(iterator)
            self.rows = step_outputs.RowReport(
                rows | equal["rows"], equal.get("draws"), self._gather_rows
            )
            self._last_logs = equal["logs"]
            return equal["logs"]

        self.train_function = function

    def train_step(self, data):
        """Runs one step on a super-batch; returns the metrics' running means.

        The active stages are fixed when the step is traced.
        """
        super_batch = self._super_batch(data)
        return self._with_logs(super_batch, self._next_selection())[0]["logs"]

    def test_step(self, data):
        """Computes the contrastive loss of a batch, in evaluation mode."""
        return self._test_step(data)

    def _with_logs(self, super_batch, settings):
        equal, rows = self._train_step(super_batch, settings)
        return {"logs": self.get_metrics_result()} | equal, rows

    def _next_selection(self):
        """Returns the selection of the next execution.

        Steps with different active stages have different graphs. So the
        selection is fixed for an execution, and the step is compiled once for
        each selection, on first use.
        """
        settings = self.selection
        if settings is None or settings.turns == [0]:
            return settings and settings.in_step
        if self._next_step is None:
            self._next_step = self._steps_done()
        step = self._next_step
        self._next_step += self.steps_per_execution
        return settings.at(step).in_step

    def _steps_done(self):
        """Reads the number of steps so far, also on replicas and in traces."""
        with tf.init_scope():
            counter = tf.convert_to_tensor(self.optimizer.iterations.value)
            return int(counter.numpy())

    def _check_placed(self, name, model):
        keras_fit.check_placed(name, model, self.distribute_strategy)

    @property
    def _gather_rows(self):
        strategy = self.distribute_strategy
        if distribution.has_workers(strategy):
            return functools.partial(strategy.gather, axis=0)
        return None

    @property
    def _num_replicas(self):
        return self.distribute_strategy.num_replicas_in_sync
