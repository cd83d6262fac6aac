"""Dataclasses of settings from text: overrides, nested dicts, checks.

The settings themselves are in `config/run.py`; nothing here knows any of them.
Nothing here imports TensorFlow.
"""

import dataclasses
import math
import types
import typing
from typing import Any


def override(kind: type, values: dict, text: str) -> None:
    """Sets one "a.b=c" in the nested dict `values` of a dataclass `kind`.

    Raises:
        ValueError: on a field that does not exist, or a value of another type.
    """
    name, separator, value = text.partition("=")
    name = name.strip()
    if not separator:
        raise ValueError(f'An override must read "a.b=c". Received: {text!r}')
    *parents, last = name.split(".")
    owner = kind
    for parent in parents:
        owner = _field_type(owner, parent, name)
        values = values.setdefault(parent, {})
    values[last] = _parse(_field_type(owner, last, name), name, value.strip())


def _field_type(owner, name, path):
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"No setting `{path}`: nothing lies below that field")
    hints = typing.get_type_hints(owner)
    if name not in hints:
        raise ValueError(
            f"No setting `{path}`. Fields of {owner.__name__}: "
            f"{', '.join(hints)}"
        )
    return hints[name]


def _parse(kind, name, text):
    """The value that `text` spells, of the type annotation `kind`."""
    if dataclasses.is_dataclass(kind):
        raise ValueError(
            f"`{name}` is a group of settings; set one of its fields: "
            f"{', '.join(f.name for f in dataclasses.fields(kind))}"
        )
    options = _options(kind)
    if type(None) in options and text.lower() == "none":
        return None
    kind = options[0]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"`{name}` must be of type {_type_name(kind)}. Received: {text!r}"
        ) from None
    if typing.get_origin(kind) is tuple:
        part_kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(part_kind) and text:
            raise ValueError(
                f"`{name}` is a list of groups of settings; set it in a "
                f"recipe, or nothing to empty it. Received: {text!r}"
            )
        return tuple(
            _parse(part_kind, name, part.strip())
            for part in text.split(",")
            if part.strip()
        )
    return text


def build(kind: type, values: dict, path: str = "") -> Any:
    """A dataclass `kind` from nested dicts, every field known and typed.

    Args:
        kind: a dataclass, whose fields may be dataclasses.
        values: of its fields, by name.
        path: what stands before a field's name in an error, as "data.".

    Raises:
        ValueError: on a field that does not exist, or what `kind` refuses.
    """
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"No setting `{path}{min(unknown)}`. Fields of {kind.__name__}: "
            f"{', '.join(hints)}"
        )
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(
                    f"`{path}{name}` is a group of settings. "
                    f"Received: {value!r}"
                )
            value = build(hint, value, f"{path}{name}.")
        elif isinstance(value, (list, tuple)):  # JSON has no tuples
            value = tuple(
                _build_part(hint, part, f"{path}{name}.{index}")
                for index, part in enumerate(value)
            )
        arguments[name] = value
    return kind(**arguments)


def _build_part(hint, value, path):
    """One of the values of a field that holds several."""
    kind = next(iter(typing.get_args(hint)), None)
    if not dataclasses.is_dataclass(kind):
        return value
    if not isinstance(value, dict):
        raise ValueError(
            f"`{path}` is a group of settings. Received: {value!r}"
        )
    return build(kind, value, f"{path}.")


def check_types(config: Any, path: str) -> None:
    """Refuses a value that is not of the annotated type, or not finite."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not any(_is_a(value, option) for option in _options(kind)):
            raise ValueError(
                f"`{_join(path, name)}` must be of type {_type_name(kind)}. "
                f"Received: {value!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"`{_join(path, name)}` must be finite. Received: {value}"
            )


def _is_a(value: Any, kind) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            _is_a(part, typing.get_args(kind)[0]) for part in value
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _options(kind):
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def _type_name(kind):
    return kind.__name__ if isinstance(kind, type) else str(kind)


def check_one_of(config: Any, path: str, name: str, allowed: tuple) -> None:
    """Refuses a value of the field `name` that is not among `allowed`."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(
            f"`{_join(path, name)}` must be one of {allowed}. "
            f"Received: {value!r}"
        )


def check_at_least(config: Any, path: str, least: float, *names: str) -> None:
    """Refuses a value below `least` in the fields `names`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(
                f"`{_join(path, name)}` must be at least {least}. "
                f"Received: {value}"
            )


def _join(path, name):
    return f"{path}.{name}" if path else name
