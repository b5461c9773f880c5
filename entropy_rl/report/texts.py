"""Any text under any model: the log-probability and entropy of its tokens, with no run at all."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from entropy_rl import config
from entropy_rl.data import Problem, Sources
from entropy_rl.data.tokens import check_ids, encode_rendered, encode_text, quote
from entropy_rl.data.worked import worked_solution
from entropy_rl.policy import Policy
from entropy_rl.record.rollouts import pieces
from entropy_rl.report.figure import Figure
from entropy_rl.report.rescore import TOP, overlap, score_rows
from entropy_rl.report.tokens import Step
from entropy_rl.runtime.files import expand

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2048  # tokens that are scored together; a longer text is cut into pieces of this, each read afresh


class Passage(NamedTuple):
    """A text to be scored.

    Attributes:
        name: what it is called on the page.
        before: the text before it, which is read but not shown; "": none.
        text: its tokens are scored.
    """

    name: str
    before: str
    text: str


def of_file(path: str) -> Passage:
    """A text file, whole.

    Raises:
        ValueError: It cannot be read as UTF-8, or it is empty.
    """
    try:
        text = epath.Path(expand(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text: {path} cannot be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise ValueError(f"--text: {path} is empty")
    return Passage(epath.Path(path).name, "", text)


def of_dataset(task: str, n: int) -> list[Passage]:
    """n problems of a task, a file or a data set (`data.task`): each solution, or else the answer, after its question.

    Raises:
        ValueError: It cannot be opened, or it has fewer; names the file and the line.
    """
    c = config.default()
    c.data.task, c.eval.every = task, 0
    source = Sources(c.seed, c.data, c.warmup, c.eval, 0).train
    problems = source.stored[:n] or source.train(1, n)
    return [Passage(problem.question, f"{problem.question}\n", _solution(problem)) for problem in problems]


def _solution(problem: Problem) -> str:
    try:
        return worked_solution(problem, random.Random(problem.uid), 0.0)
    except ValueError:  # it has none
        return problem.answer


def score(policy: Policy, passages: Sequence[Passage]) -> Step:
    """The tokens of the passages with their logp and entropy, at temperature 1.

    What is before a passage is read first, and a BOS where the tokenizer has one. The first token of a piece with
    nothing before it has no entropy, and is left out.

    Raises:
        ValueError: What is before a passage leaves it no room, or the model lacks a token; names the passage.
    """
    rows: list[dict[str, Any]] = []
    whole: list[tuple[list[int], list[int]]] = []
    for number, passage in enumerate(passages):
        for sample, (start, piece) in enumerate(_pieces(policy, passage)):
            whole.append((start, piece))
            rows.append(
                {"prompt": number, "sample": sample, "question": passage.name, "length": len(piece), "finished": True}
            )
    width = max((len(start) + len(piece) for start, piece in whole), default=1)
    tokens_RxS, shown_RxS = np.zeros((len(whole), width), np.int32), np.zeros((len(whole), width), bool)
    mask_RxS = np.zeros((len(whole), width), np.int32)
    for r, (start, piece) in enumerate(whole):
        end = len(start) + len(piece)
        tokens_RxS[r, :end], mask_RxS[r, :end], shown_RxS[r, len(start) : end] = [*start, *piece], 1, True
    logp_RxS, entropy_RxS = score_rows(policy, tokens_RxS, mask_RxS)
    texts = pieces(tokens_RxS, policy.tokenizer)[shown_RxS]
    values = {"logp": logp_RxS[shown_RxS], "entropy": entropy_RxS[shown_RxS]}
    return Step(0, rows, texts, tokens_RxS[shown_RxS], values, None)


def _pieces(policy: Policy, passage: Passage) -> Iterator[tuple[list[int], list[int]]]:
    """(the tokens before, the tokens shown) of every piece of a passage."""
    tokenizer: PreTrainedTokenizerBase = policy.tokenizer
    start = encode_rendered(tokenizer, quote(tokenizer, passage.before))
    ids = encode_text(tokenizer, passage.text)
    name = f"the text {passage.name[:60]!r}"
    check_ids(tokenizer, [*start, *ids], policy.cfg.vocab_size, name)
    room = min(LONGEST, policy.cfg.max_positions) - len(start)
    if room < 2:
        raise ValueError(f"{name}: the {len(start)} tokens before it leave it no room; the model reads {room} more")
    for i in range(0, len(ids), room):
        piece = ids[i : i + room]
        if start:
            yield start, piece
        elif len(piece) > 1:
            yield piece[:1], piece[1:]


def overlaps(steps: Mapping[str, Step]) -> Figure:
    """For each pair of models with the same tokens, how many of the 20% highest positions they share."""
    table: list[dict[str, Any]] = []
    for (one, first), (other, second) in itertools.combinations(steps.items(), 2):
        if np.array_equal(first.id, second.id):
            a, b = first.values["entropy"].astype(np.float64), second.values["entropy"].astype(np.float64)
            row: dict[str, Any] = {"of": one, "and": other, "tokens": a.size, "overlap": overlap(a, b)}
            row |= {"by chance": TOP, "mean entropy": a.mean(), "mean entropy of the other": b.mean()}
            table.append(row | {"mean size of the difference, nats": np.abs(a - b).mean()})
    return Figure(
        "model_overlap",
        "Do the models fork at the same tokens?",
        "The share of the 20% of the positions with the highest entropy under one model that are among the highest "
        "20% under the other; models that cut the text into other tokens cannot be compared.",
        "2506.01939, table 1",
        table,
    )
