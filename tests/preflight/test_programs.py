"""The programs of a run that preflight looks at: none that a run executes is left out."""

import jax
import pytest

from entropy_rl import config
from entropy_rl.preflight import chips, collectives, hlo, programs, traffic
from entropy_rl.preflight.estimate import estimate
from entropy_rl.preflight.programs import Run


def tiny(**changes):
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 8, 4, 32, 16
    c.train.updates_per_rollout, c.mesh.data, c.eval.batch, c.warmup.batch, c.model.source = 2, 1, 8, 8, "tiny"
    c.update_from_flattened_dict(changes)
    return c


def prepared(**changes) -> Run:
    return programs.prepare(tiny(**changes), jax.devices()[:1])


def test_the_programs_of_a_run_on_gpus():
    c = tiny(**{"measure.every": 5, "warmup.updates": 3, "warmup.micro_batches": 2})
    found = estimate(c, chips.parse("h100:1"))
    assert set(found.programs) == {"update", "measured update", "warm-up update", "rollout"}
    plain, measured = (found.programs[name]["peak"] for name in ("update", "measured update"))
    assert measured == plain + found.parameters  # those from before the update
    c.warmup.micro_batches = 1
    assert (
        estimate(c, chips.parse("h100:1")).programs["warm-up update"]["peak"]
        > (found.programs["warm-up update"]["peak"])
    )
    c.measure.every = c.warmup.updates = 0
    assert set(estimate(c, chips.parse("h100:1")).programs) == {"update", "rollout"}


def test_the_reference_policy_is_counted_wherever_it_is_in_memory():
    plain, c = tiny(), tiny()
    config.apply_recipe(c, "reference_kl")
    with_ref, without = (estimate(x, chips.parse("h100:1")) for x in (c, plain))
    for name in ("update", "rollout"):
        assert with_ref.programs[name]["peak"] == without.programs[name]["peak"] + without.parameters


def test_adapters_and_optimisers_are_counted_by_what_they_keep():
    """Of a frozen parameter there are 2 bytes, and neither gradients nor moments; Adafactor keeps nearly nothing."""
    chip = chips.parse("h100:1")
    shape = {"model.source": "Qwen/Qwen2.5-0.5B", "data.max_prompt_len": 64, "model.dtype": "bfloat16"}
    full = estimate(tiny(**shape), chip)
    lora = estimate(tiny(**shape, **{"model.lora.rank": 16}), chip)
    half = estimate(tiny(**shape, **{"model.param_dtype": "bfloat16", "optim.name": "adafactor"}), chip)
    assert full.optimiser == pytest.approx(2 * full.parameters, rel=1e-3)
    adapters = lora.optimiser / 2
    assert lora.parameters == pytest.approx(full.parameters / 2 + adapters, rel=1e-3) and adapters < 0.05 * 2e9
    assert half.parameters == full.parameters / 2 and half.optimiser < 0.02 * full.optimiser
    saved = full.programs["update"]["peak"] - lora.programs["update"]["peak"]
    assert saved == pytest.approx(4.5 * full.parameters - 5 * adapters, rel=1e-3)
    assert 0.6 < lora.useful_flops / full.useful_flops < 0.8
    with pytest.raises(ValueError, match=r"model\.lora\.rank=512 is more than k_proj, 896 by 128, can have"):
        estimate(tiny(**shape, **{"model.lora.rank": 512}), chip)


def test_the_warm_ups_update_has_its_own_batch_and_pieces():
    lesson = programs.warm_up(prepared(**{"warmup.updates": 3, "warmup.batch": 32, "warmup.micro_batches": 4}))
    args = programs.update(lesson).args[1]
    assert (lesson.pieces, lesson.sequences) == (4, 32)
    assert args.prompt.shape == (32, 16) and args.tokens.shape == (32, 32)


def test_a_measured_update_is_the_engines():
    run = prepared()
    plain, measured = (programs.update(run, measured=wanted).shapes()[1] for wanted in (False, True))
    assert "entropy/delta" in measured and "entropy/delta" not in plain


@pytest.mark.parametrize(
    "changes, sizes",
    [
        ({}, []),  # 8 prompts and 8 slots, where a rollout has 8 and 32
        ({"eval.batch": 16}, [(16, 1, 16)]),
        ({"eval.batch": 16, "eval.samples": 4}, [(16, 1, 16)]),  # 4 prompts with 4 samples are no larger than a rollout
        ({"eval.batch": 64, "eval.samples": 4}, [(64, 1, 64), (16, 4, 64)]),
        ({"eval.batch": 64, "eval.samples": 4, "rollout.slots": 8}, [(64, 1, 8), (16, 4, 8)]),
        ({"eval.batch": 64, "eval.every": 0}, []),
    ],
)
def test_evaluations_that_are_larger_than_a_rollout_are_looked_at(changes, sizes):
    found = programs.evaluations(prepared(**changes))
    assert [(run.config.rollout.prompts, run.config.rollout.samples, run.slots) for run in found] == sizes


@pytest.mark.parametrize(
    "changes, scored",
    [
        ({"train.updates_per_rollout": 1}, False),
        ({}, True),
        ({"train.updates_per_rollout": 1, "train.micro_batches": 2}, True),
    ],
)
def test_scoring_is_looked_at_if_a_run_scores(changes, scored):
    assert prepared(**changes).is_scored == scored


@pytest.mark.parametrize("changes, scored", [({}, True), ({"train.updates_per_rollout": 1}, False)])
def test_a_method_that_reads_more_makes_its_own_pass_for_the_first_update(changes, scored):
    c = tiny(**{"train.micro_batches": 2} | changes)
    config.apply_recipe(c, "siren")
    run = programs.prepare(c, jax.devices()[:1])
    assert run.is_scored == scored
    # statistics, forward again and a backward pass of twice that: 4 forward passes, and with remat 5
    flops = [estimate(x, chips.parse("h100:1")).programs["update"]["flops"] for x in (c, tiny(**changes))]
    assert 1 < flops[0] / flops[1] < 2


def test_the_text_of_a_method_that_reads_more_can_be_read():
    """The bisection of a nucleus is a loop with a constant bound, so its rounds over the vocabulary are counted."""
    moved = {}
    for name in ("dr_grpo", "siren"):
        c = tiny(**{"train.updates_per_rollout": 1, "model.tiny.n_layers": 1})
        config.apply_recipe(c, name)
        run = programs.prepare(c, jax.devices()[:1])
        program = hlo.read(programs.update(run).compile()[1].as_text())
        assert not collectives.find(program, programs.trips(run))
        moved[name] = traffic.bytes_moved(program, programs.trips(run))
    assert moved["siren"] > moved["dr_grpo"]


@pytest.mark.parametrize("method", ["reference_kl", "lopti"])
def test_a_reference_policy_and_a_second_turn_score_even_a_single_update(method):
    c = tiny(**{"train.updates_per_rollout": 1})
    config.apply_recipe(c, method)
    run = programs.prepare(c, jax.devices()[:1])
    assert run.is_scored
    assert (programs.batch(run).turn is None) == (method == "reference_kl")
