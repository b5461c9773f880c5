"""The doubts about the claims, judged by the criteria of their pages. A function takes a bed, "a" or "b"."""

import numpy as np
from runs import Arm, Part, accuracy, end, gain, kept, paired, part, read, widest

from entropy_rl.sweep import statistics
from entropy_rl.sweep.statistics import Estimate

REWARDS = ("random", "format", "incorrect", "none")  # beside the true one; the majority's is reported


def doubt_1(bed: str) -> list[Part]:
    true, others = read(f"{bed}_core")["grpo"], read(f"{bed}_rewards")

    def share(arm: Arm) -> tuple[Estimate, int]:
        both = sorted(arm.keys() & true.keys())
        gains = [[gain(some[seed]) for seed in both] for some in (arm, true)]
        return statistics.ratio_of_means(*gains), len(both)

    parts = []
    for kind in REWARDS:
        text = f"{kind}: gain in accuracy over that with the true reward"
        parts.append(part(text, share(others[f"grpo,kind={kind}"]), most=0.5))
    majority = others["grpo,kind=majority"]
    parts.append(part("reported: majority: gain over that with the true reward", share(majority)))
    for name, arm in others.items():
        text = f"reported: {name.split('=')[1]}: entropy kept, less that with the true reward"
        parts.append(part(text, paired(arm, true, kept)))
    return parts


def doubt_2(bed: str) -> list[Part]:
    shares, controls = read(f"{bed}_shares"), read(f"{bed}_forks")
    forking = shares["forking"]
    others = {"random_mask": shares["random_mask"]} | controls
    parts = []
    for name in ("random_mask", "forking_positions", "forking_shuffled"):
        parts.append(
            part(f"forking: accuracy, less that of {name}", paired(forking, others[name], accuracy), least=0.0)
        )
    gmts = paired(forking, others["gmts"], accuracy)
    parts.append(part("entropy, not the gradient: forking's accuracy, less that of gmts", gmts, least=0.0))
    base = paired(forking, others["forking_base"], accuracy)
    return [*parts, part("reported: forking: accuracy, less that of forking_base", base)]


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


def doubt_5(bed: str) -> list[Part]:
    arms = read(f"{bed}_clipping")
    found = paired(arms["grpo"], arms["no_clip"], lambda run: end(run, "entropy/mean"))
    return [part("random reward: entropy at the end with the clip, less that without, nats", found, most=0.0)]


def doubt_6(bed: str) -> list[Part]:
    full, others = read(f"{bed}_core")["grpo"], read(f"{bed}_dtype")
    parts = []
    for name, arm in others.items():
        dtype = name.split("=")[1]
        parts.append(part(f"{dtype}: accuracy, less float32's", paired(arm, full, accuracy), -0.02, 0.02))
        both = sorted(arm.keys() & full.keys())
        relative = [end(arm[s], "entropy/mean") / end(full[s], "entropy/mean") - 1 for s in both]
        found = statistics.difference(relative, np.zeros(len(both))), len(both)
        parts.append(part(f"{dtype}: entropy at the end, relative to float32's, less 1", found, -0.1, 0.1))
    return parts
