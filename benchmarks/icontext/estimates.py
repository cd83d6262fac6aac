"""The estimates of `jest-tf advise` beside what labels say.

    python -m benchmarks.icontext.estimates --data icontext-work/web \
        --emoji icontext-work/data --page docs/advise.md

Embeds a sample of every pool of the web-like data by one quick reference, and
compares the estimates with what the records' labels say. With `--emoji` it
surveys IconText's other pool, too, whose curated set, emoji art, covers the
tests. Writes `results/estimates.json`, and with `--page` a block of a page.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from benchmarks import report
from benchmarks.icontext import results, web
from jest_tf.curation import advice

FILE = "estimates.json"
_COMMAND = (
    "python -m benchmarks.icontext.estimates --data icontext-work/web "
    "--emoji icontext-work/data --page docs/advise.md"
)
# Names of noise whose pairs match nevertheless.
_REPEATED = "near-duplicate"
_MATCHED = ("", _REPEATED)
_FACTORS = (2, 3, 5, 10)
_SHOWN_FACTORS = (3, 5)


def main(arguments=None):
    """Survey the pools, and write the estimates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--results", type=pathlib.Path, default=results.FOLDER)
    add("--data", type=pathlib.Path, required=True, help="the web-like data")
    add("--emoji", type=pathlib.Path, help="the data with emoji art")
    add("--out", type=pathlib.Path, help="folder of the references")
    add("--page", type=pathlib.Path, help="Markdown file, for its block")
    options = parser.parse_args(arguments)
    out = options.out or options.data / "advice"
    found = estimate(options.data, out / "web")
    if options.emoji:
        found["emoji"] = covered(options.emoji, out / "emoji")
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    (options.results / FILE).write_text(text, "utf-8")
    if options.page:
        report.write_block(options.page, "advise", block(found), _COMMAND)


def read(folder):
    """The content of estimates.json in a folder, by level; {} without it."""
    path = folder / FILE
    if not path.exists():
        return {}
    values = json.loads(path.read_text("utf-8"))
    return {level["noise"]: level for level in values["levels"]}


def block(content):
    """The estimates beside the labels, in Markdown.

    Args:
        content: of estimates.json.
    """
    rows = [
        (
            f"{level['noise']:.0%}",
            f"{level['labelled_matched']:.2f}",
            "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**level["matched"]),
            *(
                f"{level['precision'][factor]:.2f} / "
                f"{level['labelled_precision'][factor]:.2f}"
                for factor in map(str, _SHOWN_FACTORS)
            ),
            f"{level['apart']:.2f}",
        )
        for level in content["levels"]
    ]
    header = (
        *("noise", "matched, by labels", "matched, estimated"),
        *(
            f"matched of the best 1 / {factor}, expected / by labels"
            for factor in _SHOWN_FACTORS
        ),
        "kind",
    )
    gaps = [
        1.0 - level["matched"]["mean"] / level["labelled_matched"]
        for level in content["levels"]
    ]
    least, most = min(gaps), max(gaps)
    found = (
        "By a quick reference, on the pools of IconText's web-like data, "
        f"{content['sample']:,} pairs of each; near-duplicates of clean pairs "
        f"match:\n\n{report.table(header, rows)}\n\n"
        f"The estimates are {least:.0%} to {most:.0%} below the labels. The "
        "labels mark the added noise "
        "only, whereas the pool also has uninformative and wrong names of its "
        "own; the curated pairs are icons with names of a few words.\n\n"
        "Near-duplicates are underestimated. Copies shifted by up to two "
        "pixels make up "
    )
    noisy = [one for one in content["levels"] if one["noise"]]
    found += ", ".join(f"{one['repeated']:.1%}" for one in noisy)
    found += " of the sample at the levels above 0%; the estimate finds "
    found += ", ".join(f"{one['near_duplicates']:.1%}" for one in noisy)
    clean = content["levels"][0]["near_duplicates"]
    found += f". Without added noise it finds {clean:.1%}."
    if emoji := content.get("emoji"):
        over = emoji["covered"] - advice.APART
        found += (
            "\n\nOn IconText's emoji art, where the curated set covers the "
            f"tests, {emoji['covered']:.0%} of the "
            f"{emoji['num_tests']:,} validation pictures (the rule needs "
            f"{advice.APART:.0%}; two standard errors are "
            f"{100 * emoji['covered_error']:.0f} points) and "
            f"{emoji['apart']:.0%} of the curated pictures are nearer to the "
            "curated set than to the pool. The rule `covered` "
            + ("applies" if over >= 0 else "does not apply")
            + ", by less than that error" * (abs(over) < emoji["covered_error"])
            + ". By the [measurements](../benchmarks/icontext/results/report.md"
            "#appendix-emoji-art-where-the-curated-set-covers-the-tests), half "
            "curated rows did as well there as the best selection."
        )
    return found


def covered(data, folder):
    """The survey of IconText with emoji art, whose curated set covers tests.

    Args:
        data: folder of the data.
        folder: of the quick reference.

    Returns:
        What it finds of the kinds.
    """
    survey = _surveys(data, folder, "reference", "val_concept")
    _, found = survey("pool")
    return {
        "matched": found.facts.matched._asdict(),
        "apart": found.facts.apart,
        "covered": found.facts.covered,
        "covered_error": found.facts.covered_error,
        "num_tests": found.facts.num_tests,
        "power": round(found.facts.power, 4),
    }


def estimate(data, folder):
    """Estimates every level of the web-like data, and what its labels say.

    Args:
        data: folder of the data.
        folder: of the quick reference.

    Returns:
        The content of estimates.json.
    """
    survey = _surveys(data, folder, "curated", "val_sets")
    levels = []
    for percent in web.LEVELS:
        level = percent / 100
        pool, found = survey(f"pool{percent:02}/pool")
        labels = np.array(
            [
                record.metadata.get("noise", b"").decode()
                for record in pool.read(found.rows)
            ]
        )
        matches = np.isin(labels, _MATCHED)
        order = np.argsort(-found.similarity.matched, kind="stable")
        levels.append(
            {
                "noise": level,
                "matched": found.facts.matched._asdict(),
                "labelled_matched": round(float(matches.mean()), 4),
                "precision": {
                    str(factor): round(value, 4)
                    for factor, value in found.facts.precision.items()
                },
                "labelled_precision": {
                    str(factor): round(
                        float(matches[order[: len(order) // factor]].mean()), 4
                    )
                    for factor in _FACTORS
                },
                "posterior": {
                    kind or "none": round(
                        float(found.posterior[labels == kind].mean()), 4
                    )
                    for kind in np.unique(labels).tolist()
                },
                "near_duplicates": round(found.duplicates.share, 4),
                "repeated": round(float((labels == _REPEATED).mean()), 4),
                "copies": round(found.duplicates.copies, 3),
                "breadth": {
                    kind: round(value, 2)
                    for kind, value in found.breadth.items()
                },
                "apart": found.facts.apart,
                "covered": found.facts.covered,
                "power": round(found.facts.power, 4),
            }
        )
        print(level, levels[-1], flush=True)
    return {"sample": len(found.rows), "levels": levels}


def _surveys(data, folder, curated, tests):
    """Surveys by one quick reference, trained on curated pairs.

    Args:
        data: folder of the data.
        folder: of the reference.
        curated: name of the shards of curated pairs.
        tests: of the tests.

    Returns:
        `name of a pool's shards -> (its store, the survey)`.
    """
    # Imported here: the other parts read results alone.
    from configs import icontext_web
    from jest_tf.curation import survey
    from jest_tf.data import stores
    from jest_tf.runs import loading

    recipe = icontext_web.config()
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, vocabulary=str(data / "vocab.txt")
        ),
    )

    def patterns(name):
        return (str(data / f"{name}-*.tfrecord"),)

    def opened(name):
        return stores.open_stores(recipe.data.reading(patterns(name)))

    pairs = opened(curated)
    model = loading.load(
        survey.quick_reference(recipe, pairs, patterns(curated), str(folder))
    )

    def by_pool(name):
        pool = opened(name)
        return pool, survey.survey(
            survey.Data(pool, pairs, opened(tests)),
            model,
            survey.Settings(),
            unseen=survey.held_out(pairs),
        )

    return by_pool


if __name__ == "__main__":
    main()
