"""The compiler's findings, as a line of progress and as Markdown."""

import textwrap

from benchmarks import report, tpu_compile
from benchmarks.tpu import matrix
from benchmarks.tpu import twins as twins_lib

_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX"}
_KINDS = ("all-reduce", "all-to-all", "all-gather")


def describe(line: dict) -> str:
    """A result in a line."""
    if "memory" in line:
        return (
            f"{line['topology']}: compiles in {line['seconds']:.0f} s, "
            f"{_size(planned(line['memory']))} of {_size(line['available'])}"
        )
    return f"{line['topology']}: {_memory(line)}: {line['error'][:300]}"


def planned(memory: dict[str, int]) -> int:
    """Bytes of an executable and all that it holds at once, at most."""
    return (
        memory["arguments"]
        + memory["results"]
        - memory["donated"]
        + memory["temporary"]
        + memory["code"]
    )


def full_size(lines: list[dict]) -> str:
    """The block of the paper's recipes at full size, a row a program."""
    rows = [
        [
            line["case"],
            _BACKENDS[line["backend"]],
            f"{_a_replica(line, 'super_batch_size')} / "
            f"{_a_replica(line, 'batch_size')}",
            f"{line['topology']}, {_size(line['available'])}",
            _memory(line),
            *_traffic(line),
            f"{line['seconds']:.0f}" if "seconds" in line else "-",
        ]
        for line in lines
    ]
    head = [
        "recipe",
        "backend",
        "rows scored / trained",
        "slice, memory of a chip",
        "planned",
        *_KINDS,
        "seconds to compile",
    ]
    of_towers = " and ".join(
        f"{rows} (towers {name})"
        for name, rows in twins_lib.MICRO_BATCHES.items()
    )
    words = (
        "The paper's recipes with the rows of one of the "
        f"{twins_lib.CHIPS} chips that they are written for, in micro-batches "
        f"of {of_towers}. What grows with the number of replicas "
        f"(embeddings of all rows, scores of chunks) is that of "
        f"{matrix.REPLICAS}. Planned memory is a chip's: arguments and results "
        "with what is donated counted once, temporary values, code. "
        "Collectives, with the bytes that a chip hands over in a step; after "
        "the plus those inside of loops, with their bytes an iteration. "
        "Seconds are wall time on two cores that did other work, too. The "
        'rows "in two stages" score all rows with patches of 32 pixels, then a '
        "fifth of them with 16, and distil features and similarities from "
        "embeddings in the batch, as a run with renewals does; they name their "
        "micro-batches."
    )
    return "\n\n".join(
        [
            textwrap.fill(words, 100, break_on_hyphens=False),
            report.table(head, rows),
            _footer(lines),
        ]
    )


def twins(lines: list[dict]) -> str:
    """The block of the small twins, a row a recipe."""
    topology = tpu_compile.TOPOLOGIES[0]
    by_case = {}
    for line in lines:
        by_case.setdefault(line["case"], {})[line["backend"]] = line
    backends = [
        name
        for name in _BACKENDS
        if any(line["backend"] == name for line in lines)
    ]
    rows = [
        [
            case,
            *(
                _memory(found[backend]) if backend in found else "-"
                for backend in backends
            ),
            *(
                _kinds(found[backend]) if backend in found else "-"
                for backend in backends
            ),
        ]
        for case, found in by_case.items()
    ]
    head = ["recipes", *(f"{_BACKENDS[name]}, planned" for name in backends)]
    head += [f"{_BACKENDS[name]}, exchanged in a step" for name in backends]
    words = f"Small twins of recipes, those compiled so far, for {topology}."
    return "\n\n".join([words, report.table(head, rows), _footer(lines)])


def _footer(lines):
    """Lists operations that no TPU should get, versions, and whole errors."""
    read = [line for line in lines if "collectives" in line]
    unread = sum("memory" in line for line in lines) - len(read)
    dynamic, host = (
        sorted({item for line in read for item in line[key]})
        for key in ("dynamic_shapes", "host_operations")
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in lines[-1]["versions"].items()
    )
    revisions = sorted({line["revision"] for line in lines})
    dates = sorted({line["date"] for line in lines})
    words = (
        f"Shapes that depend on values: {', '.join(dynamic) or 'none'}; "
        f"operations that wait for the host: {', '.join(host) or 'none'}. "
    )
    if unread:
        words += f"Not known of {unread} programs, which JAX can't read back. "
    words += (
        f"{versions}; revision {', '.join(revisions)}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )
    errors = [
        f"{line['case']}, {_BACKENDS[line['backend']]}, {line['topology']}: "
        f"`{line['error']}`"
        for line in lines
        if "error" in line and "needed" not in line
    ]
    return "\n\n".join(
        [textwrap.fill(words, 100, break_on_hyphens=False), *errors]
    )


def _memory(line):
    if "memory" in line:
        return _size(planned(line["memory"]))
    if "needed" in line:
        return f"too much, {_size(line['needed'])}"
    return "does not compile"


def _a_replica(line, name):
    return line[name] // matrix.REPLICAS


def _traffic(line):
    """Collectives of each kind."""
    if "collectives" not in line:
        return ["?"] * len(_KINDS)
    found = line["collectives"]
    return [_of_kind(found[kind]) if kind in found else "-" for kind in _KINDS]


def _kinds(line):
    return "; ".join(
        f"{kind} {text}"
        for kind, text in zip(_KINDS, _traffic(line), strict=True)
        if text != "-"
    )


def _of_kind(traffic):
    text = f"{traffic['count']}: {_size(traffic['bytes'])}"
    if traffic["loop_count"]:
        text += f" + {traffic['loop_count']}: {_size(traffic['loop_bytes'])}"
    return text


def _size(size):
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"
