"""The claims of both papers, judged by the criteria of their pages. A function takes a bed, "a" or "b"."""

import math
from collections.abc import Callable

import numpy as np
from runs import Arm, Part, Series, accuracy, end, kept, over_seeds, paired, part, read, smooth, start, steps_of, widest

from entropy_rl import law
from entropy_rl.sweep import statistics
from entropy_rl.sweep.statistics import Estimate


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
