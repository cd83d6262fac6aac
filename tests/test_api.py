"""The public names and their arguments, against a list under review.

A change of the list is a change of the public surface: it belongs into
CHANGELOG.md, too. To write it anew, from the root of the repository:

    PYTHONPATH=. python tests/test_api.py --write
"""

import dataclasses
import difflib
import inspect
import pathlib
import sys

import tensorflow as tf

import jest_tf

GOLDEN = pathlib.Path(__file__).with_name("golden_api.txt")
WRITE = "PYTHONPATH=. python tests/test_api.py --write"


def arguments(function):
    """The signature without its annotations, whose spelling varies."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    return str(inspect.Signature(parameters))


def constructor(kind):
    """Its arguments, or whose they are: Keras may change its own."""
    package = kind.__init__.__module__.partition(".")[0]
    if package == "jest_tf":
        return arguments(kind.__init__)
    return f"(as in {package})"


def changed(group):
    """A group of settings as it is written: what is not its own default."""
    values = {x.name: getattr(group, x.name) for x in dataclasses.fields(group)}
    shown = ", ".join(
        f"{name}={value!r}"
        for name, value in values.items()
        if value != getattr(type(group), name, None)
    )
    return f"{type(group).__name__}({shown})"


def fields(name, kind):
    """A line a field of a dataclass or NamedTuple, with its default if any."""
    if hasattr(kind, "_fields"):
        return [f"{name}.{field}" for field in kind._fields]
    lines = []
    for field in dataclasses.fields(kind):
        shown, factory = f" = {field.default!r}", field.default_factory
        if inspect.isclass(factory):
            shown = f" = {factory.__name__}()"
        elif factory is not dataclasses.MISSING:
            shown = f" = {factory()!r}"
        elif dataclasses.is_dataclass(field.default):
            shown = f" = {changed(field.default)}"
        elif field.default is dataclasses.MISSING:
            shown = ""
        lines.append(f"{name}.{field.name}{shown}")
    return lines


def members(name, kind):
    """A line a public method or property that the class itself defines."""
    lines = []
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            lines.append(f"{name}.{member}")
        elif callable(value) or isinstance(value, classmethod):
            lines.append(f"{name}.{member}{arguments(getattr(kind, member))}")
    return lines


def public_lines():
    lines = []
    for name in sorted(jest_tf.__all__):
        value = getattr(jest_tf, name)
        if not inspect.isclass(value):
            lines.append(name + arguments(value))
        elif dataclasses.is_dataclass(value):
            lines += [name, *fields(name, value), *members(name, value)]
        elif hasattr(value, "_fields"):
            lines += [name, *fields(name, value)]
        else:
            lines.append(name + constructor(value))
            lines += members(name, value)
    return lines


class ApiTest(tf.test.TestCase):
    def test_the_public_surface_is_the_one_under_review(self):
        golden = GOLDEN.read_text(encoding="utf-8").splitlines()
        diff = difflib.unified_diff(
            golden, public_lines(), GOLDEN.name, "jest_tf", lineterm=""
        )
        text = "\n".join(diff)
        if text:
            self.fail(
                f"The public surface has changed:\n{text}\n"
                f"If that is meant, add it to CHANGELOG.md and run:\n  {WRITE}"
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        GOLDEN.write_text("\n".join(public_lines()) + "\n", encoding="utf-8")
    else:
        tf.test.main()
