"""Settings: defaults, checks, overrides, recipes and files."""

import dataclasses
import functools
import json
import pathlib
import re
import sys
from unittest import mock

import tensorflow as tf

from jest_tf import config
from jest_tf.config import formats, overrides, tables

Stage, View = config.Stage, config.View
EASY = Stage(3, "stored", criterion="easy_reference")
JEST = Stage(5)
LISTS = config.SelectionConfig(256, (EASY, JEST))

GROUPS = {
    "data": config.DataConfig,
    "model": config.ModelConfig,
    "reference": config.ReferenceConfig,
    "bootstrap": config.BootstrapConfig,
    "selection": functools.partial(config.SelectionConfig, batch_size=16),
    "selection.stages": functools.partial(Stage, candidates=2),
}

# Settings of a group that are refused, and the message after the first's name.
# `test_every_name.py` tries every field by itself.
REFUSED = [
    ("data", {"weights": (1.0,)}, r"for each store.*=\(1.0,\), .*train=\(\)"),
    ("data", {"curated_rows": 2}, "needs `data.curated`.*=2, .*=\\(\\)"),
    ("selection", {"stages": (JEST, EASY)}, "stored .* must come before live"),
    (
        "selection.stages",
        {"first_step": 5, "last_step": 4},
        "must be at most .*first_step=5, selection.stages.last_step=4",
    ),
    (
        "selection.stages",
        {"view": View(8), "embeddings": "stored"},
        "and .*are only for live stages.*patch_size=8.*'stored'",
    ),
    ("selection.stages", {"captions": "drawn"}, "is only for stored .*'drawn'"),
    ("bootstrap", {"renew_at": (0, 3)}, r"ascending steps from 1.*\(0, 3\)"),
    ("bootstrap", {"shares": (0.5, 1.0)}, "single share, or a share for"),
    ("bootstrap", {"clean_start": True}, "ends with the first of .*: set both"),
    (
        "reference",
        {"distillation_steps": 3},
        "needs `reference.distillation_weight`.*steps=3, .*weight=0.0",
    ),
    (
        "model",
        {"false_negative_margin": 0.1, "false_negatives": "equal_captions"},
        "needs `model.false_negatives` .*=0.1, .*='equal_captions'",
    ),
]


def trained(curated_rows=0, bootstrap=(), steps=30, reference="", **settings):
    """A run of `SelectionConfig(**settings)`, as the rest says."""
    renewals = dict(bootstrap)
    has_curated = curated_rows or "clean_start" in renewals
    return config.TrainConfig(
        steps=steps,
        data=config.DataConfig(
            curated=("c",) if has_curated else (), curated_rows=curated_rows
        ),
        reference=config.ReferenceConfig(reference),
        selection=config.SelectionConfig(**{"batch_size": 256} | settings),
        bootstrap=config.BootstrapConfig(**renewals),
    )


class DefaultsTest(tf.test.TestCase):
    def test_defaults_are_the_papers(self):
        settings = config.TrainConfig()
        self.assertEqual(JEST.num_chunks, 16)  # algorithm 1
        self.assertEqual(
            (JEST.method, JEST.criterion), ("joint", "learnability")
        )
        self.assertEqual(settings.model.false_negatives, "keep")
        # Without stages every row is trained on, and none is scored.
        self.assertEqual(settings.selection, config.SelectionConfig(256))


class FunnelTest(tf.test.TestCase):
    def test_every_method_in_chunks_needs_a_row_for_each_chunk(self):
        greedy = tables.Method(in_chunks=True, adds_noise=False)
        with mock.patch.dict(tables.METHODS, {"greedy": greedy}):
            # The rule of the setting was made before the method.
            stage = config.Stage(3)
            object.__setattr__(stage, "method", "greedy")
            with self.assertRaisesRegex(ValueError, "num_chunks=16, rows=4"):
                config.SelectionConfig(4, (stage,))

    def test_sizes_follow_from_b_and_the_stages(self):
        for stages, curated_rows, sizes, super_batch in (
            ((), 0, (256,), 256),
            ((), 56, (200,), 200),
            ((JEST,), 0, (1280, 256), 1280),
            ((EASY,), 0, (768, 256), 256),
            ((EASY, JEST), 0, (3840, 1280, 256), 1280),
            ((EASY, JEST), 64, (2880, 960, 192), 960),
            (
                (EASY, EASY, JEST, JEST),
                0,
                (57600, 19200, 6400, 1280, 256),
                6400,
            ),
        ):
            found = config.SelectionConfig(256, stages)
            self.assertEqual(found.sizes(curated_rows), sizes)
            self.assertEqual(found.super_batch_size(curated_rows), super_batch)
            self.assertEqual(found.hyper_batch_size(curated_rows), sizes[0])
            self.assertEqual(found.stored + found.live, stages)

    def test_stages_that_pass_too_few_rows_are_refused_by_number(self):
        for stages, curated_rows, message in (
            ((Stage(2, num_chunks=9),), 0, "0.num_chunks.*=9, rows=8$"),
            ((Stage(2, num_chunks=8),), 1, "0.num_chunks.*=8, rows=7$"),
            (
                (Stage(2, num_chunks=1), Stage(2, num_chunks=9)),
                0,
                "1.num_chunks.*=9, rows=8$",
            ),
            ((), 8, "`data.curated_rows` .c. must be less.*=8, c=8$"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                config.SelectionConfig(8, stages).sizes(curated_rows)
        # The stage before it passes twice as many. Only joint draws are made in
        # chunks.
        config.SelectionConfig(
            8, (Stage(2, num_chunks=16), Stage(2, method="top"))
        )


class PlanTest(tf.test.TestCase):
    """A, stored, and B, live from step 8 to 19, need the reference; C not."""

    A = EASY
    B = Stage(2, first_step=8, last_step=19)
    C = Stage(2, criterion="hard_learner")
    STAGES = (A, B, C)

    def pieces(self, steps=30, **settings):
        """First step, length, scoring stages and curated rows by segment."""
        recipe = trained(**{"stages": self.STAGES} | settings)
        found = []
        for segment in config.cut(recipe.plan, steps):
            self.assertEqual(segment.selection, recipe.selection)
            scoring = "".join("ABC"[number] for number in segment.scoring)
            found.append(
                (
                    segment.first,
                    segment.num_steps,
                    scoring if segment.stages else None,
                    segment.curated_rows,
                )
            )
        return found

    def test_stages_begin_and_end(self):
        expected = [(0, 8, "AC", 6), (8, 12, "ABC", 6), (20, 10, "AC", 6)]
        self.assertEqual(self.pieces(curated_rows=6), expected)
        self.assertEqual(
            self.pieces(9, curated_rows=6), [expected[0], (8, 1, "ABC", 6)]
        )
        self.assertEqual(self.pieces(8, curated_rows=6), expected[:1])
        self.assertEqual(self.pieces(0), [])
        self.assertEqual(self.pieces(stages=()), [(0, 30, None, 0)])

    def test_without_a_reference_its_stages_wait_for_the_first_renewal(self):
        renewals = {"renew_at": (4, 12)}
        first = [(0, 4, "C", 0), (4, 4, "AC", 0)]
        rest = [(8, 4, "ABC", 0), (12, 8, "ABC", 0), (20, 10, "AC", 0)]
        self.assertEqual(self.pieces(bootstrap=renewals), first + rest)
        first[0] = (0, 4, "AC", 0)
        self.assertEqual(
            self.pieces(bootstrap=renewals, reference="run"), first + rest
        )

    def test_a_clean_start_has_curated_rows_alone(self):
        renewals = {"renew_at": (10,), "clean_start": True}
        rest = [(10, 10, "ABC", 6), (20, 10, "AC", 6)]
        # The stages' turn within it changes nothing but the segment.
        first = [(0, 8, None, 256), (8, 2, None, 256)]
        for reference in ("", "run"):
            self.assertEqual(
                self.pieces(
                    curated_rows=6, bootstrap=renewals, reference=reference
                ),
                first + rest,
            )

    def test_sidecars_are_read_for_any_of_four_reasons(self):
        unscored = Stage(2, "stored", method="uniform")
        hard, half = (self.C,), {"renew_at": (15,)}
        for reads, uses, stages, reference, renewals in (
            (False, False, (), {}, {}),
            (False, False, hard, {"sidecar_dir": "s"}, {}),
            (False, False, (unscored,), {"sidecar_dir": "s"}, {}),
            (True, True, (JEST,), {}, {}),  # beside the shards
            (False, True, (JEST,), {"model": "m"}, {}),
            (True, True, (JEST,), {"model": "m", "sidecar_dir": "s"}, {}),
            (True, True, (JEST,), {"model": "m"}, half),
            (True, True, (EASY,), {"model": "m"}, {}),
            (True, True, (), {"distillation_weight": 1.0}, {}),
            (False, True, (), {"distillation_weight": 1.0, "model": "m"}, {}),
        ):
            recipe = config.TrainConfig(
                reference=config.ReferenceConfig(**reference),
                selection=config.SelectionConfig(256, stages),
                bootstrap=config.BootstrapConfig(**renewals),
            )
            with self.subTest(stages=stages, reference=reference):
                self.assertEqual(recipe.reads_sidecars, reads)
                self.assertEqual(recipe.uses_reference, uses)
                self.assertEqual(
                    recipe.steps_need_reference, uses and stages != (EASY,)
                )
                self.assertEqual(
                    recipe.has_first_reference, not renewals or bool(reference)
                )


class RefusalsTest(tf.test.TestCase):
    def test_an_invalid_setting_is_refused_by_name_with_the_valid_values(self):
        for group, settings, message in REFUSED:
            with self.subTest(group=group, settings=settings):
                name = next(iter(settings))
                with self.assertRaisesRegex(
                    ValueError, f"`{group}.{name}`.*{message}"
                ):
                    GROUPS[group](**settings)

    def test_values_at_the_limits_are_valid(self):
        config.DataConfig(min_crop_area=1, text_length=2, image_size=1)
        config.OptimizerConfig(warmup_steps=0, weight_decay=0, ema=0.0)
        config.SelectionConfig(4, (Stage(1, num_chunks=4, gain=0.0),))
        config.TrainConfig(
            seed=2**31 - 1,
            steps=2,
            optimizer=config.OptimizerConfig(warmup_steps=1),
            checkpoint=config.CheckpointConfig(every_steps=4),
        )

    def test_settings_that_contradict_each_other_are_refused(self):
        path = pathlib.Path(self.get_temp_dir(), "config.json")
        path.write_text('{"steps": 8, "selection": {"batch_size": 256}}')
        stage = "selection.stages.0"
        curated = "data.curated=c data.curated_rows"
        renewed = f"{stage}.candidates=5 bootstrap.renew_at"
        view = f"model.train_views=true {stage}.candidates=2 {stage}.view"
        stored = "candidates=2", "embeddings=stored", "criterion="
        first, second = (
            " ".join(f"selection.stages.{number}.{each}" for each in stored)
            for number in range(2)
        )
        for overrides_, message in (
            (f"{stage}.candidates=5 {curated}=250", "num_chunks` .*, rows=6$"),
            ("data.curated=c", "`data.curated` needs `data.curated_rows`"),
            (f"{renewed}=4 data.curated=c", "`data.curated` needs `data.cu"),
            (
                f"{curated}=4 {view}.image_size=8",
                "`model.train_views` can't be",
            ),
            (f"{renewed}=8", "`bootstrap.renew_at` must be before the last"),
            (f"{stage}.method=uniform {renewed}=4", "renew_at` needs a use"),
            (
                f"{renewed}=4 reference.distillation_weight=1",
                "`reference.similarity_weight` and .* need a reference from",
            ),
            (
                f"{renewed}=4 model.false_negatives=reference",
                "as `model.false_negatives` need a reference from the first",
            ),
            (f"{renewed}=4 bootstrap.clean_start=true", "`bootstrap.clean_st"),
            ("optimizer.warmup_steps=8", "`optimizer.warmup_steps` must be le"),
            (
                f"{stage}.candidates=2 {stage}.first_step=8",
                "`selection.stages` must begin at a step below.*steps=8",
            ),
            (
                f"{stage}.candidates=2 {stage}.view.patch_size=12",
                "`selection.stages.view`: .*patch_size=12, image_size=32",
            ),
            ("model.train_views=true", "train_views` needs a live stage"),
            *(
                (
                    f"{first}easy_reference {second}{criterion}",
                    f"stages.1.embeddings` .*criterion='{criterion}'",
                )
                for criterion in ("learnability", "hard_learner")
            ),
            (
                f"{view}.image_size=16 {stage[:-1]}1.candidates=2 "
                f"{stage[:-1]}1.view.image_size=32",
                "`model.train_views` cuts .*batch_size=256, parts=3",
            ),
        ):
            with self.subTest(message):
                with self.assertRaisesRegex(ValueError, message):
                    config.load_config(path, overrides_.split())


class FilesTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir())
        self.path = self.folder / "recipe.py"
        self.json = self.folder / "config.json"
        self.path.write_text(
            "from jest_tf.config import TrainConfig\n"
            "def config():\n    return TrainConfig(steps=20)\n"
        )

    def load(self, *overrides):
        return config.load_config(self.path, overrides)

    def test_defaults_are_listed_as_they_are_written(self):
        lines = overrides.describe(config.TrainConfig).splitlines()
        for line in ("selection.batch_size=<int>", "optimizer.ema=none"):
            self.assertIn(f"  {line}", lines)

    def test_overrides_of_every_kind(self):
        self.assertEqual(self.load(), config.TrainConfig(steps=20))
        for override, group, name, value in (
            ("steps=7", None, "steps", 7),
            ("data.image_size=48", "data", "image_size", 48),
            ("data.min_crop_area=0.25", "data", "min_crop_area", 0.25),
            ("optimizer.weight_decay=1e-2", "optimizer", "weight_decay", 0.01),
            ("data.flip=false", "data", "flip", False),
            ("reference.model=a=b", "reference", "model", "a=b"),
            ("data.train=a-*.x, b", "data", "train", ("a-*.x", "b")),
            ("data.train=", "data", "train", ()),
            ("model.loss_block_size=none", "model", "loss_block_size", None),
            ("optimizer.ema=0", "optimizer", "ema", 0.0),
            ("selection.loss=softmax", "selection", "loss", "softmax"),
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

    def test_overrides_reach_into_lists(self):
        first, second = "selection.stages.0.", "selection.stages.1."
        config.save_config(
            dataclasses.replace(config.TrainConfig(), selection=LISTS),
            self.json,
        )
        for path, settings, expected in (
            (self.path, [f"{first}candidates=5"], (JEST,)),
            (
                self.path,
                [
                    f"{first}embeddings=stored",
                    f"{first}criterion=easy_reference",
                    f"{first}candidates=3",
                    f"{second}view.patch_size=8",
                    f"{second}candidates=5",
                ],
                (EASY, Stage(5, view=View(8))),
            ),
            (
                self.json,
                [f"{second}candidates=2", f"{second}last_step=3"],
                (EASY, Stage(2, last_step=3)),
            ),
            (
                self.json,
                ["selection.stages.2.candidates=4"],
                (EASY, JEST, Stage(4)),
            ),
            (self.json, ["selection.stages="], ()),
            (
                self.json,
                ["selection.stages=none", f"{first}candidates=4"],
                (Stage(4),),
            ),
        ):
            with self.subTest(settings):
                found = config.load_config(path, settings).selection
                self.assertEqual(found.stages, expected)
        stage = "selection.stages.0"
        loaded = self.load(
            *(f"{stage}.candidates=2", f"{stage}.view.patch_size=8"),
            *("model.train_views=true", "data.image_size=16"),
        )
        self.assertEqual(loaded.training_views, (View(), View(8)))
        self.assertEqual(loaded.patch_sizes, (8,))

    def test_invalid_overrides_are_refused(self):
        stage = "selection.stages"
        for override, message in (
            ("=3", "No setting ``. Fields of TrainConfig: seed, steps, .*data"),
            ("data.imagesize=3", "`data.imagesize`. Did .* `data.image_size`"),
            ("image_size=3", "No setting `image_size`.*`data.image_size`"),
            ("data.size=3", "Fields of DataConfig: train, weights, curated"),
            ("checkpoint=x", "group of settings.*: every_steps$"),
            (f"{stage}.gain=5", f"No setting `{stage}.gain`: after the name"),
            (f"{stage}.0=5", f"No setting `{stage}.0`"),
            (f"{stage}.1.gain=5", "a number from 0 to 0. Received: '1'"),
            (f"{stage}.0.candidate=5", f"mean `{stage}.0.candidates`"),
        ):
            with self.subTest(override):
                with self.assertRaisesRegex(ValueError, message):
                    self.load(override)

    def test_a_saved_run_is_read_back_equal(self):
        for settings in (
            config.TrainConfig(),
            config.TrainConfig(
                seed=3,
                data=config.DataConfig(train=("a", "b\u00e9"), flip=False),
                model=config.ModelConfig(train_views=True),
                reference=config.ReferenceConfig(model="runs/r"),
                selection=config.SelectionConfig(
                    64, (EASY, Stage(5, view=View(8, 16))), "softmax"
                ),
                optimizer=config.OptimizerConfig(layer_decay=0.5),
                evaluation=config.EvaluationConfig(data=("c", "d")),
            ),
        ):
            config.save_config(settings, self.json)
            self.assertEqual(config.load_config(self.json), settings)
            changed = config.load_config(
                self.json, ["checkpoint.every_steps=9"]
            )
            self.assertEqual(
                changed,
                dataclasses.replace(
                    settings, checkpoint=config.CheckpointConfig(every_steps=9)
                ),
            )
        self.assertEqual(settings.patch_sizes, (8,))

    def test_malformed_json_is_refused(self):
        for values, message in (
            ("[1, 2]", "config.json' .*Received: list"),
            ("[" * 100_000, "config.json' is not a JSON file: maximum recurs"),
            (f'{{"data": {"[" * 600 + "]" * 600}}}', "is nested too deeply"),
            ('{"data": {"super_batch_size": 8}}', "json must .*0.2.0 or earli"),
            ('{"format": 4}', "json must .*reads, .*format 4, of a later"),
            (
                '{"selection": {"stages": [{"uniform_share": 1}]}}',
                "config.json, of version 0.3.0, .*expected selection.stages.0."
                "uniform_share=0.0, .*Received: 1; use .*0.3.0, or delete",
            ),
            (
                '{"optimizer": {"name": "sgd"}}',
                "config.json: `optimizer.name` must .*as in 0.3.0",
            ),
            (
                '{"model": {"equal_captions": "positive"}}',
                "model.equal_captions` of .* .'negative', 'ignore.*: 'positive",
            ),
            ('{"data": 3}', "`data` is a group of settings.*Received: 3"),
            ('{"model": {"size": 3}}', "No setting `model.size`. Fields of M"),
            ('{"steps": "3"}', "`steps` must be of type int. Received: '3'"),
        ):
            with self.subTest(values):
                self.json.write_text(values)
                with self.assertRaisesRegex(ValueError, message):
                    config.load_config(self.json)

    def test_settings_of_0_3_0_are_read_at_their_defaults(self):
        """As that version wrote those that are gone."""
        gone = {
            "data": """"format": "auto", "max_fault_rate": 0.01,
                "max_image_pixels": 67108864""",
            "model": """"patch_size": null, "views": [], "temperature": 10.0,
                "bias": -10.0, "equal_captions": "ignore" """,
            "optimizer": """"restarts": [400], "beta_1": 0.9, "beta_2": 0.95,
                "clip_norm": 1.0, "rate_factors": []""",
            "evaluation": """"suite": "", "batch_size": 256,
                "prompts": ["{}"]""",
            "checkpoint": '''"every_minutes": null, "keep": 3,
                "keep_best": "", "on_non_finite": "stop"''',
            "distribution": """"steps_per_execution": 1,
                "jit_compile": false""",
        }
        recipe = config.TrainConfig(
            model=config.ModelConfig(false_negatives="equal_captions"),
            selection=config.SelectionConfig(64, (EASY,)),
        )
        values = dataclasses.asdict(recipe)
        del values["model"]["false_negatives"]
        values["selection"]["stages"][0]["uniform_share"] = 0.0
        for group, text in gone.items():
            values[group] |= json.loads(f"{{{text}}}")
        self.json.write_text(json.dumps(values))
        self.assertEqual(config.load_config(self.json), recipe)
        self.assertEqual(formats.read("", values).restarts, [400])

    def test_a_users_module_is_imported_where_it_is_used(self):
        """The module of each "module:function" here fails when imported."""
        module = self.folder / "explosive.py"
        module.write_text("raise RuntimeError('imported')\n")
        name = "explosive:make"
        own = dataclasses.replace(JEST, criterion=name)
        with mock.patch.object(sys, "path", [str(self.folder), *sys.path]):
            recipe = config.TrainConfig(
                data=config.DataConfig(vocabulary=name, augment=name),
                model=config.ModelConfig(towers=name, loss=name),
                selection=config.SelectionConfig(
                    256, (dataclasses.replace(EASY, criterion=name), own), name
                ),
                bootstrap=config.BootstrapConfig((500,)),
                optimizer=config.OptimizerConfig(name=name, schedule=name),
                callbacks=(name,),
            )
            config.save_config(recipe, self.json)
            with self.assertRaises(ValueError) as refused:
                config.load_config(self.json)
            named = re.findall(rf"([\w.]+)={name}", str(refused.exception))
            expected = (
                *("data.augment", "data.vocabulary", "model.towers"),
                *("model.loss", "optimizer.name", "optimizer.schedule"),
                *("callbacks", "selection.loss"),
                *(f"selection.stages.{n}.criterion" for n in (0, 1)),
            )
            self.assertEqual(named, [*expected])
            # Those that the user sets are the user's own.
            own = [f"{setting}={name}" for setting in named]
            self.assertEqual(config.load_config(self.json, own), recipe)
            loaded = config.load_config(self.json, ["steps=900"], trust=True)
            self.assertEqual(loaded, dataclasses.replace(recipe, steps=900))
            for use in (
                lambda: loaded.plan,
                lambda: config.criterion(name),
                lambda: loaded.selection.needs("learner"),
            ):
                with self.assertRaisesRegex(RuntimeError, "imported"):
                    use()
