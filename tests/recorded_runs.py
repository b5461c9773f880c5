"""Recorded runs of made-up tokens, whose texts hold what could break a page; and rows of metrics."""

import math

import numpy as np
from etils import epath

from entropy_rl.covariance import QUADRANTS
from entropy_rl.record.rollouts import RolloutLog

G, N = 4, 6  # samples per prompt, prompts
EVIL = "</script><script>document.title='ran'</script>\u2028\u2029\x00<img src=x onerror=\"document.title='ran'\">&amp;"


def write_run(
    workdir: epath.PathLike,
    seed: int,
    steps: tuple[int, ...] = (1, 10),
    responses: int = N * G,
    length: int = 12,
    unscored: int = 0,
) -> None:
    """A recorded run of made-up tokens; the first response holds everything that could break a page.

    The rewards of the last `unscored` responses are not known.
    """
    rng, log = np.random.default_rng(seed), RolloutLog(workdir, 1.0)
    for step in steps:
        mask = np.arange(length) < rng.integers(length // 2, length + 1, responses)[:, None]
        mask[0] = True
        ids = rng.integers(3, 60, mask.shape)
        token = np.array([f" w{i}" for i in range(60)], object)[ids]
        token[0, :2] = EVIL, "line\nbreak"
        logp = np.log(rng.uniform(0.05, 1, mask.shape)).astype(np.float32)
        per_token = {name: rng.normal(size=mask.shape).astype(np.float32) for name in ("covariance", "gradient")}
        fate = np.array(["kept", "clip", "kl_cov"], object)[rng.integers(0, 3, mask.shape)]
        per_token |= {
            "ratio": np.exp(rng.normal(0, 0.1, mask.shape)).astype(np.float32),
            "entropy": -logp,
            "logp": logp,
        }
        per_token |= {"gradient_after": per_token["gradient"], "id": ids, "token": token, "fate": fate}
        prompt = np.arange(responses) // G + 1
        columns = {
            "update": np.zeros(responses, int),
            "prompt": prompt,
            "sample": np.arange(responses) % G,
            "question": [f"{EVIL} question {p}" for p in prompt],
            "text": ["".join(t[m]) for t, m in zip(token, mask, strict=True)],
            "reward": np.where(np.arange(responses) < responses - unscored, rng.integers(0, 2, responses), np.nan),
            "advantage": rng.normal(size=responses),
            "length": mask.sum(axis=1),
            "finished": rng.random(responses) < 0.8,
        }
        log.write(step, columns, per_token, mask)


def metric_rows(n=60, noise=0.02):
    """A run that follows R = −0.4·exp(H) + 1.2 but for noise, with every kind of number that a figure reads."""
    rng = np.random.default_rng(0)
    rows = [{"step": 0, "reward/mean": None, "entropy/mean": None, "eval/a/accuracy": 0.25, "eval/b/accuracy": 0.5}]
    rows[0] |= {f"eval/{name}/{bound}": 8 for name in "ab" for bound in ("low", "high", "problems")}
    for step in range(1, n + 1):
        entropy = 0.7 * math.exp(-step / 10)
        row = {"step": step, "entropy/mean": entropy, "length/mean": 20 + step % 7, "cov/mean": 0.01}
        row["reward/mean"] = -0.4 * math.exp(entropy) + 1.2 + noise * rng.normal()
        rows.append(row | {f"cov/top_{share}pct": float(share) for share in ("0.02", "0.2", "2", "20", "50")})
        if step % 2:
            row |= {"entropy/delta": -0.01 * step, "entropy/delta_predicted": -0.009 * step}
            row |= {"entropy/delta_thm1": -1e-5, "entropy/delta_thm2": -1e-4 * step}
            for quadrant in QUADRANTS:
                row |= {f"quadrant/{quadrant}/share": 0.25, f"quadrant/{quadrant}/entropy_change": 0.1 * step}
                row[f"quadrant/{quadrant}/covariance"] = 0.5
            rows[-1] |= row
    return rows
