"""Sampling options that make no distribution, stop texts, and rollouts as responses."""

import numpy as np
import pytest

from entropy_rl.data import tiny_tokenizer
from entropy_rl.sampling.base import Rollout, Sampling, responses, stopper


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(temperature=-1.0), "rollout.temperature=-1.0 must be 0"),
        (dict(top_p=0.0), "rollout.top_p=0.0 must be above 0"),
        (dict(top_k=-1), "rollout.top_k=-1 must be 0"),
    ],
)
def test_wrong_sampling_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**how).check()


def test_stop_texts():
    tokenizer = tiny_tokenizer()
    stop = stopper(tokenizer, ("= 4", "!"))
    made = tokenizer("2 + 2 = 4, so", add_special_tokens=False)["input_ids"]
    kept = stop(np.array(made))
    assert tokenizer.decode(made[:kept]).endswith("= 4") and "= 4" not in tokenizer.decode(made[: kept - 1])
    assert stop(np.array(made[: kept - 1])) is None
    assert stopper(tokenizer, ()) is None


def test_a_rollout_as_responses():
    tokenizer = tiny_tokenizer()
    out = Rollout.empty(2, 4)
    ids = tokenizer("1+1", add_special_tokens=False)["input_ids"]
    out.tokens[1, :3], out.mask[1, :3], out.entropy[1, :3], out.finished[1] = ids, 1, 0.5, True
    nothing, made = responses(out, tokenizer)
    assert (nothing.text, len(nothing.tokens), nothing.finished) == ("", 0, False)
    assert made.text == "1+1" and made.entropy.tolist() == [0.5] * 3 and made.finished
