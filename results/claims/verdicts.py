"""Judges every claim whose sweeps are in results/claims/data, by the criteria of its page.

python results/claims/verdicts.py        # make results

Writes VERDICT.md into the claims' folders, results/claims/table.md, and the table in the README between its markers.
"""

import csv
import gzip
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl import law
from entropy_rl.sweep import statistics
from entropy_rl.sweep.statistics import Estimate

HERE = pathlib.Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEDS = {"a": "A", "b": "B"}
MARKS = ("<!-- claims -->", "<!-- /claims -->")

Series = dict[str, np.ndarray]  # a metric -> its value at every step from 1 on, NaN where it was not measured
Arm = dict[int, Series]  # seed -> its run


class Part(NamedTuple):
    """One statement about an effect: it holds if the whole interval is within [least, most]."""

    text: str
    effect: Estimate
    least: float = -math.inf
    most: float = math.inf
    seeds: int = 0

    @property
    def verdict(self) -> str:
        _, low, high = self.effect
        if math.isnan(low) or math.isnan(high):
            return "cannot tell"
        if low >= self.least and high <= self.most:
            return "holds"
        return "fails" if high < self.least or low > self.most else "cannot tell"


def read(sweep: str) -> dict[str, Arm]:
    """The runs of one sweep by arm and seed.

    Raises:
        KeyError: It was not collected.
    """
    path = HERE / "data" / f"{sweep}.steps.csv.gz"
    if not path.exists():
        raise KeyError(sweep)
    by_run: dict[str, dict[int, list[dict[str, str]]]] = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            by_run.setdefault(row.pop("arm"), {}).setdefault(int(row.pop("seed")), []).append(row)
    return {
        arm: {
            seed: {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}
            for seed, rows in by_seed.items()
        }
        for arm, by_seed in by_run.items()
    }


def steps_of(run: Series, key: str) -> np.ndarray:
    """A metric at the steps from 1 on."""
    return run[key][run["step"] > 0]


def smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """The mean of the `width` points around each point; near the ends of those that exist."""
    sums, counts = (np.convolve(x, np.ones(width), "same") for x in (values, np.ones_like(values)))
    return sums / counts


def start(run: Series, key: str) -> float:
    x = steps_of(run, key)
    return float(np.nanmean(x[: max(1, round(0.02 * x.size))]))


def end(run: Series, key: str) -> float:
    x = steps_of(run, key)
    return float(np.nanmean(x[-max(1, round(0.1 * x.size)) :]))


def accuracy(run: Series) -> float:
    """Greedy, of the last evaluation."""
    key = next(k for k in run if k.startswith("eval/") and k.endswith("/accuracy"))
    return float(run[key][np.isfinite(run[key])][-1])


def kept(run: Series) -> float:
    return end(run, "entropy/mean") / start(run, "entropy/mean")


def over_seeds(arm: Arm, f: Callable[[Series], float]) -> tuple[Estimate, int]:
    """The mean over seeds with Student's interval, and the number of seeds."""
    values = np.array([f(run) for run in arm.values()])
    return statistics.difference(values, np.zeros_like(values)), int(np.isfinite(values).sum())


def paired(arm: Arm, base: Arm, f: Callable[[Series], float]) -> tuple[Estimate, int]:
    """The mean difference of f between two arms, paired by seed, with Student's interval, and the number of pairs."""
    both = sorted(arm.keys() & base.keys())
    return statistics.difference([f(arm[s]) for s in both], [f(base[s]) for s in both]), len(both)


def part(text: str, found: tuple[Estimate, int], least: float = -math.inf, most: float = math.inf) -> Part:
    return Part(text, found[0], least, most, found[1])


def share_made(run: Series, key: str, at: float) -> float:
    """The share of a metric's whole change that was made by the share `at` of the steps."""
    x = smooth(steps_of(run, key))
    first, last = start(run, key), end(run, key)
    return (x[max(0, round(at * x.size) - 1)] - first) / (last - first)


def claim_1(bed: str) -> list[Part]:
    grpo = read(f"{bed}_core")["grpo"]

    def made(key: str, at: float) -> tuple[Estimate, int]:
        return over_seeds(grpo, lambda run: share_made(run, key, at))

    return [
        part("entropy at the end over that at the start", over_seeds(grpo, kept), most=1 / 3),
        part("share of the entropy used at a third of the steps", made("entropy/mean", 1 / 3), least=2 / 3),
        part("share of the gain made at a third of the steps", made("reward/mean", 1 / 3), least=2 / 3),
        part("reported: share of the entropy used at 8% of the steps", made("entropy/mean", 0.08)),
        part("reported: share of the gain made at 8% of the steps", made("reward/mean", 0.08)),
    ]


def fits(run: Series) -> dict[str, tuple[float, float]]:
    """name -> (R² on the whole run, RMSE of the forecast from the first 15%), of the law and of the two others."""
    reward = steps_of(run, "reward/mean")
    n = math.ceil(0.15 * reward.size)
    found = {}
    for name, x in {
        "law": np.exp(steps_of(run, "entropy/mean")),
        "log step": np.log(np.arange(1, reward.size + 1)),
        "length": steps_of(run, "length/mean"),
    }.items():
        residual = reward - np.polyval(np.polyfit(x, reward, 1), x)
        ahead = reward[n:] - np.polyval(np.polyfit(x[:n], reward[:n], 1), x[n:])
        found[name] = 1 - residual.var() / reward.var(), float(np.sqrt(np.mean(ahead**2)))
    return found


def miss(run: Series, grpo: Series) -> float:
    """The reward at the end of a run, less what GRPO's law predicts from its entropy, in units of that fit's RMSE."""
    fitted = law.fit(steps_of(grpo, "entropy/mean").tolist(), steps_of(grpo, "reward/mean").tolist())
    return (end(run, "reward/mean") - float(fitted.predict(end(run, "entropy/mean")))) / float(fitted.rmse)


def claim_2(bed: str) -> list[Part]:
    grpo, held = read(f"{bed}_core")["grpo"], read(f"{bed}_held")
    found = {seed: fits(run) for seed, run in grpo.items()}

    def against(other: str, which: int) -> tuple[Estimate, int]:
        own, theirs = ([f[name][which] for f in found.values()] for name in ("law", other))
        return statistics.difference(own, theirs), len(own)

    r2 = np.array([f["law"][0] for f in found.values()])
    parts = [part("R² of the law", (statistics.difference(r2, np.zeros_like(r2)), r2.size), least=0.75)]
    for other in ("log step", "length"):
        parts.append(part(f"R² less that of R on {other}", against(other, 0), least=0.0))
        parts.append(part(f"RMSE of the forecast less that of R on {other}", against(other, 1), most=0.0))
    for arm in held.values():
        both = sorted(arm.keys() & grpo.keys())
        values = [miss(arm[seed], grpo[seed]) for seed in both]
        estimate = statistics.difference(values, np.zeros(len(values)))
        parts.append(Part("entropy held: miss of the law, in RMSE of its fit", estimate, -2.0, 2.0, len(values)))
    return parts


def coefficients(run: Series) -> law.Law:
    return law.fit(steps_of(run, "entropy/mean").tolist(), steps_of(run, "reward/mean").tolist())


def claim_3(bed: str) -> list[Part]:
    core, bound = read(f"{bed}_core"), math.log(1.25)
    parts = []
    for name in ("rloo", "reinforce_pp"):
        a = paired(core[name], core["grpo"], lambda run: math.log(max(1e-9, coefficients(run).a)))
        ceiling = paired(core[name], core["grpo"], lambda run: coefficients(run).ceiling)
        parts.append(part(f"{name}: log ratio of a to GRPO's", a, -bound, bound))
        parts.append(part(f"{name}: ceiling less GRPO's", ceiling, -0.05, 0.05))
    parts.append(part("reported: GRPO's a", over_seeds(core["grpo"], lambda run: coefficients(run).a)))
    return parts


def claim_4(bed: str) -> list[Part]:
    grpo = read(f"{bed}_core")["grpo"]

    def mean(key: str) -> Callable[[Series], float]:
        return lambda run: float(np.nanmean(steps_of(run, key)))

    def tracks(run: Series) -> float:
        change, cov = steps_of(run, "entropy/delta"), steps_of(run, "cov/mean")
        measured = np.isfinite(change)
        return math.atanh(np.corrcoef(-change[measured], cov[measured])[0, 1])

    def contribution(name: str) -> Callable[[Series], float]:
        def f(run: Series) -> float:
            share, change = (steps_of(run, f"quadrant/{name}/{key}") for key in ("share", "entropy_change"))
            return float(np.nanmean(share * change))

        return f

    tail = over_seeds(grpo, lambda run: mean("cov/top_0.2pct")(run) / mean("cov/mean")(run))
    parts = [
        part("mean covariance", over_seeds(grpo, mean("cov/mean")), least=0.0),
        part("top 0.2% over the mean of all", tail, least=50.0),
        part("Fisher's z of −ΔH and covariance", over_seeds(grpo, tracks), least=0.0),
    ]
    first = "high_positive"
    for other in ("high_negative", "low_positive", "low_negative"):
        both = over_seeds(grpo, lambda run, o=other: contribution(first)(run) - contribution(o)(run))
        parts.append(
            part(f"ΔH through {first.replace('_', ', ')} less that through {other.replace('_', ', ')}", both, most=0.0)
        )
    return parts


def widest(arms: Mapping[str, Arm]) -> str:
    """The arm that keeps most entropy, on the mean of its seeds."""
    return max(arms, key=lambda name: over_seeds(arms[name], kept)[0].value)


def claim_5(bed: str) -> list[Part]:
    grpo = read(f"{bed}_core")["grpo"]
    parts = []
    for method in ("clip_cov", "kl_cov"):
        arms = read(f"{bed}_{method}")
        best, names = widest(arms), list(arms)
        parts.append(part(f"{best}: entropy kept, less GRPO's", paired(arms[best], grpo, kept), least=0.0))
        parts.append(part(f"{best}: accuracy, less GRPO's", paired(arms[best], grpo, accuracy), least=-0.02))
        steered = paired(arms[names[-1]], arms[names[0]], kept)
        parts.append(part(f"{names[-1]}: entropy kept, less that of {names[0]}", steered, least=0.0))
        own = paired(arms[names[0]], grpo, kept)
        parts.append(part(f"reported: {names[0]}, the paper's share: entropy kept, less GRPO's", own))
    return parts


def claim_6(bed: str) -> list[Part]:
    kl_cov = read(f"{bed}_kl_cov")
    best = kl_cov[widest(kl_cov)]
    target = over_seeds(best, lambda run: end(run, "entropy/mean"))[0].value
    parts = []
    for method in ("clip_higher", "entropy_bonus", "reference_kl"):
        arms = read(f"{bed}_{method}")

        def away(run: Series) -> float:
            return abs(end(run, "entropy/mean") / target - 1)

        near = min(arms, key=lambda name: away_on_average(arms[name], target))
        found = paired(arms[near], best, accuracy)
        if away_on_average(arms[near], target) > 1 / 3:
            text = f"{method} cannot hold that entropy: distance of its nearest, {near}, as a share of it"
            parts.append(part(text, over_seeds(arms[near], away), least=1 / 3))
        else:
            parts.append(part(f"{near}: accuracy, less KL-Cov's", found, most=0.0))
    return parts


def away_on_average(arm: Arm, target: float) -> float:
    """The distance of an arm's entropy at the end, on the mean of its seeds, from the target, as a share of it."""
    return abs(over_seeds(arm, lambda run: end(run, "entropy/mean"))[0].value / target - 1)


def claim_9(bed: str) -> list[Part]:
    arms = read(f"{bed}_shares")

    def less(name: str, base: str) -> tuple[Estimate, int]:
        return paired(arms[name], arms[base], accuracy)

    return [
        part("forking: accuracy, less that of dapo", less("forking", "dapo"), least=-0.02),
        part("bottom80: accuracy, less that of dapo", less("bottom80", "dapo"), most=0.0),
        part("forking10: accuracy, less that of forking", less("forking10", "forking"), -0.02, 0.02),
        part("forking50: accuracy, less that of forking", less("forking50", "forking"), -0.02, 0.02),
        part("it is entropy: forking's accuracy, less that of random_mask", less("forking", "random_mask"), least=0.0),
    ]


def doubt_3(bed: str) -> list[Part]:
    ours, control = read(f"{bed}_clip_cov"), read(f"{bed}_random_positive_clip")
    best = widest(ours)
    other = control[best.replace("clip_cov", "random_positive_clip")]
    return [
        part(f"{best}: entropy kept, less that of the control", paired(ours[best], other, kept), least=0.0),
        part(f"{best}: accuracy, less that of the control", paired(ours[best], other, accuracy), least=-0.02),
    ]


def doubt_4(bed: str) -> list[Part]:
    ours, control = read(f"{bed}_clip_cov"), read(f"{bed}_matched_norm")
    best = widest(ours)
    other = control[best.replace("clip_cov", "matched_norm")]
    return [part(f"{best}: entropy kept, less that of matched_norm", paired(ours[best], other, kept), least=0.0)]


CLAIMS: dict[str, Callable[[str], list[Part]]] = {
    "01_entropy_is_spent_early": claim_1,
    "02_reward_is_bought_with_entropy": claim_2,
    "03_the_law_and_the_algorithm": claim_3,
    "04_covariance_drives_entropy": claim_4,
    "05_clip_cov_and_kl_cov_hold_entropy": claim_5,
    "06_the_older_ways_do_it_worse": claim_6,
    "09_the_top_20_percent_are_enough": claim_9,
    "d3_clip_cov_or_any_positive_tokens": doubt_3,
    "d4_or_only_a_smaller_step": doubt_4,
}


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
    return "\n".join(lines) + "\n"


def title(name: str) -> str:
    """The claim in one sentence: the heading of its page."""
    return (HERE / name / "README.md").read_text().splitlines()[0].removeprefix("# ")


def main() -> None:
    """Writes all pages."""
    lines = ["| claim | A | B |", "|---|---|---|"]
    for name in CLAIMS:
        found = judge(name)
        if found:
            (HERE / name / "VERDICT.md").write_text(page(found))
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
