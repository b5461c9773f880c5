"""Sampling options that make no distribution, stop texts, and rollouts as responses."""

import numpy as np
import pytest
import tiny_models

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
    kept = stop(np.array(made), 0)
    assert tokenizer.decode(made[:kept]).endswith("= 4") and "= 4" not in tokenizer.decode(made[: kept - 1])
    assert stop(np.array(made[: kept - 1]), 0) is None
    assert stopper(tokenizer, ()) is None


def test_a_rollout_as_responses():
    tokenizer = tiny_tokenizer()
    out = Rollout.empty(2, 4)
    ids = tokenizer("1+1", add_special_tokens=False)["input_ids"]
    out.tokens[1, :3], out.mask[1, :3], out.entropy[1, :3], out.finished[1] = ids, 1, 0.5, True
    nothing, made = responses(out, tokenizer)
    assert (nothing.text, len(nothing.tokens), nothing.finished) == ("", 0, False)
    assert made.text == "1+1" and made.entropy.tolist() == [0.5] * 3 and made.finished


class Counted:
    """A tokenizer that counts the tokens it makes text of."""

    def __init__(self, tokenizer):
        self.count, self.all_special_tokens, self._tokenizer = 0, tokenizer.all_special_tokens, tokenizer

    def decode(self, tokens, **options):
        self.count += len(tokens)
        return self._tokenizer.decode(tokens, **options)


def whole(tokenizer, tokens, stops):
    """How many tokens to keep, found by making text of every beginning of a response."""
    texts = (tokenizer.decode(tokens[:i], skip_special_tokens=True) for i in range(1, len(tokens) + 1))
    return next((i for i, text in enumerate(texts, 1) if any(s in text for s in stops)), None)


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_models.tiny_tokenizer], ids=["characters", "bytes"])
def test_stop_texts_are_found_a_few_tokens_at_a_time(make):
    """Looked at in steps of any size, over random tokens, among them special ones and pieces of characters."""
    tokenizer, rng = make(), np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        tokens = rng.integers(0, len(tokenizer), 80)
        # without the sign for a broken character, which may be there only until the next token
        text = max(tokenizer.decode(tokens, skip_special_tokens=True).split("\ufffd"), key=len)
        at = int(rng.integers(0, max(len(text) - 4, 1)))
        stops = (text[at : at + int(rng.integers(1, 5))] or "x", "never there")
        want, stop, seen, kept = whole(tokenizer, tokens, stops), stopper(tokenizer, stops), 0, None
        while kept is None and seen < len(tokens):
            more = seen + int(rng.integers(1, 20))
            kept, seen = stop(tokens[:more], seen), min(more, len(tokens))
        assert kept == want == stop(tokens, 0)
        ended += want is not None
    assert ended > 30


def test_a_look_does_not_depend_on_the_length_of_a_response():
    tokenizer = Counted(tiny_tokenizer())
    tokens = np.array(tiny_tokenizer()("1 + 2 - 3 * ", add_special_tokens=False)["input_ids"] * 500)
    stop = stopper(tokenizer, ("= 4", "!"))
    for seen in (100, len(tokens) - 16):
        tokenizer.count = 0
        assert stop(tokens[: seen + 16], seen) is None
        assert 16 <= tokenizer.count < 100
    tokenizer.count = 0
    assert stop(np.append(tokens, tiny_tokenizer()("!", add_special_tokens=False)["input_ids"]), 0) == len(tokens) + 1
    assert tokenizer.count < 12 * len(tokens)


def test_a_stop_text_that_is_a_special_token_is_found():
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token
    made = np.array([*tokenizer("1+1", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id, 7])
    assert stopper(tokenizer, (end,))(made, 0) == len(made) - 1
    assert stopper(tokenizer, (f"1{end}", "9"))(made, 0) == len(made) - 1
