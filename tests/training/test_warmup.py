"""The warm-up: worked solutions as batches, and the same losses from packed rows."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import rows, tiny

from entropy_rl import config, loop
from entropy_rl.data import PromptEncoder, Task, tiny_tokenizer
from entropy_rl.preflight import programs
from entropy_rl.training import engine, warmup
from entropy_rl.training.warmup import Lessons, negative_logp


def lessons(seed=0, max_tokens=20) -> Lessons:
    c, tokenizer = tiny(**{"warmup.batch": 4}), tiny_tokenizer()
    task = Task("chain_sum", c.data.settings.to_dict(), seed)
    return Lessons(c.warmup, seed, max_tokens, task, PromptEncoder(c.data, tokenizer))


def test_a_lesson_is_a_worked_solution_and_the_end_of_sequence():
    tokenizer, batch = tiny_tokenizer(), lessons().batch(3)
    assert batch.prompt.shape == (4, 9) and batch.tokens.shape == (4, 20) and batch.packed is None
    assert batch.valid.all() and not batch.advantage.any() and not batch.old_logp.any()
    for tokens, mask, prompt, uid in zip(batch.tokens, batch.mask, batch.prompt, batch.uid, strict=True):
        length = mask.sum()
        assert mask[:length].all() and not tokens[length:].any() and tokens[length - 1] == tokenizer.eos_token_id
        question = tokenizer.decode(prompt, skip_special_tokens=True)
        a, sign, b = re.search(r"(\d) ([+-]) (\d) =", question).groups()
        answer = int(a) + int(b) * (1 if sign == "+" else -1)
        assert f"\\boxed{{{answer}}}" in tokenizer.decode(tokens[:length]) and uid > 0


def test_a_lesson_is_a_function_of_seed_and_update():
    first, again, next_one, other = lessons().batch(0), lessons().batch(0), lessons().batch(1), lessons(seed=1).batch(0)
    for name in ("prompt", "tokens", "mask", "uid"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.uid, next_one.uid) and not np.array_equal(first.uid, other.uid)


def test_a_solution_that_is_too_long_is_named():
    (problem,) = Task("chain_sum", {"max_terms": 2, "max_digits": 1}, 0).train(1, 1)
    message = r"rollout\.max_tokens=3 is less than the \d+ tokens of a worked solution"
    with pytest.raises(ValueError, match=message):
        lessons(max_tokens=3).solution(problem, 0)
    assert lessons(max_tokens=3).fault(problem).startswith("rollout.max_tokens=3 is less than")
    assert lessons().fault(problem) is None


def test_the_supervised_loss_is_the_negative_logp_with_nothing_clipped():
    logp = jnp.array([[-1.0, -0.5, 0.0]])
    loss, clipped = negative_logp(logp, None)
    assert np.array_equal(loss, -logp) and clipped.dtype == bool and not clipped.any()


@pytest.mark.slow
def test_a_warm_up_in_packed_rows_or_in_pieces_is_the_same_warm_up(tmp_path, monkeypatch):
    lay_out, packed = engine.lay_out, []

    def spy(plan, batch):
        out = lay_out(plan, batch)
        packed.append(out.packed is not None)
        return out

    monkeypatch.setattr(engine, "lay_out", spy)
    losses = {}
    for name, layout, pieces in (("group", "group", 1), ("packed", "packed", 1), ("pieces", "group", 4)):
        more = {"warmup.layout": layout, "warmup.micro_batches": pieces, "warmup.updates": 8}
        loop.run(tiny("grpo", **more, **{"train.steps": 0, "eval.every": 0, "mesh.data": 1}), str(tmp_path / name))
        losses[name] = rows(tmp_path / name)[0]["warmup/loss"]
    assert packed == [False] * 8 + [True] * 8 + [False] * 8
    assert losses["packed"] == pytest.approx(losses["group"], rel=1e-4) and losses["group"] > 0.1
    assert losses["pieces"] == pytest.approx(losses["group"], rel=1e-4)


@pytest.mark.slow
def test_a_long_warm_up_batch_is_computed_piece_by_piece():
    """The compiled update of four pieces holds about a quarter of the activations of one piece."""

    def activations(pieces: int) -> int:
        c = tiny(**{"warmup.micro_batches": pieces, "warmup.batch": 64, "rollout.max_tokens": 64, "mesh.data": 1})
        taught = warmup.engine_of(c, engine.load(c.model, 0).model_config, None, engine.mesh_of(c))
        update = programs.update(programs.Run(warmup.config_of(c), taught))
        return update.compile()[1].memory_analysis().temp_size_in_bytes

    assert activations(4) < 0.5 * activations(1)


def test_pieces_of_a_warm_up_batch_are_whole():
    with pytest.raises(ValueError, match=r"warmup\.micro_batches=3 must divide warmup\.batch=32"):
        config.check(tiny(**{"warmup.micro_batches": 3}))
    with pytest.raises(ValueError, match=r"warmup\.batch / warmup\.micro_batches = 1 must be a multiple of"):
        engine.mesh_of(tiny(**{"warmup.micro_batches": 32}))


def test_a_warm_up_whose_gradient_stays_not_finite_ends_with_what_to_lower(tmp_path):
    c = tiny("grpo", **{"warmup.lr": 1e30, "optim.max_skipped": 2, "mesh.data": 1})
    message = r"warm-up update \d+: the gradient was not finite in 3 updates in a row .*; lower warmup\.lr=1e\+30"
    with pytest.raises(RuntimeError, match=message):
        loop.run(c, str(tmp_path))
