"""PYTHONPATH=. python results/lora/table.py: the runs of results/lora as a Markdown table, with paired differences."""

import pathlib

import numpy as np

from entropy_rl.record import jsonl
from entropy_rl.sweep.statistics import difference

HERE = pathlib.Path(__file__).parent
FIRST, LAST = 4, 10  # steps


def figures(name: str) -> tuple[float, float, float]:
    """(entropy of the last steps, over that of the first, reward of the last) of a run."""
    rows = [row for row in jsonl.read(HERE / f"{name}.jsonl") if row["step"] > 0]
    entropy, reward = (np.array([row[key] for row in rows], float) for key in ("entropy/mean", "reward/mean"))
    return entropy[-LAST:].mean(), entropy[-LAST:].mean() / entropy[:FIRST].mean(), reward[-LAST:].mean()


def main() -> None:
    seeds = sorted(int(path.stem.split("-")[1]) for path in HERE.glob("rank16-*.jsonl"))
    print("| run | entropy, last 10 steps | over the first 4 | reward, last 10 steps |\n|---|---|---|---|")
    sides = {side: np.array([figures(f"{side}-{seed}") for seed in seeds]) for side in ("full", "rank16")}
    for side, found in sides.items():
        for seed, (entropy, ratio, reward) in zip(seeds, found, strict=True):
            print(f"| {side}, seed {seed} | {entropy:.3f} | {ratio:.2f} | {reward:.3f} |")
    for column, name in ((1, "ratio of entropies"), (2, "reward")):
        found = difference(sides["rank16"][:, column], sides["full"][:, column])
        print(f"\nLoRA − full, {name}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], paired by seed")


if __name__ == "__main__":
    main()
