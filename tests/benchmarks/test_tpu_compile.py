"""TPU compilation without its wheels: lifter, twins, HLO, results, table."""

import dataclasses
import functools
import pathlib
from unittest import mock

import pytest
import tensorflow as tf
import tiny

import jest_tf
from benchmarks.tpu import fake_strategy, hlo, lifter, step, twins
from jest_tf import config as config_lib
from jest_tf import training
from jest_tf.data import pipeline, stores, tokenizers

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def on_the_cpu(program):
    """A program that the CPU runs: its results, and all variables after.

    What TPUs exchange, which has no kernel here, a single TPU gives itself.
    """
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
        parts = traced, traced.optimizer, *traced.metrics
        by_handle = {
            id(handle_of(variable)): variable
            for part in parts
            for variable in part.variables
        }
        order = [by_handle[id(handle)] for handle in program.handles]
        values = [variable.value.values[0].read_value() for variable in order]
        for batch in dataset:
            # Ids come in halves.
            batch["id"] = tf.bitcast(batch["id"], tf.int32)
            arguments = [batch[name] for name in names]
            _, values = on_the_cpu(program)(arguments, values)
        after = dict(zip(map(id, order), values, strict=True))
        weights = expected.trainable_variables, traced.trainable_variables
        for mine, its in zip(*weights, strict=True):
            self.assertAllClose(after[id(its)], mine.value, atol=1e-6)


def handle_of(variable):
    """The tensor of a Keras variable that a graph captures on a TPU."""
    packed = variable.value._packed_variable
    if packed is not None:
        return packed.packed_handle
    return variable.value.values[0].handle


def arguments_of_batch(program, count):
    """The batch's entries by the types of a program's arguments."""
    by_type = {((8, 4, 4, 3), tf.uint8): "image", ((8, 3), tf.int32): "text"}
    return [
        by_type.get((tuple(spec.shape), spec.dtype), "id")
        for spec in program.specs[1 : 1 + count]
    ]


class TwinsTest(tf.test.TestCase):
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

    def test_the_super_batches_are_those_of_the_pipeline(self):
        pool = ROOT / "examples" / "icontext_mini" / "pool-*.tfrecord"
        store = stores.open_store(str(pool))
        (case,) = (
            case for case in twins.cases(4) if "quickstart_jest" in case.name
        )
        data = case.config.data
        real = pipeline.super_batches(
            store,
            plan=case.config.plan,
            loss="sigmoid",
            seed=0,
            tokenizer=tokenizers.WordPieceTokenizer(
                ["[UNK]", "[EOS]", "a"], data.text_length
            ),
            image_size=data.image_size,
        )
        found = step.super_batches(case.config).element_spec
        for name in ("reference_image", "reference_text"):  # of sidecars
            self.assertEqual(found.pop(name).shape[0], 320)
        self.assertEqual(found, real.element_spec)


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

    def test_dynamic_shapes_and_calls_to_the_host_are_found(self):
        dynamic, host = hlo.dynamic_shapes, hlo.host_operations
        call = "custom-call(%u), custom_call_target="
        resize = "set-dimension-size"
        for find, name, line in (
            (None, "", ""),
            (dynamic, "add", "f32[<=9]{0} add(%u, %u)"),
            (dynamic, resize, f"f32[9] {resize}(%u, %v)"),
            (dynamic, "PadToStatic", f'f32[9] {call}"PadToStatic"'),
            (host, "outfeed", "token[] outfeed(%u, %t)"),
            (host, "recv", "(f32[2], u32[]) recv(%t), channel_id=2"),
            (host, "xla_host_cb", f'f32[] {call}"xla_host_cb"'),
        ):
            added = f"  %x = {line}\n  %k =" if line else "  %k ="
            module = _MODULE.replace("  %k =", added)
            for each in (dynamic, host):
                with self.subTest(line):
                    expected = [name] if each is find else []
                    self.assertEqual(each(module), expected)
