"""Both implementations have what training needs of Keras' backend.

Their sources are read, so that a missing part fails on either backend.
"""

import ast
import inspect
import pathlib

import tensorflow as tf

from jest_tf.distribution import keras_fit
from jest_tf.training import backend

ROOT = pathlib.Path(backend.__file__).parents[1]
BACKENDS = ("training/on_tensorflow.py", "training/on_jax.py")
COLLECTIVES = ("distribution/collectives.py", "distribution/collectives_jax.py")


def parsed(path):
    return ast.parse((ROOT / path).read_text("utf-8"))


def defined(tree, name=None):
    """Names that a module, or a class of it, defines; arguments by function."""
    if name is not None:
        (tree,) = (
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == name
        )
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            names[node.name] = [each.arg for each in arguments]
        elif isinstance(node, ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = getattr(node, "targets", None) or [node.target]
            for target in targets:
                for part in getattr(target, "elts", [target]):
                    name = getattr(part, "id", getattr(part, "attr", ""))
                    names.setdefault(name, None)
    return names


def declared(protocol):
    """Names of a Protocol: attributes, and functions with their arguments."""
    names = dict.fromkeys(protocol.__annotations__)
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            names[name] = list(inspect.signature(function).parameters)
    return names


class BackendTest(tf.test.TestCase):
    def check(self, protocol, found, drop_self=False):
        for name, arguments in declared(protocol).items():
            self.assertIn(name, found)
            if arguments is None or found[name] is None:
                continue
            self.assertEqual(found[name], arguments[drop_self:], name)

    def test_each_has_the_functions_and_the_trainer(self):
        averages = declared(keras_fit.Averages)
        for path in BACKENDS:
            with self.subTest(path):
                tree = parsed(path)
                self.check(backend.Backend, defined(tree), drop_self=True)
                trainer = defined(tree, "Trainer") | averages
                self.check(backend.Trainer, trainer)

    def test_each_has_the_collectives(self):
        for path in COLLECTIVES:
            with self.subTest(path):
                tree = parsed(path)
                found = defined(tree, "Replicas")
                attributes = ("num_replicas", "replica_id", "in_loops")
                self.assertContainsSubset(attributes, found)
                for name in ("all_gather", "all_reduce", "all_to_all"):
                    self.assertEqual(found[name], ["self", "tensors"])
                functions = {
                    node.name: node.args.args
                    for node in tree.body
                    if isinstance(node, ast.FunctionDef)
                }
                self.assertEqual(functions["current"], [])

    def test_no_private_name_crosses_between_model_and_trainers(self):
        private = {
            path: {name for name in defined(parsed(path)) if name[:1] == "_"}
            for path in (
                *("training/model.py", "training/stepper.py"),
                *BACKENDS,
            )
        }
        for path in private:
            used = {
                node.attr
                for node in ast.walk(parsed(path))
                if isinstance(node, ast.Attribute) and node.attr[0] == "_"
            }
            for other in private.keys() - {path}:
                both = (used & private[other]) - private[path]
                both -= {name for name in both if name.startswith("__")}
                # Keras' own, which a trainer overrides.
                self.assertEqual(both - {"_make_function"}, set(), path)
