"""Checks of settings: types, ranges, names, local paths.

A rule pairs the expected value in words with a predicate:
`check(self, "data", image_size=at_least(1), format=one_of(*FORMATS))`.
"""

import math
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

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


def one_of(*allowed: Any) -> Rule:
    """Accepts the values in `allowed`."""
    return f"one of {allowed}", lambda value: value in allowed


def check(config: Any, path: str, **rules: Rule) -> None:
    """Checks the fields of a dataclass against their annotations and rules.

    `path` names the group in errors, such as "data". Rules go by field name;
    None passes where the annotation allows it.

    Raises:
        ValueError: if a value has the wrong type, is not finite or breaks a
            rule.
    """
    prefix = f"{path}." if path else ""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not any(_is_a(value, option) for option in options(kind)):
            raise ValueError(
                f"`{prefix}{name}` must be of type {type_name(kind)}. "
                f"Received: {value!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"`{prefix}{name}` must be finite. Received: {value}"
            )
    for name, (expected, holds) in rules.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ValueError(
                f"`{prefix}{name}` must be {expected}. Received: {value!r}"
            )


def check_local(name: str, path: str) -> None:
    """Raises ValueError for a path with a scheme, such as "gs://bucket/run"."""
    if "://" in path:
        raise ValueError(
            f"`{name}` must be a local path; only data, indexes and sidecars "
            f"may be remote. Received: {path!r}"
        )


def options(kind: Any) -> tuple:
    """Returns the members of a union, or the type itself."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def type_name(kind: Any) -> str:
    """Returns a type annotation as it is written."""
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _is_a(value: Any, kind) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            _is_a(part, typing.get_args(kind)[0]) for part in value
        )
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
