"""The batch of a rollout: defaults, whole groups per update, and the layout of each."""

import jax
import numpy as np
import pytest
from updates import B, G, N, P, T, batch

from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.training.batch import Batch, cut, lay_out
from entropy_rl.training.packing import Plan


def prompts():
    return Prompts(batch().prompt, batch().prompt_mask, np.arange(N, dtype=np.uint32))


def rollout():
    b = batch()
    return Rollout(b.tokens, b.sampler_logp, b.old_entropy, b.mask, np.ones(B, bool))


def test_a_batch_by_default_counts_every_response_and_pushes_nothing():
    made = Batch.of(prompts(), rollout())
    b = batch()
    taken = {"prompt": b.prompt, "prompt_mask": b.prompt_mask, "tokens": b.tokens, "mask": b.mask}
    taken |= {"sampler_logp": b.sampler_logp, "old_entropy": b.old_entropy}  # the sampler's own statistics
    for name, want in taken.items():
        assert getattr(made, name) is want, name
    assert made.valid.dtype == bool and made.valid.shape == (B,) and made.valid.all()
    for name in ("advantage", "old_logp", "ref_logp"):
        zeros = getattr(made, name)
        assert zeros.shape == (B, T) and zeros.dtype == np.float32 and not zeros.any(), name
    assert made.uid.dtype == np.uint32 and made.uid.shape == (B,) and not made.uid.any()
    assert made.packed is None


def test_a_batch_holds_what_it_is_given():
    b, advantage = batch(), np.linspace(-1, 1, B, dtype=np.float32)
    made = Batch.of(
        prompts(), rollout(), valid=b.valid, advantage=advantage, old_logp=b.old_logp, uid=np.arange(B, dtype=np.uint32)
    )
    assert made.valid is b.valid and made.old_logp is b.old_logp and made.uid.tolist() == list(range(B))
    # one advantage per response, on each of its tokens and on nothing else
    assert made.advantage.dtype == np.float32
    assert np.array_equal(made.advantage, np.where(b.mask > 0, advantage[:, None], 0))
    assert made.sampler_logp is b.sampler_logp and not made.ref_logp.any()


@pytest.mark.parametrize("updates", [1, 2, 8])
def test_a_rollout_is_cut_into_whole_groups_in_order(updates):
    parts = cut(batch(), updates)
    assert [len(part.prompt) for part in parts] == [N // updates] * updates
    assert [len(part.tokens) for part in parts] == [N // updates * G] * updates
    for joined, whole in zip(jax.tree.map(lambda *x: np.concatenate(x), *parts), batch(), strict=True):
        assert joined is whole is None or np.array_equal(joined, whole)


def test_packed_rows_take_the_place_of_the_prompts():
    b = batch()
    packed = lay_out(Plan("packed", 4, B // 4, P + T - 1, 0), b)
    assert packed.prompt.shape == packed.prompt_mask.shape == (0, P) and packed.packed is not None
    for name in set(Batch._fields) - {"prompt", "prompt_mask", "packed"}:
        assert getattr(packed, name) is getattr(b, name), name
    assert lay_out(Plan("group", 4, B // 4, P + T - 1, 0), b) is b
