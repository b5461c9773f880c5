"""Evaluation, in training and by the command: responses to fixed problems, verdicts, and what they come to.

N prompts at a time, k samples a prompt. Batches are of one shape: the last is filled up and its surplus dropped.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from entropy_rl.data import Problem, PromptEncoder
from entropy_rl.evaluation.estimators import bootstrap, maj_at_k, pass_at_k, wilson
from entropy_rl.policy import responses
from entropy_rl.rewards import Grader, extract_answer
from entropy_rl.runtime.mesh import row_shards
from entropy_rl.sampling import slots as sampler
from entropy_rl.training.engine import Engine

Draw = Callable[..., sampler.Rollout]  # (prompt_NxP, prompt_mask_NxP, uid_N, key) -> responses, prompt by prompt
_BINS = 4  # of length and entropy
_LEVELS = 12  # of difficulty, at most


class Answered(NamedTuple):
    """One response.

    Attributes:
        problem: what was asked.
        sample: its number; −1: the greedy one.
        text: the response.
        answer: what was read out of it, or None.
        score: the verifier's, None where it could not tell.
        length: tokens.
        finished: not cut.
        entropy: nats a token, NaN where the engine does not say.
    """

    problem: Problem
    sample: int
    text: str
    answer: str | None
    score: float | None
    length: int
    finished: bool
    entropy: float

    @property
    def right(self) -> bool:
        return self.score is not None and self.score >= 1.0


def respond(
    draw: Draw,
    problems: Sequence[Problem],
    prompts: PromptEncoder,
    tokenizer,
    grader: Grader,
    batch: int,
    key,
    first: int,
) -> list[list[Answered]]:
    """For each problem its graded responses, numbered from `first`.

    Args:
        draw: makes the responses of a batch, as many to a prompt as it likes.
        problems: any number.
        prompts, tokenizer, grader: make tokens, text and verdicts.
        batch: N, the shape that is compiled.
        key: of the draws, which hang on (key, problem).
        first: the number of each problem's first response.
    """
    found: list[list[Answered]] = []
    for i in range(0, len(problems), batch):
        some = list(problems[i : i + batch])
        tokens, mask = prompts(some + some[:1] * (batch - len(some)))
        uid = np.array([p.uid for p in some] + [0] * (batch - len(some)), np.uint32)
        out = jax.device_get(draw(tokens, mask, uid, key))
        k = len(out.tokens) // batch
        made = responses(out, tokenizer)[: len(some) * k]
        owners = [p for p in some for _ in range(k)]
        scores = grader.grade([(p.kind, r.text, p.entry) for p, r in zip(owners, made, strict=True)])
        rows = [
            Answered(
                p,
                first + b % k,
                r.text,
                extract_answer(r.text),
                score,
                len(r.tokens),
                r.finished,
                float(np.mean(r.entropy)) if len(r.entropy) else 0.0,
            )
            for b, (p, r, score) in enumerate(zip(owners, made, scores, strict=True))
        ]
        found += [rows[j * k : (j + 1) * k] for j in range(len(some))]
    return found


def in_training(
    e: Engine, c: ConfigDict, prompts: PromptEncoder, sets: Mapping[str, Sequence[Problem]]
) -> Callable[[Any, Grader], dict[str, Any]]:
    """(params, grader) -> the row of metrics of all sets: greedy, and `eval.samples` samples where that is above 0."""
    k, shards = c.eval.samples, math.lcm(row_shards(e.mesh), row_shards(e.sampling[0]))
    sampled = e.drawing(k, sampler.Sampling(c.eval.temperature, c.eval.top_p).check()) if k else None

    def examine(params, grader: Grader) -> dict[str, Any]:
        row: dict[str, Any] = {}
        ask = functools.partial(respond, prompts=prompts, tokenizer=e.tokenizer, grader=grader)
        for name, problems in sets.items():
            draw = functools.partial(e.greedy, params)
            greedy = ask(draw, problems, batch=c.eval.batch, key=jax.random.key(0), first=-1)
            row |= {f"eval/{name}/{key}": v for key, v in greedy_row([g for g, *_ in greedy]).items()}
            if sampled is not None:
                batch = max(1, c.eval.batch // k // shards) * shards
                draw = functools.partial(sampled, params)
                samples = ask(draw, problems, batch=batch, key=jax.random.key(1), first=0)
                row |= {f"eval/{name}/{key}": v[0] for key, v in sampled_row(samples, (k,)).items()}
        return row

    return examine


def greedy_row(answered: Sequence[Answered]) -> dict[str, Any]:
    """accuracy with its Wilson interval, low and high, and the number of problems that could be scored."""
    scored = [a for a in answered if a.score is not None]
    right = sum(a.right for a in scored)
    low, high = wilson(right, len(scored))
    return {"accuracy": right / max(1, len(scored)), "low": low, "high": high, "problems": len(scored)}


def sampled_row(answered: Sequence[Sequence[Answered]], ks: Sequence[int]) -> dict[str, tuple[float, float, float]]:
    """`avg@n`, and `pass@k` and `maj@k` for each k, each as (value, low, high) with a bootstrap over problems.

    Responses that could not be scored are left out; a problem with fewer than k others has no pass@k or maj@k.
    """
    scored = [[a for a in some if a.score is not None] for some in answered]
    right = [sum(a.right for a in some) for some in scored]
    found = {f"avg@{max(map(len, answered))}": bootstrap(right, [len(some) for some in scored])}
    for k in ks:
        enough = [some if len(some) >= k else None for some in scored]
        found[f"pass@{k}"] = bootstrap(
            [math.nan if s is None else pass_at_k(len(s), c, k) for s, c in zip(enough, right, strict=True)]
        )
        found[f"maj@{k}"] = bootstrap(
            [math.nan if s is None else maj_at_k([a.answer for a in s], [a.right for a in s], k) for s in enough]
        )
    return found


def by_groups(answered: Sequence[Answered]) -> dict[str, list[tuple[str, int, float, float, float]]]:
    """Accuracy by difficulty, length, truncation and entropy.

    Returns:
        what -> rows (label, responses, accuracy, low, high), with intervals from a bootstrap over problems. Length and
        entropy are cut at their quartiles; what is the same for all has no rows.
    """
    scored = [a for a in answered if a.score is not None]
    keys: dict[str, Callable[[Answered], Any]] = {
        "difficulty": _difficulty(scored),
        "truncation": lambda a: "ended by itself" if a.finished else "cut",
        "length, tokens": _quartile([a.length for a in scored], lambda a: a.length, "{:.0f}"),
    }
    if not any(math.isnan(a.entropy) for a in scored):
        keys["entropy, nats"] = _quartile([a.entropy for a in scored], lambda a: a.entropy, "{:.3f}")
    tables = {}
    for what, key in keys.items():
        labels = sorted({key(a) for a in scored}, key=_natural)
        if len(labels) > 1:
            tables[what] = [(str(label), *_accuracy([a for a in scored if key(a) == label])) for label in labels]
    return tables


def _difficulty(scored: Sequence[Answered]) -> Callable[[Answered], str]:
    """The level itself where there are few, else its quartile; nothing where many levels are no numbers."""
    levels = {a.problem.difficulty for a in scored}
    if len(levels) <= _LEVELS:
        return lambda a: a.problem.difficulty
    if any(_natural(level)[0] for level in levels):
        return lambda a: ""
    value = lambda a: _natural(a.problem.difficulty)[1]
    return _quartile([value(a) for a in scored], value, "{:g}")


def _accuracy(some: Sequence[Answered]) -> tuple[int, float, float, float]:
    uids = sorted({a.problem.uid for a in some})
    place = {uid: i for i, uid in enumerate(uids)}
    right, count = np.zeros(len(uids)), np.zeros(len(uids))
    for a in some:
        right[place[a.problem.uid]] += a.right
        count[place[a.problem.uid]] += 1
    return len(some), *bootstrap(right, count)


def _quartile(values: Sequence[float], of: Callable[[Answered], float], form: str) -> Callable[[Answered], str]:
    if not values:
        return lambda a: ""
    edges = sorted(set(np.quantile(values, np.linspace(0, 1, _BINS + 1), method="nearest").tolist()))

    def label(a: Answered) -> str:
        i = min(max(0, int(np.searchsorted(edges, of(a), side="left")) - 1), max(0, len(edges) - 2))
        return f"{form.format(edges[i])} to {form.format(edges[min(i + 1, len(edges) - 1)])}"

    return label


def _natural(label: str) -> tuple:
    first = label.split(" ")[0].rpartition("=")[2]
    try:
        return 0, float(first), label
    except ValueError:
        return 1, 0.0, label


def accuracy_text(row: Mapping[str, Any]) -> str:
    """`chain_sum 41.0% [34.4, 47.9]` for every evaluation in a row of metrics."""
    names = [k.split("/")[1] for k in row if k.startswith("eval/") and k.endswith("/accuracy")]
    return "  ".join(
        f"{n} {row[f'eval/{n}/accuracy']:.1%} [{100 * row[f'eval/{n}/low']:.1f}, {100 * row[f'eval/{n}/high']:.1f}]"
        for n in names
    )
