"""A funnel joins a selection to what it chooses by, for stream and model."""

import itertools

import pytest
import stored_cases
import tensorflow as tf
import tiny
from keras import ops

import jest_tf
from jest_tf import config, training
from jest_tf.data import pipeline
from jest_tf.training import step as step_lib

STORED = config.Stage(4, "stored", criterion="easy_reference", num_chunks=3)
LIVE = config.Stage(2, criterion="easy_reference", num_chunks=2)
SIZE, SEED = stored_cases.SIZE, stored_cases.SEED


def standardised():
    """A score that compares rows with each other."""
    return config.Criterion(
        ("reference",),
        lambda losses: losses["reference"] - ops.mean(losses["reference"]),
    )


def ranked():
    """A score by the place of a row among the others."""
    return config.Criterion(
        ("learner",), lambda losses: ops.argsort(ops.argsort(losses["learner"]))
    )


def cubed():
    """A score of each row alone, which may not be linear."""
    return config.Criterion(
        ("learner", "reference"),
        lambda losses: (losses["learner"] - losses["reference"]) ** 3,
    )


@pytest.mark.tensorflow
class FunnelTest(stored_cases.StoredTestCase):
    """Six rows of each step, of the 80 records of a store with sidecars."""

    def funnel(self, *stages, scored_by=None, **settings):
        selection = config.SelectionConfig(6, stages, scored_by)
        return training.Funnel(selection, self.store, **settings)

    def rows(self, funnel, steps):
        """Ids of the rows of the funnel's first super-batches."""
        batches = funnel.super_batches(
            stored_cases.TOKENIZER, SIZE, seed=SEED
        ).take(steps)
        return [batch["id"] for batch in batches.as_numpy_iterator()]

    def test_sidecars_beside_the_records_are_found_and_chosen_by(self):
        """With the selection's loss or, without one, the model's."""
        for own, loss in (
            (None, "sigmoid"),
            (None, "softmax"),
            ("softmax", "sigmoid"),
            ("sigmoid", "softmax"),
        ):
            funnel = self.funnel(STORED, scored_by=own, loss=loss)
            self.assertEqual(funnel.scoring_loss, own or loss)
            expected = self.batches(
                2, batch_size=6, stages=(STORED,), loss=own or loss
            )
            ids = [batch["id"] for batch in expected]
            self.assertAllEqual(self.rows(funnel, 2), ids)

    def test_a_stored_stage_without_stored_embeddings_is_refused(self):
        selection = config.SelectionConfig(6, (STORED,))
        message = "stages.0` needs stored embeddings .*No sidecar.*embed"
        with self.assertRaisesRegex(ValueError, message):
            training.Funnel(selection, self.store, sidecars=self.get_temp_dir())
        for make in (
            lambda: training.Funnel(selection),
            lambda: training.JESTModel(tiny.learner(), None, selection),
            lambda: training.JESTModel(
                tiny.learner(), tiny.learner(), selection
            ),
        ):
            with self.assertRaisesRegex(ValueError, "stages.0` .*`store`"):
                make()
        # It waits for a renewal that will bring them.
        waiting = config.plan(
            selection,
            steps=9,
            bootstrap=config.BootstrapConfig((5,)),
            has_reference=False,
        )
        funnel = training.Funnel(selection, self.store, plan=waiting[:1])
        self.assertIsNone(funnel.sidecars)

    def test_a_reference_that_cannot_be_told_from_others_is_refused(self):
        for reference in (tiny.learner(), lambda batch: batch):
            with self.assertRaisesRegex(ValueError, "loaded by `jest_tf.load`"):
                self.funnel(STORED, reference=reference)

    def test_a_model_takes_reference_and_loss_from_its_funnel(self):
        funnel = self.funnel(STORED, LIVE, loss="softmax")
        for own in ({"reference": tiny.learner()}, {"loss": "sigmoid"}):
            (name,) = own
            with self.assertRaisesRegex(ValueError, f"`{name}` is the Funnel"):
                training.JESTModel(tiny.learner(), selection=funnel, **own)
        model = training.JESTModel(tiny.learner(dim=6), selection=funnel)
        self.assertEqual(model.step.loss, "softmax")
        # The embeddings of the super-batch are those that its stages read.
        batches = funnel.super_batches(stored_cases.TOKENIZER, SIZE)
        self.assertIn("reference_image", batches.element_spec)
        embeddings = model.step.reference(next(iter(batches)))
        scalars = float(embeddings.scale), float(embeddings.bias)
        self.assertEqual(scalars, (20.0, -8.0))

    def test_super_batches_have_what_the_loss_needs(self):
        learner = tiny.learner(dim=6)
        for needs, settings in itertools.product(
            (False, True),
            ({"distillation_weight": 1.0}, {"false_negatives": "reference"}),
        ):
            options = step_lib.StepOptions(**settings)
            funnel = self.funnel(STORED, loss_needs_reference=needs)
            batches = funnel.super_batches(stored_cases.TOKENIZER, SIZE)
            has_them = "reference_image" in batches.element_spec
            self.assertEqual(has_them, needs)
            if needs:
                training.JESTModel(learner, selection=funnel, options=options)
                continue
            with self.assertRaisesRegex(ValueError, "`loss_needs_ref.*=True`"):
                training.JESTModel(learner, selection=funnel, options=options)

    def test_hosts_are_told_to_the_stream_alone(self):
        options = pipeline.Options(host=1, num_hosts=2)
        with self.assertRaisesRegex(ValueError, "to `super_batches`.*1 of 2"):
            self.funnel(LIVE, options=options)

    def test_a_criterion_that_is_not_elementwise_is_refused(self):
        for name, embeddings in (
            ("standardised", "stored"),
            ("standardised", "live"),
            ("ranked", "live"),
        ):
            own = {"criterion": f"{__name__}:{name}", "num_chunks": 1}
            stage = config.Stage(2, embeddings, **own)
            message = f"criterion` must score a row .*{name}"
            with self.assertRaisesRegex(ValueError, message):
                self.funnel(stage)
            if embeddings == "live":
                selection = config.SelectionConfig(6, (stage,))
                with self.assertRaisesRegex(ValueError, "criterion` must"):
                    training.JESTModel(tiny.learner(), None, selection)
        for name in (f"{__name__}:cubed", *config.CRITERIA):
            self.funnel(config.Stage(2, criterion=name, num_chunks=1))


@pytest.mark.tensorflow
class ReferenceTest(tf.test.TestCase):
    def test_sidecars_of_another_reference_are_refused(self):
        folder = self.get_temp_dir()
        store, *_ = stored_cases.write_store(folder)
        tiny.write_run(
            f"{folder}/run",
            config.TrainConfig(
                data=config.DataConfig(image_size=8, text_length=3),
                model=config.ModelConfig(preset="tiny"),
            ),
        )
        loaded = jest_tf.load(f"{folder}/run")
        selection = config.SelectionConfig(6, (STORED,))
        message = "expected the fingerprint.*Received: 'a'"
        with self.assertRaisesRegex(ValueError, message):
            training.Funnel(selection, store, reference=loaded)
