"""Every token of an evaluation's responses, in the columns of a run's recorded rollouts (docs/rollouts.md)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from etils import epath

from entropy_rl.evaluation.respond import Answered
from entropy_rl.record import files, rollouts
from entropy_rl.runtime import distributed
from entropy_rl.sampling.base import Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Keep = Callable[[Sequence[Answered], Sequence[Response]], None]  # takes a batch's responses


class Recorder:
    """Writes the responses into `rollouts/` of a folder, a file per batch; those of an earlier evaluation are removed.

    Args:
        out: the evaluation's folder.
        budget_gb: of all files together, 10^9 bytes. Beyond it, or if the disk is nearly full, responses are no longer
            recorded, and the log says so. 0: nothing is recorded.
    """

    def __init__(self, out: str, budget_gb: float):
        self._folder, self._left, self._files = epath.Path(out) / rollouts.FOLDER, budget_gb * 1e9, 0
        self._writes = distributed.first() and budget_gb > 0
        if distributed.first() and self._folder.exists():
            for old in self._folder.glob("*.parquet"):
                old.unlink()

    def keep(self, policy: str, problem_set: str, step: int | None, tokenizer: "PreTrainedTokenizerBase") -> Keep:
        """A function that records responses of one policy to one set; `step`: of its run, null if it has none."""

        def record(answered: Sequence[Answered], responses: Sequence[Response]) -> None:
            if not self._writes:
                return
            contents = encode(answered, responses, policy, problem_set, step, tokenizer)
            reason = rollouts.no_room(self._folder, len(contents))
            if reason is None and len(contents) > self._left:
                reason = "log.rollouts_gb is used up"
            if reason is not None:
                logging.warning("rollouts/: the responses from here on are not recorded: %s", reason)
                self._writes = False
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            files.replace(self._folder / f"{self._files:05d}.parquet", contents)
            self._files, self._left = self._files + 1, self._left - len(contents)

        return record


def encode(
    answered: Sequence[Answered],
    responses: Sequence[Response],
    policy: str,
    problem_set: str,
    step: int | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> bytes:
    """The bytes of a Parquet file with a row per response; see `Recorder.keep`."""
    n, T = len(responses), max((len(r.tokens) for r in responses), default=0)
    mask = np.arange(T) < np.array([len(r.tokens) for r in responses])[:, None]
    lists = {name: np.zeros((n, T), dtype) for name, dtype in (("id", np.int32), ("logp", "f4"), ("entropy", "f4"))}
    for b, r in enumerate(responses):
        for name, values in (("id", r.tokens), ("logp", r.logp), ("entropy", r.entropy)):
            lists[name][b, : len(values)] = values
    if np.isnan(lists["entropy"]).any():  # a server's responses: not measured
        del lists["entropy"]
    columns: dict[str, Sequence[Any]] = {
        "policy": [policy] * n,
        "set": [problem_set] * n,
        "step": [step] * n,
        "prompt": [a.problem.uid for a in answered],
        "sample": [a.sample for a in answered],
        "question": [a.problem.question for a in answered],
        "text": [a.text for a in answered],
        "answer": [a.answer for a in answered],
        "reward": [a.score for a in answered],
        "length": [a.length for a in answered],
        "finished": [a.finished for a in answered],
    }
    return rollouts.encode(columns, lists | {"token": rollouts.pieces(lists["id"], tokenizer)}, mask)
