"""What claims 7, 8 and 11 need of a run: the tokens of its responses to held-out problems, and its language."""

import ast
import pathlib
import sysconfig
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import places

from entropy_rl import policy as policy_lib
from entropy_rl.data import Problem, PromptEncoder, Sources
from entropy_rl.data.tokens import encode_text
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.rollouts import pieces
from entropy_rl.report import rescore, texts, words
from entropy_rl.report.tokens import Step
from entropy_rl.sampling.base import Prompts
from entropy_rl.training.engine import decoding_of

NEXT_TO_NOTHING = 0.01  # nats
TOP = 0.2  # the share of the positions that are forks
LANGUAGE = 50_000  # tokens of the fixed text


def kept_steps(run: pathlib.Path) -> list[int]:
    """The steps of the run's checkpoints, ascending."""
    return Checkpoints(run / "checkpoints").steps()


def responses(run: pathlib.Path, step: int) -> tuple[list[Problem], Step]:
    """One sampled response of a step's policy to each held-out problem, with the entropy of its tokens."""
    c, policy = policy_lib.config_of(str(run)), policy_lib.load(str(run), step=step)
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    encoder = PromptEncoder(c.data, policy.tokenizer, sources.train.train, policy.cfg.vocab_size)
    sources.fit(encoder.fault, encoder.fault, c.data.bad_rows)
    problems = [problem for some in sources.evals.values() for problem in some]
    prompts = Prompts(*encoder(problems), np.array([p.uid for p in problems], np.uint32))
    decoding = decoding_of(c.rollout, policy.cfg.eos_ids)
    made = jax.device_get(policy.rollout(prompts, jax.random.key(c.seed), n=1, decoding=decoding))
    inside = np.asarray(made.mask) > 0
    rows = [{"prompt": p.uid, "question": p.question, "length": int(n)} for p, n in zip(problems, inside.sum(axis=1))]
    ids = np.asarray(made.tokens)
    values = {"logp": np.asarray(made.logp)[inside], "entropy": np.asarray(made.entropy)[inside]}
    return problems, Step(step, rows, pieces(ids, policy.tokenizer)[inside], ids[inside], values, None)


def entropies(problems: list[Problem], step: Step) -> dict[str, float]:
    """Shares and means of the entropy of responses: in all, at the places of decision and elsewhere, by group."""
    entropy = step.values["entropy"].astype(np.float64)
    found = {"below_0.01": float(np.mean(entropy < NEXT_TO_NOTHING)), "mean": float(entropy.mean())}
    found |= {f"p{q}": float(np.quantile(entropy, q / 100)) for q in (50, 80, 95)}
    each = np.split(step.token, np.cumsum(step.lengths)[:-1])
    if decide := places.BEDS.get(problems[0].kind.rpartition(":")[2]):
        at = [places.tokens_at(decide(p, "".join(own)), own) for p, own in zip(problems, each, strict=True)]
        decided = np.concatenate(at)
        found |= {"decision_share": float(decided.mean())}
        found |= {"decision": _mean(entropy[decided]), "others": _mean(entropy[~decided])}
    groups = np.array([places.group_of(t, b) for own in each for t, b in zip(own, ["", *own[:-1]], strict=True)])
    return found | {f"group/{name}": _mean(entropy[groups == name]) for name in places.GROUPS}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def forks(run: pathlib.Path) -> dict[str, Any]:
    """Claims 7 and 8: the start's and the end's responses, and the start's under every later policy that was kept."""
    first, *later = kept_steps(run)
    problems, start = responses(run, first)
    found: dict[str, Any] = {f"start/{k}": v for k, v in entropies(problems, start).items()}
    found |= {f"end/{k}": v for k, v in entropies(*responses(run, later[-1])).items()}
    base = rescore.score(str(run), first, start)
    for number in later:
        after = rescore.score(str(run), number, start)
        own = {f"{number}/{key}": value for key, value in drift(base, after).items()}
        found |= own | {key.replace(str(number), "last", 1): value for key, value in own.items() if number == later[-1]}
    listed, _ = words.by_entropy(start)
    return found | {"words": [list(row.values()) for row in listed]}


def drift(base: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How far the entropy of the same tokens has moved: in the highest fifth of the first policy, and in the rest."""
    change = np.abs(after.astype(np.float64) - base)
    highest = np.zeros(base.size, bool)
    highest[np.argsort(-base, kind="stable")[: int(np.ceil(TOP * base.size))]] = True
    moved = {"change_top": _mean(change[highest]), "change_rest": _mean(change[~highest])}
    return {"overlap": rescore.overlap(base, after, TOP)} | moved


def language(run: pathlib.Path, n: int = LANGUAGE) -> dict[str, float]:
    """Claim 11: the cross-entropy of the start and of the end on Python's own docstrings, nats per token."""
    first, *_, last = kept_steps(run)
    tokenizer = policy_lib.load(str(run), step=first).tokenizer
    text = tokenizer.decode(encode_text(tokenizer, "\n\n".join(docstrings(6 * n)))[:n])
    found = {"crc32": float(zlib.crc32(text.encode()))}  # the same text for all runs
    for name, number in (("start", first), ("end", last)):
        step = texts.score(policy_lib.load(str(run), step=number), [texts.Passage("docstrings", "", text)])
        found |= {name: -float(step.values["logp"].mean(dtype=np.float64)), "tokens": float(step.id.size)}
    return found


def docstrings(characters: int) -> Iterator[str]:
    """The docstrings of the modules of Python's standard library, by file name, until there are that many characters.

    Modules alone, not packages: tests and what was installed are in folders.
    """
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text
                characters -= len(text)
                if characters <= 0:
                    return
