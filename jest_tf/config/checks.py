"""Settings that check themselves: types, ranges, names, local paths.

A rule pairs the expected value in words with a predicate. A field has its rules
in its annotation: `image_size: Annotated[int, at_least(1)] = 32`.
"""

import difflib
import functools
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any

Rule = tuple[str, Callable[[Any], bool]]


def at_least(least: float) -> Rule:
    """Accepts values that are at least `least`."""
    return f"at least {least}", lambda value: value >= least


def above(bound: float) -> Rule:
    """Accepts values greater than `bound`."""
    return f"> {bound}", lambda value: value > bound


def within(interval: str) -> Rule:
    """Accepts values in an interval, such as "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))
    is_above = operator.ge if interval[0] == "[" else operator.gt
    is_below = operator.le if interval[-1] == "]" else operator.lt
    return (
        f"in {interval}",
        lambda value: is_above(value, low) and is_below(value, high),
    )


def among(*allowed: Any) -> Rule:
    """Accepts the values in `allowed`."""
    return f"one of {allowed}", _OneOf(allowed)


class _OneOf:
    """A check that a value is in `names`, or that `others` accepts it."""

    def __init__(self, names, others=lambda value: False):
        self.names, self._others = names, others

    def __call__(self, value):
        return value in self.names or self._others(value)


def nearest(word: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """Returns the name that a misspelt word was probably meant to be, or "".

    Initials count, too: `lr` stands for `learning_rate`.
    """
    names = list(names)
    close = difflib.get_close_matches(word, names, 1, likeness)
    close += [
        name
        for name in names
        if word == "".join(part[0] for part in name.split("_") if part)
    ]
    return close[0] if close else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Returns a question with the `nearest` of the names, or ""."""
    name = nearest(word, names)
    return f". Did you mean {name!r}?" if name else ""


MODEL: Rule = (
    "a run directory, a .keras file or a name after keras_hub:",
    lambda name: (
        name.startswith("keras_hub:")
        or not re.match(r"[a-z_]{2,}:(?!//)", name)
    ),
)
SHARES: Rule = (
    "one or more shares in (0, 1]",
    lambda shares: shares and all(0 < share <= 1 for share in shares),
)
PROMPTS: Rule = (
    'one or more texts that each hold one "{}"',
    lambda texts: texts and all(text.count("{}") == 1 for text in texts),
)

FUNCTION: Rule = (
    "'module:function', such as 'my_towers:build'",
    re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?").fullmatch,
)

# The largest float32.
_LARGEST = (2 - 2**-23) * 2.0**127
_FINITE: Rule = (
    "finite in float32",
    lambda value: all(
        abs(part) <= _LARGEST
        for part in (value if isinstance(value, tuple) else (value,))
        if isinstance(part, float)
    ),
)

# Tensors have int32 sizes, and steps are int32.
Count = Annotated[int, ("in [1, 2^31)", lambda count: 1 <= count < 2**31)]
# An image of 16,384 pixels a side has 805 MB.
ImageSize = Annotated[int, within("[1, 16384]")]
Seed = Annotated[int, ("in [0, 2^31)", lambda seed: 0 <= seed < 2**31)]


def check(name: str, value: Any, rule: Rule) -> None:
    """Raises ValueError, which names the setting, unless `rule` holds."""
    expected, holds = rule
    if holds(value):
        return
    hint = ""
    if isinstance(value, str):
        names = (name for name in getattr(holds, "names", ()) if name)
        hint = did_you_mean(value, names)
    raise ValueError(f"`{name}` must be {expected}. Received: {value!r}{hint}")


def name_or_function(*names: str) -> Rule:
    """Accepts the `names`, and "module:function"."""
    expected, is_function = FUNCTION
    return (
        f"one of {names}, or {expected}",
        _OneOf(names, lambda value: value and is_function(value)),
    )


class Checked:
    """A settings dataclass that checks its fields by their annotations.

    A value of None skips all rules but that of the type. `path` is the group's
    path in a recipe, such as "data".
    """

    def __init_subclass__(cls, path: str = ""):
        cls._prefix = f"{path}." if path else ""

    def __post_init__(self):
        for name, rules in _list_all_rules(type(self)).items():
            value = getattr(self, name)
            for rule in rules[:1] if value is None else rules:
                check(self._prefix + name, value, rule)

    def _expect(self, holds: bool, message: str, **received: Any) -> None:
        """Raises ValueError unless `holds`.

        The error shows the values of the settings that `message` names in
        backticks, and those in `received`.
        """
        if holds:
            return
        values = {}
        for path in re.findall(r"`([\w.]+)`", message):
            if path.startswith(self._prefix):
                parts = path.removeprefix(self._prefix).split(".")
                values[path] = functools.reduce(_part, parts, self)
        shown = (f"{name}={x!r}" for name, x in (values | received).items())
        raise ValueError(f"{message}. Received: {', '.join(shown)}")


def _part(owner, name):
    """Returns a field of a dataclass, or an item of a tuple of dataclasses."""
    return owner[int(name)] if name.isdecimal() else getattr(owner, name)


def options(kind: Any) -> tuple:
    """Returns the members of a union, or the type itself."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def type_name(kind: Any) -> str:
    """Returns a type annotation as it is written."""
    names = (
        option.__name__ if isinstance(option, type) else str(option)
        for option in options(kind)
    )
    return " | ".join(names).replace("NoneType", "None")


def list_rules(kind: type) -> dict[str, list[Rule]]:
    """Returns the rules in the annotation of each field of a dataclass."""
    return {
        name: [
            rule
            for part in options(hint)
            for rule in getattr(part, "__metadata__", ())
        ]
        for name, hint in typing.get_type_hints(
            kind, include_extras=True
        ).items()
    }


@functools.cache
def _list_all_rules(kind) -> dict[str, list[Rule]]:
    """Returns the rules of type and finiteness, then those of `list_rules`."""
    own = list_rules(kind)
    return {
        name: [_require_type(hint), _FINITE, *own[name]]
        for name, hint in typing.get_type_hints(kind).items()
    }


def _require_type(kind) -> Rule:
    return (
        f"of type {type_name(kind)}",
        lambda value: any(_is_a(value, option) for option in options(kind)),
    )


def _is_a(value: Any, kind) -> bool:
    if typing.get_origin(kind) is tuple:
        part_kind = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(
            _is_a(part, part_kind) for part in value
        )
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
