"""TPU compilation without its wheels: lifter, twins, HLO, results, table."""

import contextlib
import dataclasses
import functools
import io
import itertools
import pathlib
import tempfile
import types
from unittest import mock

import pytest
import tensorflow as tf
import tiny

import jest_tf
from benchmarks.tpu import (
    compiler,
    fake_strategy,
    hlo,
    lifter,
    matrix,
    step,
    table,
    twins,
)
from jest_tf import config as config_lib
from jest_tf import training
from jest_tf.data import pipeline, stores, tokenizers

ROOT = pathlib.Path(__file__).parents[2]


class Toy:
    """A step that touches variables in every way that the lifter knows."""

    def __init__(self):
        # Of different types, by which a program's arguments are told apart.
        self.table = tf.Variable(tf.reshape(tf.range(12.0), [6, 2]))
        self.count = tf.Variable(1)
        self.total = tf.Variable(0.0)
        self.never_assigned = tf.Variable([3.0, -1.0])
        self.variables = (
            *(self.table, self.count),
            *(self.total, self.never_assigned),
        )

    @tf.function
    def shifted(self, rows):
        self.count.assign_add(2)
        return rows + self.never_assigned

    def __call__(self, ids):
        rows = self.shifted(tf.nn.embedding_lookup(self.table, ids))
        for turn in tf.range(3):
            self.total.assign_sub(tf.cast(turn, tf.float32))
            self.table.assign(self.table * 1.5)
        if self.count > 6:
            self.count.assign(self.count * 10)
            rows = rows * 2.0
        else:
            self.total.assign_add(tf.reduce_sum(rows))
        return (
            tf.reduce_sum(rows, 0),
            tf.size(self.table) + self.count,
            self.slope(rows),
        )

    def slope(self, rows):
        """The gradient through a loop, which keeps the values of its turns."""
        with tf.GradientTape() as tape:
            tape.watch(rows)
            _, bent = tf.while_loop(
                lambda *_: True,
                lambda turn, rows: (
                    turn + 1,
                    tf.sin(rows) * self.never_assigned,
                ),
                (tf.constant(0), rows),
                maximum_iterations=3,
            )
        return tape.gradient(bent, rows)


def trace(strategy, function, *specs):
    @tf.function
    def execution(*arguments):
        return strategy.run(function, args=arguments)

    return execution.get_concrete_function(*specs)


def execute(program, arguments, variables):
    """Runs a program on the CPU: its results, and all variables after.

    What TPUs exchange, which has no kernel here, a single one gives itself.
    """
    return compiled(program)(arguments, variables)


@functools.cache
def compiled(program):
    """`execute` of a program, traced once."""
    emit = lifter._emit_operation

    def emit_alone(graph, operation, inputs):
        if operation.type in ("CrossReplicaSum", "AllToAll"):
            return [tf.identity(inputs[0])]
        return emit(graph, operation, inputs)

    function = tf.function(program)

    def run(arguments, variables):
        with mock.patch.object(lifter, "_emit_operation", emit_alone):
            results = function(0, *arguments, *variables)
        after = list(variables)
        for argument, result in program.donated.items():
            after[argument - 1 - len(arguments)] = results[result]
        return results[: len(results) - len(program.donated)], after

    return run


class LifterTest(tf.test.TestCase):
    def test_a_lifted_step_does_what_the_step_does(self):
        strategy = fake_strategy.build_strategy(1)
        with strategy.scope():
            traced = Toy()
        program = lifter.Program(
            trace(strategy, traced, tf.TensorSpec([3], tf.int32))
        )
        self.assertEqual(program.specs[1], tf.TensorSpec([3], tf.int32))
        eager = Toy()
        specs = program.specs[2:]
        mine = [
            next(v for v in eager.variables if (v.shape, v.dtype) == type_)
            for type_ in ((spec.shape, spec.dtype) for spec in specs)
        ]
        values = [variable.value() for variable in mine]
        step = tf.function(eager)
        for ids in ([0, 2, 2], [5, 1, 0], [3, 3, 3]):
            expected = step(tf.constant(ids))
            found, values = execute(program, [tf.constant(ids)], values)
            self.assertAllClose(found, list(expected))
            self.assertAllClose(values, [one.numpy() for one in mine])
        # 1, 3, 5, then 7 in the other branch.
        self.assertEqual(eager.count.numpy(), 70)
        self.assertEqual(eager.total.dtype, tf.float32)
        assigned = {mine[number - 2].ref() for number in program.donated}
        self.assertEqual(assigned, {one.ref() for one in eager.variables[:3]})
        self.assertEqual(program.host_operations, [])

    @pytest.mark.slow
    def test_the_lifted_step_of_fit_does_what_fit_does(self):
        dataset = tiny.dataset(tiny.super_batches(3, rows=8))
        stage = config_lib.Stage(2, num_chunks=2, criterion="hard_learner")
        selection = config_lib.SelectionConfig(4, stages=(stage,))

        def build():
            model = training.JESTModel(tiny.learner(), None, selection)
            optimizer = jest_tf.AdamW(1e-2, global_clipnorm=1.0)
            model.compile(optimizer, jit_compile=False)
            optimizer.build(model.trainable_variables)
            return model

        expected = build()
        expected.fit(dataset, verbose=0)
        strategy = fake_strategy.build_strategy(1)
        with strategy.scope():
            traced = build()
        program = lifter.Program(step.trace(traced, dataset))
        self.assertEqual(program.host_operations, ["IteratorGetNext"])
        count = len(program.specs) - 1 - len(program.handles)
        names = arguments_of_batch(program, count)
        variables = [
            *traced.variables,
            *traced.optimizer.variables,
            *(one for metric in traced.metrics for one in metric.variables),
        ]
        by_handle = {id(handle_of(one)): one for one in variables}
        order = [by_handle[id(handle)] for handle in program.handles]
        values = [one.value.values[0].read_value() for one in order]
        for batch in dataset:
            # Ids come in halves.
            batch["id"] = tf.bitcast(batch["id"], tf.int32)
            arguments = [batch[name] for name in names]
            _, values = execute(program, arguments, values)
        values = {
            id(one): value for one, value in zip(order, values, strict=True)
        }
        for mine, its in zip(
            expected.trainable_variables,
            traced.trainable_variables,
            strict=True,
        ):
            self.assertAllClose(values[id(its)], mine.value, atol=1e-6)

    def test_a_function_without_a_cluster_is_refused(self):
        function = tf.function(lambda: tf.constant(1)).get_concrete_function()
        with self.assertRaisesRegex(
            ValueError, "`function` must hold one .*Received: 0 graphs"
        ):
            lifter.Program(function)


def handle_of(variable):
    """What a graph captures of a Keras variable under a TPUStrategy."""
    packed = variable.value._packed_variable
    if packed is not None:
        return packed.packed_handle
    return variable.value.values[0].handle


def arguments_of_batch(program, count):
    """The batch's entries by the types of a program's arguments."""
    by_type = {
        ((8, 4, 4, 3), tf.uint8): "image",
        ((8, 3), tf.int32): "text",
    }
    return [
        by_type.get((tuple(spec.shape), spec.dtype), "id")
        for spec in program.specs[1 : 1 + count]
    ]


class TwinsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.cases = twins.cases(4)

    def test_the_method_is_all_that_a_recipe_of_the_paper_differs_in(self):
        for size in ("b16", "l16"):
            siglip, jest = (
                config_lib.load_config(ROOT / "configs" / f"{name}_{size}.py")
                for name in ("siglip", "jest")
            )
            self.assertEqual(jest.steps, siglip.steps // 10)
            # The paper's filter ratio of 0.8 is 5 candidates.
            self.assertEqual(jest.selection.sizes(), (163_840, 32_768))
            self.assertEqual(jest.selection.stages[0].num_chunks, 16)
            self.assertEqual(siglip.selection.batch_size, 32_768)
            undone = dataclasses.replace(
                jest, steps=siglip.steps, selection=siglip.selection
            )
            self.assertEqual(undone, siglip)
            self.assertEqual(jest.model.preset, size)
            # On 256 chips every replica has its share.
            self.assertEqual(163_840 % 256, 0)

    def test_every_recipe_is_compiled_once_and_the_papers_in_every_way(self):
        recipes = {path.stem for path in twins.RECIPES.glob("*.py")}
        self.assertEqual(
            {name for case in self.cases for name in case.recipes}, recipes
        )
        names = [case.name for case in self.cases]
        self.assertLen(set(names), len(names))
        paper = [case for case in self.cases if "jest_b16" in case.recipes]
        # Any two values of loss, quota and reference meet.
        pairs = {
            pair
            for case in paper
            for pair in itertools.combinations(
                [case.variant[name] for name in ("loss", "quota", "reference")],
                2,
            )
        }
        for some, others in itertools.combinations(
            (config_lib.LOSSES, config_lib.QUOTAS, ("sidecar", "live")), 2
        ):
            self.assertContainsSubset(
                set(itertools.product(some, others)), pairs
            )
        more = [
            value
            for case in paper
            for name, value in case.variant.items()
            if name not in ("loss", "quota", "reference")
        ]
        self.assertCountEqual(
            more,
            [
                "in parts",
                *("two stages", "before the first stage"),
                *("whole batches", "micro-batches of 32"),
            ],
        )
        # Others in what they are alone, on the first topology.
        others = [case for case in self.cases if "lit_b16" in case.recipes]
        self.assertLen(others, 1)
        everywhere = [case.name for case in self.cases if case.is_everywhere]
        self.assertLen(everywhere, 5)
        self.assertIn("jest_b16 jest_l16 sigmoid global sidecar", everywhere)
        # A minute each, and more.
        self.assertLessEqual(len(self.cases) + 3 * len(everywhere), 60)

    def test_the_super_batches_are_those_of_the_pipeline(self):
        store = stores.open_store(
            str(ROOT / "examples" / "icontext_mini" / "pool-*.tfrecord")
        )
        (case,) = (
            case for case in self.cases if "quickstart_jest" in case.recipes
        )
        data = case.config.data
        real = pipeline.super_batches(
            store,
            selection=case.config.selection,
            seed=0,
            tokenizer=tokenizers.WordPieceTokenizer(
                ["[UNK]", "[EOS]", "a"], data.text_length
            ),
            image_size=data.image_size,
        )
        self.assertEqual(
            step.super_batches(case.config).element_spec, real.element_spec
        )


# As the compiler writes it: layouts with parentheses, tuples, loops.
_MODULE = """\
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(4,128)S(1)}) parameter(0)
  %x = f32[4,8]{1,0:T(4,128)} get-tuple-element(%p), index=1
  %inner = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %inner)
}

%fused (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %r = f32[4,8]{1,0} all-reduce(%q), to_apply=%add
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (u: u8[4,2,3], v: bf16[6]) -> (f32[4,8], s64[5]) {
  %u = u8[4,2,3]{2,1,0} parameter(0)
  %v = bf16[6]{0} parameter(1)
  %ids = s64[5]{0} parameter(2), metadata={op_name="XLA_Args"}
  %k = s32[] constant(7)
  %w = (bf16[6]{0:T(8)(2,1)}, u8[4,2,3]{2,1,0}) all-reduce-start(%v, %u), \
to_apply=%add
  %d = (bf16[6]{0}, u8[4,2,3]{2,1,0}) all-reduce-done(%w)
  %e = u8[4,2,3]{2,1,0} all-to-all(%u), replica_groups={{0,1,2,3}}
  %top = f32[9]{0} set-dimension-size(%long, %k), dimensions={0}
  %two = s64[2]{0} add(%ids, %ids), metadata={op_type="AddV2" op_name="a"}
  %loop = (s32[], f32[4,8]) while(%init), condition=%condition, body=%body
  ROOT %out = (f32[4,8], s64[5]) tuple(%loop, %ids)
}
"""


class HloTest(tf.test.TestCase):
    def test_bytes_of_types(self):
        for type_, size in (
            ("f32[4,8]{1,0:T(4,128)S(1)}", 128),
            ("bf16[6]", 12),
            ("pred[3]", 3),
            ("s64[]", 8),
            ("u4[3]", 2),
            ("f8e4m3fn[5]", 5),
            ("(u8[4,2,3]{2,1,0}, /*index=1*/f32[])", 28),
            ("token[]", 0),
        ):
            with self.subTest(type_):
                self.assertEqual(hlo.num_bytes(type_), size)

    def test_collectives_are_counted_by_what_is_handed_over(self):
        self.assertEqual(
            hlo.collectives(_MODULE),
            {
                # 6 bfloat16 and 24 bytes together; in the loop 32 floats.
                "all-reduce": hlo.Traffic(1, 36, 1, 128),
                "all-to-all": hlo.Traffic(1, 24, 0, 0),
            },
        )

    def test_wide_numbers_and_where_they_come_from(self):
        self.assertEqual(
            hlo.wide_numbers(_MODULE), {"s64": {"": 5, "AddV2": 2}}
        )

    def test_a_clean_module_has_no_dynamic_shapes_and_no_host(self):
        self.assertEqual(hlo.dynamic_shapes(_MODULE), [])
        self.assertEqual(hlo.host_operations(_MODULE), [])

    def test_what_should_not_be_there_is_found(self):
        for line, dynamic, host in (
            ("%x = f32[<=9]{0} add(%u, %u)", ["add"], []),
            (
                "%x = f32[9] set-dimension-size(%u, %v)",
                *(["set-dimension-size"], []),
            ),
            (
                '%x = f32[9] custom-call(%u), custom_call_target="PadToStatic"',
                ["PadToStatic"],
                [],
            ),
            ("%x = token[] outfeed(%u, %t)", [], ["outfeed"]),
            ("%x = (f32[2], u32[]) recv(%t), channel_id=2", [], ["recv"]),
            (
                '%x = f32[] custom-call(), custom_call_target="xla_host_cb"',
                [],
                ["xla_host_cb"],
            ),
        ):
            with self.subTest(line):
                module = _MODULE.replace("  %k =", f"  {line}\n  %k =")
                self.assertEqual(hlo.dynamic_shapes(module), dynamic)
                self.assertEqual(hlo.host_operations(module), host)

    def test_the_memory_that_the_compiler_names(self):
        message = "needs (8.00T) exceeds available HBM (15.75G). See"
        self.assertEqual(
            compiler.read_memory(message), (8 * 2**40, 15.75 * 2**30)
        )
        with self.assertRaisesRegex(ValueError, "Received: no memory at all"):
            compiler.read_memory("no memory at all")


CODE = "0c0de123"


def result(case, topology, **fields):
    """A line of results."""
    line = {
        "case": case.name,
        "recipes": list(case.recipes),
        "variant": case.variant,
        "topology": topology,
        "available": 2**34,
        "super_batch_size": 320,
        "batch_size": 64,
        "compiled_replicas": 4,
        "seconds": {"trace": 1.0, "export": 2.0, "compile": 3.0},
        "memory": {
            "arguments": 8 * 2**20,
            "results": 6 * 2**20,
            "donated": 5 * 2**20,
            "temporary": 3 * 2**20,
            "code": 2**20,
        },
        "is_read": True,
        "variables": 9,
        "donated": 7,
        "around": ["IteratorGetNext"],
        "wide": {"s64": {"": 80, "AddV2": 1}},
        "dynamic_shapes": [],
        "compiled_dynamic_shapes": [],
        "host_operations": [],
        "compiled_host_operations": [],
        "collectives": {"all-reduce": hlo.Traffic(3, 2048, 1, 512)._asdict()},
        "versions": {"libtpu": "0.0.52"},
        "date": "2026-11-24",
        "code": CODE,
        "config": case.digest,
        "replicas": 4,
        "revision": "a1b2c3d",
        "is_current": True,
    }
    return line | fields


def failure(case, topology, error):
    kept = ("case", "recipes", "variant", "topology", "code", "is_current")
    line = {k: v for k, v in result(case, topology).items() if k in kept}
    return line | {"stage": "compile", "error": error}


class ResultsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.options = types.SimpleNamespace(
            topologies=["v5e:2x2", "v4:2x2x1"],
            replicas=4,
            only="whole batches",
            again=False,
            minutes=1.0,
            results=self.folder / "new" / "results.jsonl",
            page=self.folder / "tpu.md",
        )
        # Two, each everywhere.
        self.cases = [
            case for case in twins.cases(4) if "whole batches" in case.name
        ]
        self.compiled = []
        self.code = CODE

    def compile(self, case, topologies, replicas, minutes):
        self.assertEqual((replicas, minutes), (4, 1.0))
        for topology in topologies:
            self.compiled.append((case.name, topology))
            yield result(case, topology, code=self.code)

    def run_matrix(self):
        with (
            mock.patch.object(matrix, "compile_case", self.compile),
            mock.patch.object(matrix, "present_code", lambda: self.code),
            contextlib.redirect_stderr(io.StringIO()) as printed,
        ):
            matrix.run(**vars(self.options))
        return printed.getvalue()

    def test_what_is_done_is_not_done_again(self):
        self.options.topologies = ["v5e:2x2"]
        self.run_matrix()
        first = [(case.name, "v5e:2x2") for case in self.cases]
        self.assertEqual(self.compiled, first)
        self.options.topologies = ["v5e:2x2", "v4:2x2x1"]
        printed = self.run_matrix()
        self.assertEqual(
            self.compiled[2:], [(case.name, "v4:2x2x1") for case in self.cases]
        )
        self.assertIn("v4:2x2x1: compiles in 3 s, 13 MiB of 16.00", printed)
        self.assertIn("1/2", printed)
        self.run_matrix()
        self.assertLen(self.compiled, 4)
        self.options.again = True
        self.run_matrix()
        self.assertLen(self.compiled, 8)
        # The last line of each counts.
        self.assertLen(matrix.read(self.options.results), 4)
        page = self.options.page.read_text()
        self.assertIn("4 of 4 programs compile. ", page)
        self.assertEqual(
            page.count("| jest_b16 | whole batches | 80 / 16 |"), 1
        )
        self.assertIn("written by python -m benchmarks.tpu_compile", page)

    def test_a_process_that_dies_leaves_an_error_for_each_topology(self):
        with mock.patch.object(matrix.sys, "executable", "false"):
            lines = list(
                matrix.compile_case(
                    self.cases[0], self.options.topologies, 4, 1.0
                )
            )
        self.assertEqual(
            [(line["topology"], line["error"]) for line in lines],
            [(name, "ended with 1: ") for name in self.options.topologies],
        )
        self.assertIn(
            "v5e:2x2: does not compile (process): ended with 1",
            table.describe(lines[0]),
        )

    def test_the_table_says_what_was_found(self):
        other, case = (
            case
            for case in twins.cases(4)
            if {"siglip_b16", "lit_b16"} & set(case.recipes)
        )
        lines = [
            result(case, "v5e:2x2"),
            failure(case, "v4:2x2x1", "Too: much"),
            result(other, "v5e:2x2", wide={"f64": {"Cast": 20}}),
        ]
        text = table.markdown(lines)
        self.assertIn("2 of 3 programs compile. Memory is a core's", text)
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith(("| siglip", "| lit"))
        ]
        name = "siglip_b16, siglip_l16"
        # 8 + 6 - 5 + 3 + 1 MiB.
        self.assertEqual(
            rows[0],
            [name, "sigmoid", "-", "-", "yes, 13 MiB", "no (compile)", CODE],
        )
        self.assertEqual(
            rows[1],
            ["lit_b16", "sigmoid", "-", "-", "yes, 13 MiB", "-", CODE],
        )
        self.assertEqual(
            rows[2][4:],
            [
                *("320 / 64", "4", "7 of 9, 5 MiB"),
                *("3: 2.0 KiB + 1: 0.5 KiB", "none", "none", "none"),
            ],
        )
        self.assertIn(f"{case.name}, v4:2x2x1, compile: `Too: much`", text)
        self.assertLessEqual(
            max(len(line) for line in text.splitlines() if line[:1] != "|"), 80
        )
        text = " ".join(text.split())
        self.assertIn(f"Found in the 2 of code {CODE}: - f64: in Cast", text)
        self.assertIn("- f64: in Cast (20), elements at most", text)
        self.assertIn(
            "- s64: in arguments and results (80), elements at most in "
            "brackets; no more than 8 elements: AddV2;",
            text,
        )
        self.assertIn("- u64: none;", text)
        self.assertIn("- host: none; around the program: IteratorGetN", text)
        self.assertIn(
            f"libtpu 0.0.52; code {CODE} of revision a1b2c3d; 2026-11-24.", text
        )
        self.assertEqual(table.markdown([]), "Nothing is compiled yet.")

    def test_a_lack_of_memory_is_a_result(self):
        case = self.cases[0]
        short = failure(case, "v4:2x2x1", "E1000: too much") | {
            "needed": 36 * 2**30,
            "available": 2**34,
        }
        memory = dict.fromkeys(
            ("arguments", "results", "donated", "temporary", "code"), 12 * 2**30
        )
        text = table.markdown([result(case, "v5e:2x2", memory=memory), short])
        self.assertIn("| yes, 36.0 GiB | no, needs 36.0 GiB |", text)
        self.assertNotIn("E1000", text)
        text = " ".join(text.split())
        self.assertIn("1 of 2 programs compile; 1 need more memory", text)
        self.assertIn("v5e:2x2 16.00 GiB, v4:2x2x1 16.00 GiB.", text)
        self.assertEqual(
            table.describe(short), "v4:2x2x1: needs 36.0 GiB of 16.00 GiB"
        )
