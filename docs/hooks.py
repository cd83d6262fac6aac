"""Hooks of MkDocs: pages made from the code, and links that leave docs/.

`make docs` calls them as mkdocs.yml says. They import no TensorFlow.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import pathlib
import posixpath
import re
import sys
import textwrap
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jest_tf  # noqa: E402
from jest_tf import cli, config  # noqa: E402
from jest_tf.config import overrides  # noqa: E402

LINK = re.compile(r"(\]\(|<img src=\")([^)\s\"#]+)(#[^)\s\"]*)?(?=[)\"])")
LANGUAGES = {
    **{".py": "python", ".yaml": "yaml", ".sh": "sh", ".cfg": "ini"},
    **{".toml": "toml", ".json": "json", "": "docker"},
}
# Places that a link leads to on a code host, and the pages made from them.
MADE = {
    "jest_tf/config": "reference/settings.md",
    "jest_tf/cli": "reference/commands.md",
    "jest_tf/__init__.py": "reference/python.md",
}
# Larger files are copied as they are.
MOST_SHOWN = 100_000
# Groups that a setting holds a list of, and the group that it is in.
LISTED = {
    config.Stage: "selection",
    config.View: "selection",
    config.EvaluationStore: "evaluation",
}


def on_files(files, config):
    """Adds the generated pages, and files that pages link to outside docs/."""
    from mkdocs.structure.files import File

    made = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in linked():
        place = place_of(path)
        text = shown(path)
        if text is None:
            file = File.generated(config, place, abs_src_path=str(ROOT / path))
        else:
            file = File.generated(config, place, content=text)
        files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links to files of the repository to their places on the site."""
    path = path_of(page.file.src_uri)
    if path.endswith((".md", ".ipynb")):
        return relinked(markdown, path, page.file.src_uri)
    return markdown


def on_config(config):
    """Lets lists nest by two spaces, as on code hosts."""
    from markdown import Extension

    class TwoSpaces(Extension):
        def extendMarkdown(self, md):  # noqa: N802
            md.tab_length = 2
            md.build_parser()  # parsers read it when they are made

    config.markdown_extensions.insert(0, TwoSpaces())
    return config


# Where files of the repository are on the site


def place_of(path: str) -> str:
    """Returns the source, on the site, of a path of the repository."""
    if path in MADE:
        return MADE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_page = path.endswith(".md") or shown(path) is None
    return f"source/{path}" if is_page else f"source/{path}.md"


def path_of(place: str) -> str:
    """Returns the path in the repository of a page of the site."""
    if not place.startswith("source/"):
        return f"docs/{place}"
    path = place.removeprefix("source/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def shown(path: str) -> str | None:
    """Returns the page that shows a path; None for a path that is copied."""
    file = ROOT / path
    if file.is_dir():
        entries = sorted(entry.name for entry in file.iterdir())
        lines = [f"- `{entry}`" for entry in entries if entry[0] not in "._"]
        return "\n".join([f"# {path}", "", *lines, ""])
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return notebook_page(file.read_text(encoding="utf-8"))
    if file.suffix not in LANGUAGES or file.stat().st_size > MOST_SHOWN:
        return None
    text = file.read_text(encoding="utf-8")
    return f"# {path}\n\n````{LANGUAGES[file.suffix]}\n{text}````\n"


def targets(text: str, path: str) -> Iterator[tuple[re.Match, str]]:
    """Yields the links of a page to files of the repository."""
    for match in LINK.finditer(text):
        if re.match(r"[a-z]+:", match[2]):
            continue
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(path), match[2])
        )
        if (ROOT / target).exists():
            yield match, target


def linked() -> list[str]:
    """Lists all files outside docs/ that pages lead to, and theirs."""
    pages = [
        page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/**/*.md")
    ]
    pages += ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    found = dict.fromkeys(pages)
    while pages:
        path = pages.pop()
        text = (ROOT / path).read_text(encoding="utf-8")
        for _, target in targets(text, path):
            if target not in found:
                found[target] = None
                if target.endswith((".md", ".ipynb")):
                    pages.append(target)
    return [
        path
        for path in found
        if not path.startswith("docs/") and path not in MADE
    ]


def relinked(text: str, path: str, place: str) -> str:
    """Returns the text of a page with its links as on the site."""
    moved = {}
    for match, target in targets(text, path):
        there = posixpath.relpath(place_of(target), posixpath.dirname(place))
        moved[match.start()] = f"{match[1]}{there}{match[3] or ''}"
    return LINK.sub(
        lambda match: moved.get(match.start(), match[0]),
        text,
    )


# Pages made from notebooks and from the code


def notebook_page(notebook: str) -> str:
    """Returns the texts, code and outputs of a notebook as Markdown."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                png = output["data"]["image/png"].replace("\n", "")
                parts.append(f"![Picture](data:image/png;base64,{png})")
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Returns the page of all settings, with defaults, rules and meanings."""
    lines = [
        "# Settings",
        "",
        "Every setting of a recipe, with its type, default, rule and meaning.",
        "`--set data.image_size=64` overrides a setting. In the",
        "name of a setting in a list, `0` is a place: the number after the",
        "last adds an entry, and `selection.stages=none` empties a list.",
        "`jest-tf train --help` prints the same list.",
        "",
    ]
    groups: dict[str, list] = {}
    for setting in overrides.settings(config.TrainConfig):
        group, dot, _ = setting.path.partition(".")
        groups.setdefault(group if dot else "", []).append(setting)
    kinds = config.TrainConfig.__dataclass_fields__
    for group, members in groups.items():
        kind = kinds[group].type if group else config.TrainConfig
        lines += [f"## {f'`{group}`' if group else 'The run'}", ""]
        lines += [*_group(kind, members), ""]
        if group == "model":
            lines += _presets()
    return "\n".join(lines)


def _group(kind, members):
    summary = inspect.getdoc(kind).partition("\n")[0]
    lines = [summary, ""]
    for setting in members:
        default = overrides.format_value(setting.default)
        written = f"`{default}`" if default else "empty"
        if setting.default is None and "None" not in setting.type:
            written = "none, it must be set"
        kind_of = re.sub(r"jest_tf[.\w]*\.", "", setting.type)
        rules = "".join(f"; {rule}" for rule in setting.rules)
        lines += [
            f"### `{setting.path}`",
            "",
            f"Default: {written}. Type: `{kind_of}`{_plain(rules)}.",
            "",
            _linked(_sentence(setting.meaning)),
            "",
        ]
    parts = [
        part for part, group in LISTED.items() if f"{group}." == kind._prefix
    ]
    rules = [rule for owner in (kind, *parts) for rule in _rules_between(owner)]
    if rules:
        lines += ["**Rules between settings**", ""]
        lines += [f"- {rule}." for rule in rules]
    return lines


def _sentence(text):
    """A text with a capital letter, unless it begins with a symbol."""
    is_symbol = text[0] in "bcN" and not text[1:2].isalpha()
    return text if is_symbol else text[:1].upper() + text[1:]


def _plain(rule):
    """A rule with code set as code and without Python's tuples."""
    rule = re.sub(
        r"\(([^()]*'[^()]*)\)",
        lambda found: ", ".join(
            f"`{value}`" if value else "empty"
            for value in re.findall(r"(None|(?<=')[^',]*(?='))", found[1])
        ),
        rule,
    )
    return re.sub(r"'([^']+)'", r"`\1`", rule)


def _rules_between(kind):
    """The messages of `_expect` in the checks of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    names = vars(sys.modules[kind.__module__])
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "_expect"
        ):
            try:
                message = eval(
                    compile(ast.Expression(node.args[1]), "rule", "eval"), names
                )
            except NameError:  # a message with a value of the run
                continue
            yield _plain(message)


def _presets():
    lines = [
        "**Sizes of `model.preset`**",
        "",
        "| preset | patch, pixels | width | blocks a tower | heads |",
        "| --- | --- | --- | --- | --- |",
    ]
    for preset, sizes in config.PRESETS.items():
        values = (
            *(sizes.patch_size, sizes.width),
            *(sizes.depth, sizes.num_heads),
        )
        lines.append(f"| `{preset}` | {' | '.join(map(str, values))} |")
    return [*lines, ""]


def _linked(text):
    """Text of a docstring, with its mentions of pages as links."""
    return re.sub(
        r"docs/(\w+)\.md", lambda page: f"[{page[0]}](../{page[1]}.md)", text
    )


def commands_page() -> str:
    """Returns the page of all commands and their flags."""
    lines = [
        "# Commands",
        "",
        "`jest-tf COMMAND --help` prints the same.",
        "",
    ]
    for command, parser in parsers().items():
        about, _, _ = (parser.epilog or "").partition("\nsettings")
        usage = parser.format_usage().removeprefix("usage: ")
        usage = textwrap.dedent(re.sub(r"\n +", "\n    ", usage)).rstrip()
        lines += [f"## `jest-tf {command}`", ""]
        lines += [parser.description, "", "```text", usage, "```", ""]
        lines += [_linked(about.strip()), ""]
        lines += [
            "| flag | meaning |",
            "| --- | --- |",
            *map(_flag, _flags(parser)),
            "",
        ]
    lines += _exit_codes()
    return "\n".join(lines)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each command."""
    (commands,) = (
        action
        for action in cli.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return commands.choices


def _flags(parser):
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield action


def _flag(action):
    written = ", ".join(action.option_strings) or action.dest
    if action.nargs != 0:
        value = action.metavar or action.dest.upper()
        if action.choices:
            value = "{" + ",".join(action.choices) + "}"
        written += f" {value}{' ...' if action.nargs in ('+', '*') else ''}"
    help_text = (action.help or "").replace("%%", "%")
    required = " Required." if action.required else ""
    meaning = f"{help_text[:1].upper()}{help_text[1:]}.{required}"
    return f"| `{written}` | {_linked(meaning).replace('|', chr(92) + '|')} |"


def _exit_codes():
    return [
        "## Exit codes",
        "",
        "| code | meaning | what to do |",
        "| --- | --- | --- |",
        "| 0 | the command has finished | |",
        "| 1 | an error, which is printed | what the message says |",
        "| 2 | arguments that cannot be parsed | `jest-tf COMMAND --help` |",
        "| 75 | stopped by SIGTERM or Ctrl-C and saved, or another process "
        "is writing the same sidecars | the same command again |",
        "",
    ]


def python_page() -> str:
    """Returns the page of the public names, which mkdocstrings fills in."""
    lines = [
        "# Python",
        "",
        "The public names of `jest_tf`. They load on first use, so that",
        "`import jest_tf` takes no TensorFlow.",
        "",
    ]
    for home, names in jest_tf._HOMES.items():
        lines += [f"## `jest_tf.{home}`", ""]
        if home == "config":
            lines += _dataclasses(names)
        for name in names:
            if not dataclasses.is_dataclass(getattr(config, name, None)):
                lines += [
                    f"::: jest_tf.{_defined(home, name)}",
                    "    options:",
                    f"      heading: jest_tf.{name}",
                    f"      toc_label: {name}",
                    "",
                ]
    return "\n".join(lines)


def _dataclasses(names):
    """A table of the dataclasses of settings, which have a page."""
    places = {
        field.type: name
        for name, field in config.TrainConfig.__dataclass_fields__.items()
    }
    places |= LISTED
    places[config.TrainConfig] = "the-run"
    lines = ["| dataclass | fields | meaning |", "| --- | --- | --- |"]
    for kind in (getattr(config, name) for name in names):
        if kind in places:
            fields = f"[settings](settings.md#{places[kind]})"
            summary = inspect.getdoc(kind).partition("\n")[0]
            lines.append(f"| `{kind.__name__}` | {fields} | {summary} |")
    return [*lines, ""]


def _defined(home, name):
    """The module that defines a name which a package may hand on."""
    path = ROOT / "jest_tf" / home.replace(".", "/")
    files = [path.with_suffix(".py")]
    if path.is_dir():
        files = sorted(path.glob("*.py"))
    pattern = rf"^(?:class|def) {name}\b"
    for file in files:
        if re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE):
            module = file.relative_to(ROOT / "jest_tf").with_suffix("")
            parts = [part for part in module.parts if part != "__init__"]
            return ".".join([*parts, name])
    raise ValueError(f"`{name}` is defined nowhere in {path}")
