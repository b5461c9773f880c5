"""Settings that fit are found by changing the part that is too large, and only that."""

import jax
import pytest

from entropy_rl import config
from entropy_rl.preflight import chips, compiled, programs
from entropy_rl.preflight.estimate import estimate
from entropy_rl.preflight.sizes import bytes_per_chip
from entropy_rl.preflight.suggest import suggest

GPU = chips.parse("h100:1")


def settings(**changes):
    c = config.default()
    c.model.source, c.mesh.data, c.eval.every = "Qwen/Qwen2.5-0.5B", 1, 0
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 8, 8, 512, 128
    c.train.updates_per_rollout = 1
    c.update_from_flattened_dict(changes)
    return c


def on(gigabytes):
    """Preflight on a chip of so much memory."""

    def preflight(c, topology):
        report = estimate(c, topology)
        return report._replace(capacity=gigabytes * 1e9, fits=report.peak <= gigabytes * 1e9)

    return preflight


def test_what_fits_is_left_as_it_is():
    found = suggest(settings(), GPU, on(80))
    assert (found.settings, found.trials, found.report.fits) == ({}, 1, True)


@pytest.mark.parametrize(
    "gigabytes, wanted",
    [(24, {"train.micro_batches"}), (12, {"train.micro_batches", "model.remat"}), (6, {"model.lora.rank"})],
)
def test_less_memory_takes_pieces_then_remat_then_lora(gigabytes, wanted):
    c = settings()
    found = suggest(c, GPU, on(gigabytes))
    assert found.report.fits and set(found.settings) >= wanted
    assert ("model.lora.rank" in found.settings) == ("model.lora.rank" in wanted)
    assert c.train.micro_batches == 1  # the caller's is as it was
    for key in found.settings:  # none of them was needless
        fewer = {k: v for k, v in found.settings.items() if k != key}
        assert not on(gigabytes)(settings(**fewer), GPU).fits


def test_a_large_rollout_gets_fewer_slots():
    many = {"rollout.prompts": 64, "rollout.max_tokens": 4096, "train.micro_batches": 64, "model.remat": "full"}
    found = suggest(settings(**many), GPU, on(30))
    assert found.report.fits and set(found.settings) == {"rollout.slots"}
    twice = {"rollout.slots": 2 * found.settings["rollout.slots"]}
    assert not on(30)(settings(**many, **twice), GPU).fits


def test_if_nothing_fits_the_last_report_says_so():
    found = suggest(settings(), GPU, on(1))
    assert not found.report.fits and found.settings == {"model.lora.rank": 16}


def test_after_what_does_not_fit_nothing_is_compiled(monkeypatch):
    """For a CPU in a TPU's place, whose compiler is not needed here: only memory is looked at."""
    monkeypatch.setattr(compiled, "devices", lambda _: jax.devices()[:1])
    c = config.default()
    c.model.source, c.mesh.data, c.eval.every = "tiny", 1, 0
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 4, 2, 8, 8
    c.train.updates_per_rollout, c.train.micro_batches = 1, 2
    state = bytes_per_chip(programs.prepare(c, jax.devices()[:1]).engine.abstract_state)
    v5e = chips.parse("v5e:1x1")

    def programs_of(memory, **options):
        monkeypatch.setitem(chips.CHIPS, "v5e", chips.CHIPS["v5e"]._replace(memory=memory))
        return compiled.compile_for(c, v5e, **options).programs

    alone = programs_of(0.9 * state)
    assert set(alone) == {"update"} and "the state alone" in alone["update"]["error"]
    assert set(programs_of(1.01 * state, first_failure=True)) == {"update"}
    assert set(programs_of(1.01 * state)) == {"update", "score", "rollout"}
