"""Judges every claim whose sweeps are in results/claims/data, by the criteria of its page.

python results/claims/verdicts.py        # make results

Writes VERDICT.md and effects.svg into the claims' folders, results/claims/table.md, and the table in the README between
its markers.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import claims
import doubts
import figures
import measured
from runs import Part

HERE = pathlib.Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEDS = {"a": "A", "b": "B", "d": "D"}
MARKS = ("<!-- claims -->", "<!-- /claims -->")

CLAIMS: dict[str, Callable[[str], list[Part]]] = {
    "01_entropy_is_spent_early": claims.claim_1,
    "02_reward_is_bought_with_entropy": claims.claim_2,
    "03_the_law_and_the_algorithm": claims.claim_3,
    "04_covariance_drives_entropy": claims.claim_4,
    "05_clip_cov_and_kl_cov_hold_entropy": claims.claim_5,
    "06_the_older_ways_do_it_worse": claims.claim_6,
    "07_forks_are_few": measured.claim_7,
    "08_training_keeps_the_forks": measured.claim_8,
    "09_the_top_20_percent_are_enough": claims.claim_9,
    "10_hotter_forks_help": measured.claim_10,
    "11_the_easy_80_percent_harm_the_language": measured.claim_11,
    "12_what_forks_learn_carries_over": measured.claim_12,
    "d1_does_the_reward_matter": doubts.doubt_1,
    "d2_is_it_entropy_that_selects": doubts.doubt_2,
    "d3_clip_cov_or_any_positive_tokens": doubts.doubt_3,
    "d4_or_only_a_smaller_step": doubts.doubt_4,
    "d5_clipping_alone": doubts.doubt_5,
    "d6_arithmetic": doubts.doubt_6,
    "d7_does_it_explore": measured.doubt_7,
}
ON_D = ("07_forks_are_few", "08_training_keeps_the_forks", "10_hotter_forks_help")  # besides A and B
ONLY_ON_D = ("11_the_easy_80_percent_harm_the_language",)


def verdict(parts: Sequence[Part]) -> str:
    """The verdict of a claim of several parts; what is only reported does not count."""
    found = {
        p.verdict for p in parts if not p.text.startswith("reported") and (p.least, p.most) != (-math.inf, math.inf)
    }
    return "fails" if "fails" in found else "cannot tell" if "cannot tell" in found or not found else "holds"


def judge(name: str) -> dict[str, list[Part]]:
    """bed -> the claim's parts, for the beds whose sweeps are there."""
    found = {}
    for bed, title in BEDS.items():
        if (name in ONLY_ON_D) != (bed == "d") and not (bed == "d" and name in ON_D):
            continue
        try:
            found[title] = CLAIMS[name](bed)
        except KeyError:  # a sweep or an arm that was not collected
            continue
    return found


def page(found: Mapping[str, Sequence[Part]]) -> str:
    """The verdicts of one claim in Markdown."""
    lines = ["Made by `make results` from the files in `results/claims/data`.", ""]
    lines += ["| bed | effect | mean, 95% interval | criterion | seeds | |", "|---|---|---|---|---|---|"]
    for bed, parts in found.items():
        for p in parts:
            value, low, high = p.effect
            asked = " and ".join(
                [f"≥ {p.least:.3g}"] * (p.least > -math.inf) + [f"≤ {p.most:.3g}"] * (p.most < math.inf)
            )
            lines.append(
                f"| {bed} | {p.text} | {value:.3g} [{low:.3g}, {high:.3g}] | {asked} | {p.seeds} | "
                f"{p.verdict if asked else ''} |"
            )
        lines.append(f"| **{bed}** | | | | | **{verdict(parts)}** |")
    lines += ["", "![every judged effect with its interval, beside the values that satisfy the criterion](effects.svg)"]
    return "\n".join(lines) + "\n"


def title(name: str) -> str:
    """The claim in one sentence: the heading of its page."""
    return (HERE / name / "README.md").read_text().splitlines()[0].removeprefix("# ")


def main() -> None:
    """Writes all pages."""
    lines = [f"| claim | {' | '.join(BEDS.values())} |", f"|---|{'---|' * len(BEDS)}"]
    for name in CLAIMS:
        found = judge(name)
        if found:
            (HERE / name / "VERDICT.md").write_text(page(found))
            (HERE / name / "effects.svg").write_bytes(figures.forest(found))
        cells = [verdict(found[bed]) if bed in found else "" for bed in BEDS.values()]
        lines.append(f"| [{title(name)}](results/claims/{name}) | {' | '.join(cells)} |")
    table = "\n".join(lines)
    (HERE / "table.md").write_text(table + "\n")
    text = README.read_text()
    if MARKS[0] in text:
        before, rest = text.split(MARKS[0])
        README.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
