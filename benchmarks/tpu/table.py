"""The compiler's findings, as a line of progress and as Markdown."""

import textwrap

from benchmarks import report
from benchmarks.tpu import twins

# Elements of what is a counter or a seed, and no example's.
_SMALL = 8
_HEAD = ["recipes", "loss", "quota", "reference"]
_SHOWN = ["all-reduce", "all-to-all", "all-gather"]

_LOOKED_FOR = """\
- *wide*: f64, s64 and u64, which a TPU has no units for and emulates with
  pairs of 32 bits; in the exported program;
- *dynamic*: bounded dimensions (`<=`), dimensions set to something that is not
  a constant, `PadToStatic` and `SliceToDynamic`; there and in the executable;
- *host*: infeed, outfeed, send, receive and calls of a host or a callback; in
  both. Around the replicas' program the traced function should do no more than
  fetch the batch."""


def describe(line: dict) -> str:
    """A result in a line."""
    if "needed" in line:
        return (
            f"{line['topology']}: needs {_size(line['needed'])} of "
            f"{_gib(line['available'])}"
        )
    if "error" in line:
        return (
            f"{line['topology']}: does not compile ({line['stage']}): "
            f"{line['error'][:300]}"
        )
    return (
        f"{line['topology']}: compiles in {line['seconds']['compile']:.0f} s, "
        f"{_size(planned(line['memory']))} of {_gib(line['available'])}, "
        f"{line['donated']} variables donated"
    )


def planned(memory: dict[str, int]) -> int:
    """Bytes of an executable and all that it holds at once, at most."""
    return (
        memory["arguments"]
        + memory["results"]
        - memory["donated"]
        + memory["temporary"]
        + memory["code"]
    )


def markdown(lines: list[dict]) -> str:
    """The block of the page.

    Args:
        lines: of results, those of a case next to each other, and `is_current`
            of each, whether it would come out like this again.
    """
    if not lines:
        return "Nothing is compiled yet."
    good = [line for line in lines if "error" not in line]
    read = [line for line in good if line.get("is_read", True)]
    full_size = [line for line in lines if "size" in line["variant"]]
    small = [line for line in lines if "size" not in line["variant"]]
    parts = [_summary(lines, good)]
    parts += [_at_full_size(full_size)] if full_size else []
    parts += [_compiled(small)] if small else []
    parts += _notes(lines)
    if read:
        parts += [_talk(read), _found(read), _footer(good)]
    return "\n\n".join(parts)


def _summary(lines, good):
    short = sum("needed" in line for line in lines)
    parts = [
        f"{len(good)} of {len(lines)} programs compile"
        + (f"; {short} need more memory than a core has" if short else "")
        + ". Memory is a core's, as the compiler plans it (arguments and "
        "results with what is donated counted once, temporary values, code), "
        "of what there is: "
    ]
    available = {
        line["topology"]: line["available"]
        for line in lines
        if "available" in line
    }
    parts.append(
        ", ".join(
            f"{topology} {_gib(available[topology])}"
            for topology in _topologies(lines)
            if topology in available
        )
        + "."
    )
    unread = sum(not line.get("is_read", True) for line in good)
    if unread:
        parts.append(
            f" JAX can't read back {unread} of the executables: their "
            "collectives and operations are not known."
        )
    stale = sum(not line["is_current"] for line in lines)
    parts.append(
        " The code is that of the repository when this was written"
        + (
            f", but for {stale} marked *, of earlier code."
            if stale
            else " in every line."
        )
    )
    return textwrap.fill("".join(parts), 80)


def _at_full_size(lines):
    """Planned memory of the paper's recipes, nothing small but the replicas."""
    rows = []
    for case in _cases(lines):
        first = next(iter(case.values()))
        scored, trained = "-", "-"
        if "super_batch_size" in first:
            scored, trained = (
                first[name] // first["replicas"]
                for name in ("super_batch_size", "batch_size")
            )
        rows.append(
            [
                ", ".join(first["recipes"]),
                first["variant"]["size"],
                f"{scored} / {trained}",
                *_cells(case, _topologies(lines)),
                _codes(case),
            ]
        )
    words = (
        "The paper's recipes at full size, with the rows of one of the "
        f"{twins.CHIPS} chips that they are written for. What grows with the "
        "number of replicas (the embeddings of all rows, the scores of "
        f"chunks) is that of {lines[0]['replicas']}."
    )
    head = ["recipe", "passes", "rows scored / trained"]
    table = report.table([*head, *_topologies(lines), "code"], rows)
    return f"{textwrap.fill(words, 80)}\n\n{table}"


def _compiled(lines):
    rows = []
    for case in _cases(lines):
        first = next(iter(case.values()))
        cells = _cells(case, _topologies(lines))
        rows.append([*_names(first), *cells, _codes(case)])
    words = "Small twins of the recipes; a dash is a program left out."
    table = report.table([*_HEAD, *_topologies(lines), "code"], rows)
    return f"{words}\n\n{table}"


def _topologies(lines):
    return list(dict.fromkeys(line["topology"] for line in lines))


def _cells(case, topologies):
    """What became of a case, a topology each."""
    return [
        _cell(case[topology]) if topology in case else "-"
        for topology in topologies
    ]


def _cell(line):
    if "needed" in line:
        return f"no, needs {_size(line['needed'])}"
    if "error" in line:
        return f"no ({line['stage']})"
    return f"yes, {_size(planned(line['memory']))}"


def _codes(case):
    return ", ".join(dict.fromkeys(map(_code, case.values())))


def _notes(lines):
    """Errors other than a lack of memory, in full."""
    return [
        f"{line['case']}, {line['topology']}, {line['stage']}: "
        f"`{line['error']}`"
        for line in lines
        if "error" in line and "needed" not in line
    ]


def _talk(good):
    """Collectives and donated variables on the first topology."""
    topology = good[0]["topology"]
    rows = []
    for line in good:
        if line["topology"] != topology:
            continue
        traffic = line["collectives"]
        rows.append(
            [
                *_names(line),
                f"{line['super_batch_size']} / {line['batch_size']}",
                f"{line['compiled_replicas']}",
                f"{line['donated']} of {line['variables']}, "
                f"{_size(line['memory']['donated'])}",
                *(
                    _traffic(traffic.get(kind))
                    for kind in ("all-reduce", "all-to-all", "all-gather")
                ),
                ", ".join(sorted(set(traffic) - set(_SHOWN))) or "none",
            ]
        )
    head = [*_HEAD, "B / b", "R", "variables donated", *_SHOWN, "others"]
    words = (
        f"The executables for {topology}: collectives, with the bytes that a "
        "replica hands over in a step, and after the plus those inside of "
        "loops, with their bytes an iteration. Variables that no step assigns, "
        "a live reference's, are not donated."
    )
    return f"{textwrap.fill(words, 80)}\n\n{report.table(head, rows)}"


def _found(good):
    """Operations that were looked for in all programs, and found, by code."""
    by_code = {}
    for line in good:
        by_code.setdefault(_code(line), []).append(line)
    return "\n\n".join(
        [
            f"Looked for in the {len(good)} programs that can be read:\n\n"
            f"{_LOOKED_FOR}",
            *(
                f"Found in the {len(lines)} of code {code}:\n\n"
                f"{_found_in(lines)}"
                for code, lines in sorted(by_code.items())
            ),
        ]
    )


def _found_in(lines):
    dynamic, host, around = (
        sorted({item for line in lines for key in keys for item in line[key]})
        for keys in (
            ("dynamic_shapes", "compiled_dynamic_shapes"),
            ("host_operations", "compiled_host_operations"),
            ("around",),
        )
    )
    return (
        f"{_wide(lines)}\n"
        f"- dynamic: {', '.join(dynamic) or 'none'};\n"
        f"- host: {', '.join(host) or 'none'}; around the program: "
        f"{', '.join(around) or 'nothing'}."
    )


def _wide(good):
    """A point a dtype: large arrays by source, and the rest together."""
    points = []
    for dtype in ("f64", "s64", "u64"):
        sizes = {}
        for line in good:
            for source, size in line["wide"].get(dtype, {}).items():
                source = source or "arguments and results"
                sizes[source] = max(sizes.get(source, 0), size)
        large = [
            f"{source} ({size})"
            for source, size in sorted(sizes.items())
            if size > _SMALL
        ]
        small = sorted(name for name, size in sizes.items() if size <= _SMALL)
        found = []
        if large:
            found.append(f"in {', '.join(large)}, elements at most in brackets")
        if small:
            found.append(f"no more than {_SMALL} elements: {', '.join(small)}")
        text = f"- {dtype}: {'; '.join(found) or 'none'};"
        points.append(textwrap.fill(text, 80, subsequent_indent="  "))
    return "\n".join(points)


def _footer(good):
    versions = ", ".join(
        f"{name} {version}" for name, version in good[-1]["versions"].items()
    )
    revisions = {}
    for line in good:
        revisions.setdefault(_code(line), set()).add(line["revision"])
    revisions = ", ".join(
        f"{code} of revision {', '.join(sorted(found))}"
        for code, found in sorted(revisions.items())
    )
    dates = sorted({line["date"] for line in good})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    seconds = [
        sum(line["seconds"][stage] for stage in ("trace", "export", "compile"))
        for line in good
    ]
    words = (
        f"{versions}; code {revisions}; {span}. Seconds a case and "
        "topology, to trace, export and compile, lowest / median / highest: "
        f"{report.spread(seconds)}."
    )
    return textwrap.fill(words, 80)


def _cases(lines):
    """Lines by topology, case by case."""
    found = {}
    for line in lines:
        found.setdefault(line["case"], {})[line["topology"]] = line
    return list(found.values())


def _code(line):
    return line["code"] + ("" if line["is_current"] else "*")


def _names(line):
    variant = line["variant"]
    more = [value for name, value in variant.items() if name not in _HEAD]
    return [
        ", ".join(line["recipes"]) + "".join(f" ({value})" for value in more),
        *(variant.get(name, "-") for name in ("loss", "quota", "reference")),
    ]


def _traffic(traffic):
    if traffic is None:
        return "none"
    text = f"{traffic['count']}: {_kib(traffic['bytes'])}"
    if traffic["loop_count"]:
        text += f" + {traffic['loop_count']}: {_kib(traffic['loop_bytes'])}"
    return text


def _kib(size):
    return f"{size / 2**10:.1f} KiB"


def _size(size):
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB"


def _gib(size):
    return f"{size / 2**30:.2f} GiB"
