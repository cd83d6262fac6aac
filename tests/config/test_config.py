"""Settings: defaults, checks, overrides, recipes and files."""

import collections
import dataclasses
import glob
import json
import os
import subprocess
import sys

import tensorflow as tf

from jest_tf import config, models, selection

CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")
GROUPS = {
    "data": config.DataConfig,
    "model": config.ModelConfig,
    "reference": config.ReferenceConfig,
    "bootstrap": config.BootstrapConfig,
    "cascade": config.CascadeConfig,
    "selection": config.SelectionConfig,
    "optimizer": config.OptimizerConfig,
    "evaluation": config.EvaluationConfig,
    "checkpoint": config.CheckpointConfig,
    "distribution": config.DistributionConfig,
}

# (group, settings, message)
REFUSED = [
    ("data", {"super_batch_size": 0}, "must be at least 1. Received: 0"),
    ("data", {"image_size": -3}, "must be at least 1. Received: -3"),
    ("data", {"text_length": 1}, "must be at least 2. Received: 1"),
    ("data", {"vocabulary_size": 1}, "must be at least 2. Received: 1"),
    ("data", {"min_crop_area": 0.0}, r"must be in \(0, 1\]. Received: 0.0"),
    ("data", {"min_crop_area": 1.1}, r"must be in \(0, 1\]. Received: 1.1"),
    ("model", {"dtype_policy": "float16"}, "one of .*Received: 'float16'"),
    ("model", {"loss": "clip"}, r"one of \('sigmoid', 'softmax'\).*'clip'"),
    ("model", {"equal_captions": ""}, "one of .'negative', .*Received: ''"),
    ("model", {"patch_size": 0}, "must be at least 1. Received: 0"),
    ("model", {"loss_block_size": 0}, "must be at least 1. Received: 0"),
    ("model", {"temperature": 0}, "must be > 0. Received: 0"),
    ("selection", {"method": "random"}, "one of .'uniform', .*'random'"),
    ("selection", {"criterion": "loss"}, "one of .'learnability', .*'loss'"),
    ("selection", {"loss": "clip"}, "one of .*'softmax', None.*'clip'"),
    ("selection", {"first_chunk": "own"}, "one of .'diagonal', .*'own'"),
    ("selection", {"batch_size": 0}, "must be at least 1. Received: 0"),
    ("selection", {"num_chunks": 0}, "must be at least 1. Received: 0"),
    ("selection", {"scoring_batch_size": 0}, "must be at least 1. Received: 0"),
    (
        "selection",
        {"num_chunks": 5, "batch_size": 4, "method": "joint"},
        "at most `selection.batch_size`.*num_chunks=5, .*batch_size=4",
    ),
    ("cascade", {"hyper_batch_size": 0}, "must be at least 1. Received: 0"),
    ("cascade", {"num_groups": 0}, "must be at least 1. Received: 0"),
    ("cascade", {"num_chunks": 0}, "must be at least 1. Received: 0"),
    ("cascade", {"criterion": "loss"}, "one of .'learnability', .*'loss'"),
    ("bootstrap", {"renews": "teacher"}, "one of .'reference', 'learner'"),
    ("cascade", {"loss": "clip"}, "one of .*'softmax', None.*'clip'"),
    ("cascade", {"first_chunk": "own"}, "one of .'diagonal', .*'own'"),
    ("cascade", {"uniform_share": 1.0}, r"in \[0, 1\). Received: 1.0"),
    ("cascade", {"uniform_share": -0.1}, r"in \[0, 1\). Received: -0.1"),
    ("optimizer", {"warmup_steps": -1}, "must be at least 0. Received: -1"),
    (
        "reference",
        {"distillation_steps": 3},
        "needs `reference.distillation_weight`.*steps=3, .*weight=0.0",
    ),
    ("optimizer", {"weight_decay": -0.1}, "at least 0. Received: -0.1"),
    ("optimizer", {"learning_rate": 0.0}, "must be > 0. Received: 0.0"),
    ("optimizer", {"clip_norm": 0.0}, "must be > 0. Received: 0.0"),
    ("optimizer", {"beta_1": 1.0}, r"must be in \[0, 1\). Received: 1.0"),
    ("optimizer", {"beta_2": -0.5}, r"must be in \[0, 1\). Received: -0.5"),
    ("evaluation", {"every_steps": 0}, "must be at least 1. Received: 0"),
    ("evaluation", {"batch_size": 0}, "must be at least 1. Received: 0"),
    ("evaluation", {"log_every_steps": 0}, "must be at least 1. Received: 0"),
    ("evaluation", {"format": "zip"}, "must be one of.*'zip'"),
    ("evaluation", {"caption_fields": "a"}, "of type tuple.*'a'"),
    ("evaluation", {"prompts": ("{}", "a")}, "each hold one \"{}\".*'a'"),
    ("evaluation", {"prompts": ("{} {}",)}, "each hold one \"{}\".*'{} {}'"),
    ("checkpoint", {"every_steps": 0}, "must be at least 1. Received: 0"),
    ("checkpoint", {"keep": 0}, "must be at least 1. Received: 0"),
    ("distribution", {"strategy": "gpu"}, r"one of \('default', .*'gpu'"),
    ("distribution", {"virtual_devices": 0}, "must be at least 1"),
    ("data", {"format": "zip"}, r"one of \('auto', .*'zip'"),
    (
        "data",
        {"weights": (1.0,)},
        r"for each store .*weights=\(1.0,\), data.train=\(\)",
    ),
    ("data", {"max_fault_rate": 1.5}, r"in \[0, 1\]. Received: 1.5"),
    ("data", {"shuffle_block_size": 0}, "must be at least 1"),
    ("reference", {"sidecar_dir": "x"}, "needs `reference.sidecars=true`"),
    ("reference", {"distillation_weight": -1.0}, "at least 0. Received: -1.0"),
    ("reference", {"distillation_steps": 0}, "at least 1. Received: 0"),
    (
        "reference",
        {"distillation_weight": 1.0},
        "needs a reference: set `reference.model`.*1.0, .*model=''",
    ),
    ("selection", {"quota": "local"}, r"one of \('global', .*'local'"),
    ("checkpoint", {"every_minutes": 0.0}, "must be > 0. Received: 0.0"),
    ("checkpoint", {"on_non_finite": "skip"}, r"one of \('stop', .*'skip'"),
]
WRONG_TYPES = [
    ("data", {"image_size": 1.5}, "must be of type int. Received: 1.5"),
    ("data", {"image_size": True}, "must be of type int. Received: True"),
    ("data", {"image_size": None}, "must be of type int. Received: None"),
    ("data", {"flip": 1}, "must be of type bool. Received: 1"),
    ("data", {"min_crop_area": "1"}, "must be of type float. Received: '1'"),
    ("data", {"min_crop_area": False}, "must be of type float.*False"),
    ("data", {"train": "a"}, r"must be of type tuple\[str, ...\].*'a'"),
    ("data", {"train": ["a"]}, r"must be of type tuple\[str, ...\].*\['a'\]"),
    ("data", {"train": (1,)}, r"must be of type tuple\[str, ...\].*\(1,\)"),
    ("reference", {"model": None}, "must be of type str. Received: None"),
    ("model", {"patch_size": 4.0}, r"must be of type int \| None.*4.0"),
    ("optimizer", {"clip_norm": "1"}, r"must be of type float \| None.*'1'"),
    ("selection", {"gain": float("nan")}, "must be finite. Received: nan"),
    ("model", {"bias": float("-inf")}, "must be finite. Received: -inf"),
    ("optimizer", {"learning_rate": float("inf")}, "finite. Received: inf"),
]


class DefaultsTest(tf.test.TestCase):
    def test_defaults_are_the_papers(self):
        settings = config.TrainConfig()
        self.assertEqual(settings.selection.num_chunks, 16)  # algorithm 1
        self.assertEqual(settings.model.temperature, 10.0)  # SigLIP, alg. 1
        self.assertEqual(settings.model.bias, -10.0)
        self.assertEqual(settings.optimizer.beta_2, 0.95)  # SigLIP, 4.7
        self.assertEqual(settings.selection.criterion, "learnability")
        self.assertEqual(settings.model.equal_captions, "negative")

    def test_without_a_sub_batch_all_rows_are_trained_and_none_is_scored(self):
        settings = config.TrainConfig()
        self.assertIsNone(settings.selection.batch_size)
        self.assertEqual(settings.batch_size, 1280)
        self.assertFalse(settings.selection.needs_learner)
        self.assertFalse(settings.selection.needs_reference)

    def test_a_uniform_draw_scores_nothing(self):
        settings = config.SelectionConfig("uniform", batch_size=4)
        self.assertFalse(settings.scores)
        self.assertFalse(settings.needs_learner)
        self.assertFalse(settings.needs_reference)

    def test_a_criterion_decides_which_models_score(self):
        needs = {
            criterion: (settings.needs_learner, settings.needs_reference)
            for criterion in config.CRITERIA
            for settings in [config.SelectionConfig("joint", 64, 4, criterion)]
        }
        self.assertEqual(
            needs,
            {
                "learnability": (True, True),
                "easy_reference": (False, True),
                "hard_learner": (True, False),
            },
        )

    def test_choices_equal_those_of_the_modules_that_read_them(self):
        self.assertCountEqual(config.SAMPLERS, selection.SAMPLERS)
        self.assertIn(config.ModelConfig().preset, models.PRESETS)

    def test_the_package_imports_no_tensorflow(self):
        code = (
            "import sys;"
            "import jest_tf.config;"
            "found = {'tensorflow', 'keras', 'numpy'} & set(sys.modules);"
            "sys.exit(str(found) if found else 0)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class ViewTest(tf.test.TestCase):
    def test_views_of_equal_values_are_equal_and_can_be_keys(self):
        self.assertEqual(config.View(patch_size=8), config.View(8))
        self.assertLen({config.View(), config.View(), config.View(8)}, 2)

    def test_values_out_of_range_are_refused(self):
        for message, settings in (
            ("`view.patch_size` must be at least 1.*: 0", {"patch_size": 0}),
            ("`view.patch_size` must be of.*: 8.0", {"patch_size": 8.0}),
            ("`view.image_size` must be at least 1.*-1", {"image_size": -1}),
            (
                r"`view.keep_tokens` must be in \(0, 1\].*0.0",
                {"keep_tokens": 0.0},
            ),
            (
                r"`view.keep_tokens` must be in \(0, 1\].*1.5",
                {"keep_tokens": 1.5},
            ),
            (
                "`view.keep_tokens` must be finite",
                {"keep_tokens": float("nan")},
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                config.View(**settings)


class ScheduleTest(tf.test.TestCase):
    JOINT = config.SelectionConfig("joint", batch_size=4, num_chunks=2)

    def scheduled(self, *phases, **settings):
        return dataclasses.replace(
            self.JOINT,
            phases=tuple(config.Phase(*phase) for phase in phases),
            **settings,
        )

    def test_without_a_schedule_all_steps_have_the_same_settings(self):
        for step in (0, 1, 10**6):
            self.assertIs(self.JOINT.at(step), self.JOINT)
        self.assertEqual(self.JOINT.kinds, (self.JOINT,))

    def test_a_phase_changes_the_settings_not_the_previous_phase(self):
        settings = self.scheduled(
            (2, None, "easy_reference", 8), (5, "uniform"), (7,)
        )
        easy = dataclasses.replace(
            self.JOINT, criterion="easy_reference", candidates=8
        )
        uniform = dataclasses.replace(self.JOINT, method="uniform")
        expected = [self.JOINT] * 2 + [easy] * 3 + [uniform] * 2
        expected += [self.JOINT] * 3
        self.assertEqual([settings.at(step) for step in range(10)], expected)
        self.assertEqual(settings.kinds, (self.JOINT, easy, uniform))

    def test_every_kth_step_is_uniform(self):
        settings = self.scheduled(uniform_every=3)
        methods = [settings.at(step).method for step in range(7)]
        joint, uniform = "joint", "uniform"
        self.assertEqual(
            methods, [joint, joint, uniform, joint, joint, uniform, joint]
        )

    def test_only_scoring_steps_count_scored_examples(self):
        for settings in (
            self.JOINT,
            self.scheduled((0, "uniform"), (4, "joint")),
            self.scheduled((3, "uniform")),
            self.scheduled((2, None, None, 4), (4, None, None, 8), (9,)),
            self.scheduled((5, "uniform"), (8, "top"), uniform_every=3),
            self.scheduled(stop_when_passed=1),
        ):
            for steps in range(13):
                for stopped_at in (None, 0, 6):
                    scored = sum(
                        kind.candidates or 16
                        for step in range(steps)
                        if (kind := settings.at(step)).scores
                        and not (stopped_at is not None and step >= stopped_at)
                    )
                    self.assertEqual(
                        settings.num_scored(steps, 16, stopped_at), scored
                    )

    def test_a_run_needs_what_any_step_needs(self):
        late = config.SelectionConfig(
            "uniform",
            batch_size=4,
            criterion="hard_learner",
            phases=(config.Phase(3, "top", "easy_reference"),),
        )
        self.assertTrue(late.scores)
        self.assertTrue(late.needs_reference)
        self.assertFalse(late.needs_learner)

    def test_recipes_with_phases_and_views_are_read_back_equal(self):
        recipe = config.TrainConfig(
            data=config.DataConfig(super_batch_size=16),
            model=config.ModelConfig(
                views=(config.View(), config.View(patch_size=8))
            ),
            selection=self.scheduled(
                (0, "uniform"), (5, None, None, 8), view=config.View(8, 0.5)
            ),
            reference=config.ReferenceConfig("somewhere"),
        )
        self.assertEqual(recipe.patch_sizes, (8,))
        path = os.path.join(self.get_temp_dir(), "config.json")
        config.save_config(recipe, path)
        self.assertEqual(config.load_config(path), recipe)
        changed = config.load_config(
            path, ["selection.view.patch_size=16", "model.views="]
        )
        self.assertEqual(changed.selection.view, config.View(16, 0.5))
        self.assertEqual(changed.model.views, ())
        with self.assertRaisesRegex(ValueError, "`model.views` is a list of"):
            config.load_config(path, ["model.views=8"])

    def test_invalid_schedules_are_refused(self):
        for message, make in (
            (
                "needs `selection.batch_size`",
                lambda: config.SelectionConfig(uniform_every=2),
            ),
            (
                r"in the order of their starts.*start=4, .*start=4, ",
                lambda: self.scheduled((4, "uniform"), (4,)),
            ),
            (
                "must score on some step",
                lambda: self.scheduled((0, "uniform")),
            ),
            (
                "needs `selection.criterion` 'learnability'.*easy_reference",
                lambda: self.scheduled(
                    (3, None, "easy_reference"), stop_when_passed=2
                ),
            ),
            (
                "`selection.phases.method` must be one of .*'best'",
                lambda: self.scheduled((3, "best")),
            ),
            (
                "`selection.uniform_every` must be at least 2.*1",
                lambda: self.scheduled(uniform_every=1),
            ),
        ):
            with self.subTest(message=message):
                with self.assertRaisesRegex(ValueError, message):
                    make()

    def test_schedules_and_views_that_do_not_fit_the_run_are_refused(self):
        def run(selection=self.JOINT, model=None, **settings):
            return config.TrainConfig(
                steps=10,
                data=config.DataConfig(super_batch_size=16, image_size=32),
                reference=config.ReferenceConfig("somewhere"),
                selection=selection,
                model=model or config.ModelConfig(),
                checkpoint=config.CheckpointConfig(every_steps=10),
                **settings,
            )

        two = config.DistributionConfig(steps_per_execution=2)
        for message, make in (
            (
                "must start before the last.*start=10, .* steps=10",
                lambda: run(self.scheduled((10, "uniform"))),
            ),
            (
                "start at multiples of .*start=3, .*steps_per_execution=2",
                lambda: run(self.scheduled((3, "uniform")), distribution=two),
            ),
            (
                "`selection.uniform_every` needs .*steps_per_execution=2",
                lambda: run(self.scheduled(uniform_every=4), distribution=two),
            ),
            (
                "`selection.candidates` must divide .*=6, .*size=4, B=16",
                lambda: run(self.scheduled((3, None, None, 6))),
            ),
            (
                "`selection.candidates` must divide .*=2, .*size=4, B=16",
                lambda: run(self.scheduled((3, None, None, 2))),
            ),
            (
                "`selection.scoring_batch_size` must divide .*=16, .*=8, B=16",
                lambda: run(
                    self.scheduled((3, None, None, 8), scoring_batch_size=16)
                ),
            ),
            (
                "`selection.view`: .*patch_size=12, image_size=32",
                lambda: run(
                    dataclasses.replace(self.JOINT, view=config.View(12))
                ),
            ),
            (
                "`model.views`: .*patch_size=16, image_size=24",
                lambda: run(
                    model=config.ModelConfig(
                        patch_size=16, views=(config.View(image_size=24),)
                    )
                ),
            ),
            (
                "`model.views` must cut .*View.*View.*View.*batch_size=4",
                lambda: run(
                    model=config.ModelConfig(views=(config.View(),) * 3)
                ),
            ),
        ):
            with self.subTest(message=message):
                with self.assertRaisesRegex(ValueError, message):
                    make()


class RefusalsTest(tf.test.TestCase):
    def test_an_invalid_setting_is_refused_by_name_with_the_valid_values(self):
        for group, settings, message in REFUSED + WRONG_TYPES:
            with self.subTest(group=group, settings=settings):
                name = next(iter(settings))
                with self.assertRaisesRegex(
                    ValueError, f"`{group}.{name}`.*{message}"
                ):
                    GROUPS[group](**settings)

    def test_values_at_the_limits_are_valid(self):
        config.DataConfig(min_crop_area=1, text_length=2, image_size=1)
        config.CascadeConfig(1, num_chunks=1, gain=0.0, uniform_share=0.999)
        config.OptimizerConfig(
            warmup_steps=0, weight_decay=0, beta_1=0.0, clip_norm=None
        )
        config.SelectionConfig("joint", batch_size=4, num_chunks=4)
        # Only joint draws are made in chunks.
        config.SelectionConfig("top", batch_size=4, num_chunks=5)
        config.TrainConfig(
            seed=2**31 - 1,
            steps=2,
            data=config.DataConfig(super_batch_size=8),
            selection=config.SelectionConfig(
                "joint", 8, 8, "hard_learner", scoring_batch_size=4
            ),
            optimizer=config.OptimizerConfig(warmup_steps=1),
            checkpoint=config.CheckpointConfig(every_steps=4),
            distribution=config.DistributionConfig(steps_per_execution=2),
        )

    def test_settings_that_contradict_each_other_are_refused(self):
        def selected(**settings):
            return {
                "data": config.DataConfig(super_batch_size=32),
                "selection": config.SelectionConfig(
                    "joint", **{"criterion": "hard_learner"} | settings
                ),
            }

        def cascaded(sidecars=True, **settings):
            return {
                "data": config.DataConfig(super_batch_size=32),
                "reference": config.ReferenceConfig(sidecars=sidecars),
                "cascade": config.CascadeConfig(**settings),
            }

        for settings, message in (
            (
                {
                    "data": config.DataConfig(reader="ops"),
                    "reference": config.ReferenceConfig(sidecars=True),
                    "cascade": config.CascadeConfig(hyper_batch_size=2560),
                },
                "`data.reader` 'ops' has no cascade: .*hyper_batch_size=2560",
            ),
            (
                cascaded(hyper_batch_size=31),
                "`cascade.hyper_batch_size` .* at least .*=31, B=32",
            ),
            (
                cascaded(hyper_batch_size=64, num_chunks=33),
                "`cascade.num_chunks` must be at most .*num_chunks=33, "
                ".*uniform_share=0.0, B=32, rows=32",
            ),
            (
                cascaded(hyper_batch_size=64, num_groups=5),
                "num_groups` must divide .*num_groups=5, .*size=64, B=32",
            ),
            (
                cascaded(hyper_batch_size=68, num_groups=8),
                "num_groups` must divide .*num_groups=8, .*size=68, B=32",
            ),
            (
                cascaded(hyper_batch_size=64, num_groups=4),
                "num_chunks=16, .*num_groups=4, .*B=32, rows=8",
            ),
            (
                cascaded(hyper_batch_size=64, uniform_share=0.6),
                "num_chunks=16, .*uniform_share=0.6, B=32, rows=13",
            ),
            (
                cascaded(sidecars=False, hyper_batch_size=64),
                "`cascade.hyper_batch_size` needs the reference's sidecars.*"
                "hyper_batch_size=64, reference.sidecars=False",
            ),
            ({"steps": 0}, "`steps` must be at least 1. Received: 0"),
            ({"steps": 1.5}, "`steps` must be of type int. Received: 1.5"),
            ({"seed": -1}, r"`seed` must be in \[0, 2\^31\). Received: -1"),
            ({"seed": 2**31}, r"`seed` must be in .*Received: 2147483648"),
            ({"data": {}}, "`data` must be of type DataConfig. Received: {}"),
            (selected(batch_size=33), r"at most .*batch_size=33, B=32"),
            (
                selected(batch_size=16, scoring_batch_size=5),
                "`selection.scoring_batch_size` must divide .*=5, .*B=32",
            ),
            (
                selected(batch_size=16, criterion="learnability"),
                "`selection.criterion` needs a reference.*='learnability', .*",
            ),
            (
                selected(batch_size=16, criterion="easy_reference"),
                "`selection.criterion` needs a reference.*='easy_reference'",
            ),
            (
                {
                    "steps": 5,
                    "optimizer": config.OptimizerConfig(warmup_steps=5),
                },
                "`optimizer.warmup_steps` must be less than `steps`.*5, steps=",
            ),
            (
                {
                    "steps": 10,
                    "distribution": config.DistributionConfig(
                        steps_per_execution=4
                    ),
                },
                "`steps` must be a multiple of .*steps=10, .*execution=4",
            ),
            (
                {
                    "steps": 8,
                    "checkpoint": config.CheckpointConfig(every_steps=6),
                    "distribution": config.DistributionConfig(
                        steps_per_execution=4
                    ),
                },
                "`checkpoint.every_steps` must be a multiple of .*=6, .*=4",
            ),
        ):
            with self.subTest(message=message):
                with self.assertRaisesRegex(ValueError, message):
                    config.TrainConfig(**settings)

    def test_tokens_made_beforehand_are_for_the_reader_by_ops(self):
        config.DataConfig(reader="ops", token_field="a")
        with self.assertRaisesRegex(ValueError, "'ops'.*token_field='a'"):
            config.DataConfig(token_field="a")

    def test_settings_are_immutable(self):
        with self.assertRaises(dataclasses.FrozenInstanceError):
            config.TrainConfig().steps = 3


class FilesTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.write(
            "recipe.py", "return config_lib.TrainConfig(steps=20)"
        )

    def write(self, file_name, body, name="config"):
        path = os.path.join(self.get_temp_dir(), file_name)
        with open(path, "w", encoding="utf-8") as file:
            file.write("from jest_tf import config as config_lib\n\n")
            file.write(f"def {name}():\n    {body}\n")
        return path

    def load(self, *overrides):
        return config.load_config(self.path, overrides)

    def test_a_recipe_is_what_its_function_returns(self):
        self.assertEqual(self.load(), config.TrainConfig(steps=20))

    def test_overrides_of_every_kind(self):
        for override, group, name, value in (
            ("steps=7", None, "steps", 7),
            ("data.image_size=48", "data", "image_size", 48),
            ("data.min_crop_area=0.25", "data", "min_crop_area", 0.25),
            ("data.min_crop_area=1", "data", "min_crop_area", 1.0),
            ("optimizer.weight_decay=1e-2", "optimizer", "weight_decay", 0.01),
            ("data.flip=false", "data", "flip", False),
            ("evaluation.log_ids=True", "evaluation", "log_ids", True),
            ("model.preset=l16", "model", "preset", "l16"),
            ("data.vocabulary=", "data", "vocabulary", ""),
            ("reference.model=a=b", "reference", "model", "a=b"),
            ("data.train=a-*.x, b", "data", "train", ("a-*.x", "b")),
            ("data.train=", "data", "train", ()),
            ("model.patch_size=4", "model", "patch_size", 4),
            ("model.patch_size=none", "model", "patch_size", None),
            ("optimizer.clip_norm=None", "optimizer", "clip_norm", None),
            ("optimizer.clip_norm=2", "optimizer", "clip_norm", 2.0),
            ("selection.loss=softmax", "selection", "loss", "softmax"),
            ("selection.loss=none", "selection", "loss", None),
            ("reference.model=none", "reference", "model", ""),
            ("data.weights=None", "data", "weights", ()),
            (" data.image_size = 48 ", "data", "image_size", 48),
        ):
            with self.subTest(override):
                expected = config.TrainConfig(steps=20)
                owner = getattr(expected, group) if group else expected
                owner = dataclasses.replace(owner, **{name: value})
                if group:
                    owner = dataclasses.replace(expected, **{group: owner})
                loaded = self.load(override)
                self.assertEqual(loaded, owner)
                holder = getattr(loaded, group) if group else loaded
                self.assertIs(type(getattr(holder, name)), type(value))

    def test_all_overrides_are_applied_before_the_result_is_checked(self):
        # On its own either of the first two would be refused.
        loaded = self.load(
            "selection.batch_size=2000",
            "data.super_batch_size=4000",
            "selection.criterion=hard_learner",
            "steps=3",
            "steps=4",
        )
        self.assertEqual(loaded.batch_size, 2000)
        self.assertEqual(loaded.steps, 4)  # the last one counts

    def test_invalid_overrides_are_refused(self):
        for override, message in (
            ("steps=1.5", "`steps` must be of type int. Received: '1.5'"),
            ("steps=none", "`steps` must be of type int. Received: 'none'"),
            (
                "model.preset=b32",
                r"`model.preset` must be one of \('tiny', .*Received: 'b32'",
            ),
            ("data.image_size=65", "`data.image_size`: the patch size .*=16"),
            ("model.patch_size=x", "must be of type int. Received: 'x'"),
            ("data.flip=1", "must be of type bool, true or false.*: '1'"),
            ("optimizer.beta_1=b", "must be of type float. Received: 'b'"),
            ("selection.gain=nan", "`selection.gain` must be finite.*nan"),
            ("steps", "must read \"a.b=c\", .*Received: 'steps'"),
            ("=3", "No setting ``. Fields of TrainConfig: seed, steps, .*data"),
            (
                "data.imagesize=3",
                "No setting `data.imagesize`. Did you mean `data.image_size`",
            ),
            ("image_size=3", "No setting `image_size`.*`data.image_size`"),
            ("model.batch_size=3", "Did you mean `selection.batch_size`"),
            ("size=3", "No setting `size`. Fields of TrainConfig: seed, "),
            ("data.size=3", "Fields of DataConfig: train, weights, curated"),
            ("evaluatoin.batch_size=3", "mean `evaluation.batch_size`"),
            ("optimizer.lr=3", "mean `optimizer.learning_rate`"),
            ("steps.x=3", "No setting `steps.x`: nothing lies below"),
            ("data.flip.x.y=3", "No setting `data.flip.x.y`: nothing lies"),
            ("checkpoint=x", "group of settings.*: every_steps, every_min"),
            ("data.text_length=0", "`data.text_length` must be at least 2"),
        ):
            with self.subTest(override):
                with self.assertRaisesRegex(ValueError, message):
                    self.load(override)

    def test_files_that_are_no_recipe_are_refused(self):
        folder = self.get_temp_dir()
        missing = os.path.join(folder, "missing.py")
        with self.assertRaisesRegex(ValueError, "No recipe at .*missing.py"):
            config.load_config(missing)
        with self.assertRaisesRegex(ValueError, "No recipe at "):
            config.load_config(folder)
        for path, message in (
            (
                self.write("recipe.txt", "return 1"),
                r"No recipe at .*txt': expected a \.py or \.json file",
            ),
            (
                self.write("other.py", "return 1", name="other"),
                r"other.py' must have a function `config\(\)`.*NoneType",
            ),
            (
                self.write("dict.py", "return {'steps': 3}"),
                "dict.py' must .* returns a TrainConfig. Received: dict",
            ),
        ):
            with self.subTest(path):
                with self.assertRaisesRegex(ValueError, message):
                    config.load_config(path)

    def test_an_error_inside_a_recipe_is_said_with_its_line(self):
        with self.assertRaisesRegex(
            ValueError, r"error.py', line \d+: ZeroDivisionError: division"
        ) as caught:
            config.load_config(self.write("error.py", "return 1 / 0"))
        self.assertIsInstance(caught.exception.__cause__, ZeroDivisionError)

    def test_a_saved_run_is_read_back_equal(self):
        path = os.path.join(self.get_temp_dir(), "config.json")
        for settings in (
            config.TrainConfig(),
            config.TrainConfig(
                seed=3,
                data=config.DataConfig(train=("a", "b\u00e9"), flip=False),
                model=config.ModelConfig(patch_size=4),
                reference=config.ReferenceConfig(model="runs/r"),
                selection=config.SelectionConfig("joint", 64, gain=0.1),
                optimizer=config.OptimizerConfig(clip_norm=None),
                evaluation=config.EvaluationConfig(prompts=("{}", "a {}")),
            ),
        ):
            config.save_config(settings, path)
            self.assertEqual(config.load_config(path), settings)
            changed = config.load_config(path, ["checkpoint.keep=9"])
            self.assertEqual(
                changed,
                dataclasses.replace(
                    settings, checkpoint=config.CheckpointConfig(keep=9)
                ),
            )

    def test_malformed_json_is_refused(self):
        path = os.path.join(self.get_temp_dir(), "config.json")
        for values, message in (
            ('{"steps": 3', "config.json' is no JSON"),
            ("[1, 2]", "config.json' .*Received: list"),
            ('{"data": 3}', "`data` is a group of settings.*Received: 3"),
            ('{"model": {"size": 3}}', "No setting `model.size`. Fields of M"),
            ('{"steps": "3"}', "`steps` must be of type int. Received: '3'"),
        ):
            with self.subTest(values):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(values)
                with self.assertRaisesRegex(ValueError, message):
                    config.load_config(path)

    def test_settings_absent_from_a_file_are_defaults(self):
        path = os.path.join(self.get_temp_dir(), "config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"steps": 3, "data": {"train": ["a"]}}, file)
        self.assertEqual(
            config.load_config(path, ["model.bias=-1"]),
            config.TrainConfig(
                steps=3,
                data=config.DataConfig(train=("a",)),
                model=config.ModelConfig(bias=-1.0),
            ),
        )

    def test_steps_are_counted_by_their_settings(self):
        selection = config.SelectionConfig(
            "uniform",
            batch_size=2,
            num_chunks=1,
            uniform_every=3,
            phases=(
                config.Phase(start=4, method="joint"),
                config.Phase(start=9, method="top"),
            ),
        )
        for steps in range(15):
            for stopped_at in (None, 0, 5, 11, 20):
                one_by_one = collections.Counter(
                    selection.stopped
                    if stopped_at is not None and step >= stopped_at
                    else selection.at(step)
                    for step in range(steps)
                )
                self.assertEqual(
                    selection.steps_by_kind(steps, stopped_at), one_by_one
                )
        plain = config.SelectionConfig()
        self.assertEqual(plain.steps_by_kind(7), {plain: 7})

    def test_every_recipe_of_the_repository_loads(self):
        paths = glob.glob(os.path.join(CONFIGS, "*.py"))
        self.assertNotEmpty(paths)
        for path in paths:
            with self.subTest(path):
                self.assertIsInstance(
                    config.load_config(path), config.TrainConfig
                )


if __name__ == "__main__":
    tf.test.main()
