"""Recorded runs of made-up tokens, whose texts hold what could break a page."""

import numpy as np
from etils import epath

from entropy_rl.record.rollouts import RolloutLog

G, N = 4, 6  # samples per prompt, prompts
EVIL = "</script><script>document.title='ran'</script>\u2028\u2029\x00<img src=x onerror=\"document.title='ran'\">&amp;"


def write_run(
    workdir: epath.PathLike, seed: int, steps: tuple[int, ...] = (1, 10), responses: int = N * G, length: int = 12
) -> None:
    """A recorded run of made-up tokens; the first response holds everything that could break a page."""
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
            "reward": rng.integers(0, 2, responses).astype(float),
            "advantage": rng.normal(size=responses),
            "length": mask.sum(axis=1),
            "finished": rng.random(responses) < 0.8,
        }
        log.write(step, columns, per_token, mask)
