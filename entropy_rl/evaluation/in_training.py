"""The evaluation of a policy while it trains."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from ml_collections import ConfigDict

from entropy_rl.data import Problem, PromptEncoder
from entropy_rl.evaluation.respond import GREEDY_SAMPLE, respond
from entropy_rl.evaluation.tables import greedy_row, sampled_row
from entropy_rl.model.transformer import Params
from entropy_rl.rewards import Grader
from entropy_rl.runtime.mesh import row_shards
from entropy_rl.sampling.base import GREEDY, Sampling
from entropy_rl.training.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Examiner(NamedTuple):
    """Evaluates a policy on fixed sets of problems.

    Attributes:
        engine: samples.
        tokenizer: makes text of the responses.
        evaluation: the config section `eval`.
        encoder: makes tokens of the problems.
        sets: name -> problems.
        grader: scores the responses.
    """

    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    evaluation: ConfigDict
    encoder: PromptEncoder
    sets: Mapping[str, Sequence[Problem]]
    grader: Grader

    def examine(self, params: Params) -> dict[str, Any]:
        """The metrics `eval/<name>/*` of all sets: greedy, and with `eval.samples` samples if that is above 0."""
        engine, k = self.engine, self.evaluation.samples
        shards = math.lcm(row_shards(engine.training.mesh), row_shards(engine.sampling.mesh))
        row: dict[str, Any] = {}
        for name, problems in self.sets.items():
            ask = functools.partial(
                respond, engine.sampler, params, problems, self.encoder, self.tokenizer, self.grader
            )
            greedy = ask(
                n=1,
                decoding=engine.decoding._replace(sampling=GREEDY),
                batch=self.evaluation.batch,
                key=jax.random.key(0),
                first=GREEDY_SAMPLE,
            )
            row |= {f"eval/{name}/{key}": v for key, v in greedy_row([a for a, *_ in greedy]).items()}
            if k:
                sampling = Sampling(self.evaluation.temperature, self.evaluation.top_p).check()
                samples = ask(
                    n=k,
                    decoding=engine.decoding._replace(sampling=sampling),
                    batch=sampled_batch(self.evaluation, shards),
                    key=jax.random.key(1),
                    first=0,
                )
                row |= {f"eval/{name}/{key}": v[0] for key, v in sampled_row(samples, (k,)).items()}
        return row


def sampled_batch(evaluation: ConfigDict, shards: int) -> int:
    """Prompts that are sampled together, so that `eval.samples` of each make about as many rows as a greedy batch."""
    return max(1, int(evaluation.batch) // int(evaluation.samples) // shards) * shards
