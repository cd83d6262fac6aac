"""Every table of names, setting and flag, found by introspection.

Another name, type, value or spelling is an error of one sentence that names the
setting, what was expected and what came. Every entry of every table is used.
"""

import contextlib
import importlib
import io
import itertools
import pathlib
import pkgutil
import re
import typing

import keras
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli, config, losses, models, training
from jest_tf.cli import export
from jest_tf.config import checks, imports, overrides

INFINITE, NAN = float("inf"), float("nan")
VALUES = (
    *(None, True, -(2**40), 0, 1, 2**40, -1.5, 0.0, 0.5, 1.0, 1.5),
    *(INFINITE, -INFINITE, NAN, "", "nonsense", "hub:nonsense", b"x"),
    *((), (0,), (1.5,), (True,), (1.0, NAN), ("",), ("nonsense",)),
    *([], ["nonsense"], {}, {"nonsense": 1}, object()),
)
TABLES = {name: table for name, table in vars(config).items() if name.isupper()}


def settings_classes():
    """Every dataclass that checks its fields, with values of required ones."""
    for _, name, _ in pkgutil.walk_packages(jest_tf.__path__, "jest_tf."):
        if not name.endswith("_jax"):  # which is not installed here
            importlib.import_module(name)
    found = {}
    for kind in checks.Checked.__subclasses__():
        rules, hints = checks.list_rules(kind), typing.get_type_hints(kind)
        found[kind] = {
            name: next(
                value
                for value in (*VALUES, *names_in(rules[name]))
                if fits(value, hints[name]) and not breaks(value, rules[name])
            )
            for name, parameter in kind.__dataclass_fields__.items()
            if parameter.default is parameter.default_factory  # both missing
        }
    return found


def names_in(rules):
    """The names that a setting may take."""
    return [name for _, rule in rules for name in getattr(rule, "names", ())]


def fits(value, hint):
    """True if a value is of an annotated type, and finite."""
    if typing.get_origin(hint) is tuple:
        part = typing.get_args(hint)[0]
        return type(value) is tuple and all(fits(each, part) for each in value)
    kinds = typing.get_args(hint) or (hint,)
    is_kind = type(value) in kinds or type(value) is int and float in kinds
    return is_kind and (type(value) is not float or abs(value) < INFINITE)


def breaks(value, rules):
    """True if a value of the right type breaks a rule."""
    return value is not None and not all(holds(value) for _, holds in rules)


def select(method="joint", quota="global"):
    """The shape of the ids of a step's draw."""
    stage = config.Stage(2, "live", method, "hard_learner", num_chunks=2)
    selection = config.SelectionConfig(4, (stage,), quota=quota)
    model = training.JESTModel(tiny.learner(), selection=selection)
    model.compile("sgd")
    model.fit(tiny.dataset(tiny.super_batches(rows=8)), verbose=0)
    return model.drawn_ids.shape


def train(name):
    """The loss of a step without such false negatives."""
    options = jest_tf.StepOptions(name)
    reference = tiny.learner(5) if name == "reference" else None
    model = training.JESTModel(tiny.learner(), reference, options=options)
    model.compile("sgd")
    return model.fit(tiny.dataset(tiny.super_batches()), verbose=0).history


def build_towers(preset):
    recipe = config.TrainConfig(
        data=config.DataConfig(image_size=64),
        model=config.ModelConfig(preset=preset),
    )
    with keras.StatelessScope(initialize_variables=False):
        return models.build_learner(recipe, 10)


def build(**settings):
    return jest_tf.build_optimizer(config.OptimizerConfig(**settings), 9)


# A use of an entry, by table.
USES = {
    "CRITERIA": lambda name: config.criterion(name).score(
        {"learner": 2.0, "reference": 1.5}
    ),
    "DTYPE_POLICIES": lambda name: keras.DTypePolicy(name).compute_dtype,
    "FALSE_NEGATIVES": train,
    "LOSSES": losses.pair_loss,
    "METHODS": lambda name: select(method=name),
    "OPTIMIZERS": lambda name: build(name=name),
    "PRESETS": build_towers,
    "QUOTAS": lambda name: select(quota=name),
    "SCHEDULES": lambda name: build(schedule=name),
    "STRATEGIES": lambda name: imports.load_function(
        "distribution.strategy", config.STRATEGIES[name].build
    ),
}


class TablesTest(tf.test.TestCase):
    def check(self, kind, name, value, others):
        """Fails unless a value is refused by name in one sentence."""
        setting = kind._prefix + name
        with self.subTest(setting, value=value):
            with self.assertRaises(ValueError) as raised:
                kind(**others | {name: value})
            received = rf"\. Received: {re.escape(repr(value))}"
            self.assertRegex(
                str(raised.exception), rf"^`{setting}` must be .+{received}"
            )

    def test_every_entry_is_used(self):
        self.assertCountEqual(USES, TABLES)
        for table, use in USES.items():
            with self.subTest(table), tiny.eagerly():
                found = [use(name) for name in TABLES[table]]
                self.assertNotIn(None, found)
                if table not in ("METHODS", "QUOTAS"):
                    self.assertLen({*map(str, found)}, len(found))
        for name in export.FORMATS.values():
            self.assertTrue(callable(imports.load_function("--format", name)))

    def test_every_table_is_that_of_a_setting_which_refuses_other_names(self):
        refused = set()
        for kind, required in settings_classes().items():
            for name, field in kind.__dataclass_fields__.items():
                names = {*names_in(checks.list_rules(kind)[name])}
                for table, entries in TABLES.items():
                    if names >= {*entries} or field.default in [*entries]:
                        refused.add(table)
                        for wrong in ("nonsense", next(iter(entries))[:-1]):
                            self.check(kind, name, wrong, required)
        self.assertEqual(refused, {*TABLES})

    def test_every_field_refuses_other_types_and_values(self):
        for kind, required in settings_classes().items():
            hints, rules = typing.get_type_hints(kind), checks.list_rules(kind)
            for name, value in itertools.product(hints, VALUES):
                if not fits(value, hints[name]) or breaks(value, rules[name]):
                    self.check(kind, name, value, required)
            for name in hints:
                tried = [value for value in VALUES if fits(value, hints[name])]
                for rule in rules[name]:  # is broken by one of the values
                    self.assertIn(True, [breaks(x, [rule]) for x in tried])

    def test_every_setting_refuses_other_text_json_and_spellings(self):
        for setting in overrides.settings(config.TrainConfig):
            *groups, name = setting.path.split(".")
            wrong = [f"{setting.path[:-1]}=1", f"{setting.path}.x=1"]
            if setting.type in ("int", "float", "bool"):
                wrong += [f"{setting.path}={text}" for text in ("x", "", "1 2")]
            for text in wrong:
                path, _, _ = text.partition("=")
                with self.subTest(text):
                    with self.assertRaisesRegex(ValueError, f"`{path}`"):
                        overrides.override(config.TrainConfig, {}, text)
            for value in ({"x": 1}, [[1]], [{"x": None}], object()):
                for part in reversed((*groups, name)):
                    value = [value] if part == "0" else {part: value}
                with self.subTest(setting.path, value=value):
                    with self.assertRaisesRegex(ValueError, name):
                        overrides.build(config.TrainConfig, value)

    def test_no_setting_takes_a_number_beyond_reason(self):
        recipe = pathlib.Path(jest_tf.__file__).parents[1]
        recipe /= "configs/quickstart_jest.py"
        beyond = {
            "int": (-1, 2**31, 10**12, "9" * 5000),
            "float": (-1e300, 1e300, "9" * 5000, INFINITE, NAN),
        }
        for setting in overrides.settings(config.TrainConfig):
            kind = re.search("int|float|$", setting.type)[0]
            for value in map(str, beyond.get(kind, ())):
                with self.subTest(setting.path, value=value[:20]):
                    with self.assertRaisesRegex(ValueError, "^.*`[a-z].*$"):
                        config.load_config(recipe, [f"{setting.path}={value}"])

    def test_every_flag_of_every_command_refuses_other_values(self):
        (commands,) = cli.parser()._subparsers._group_actions
        self.assertEqual([*commands.choices], [*cli.COMMANDS])
        wrong = [("nonsense", "COMMAND"), (cli.COMMANDS[0][:-1], "COMMAND")]
        for command, parser in commands.choices.items():
            for action in parser._actions:
                for flag in action.option_strings:
                    wrong.append((f"{command} {flag}x", f"{flag}x"))
                    if action.choices or action.type is int:
                        wrong.append((f"{command} {flag} nonsense", flag))
        for line, name in wrong:
            shown = io.StringIO()
            with self.subTest(line), contextlib.redirect_stderr(shown):
                self.assertEqual(cli.main(line.split()), 2)
                self.assertRegex(shown.getvalue(), f"^error: .*{name}.*\n$")
