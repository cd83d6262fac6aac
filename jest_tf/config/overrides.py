"""Conversion of settings dataclasses from and to text.

Handles overrides such as "data.image_size=64", nested dicts from JSON, and the
list that `--help` prints. Independent of any particular setting.
"""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from jest_tf.config import checks

_BOOLS = {"true": True, "false": False}


class Setting(NamedTuple):
    """A setting "a.b", as help and documentation list it.

    `rules` say in words which values it accepts; `meaning` is the text from
    "Attributes:" of its group's docstring.
    """

    path: str
    type: str
    default: Any
    rules: tuple[str, ...]
    meaning: str


def override(kind: type, values: dict, text: str) -> None:
    """Sets "a.b=c" in the nested dict `values` of a dataclass `kind`."""
    path, separator, value = (part.strip() for part in text.partition("="))
    if not separator:
        raise ValueError(
            'An override must read "a.b=c", without spaces around "=". '
            f"Received: {text!r}"
        )
    *parents, last = path.split(".")
    owner = kind
    for parent in parents:
        owner, values = _enter(owner, values, parent, path, kind)
    if isinstance(values, list):
        _check_number(values, last, path)
    hint = _field_type(owner, last, path, kind)
    if value.lower() == "none" and _default(owner, last) in (None, "", ()):
        values[last] = _default(owner, last)
    else:
        values[last] = _parse(hint, path, value)


def _enter(owner, values, name, path, root):
    """Returns type and values of a group, or of a numbered group in a list.

    The number after the last adds a group to the list.
    """
    if not isinstance(values, list):
        kind = _field_type(owner, name, path, root)
        part = _part_kind(kind)
        if part is None:
            return kind, values.setdefault(name, {})
        values[name] = [*values.get(name, ())]
        return part, values[name]
    _check_number(values, name, path)
    if int(name) == len(values):
        values.append({})
    return owner, values[int(name)]


def _check_number(values, name, path):
    if not name.isdecimal() or int(name) > len(values):
        raise ValueError(
            f"No setting `{path}`: after the name of a list comes a number "
            f"from 0 to {len(values)}. Received: {name!r}"
        )


def _part_kind(kind):
    """Returns the dataclass of a list's items, or None."""
    if typing.get_origin(kind) is not tuple:
        return None
    part = typing.get_args(kind)[0]
    return part if dataclasses.is_dataclass(part) else None


def build(kind: Any, values: Any, path: str = "") -> Any:
    """Builds a dataclass `kind` from nested dicts.

    `path` names the values in errors, such as "data".
    """
    if isinstance(values, (list, tuple)):  # JSON has no tuples
        part_kind = next(iter(typing.get_args(kind)), None)
        return tuple(
            build(part_kind, part, f"{path}.{index}")
            for index, part in enumerate(values)
        )
    if not dataclasses.is_dataclass(kind):
        return values
    if not isinstance(values, dict):
        raise ValueError(
            f"`{path}` is a group of settings. Received: {values!r}"
        )
    prefix = f"{path}." if path else ""
    arguments = {
        name: build(
            _field_type(kind, name, prefix + name, kind, prefix),
            value,
            prefix + name,
        )
        for name, value in values.items()
    }
    for field in dataclasses.fields(kind):
        has_default = {field.default, field.default_factory} - {
            dataclasses.MISSING
        }
        if not has_default and field.name not in arguments:
            raise ValueError(
                f"`{prefix}{field.name}` must be set. Received: "
                f"{', '.join(arguments) or 'no settings'}"
            )
    return kind(**arguments)


def settings(kind: type, prefix: str = "") -> Iterator[Setting]:
    """Yields the settings of a dataclass and of the groups in it."""
    rules, meanings = checks.list_rules(kind), _attributes(kind)
    for name, hint in typing.get_type_hints(kind).items():
        part = _part_kind(hint)
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{prefix}{name}.")
        elif part is not None:
            yield from settings(part, f"{prefix}{name}.0.")
        else:
            yield Setting(
                prefix + name,
                checks.type_name(hint),
                _default(kind, name),
                tuple(words for words, _ in rules[name]),
                meanings.get(name, ""),
            )


def similar(kind: type, path: str, prefix: str = "") -> str:
    """Returns the setting of a dataclass that `path` probably means, or ""."""
    by_group: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for setting in settings(kind, prefix):
        group, _, name = setting.path.rpartition(".")
        by_group.setdefault(group, []).append(name)
        by_name.setdefault(name, setting.path)
    group, _, name = path.rpartition(".")
    if group not in by_group:
        group = checks.nearest(group, by_group)
    here = by_group.get(group, [])
    close = name if name in here else checks.nearest(name, here)
    if close and (close == name or name not in by_name):
        return f"{group}.{close}".lstrip(".")
    elsewhere = checks.nearest(name, by_name, 0.75)
    return by_name.get(name) or by_name.get(elsewhere, "")


def describe(kind: type) -> str:
    """Lists the settings of a dataclass, a line "a.b=default" per setting.

    A setting without a default shows its type instead, as "<int>". Below each
    line is the meaning of the setting.
    """
    lines = []
    for setting in settings(kind):
        default = format_value(setting.default)
        if setting.default is None:
            is_optional = "None" in setting.type
            default = "none" if is_optional else f"<{setting.type}>"
        lines.append(f"  {setting.path}={default}")
        lines.append(
            textwrap.fill(
                setting.meaning,
                79,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
            )
        )
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Returns a value as it is written in an override."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _attributes(kind):
    """Extracts the meanings of fields from the docstring of a dataclass."""
    _, _, text = inspect.getdoc(kind).partition("\nAttributes:\n")
    text = re.split(r"\n(?=\S)", text)[0]
    parts = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(meaning.split())
        for name, meaning in zip(parts[::2], parts[1::2], strict=True)
    }


def _default(owner, name):
    field = owner.__dataclass_fields__[name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _field_type(owner, name, path, root, prefix=""):
    """Finds the type of a field of `owner`, in settings `root` at `prefix`."""
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"No setting `{path}`: nothing lies below that field")
    hints = typing.get_type_hints(owner)
    if name in hints:
        return hints[name]
    if close := similar(root, path, prefix):
        raise ValueError(f"No setting `{path}`. Did you mean `{close}`?")
    raise ValueError(
        f"No setting `{path}`. Fields of {owner.__name__}: {', '.join(hints)}"
    )


def _parse(kind, path, text):
    """Parses `text` as a value of the type annotation `kind`."""
    if dataclasses.is_dataclass(kind):
        raise ValueError(
            f"`{path}` is a group of settings; set one of its fields: "
            f"{', '.join(f.name for f in dataclasses.fields(kind))}"
        )
    kinds = checks.options(kind)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is tuple:
        part_kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(part_kind) and text:
            raise ValueError(
                f"`{path}` is a list of groups of settings: set it in a "
                f"recipe, or empty it with `{path}=`. Received: {text!r}"
            )
        parts = (part.strip() for part in text.split(","))
        return tuple(_parse(part_kind, path, part) for part in parts if part)
    try:
        return _BOOLS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = checks.type_name(kind)
        if kind is bool:
            expected += f", {' or '.join(_BOOLS)}"
        raise ValueError(
            f"`{path}` must be of type {expected}. Received: {text!r}"
        ) from None
