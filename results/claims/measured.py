"""The claims that need more than the metrics of training, by what measure.py measured. A function takes a bed."""

from collections.abc import Callable

from runs import Measured, Part, having, over_seeds, paired, part, read, read_measured, widest

from entropy_rl.sweep.statistics import Estimate

TRANSFER = {"a": ("two_digits", "four_digits"), "b": ("larger_targets", "four_numbers")}


def value(name: str) -> Callable[[dict[str, float]], float]:
    return lambda run: run[name]


def less(one: str, other: str) -> Callable[[dict[str, float]], float]:
    return lambda run: run[one] - run[other]


def claim_7(bed: str) -> list[Part]:
    grpo = having(read_measured(f"{bed}_core")["grpo"], "forks/start/below_0.01")
    few = over_seeds(grpo, value("forks/start/below_0.01"))
    parts = [part("start: share of the tokens with less than 0.01 nats", few, least=0.4)]
    if bed != "d":
        places = over_seeds(grpo, lambda run: run["forks/start/decision"] / run["forks/start/others"])
        parts.append(part("start: mean entropy at the places of decision over that elsewhere", places, least=5.0))
        parts.append(part("reported: share of the places", over_seeds(grpo, value("forks/start/decision_share"))))
    else:
        for group in ("digits and signs", "continued words", "other tokens"):
            own = over_seeds(grpo, value(f"forks/start/group/{group}"))
            parts.append(part(f"reported: start: mean entropy of {group}, nats", own))
    for q in (50, 80, 95):
        own = over_seeds(grpo, value(f"forks/start/p{q}"))
        parts.append(part(f"reported: start: the {q}th percentile, nats", own))
    few = over_seeds(grpo, value("forks/end/below_0.01"))
    return [*parts, part("reported: end: share of the tokens with less than 0.01 nats", few)]


def claim_8(bed: str) -> list[Part]:
    grpo = having(read_measured(f"{bed}_core")["grpo"], "forks/last/overlap")
    ratio = over_seeds(grpo, lambda run: run["forks/last/change_top"] / run["forks/last/change_rest"])
    return [
        part("overlap of the top 20% of the start and of the end", over_seeds(grpo, value("forks/last/overlap")), 0.75),
        part("mean absolute change of entropy in the start's top 20% over that in the rest", ratio, least=5.0),
        part("reported: change in the top 20%, nats", over_seeds(grpo, value("forks/last/change_top"))),
        part("reported: change in the rest, nats", over_seeds(grpo, value("forks/last/change_rest"))),
    ]


def claim_10(bed: str) -> list[Part]:
    start = having(read_measured(f"{bed}_core")["grpo"], "hotter/1/1")
    hot = over_seeds(start, less("hotter/1.3/1", "hotter/0.5/1"))
    cold = over_seeds(start, less("hotter/1/1.3", "hotter/1/0.5"))
    parts = [
        part("avg@16, forks at 1.3 less forks at 0.5, others at 1", hot, least=0.0),
        part("avg@16, others at 1.3 less others at 0.5, forks at 1", cold, most=0.0),
        part("reported: avg@16, all at 1", over_seeds(start, value("hotter/1/1"))),
    ]
    for t in ("0.5", "0.7", "1.3", "1.6"):
        for kind, pair in (("forks", f"{t}/1"), ("others", f"1/{t}")):
            own = over_seeds(start, less(f"hotter/{pair}", "hotter/1/1"))
            parts.append(part(f"reported: avg@16, {kind} at {t} less all at 1", own))
    return [*parts, part("reported: the threshold, nats", over_seeds(start, value("hotter/threshold")))]


def claim_11(bed: str) -> list[Part]:
    arms = {name: having(arm, "language/end") for name, arm in read_measured(f"{bed}_core").items() if name != "grpo"}
    read_texts = {run["language/crc32"] for arm in arms.values() for run in arm.values()}
    if len(read_texts) > 1:
        raise ValueError(f"{bed}_core: the runs were measured on {len(read_texts)} texts; measure them with one Python")
    rise = less("language/end", "language/start")

    def more(name: str, base: str) -> tuple[Estimate, int]:
        return paired(arms[name], arms[base], rise)

    return [
        part("bottom80: rise of the cross-entropy, nats per token, less forking's", more("bottom80", "forking"), 0.0),
        part("forking: rise less dapo's", more("forking", "dapo"), most=0.0),
        *(part(f"reported: {name}: rise", over_seeds(arm, rise)) for name, arm in arms.items()),
    ]


def claim_12(bed: str) -> list[Part]:
    arms = read_measured(f"{bed}_shares")
    parts, reported = [], []
    for task in TRANSFER[bed]:
        name, words = f"transfers/{task}", task.replace("_", " ")
        forking, dapo = having(arms["forking"], name), having(arms["dapo"], name)
        found = paired(forking, dapo, value(name))
        parts.append(part(f"{words}: forking's accuracy less dapo's", found, least=-0.02))
        reported.append(part(f"reported: {words}: dapo's accuracy", over_seeds(dapo, value(name))))
    return [*parts, *reported]


def doubt_7(bed: str) -> list[Part]:
    wide = "explores/end/pass@64"
    grpo = having(read_measured(f"{bed}_core")["grpo"], wide)
    best = widest(read(f"{bed}_kl_cov"))
    kl_cov = having(read_measured(f"{bed}_kl_cov")[best], wide)
    forking = having(read_measured(f"{bed}_shares")["forking"], wide)
    narrowed = over_seeds(grpo, less(wide, "explores/start/pass@64"))
    wider = paired(kl_cov, grpo, value(wide))
    parts = [
        part("narrowed: GRPO's pass@64 at the end less the start's", narrowed, most=0.0),
        part(f"held entropy keeps it wide: {best}: pass@64 at the end less GRPO's", wider, least=0.0),
        part("reported: forking: pass@64 at the end less GRPO's", paired(forking, grpo, value(wide))),
    ]
    for key in ("pass@1", "pass@8", "pass@64", "distinct@64", "answer_entropy@64"):
        parts += _along(grpo, key)
    return parts


def _along(arm: Measured, key: str) -> list[Part]:
    """A measure of GRPO's start, middle and end."""
    return [
        part(f"reported: {key} at the {when}", over_seeds(arm, value(f"explores/{when}/{key}")))
        for when in ("start", "middle", "end")
    ]
