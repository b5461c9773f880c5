"""The report: its JSON, its text, and its advice if a run does not fit."""

import pytest

from entropy_rl import config
from entropy_rl.preflight import chips, compiled
from entropy_rl.preflight.advice import advice
from entropy_rl.preflight.cost import Cost, Exchange, Seconds
from entropy_rl.preflight.report import Report
from entropy_rl.preflight.text import text


def report(*, update: float = 10e9, rollout: float = 10e9, **changes) -> Report:
    """A report for four chips of 100 GB whose programs have these peaks, in bytes."""
    programs = {"update": {"peak": update}, "rollout": {"peak": rollout}}
    values = dict(
        topology="h100:4",
        model="tiny",
        mesh={"data": 1, "fsdp": 4, "tensor": 1},
        sampling_mesh={"data": 1, "fsdp": 4, "tensor": 1},
        layout="packed",
        remat="full",
        sequences_per_update=64,
        length=128,
        pieces=2,
        rows=4,
        slots=64,
        capacity=100e9,
        parameters=1e9,
        optimiser=2e9,
        kv_cache=1e9,
        programs=programs,
        useful_flops=1e12,
        update_seconds=2.0,
        mfu=0.5,
        peak=max(update, rollout),
        fits=max(update, rollout) <= 100e9,
    )
    return Report(**values | changes)


def test_json_has_the_known_fields_only():
    found = report(update_seconds=None, mfu=None).to_json()
    assert {"update_seconds", "mfu", "by"}.isdisjoint(found)
    assert found["rows"] == 4 and list(found)[-3:] == ["peak", "fits", "advice"]


@pytest.mark.parametrize(
    "changes, wanted",
    [
        (dict(update=200e9, parameters=20e9, optimiser=40e9), ["raise mesh.fsdp", "a mesh.tensor that divides"]),
        (dict(update=200e9, rows=8), ["train.micro_batches=2"]),
        (dict(update=200e9, layout="group"), ["train.micro_batches=2"]),
        (dict(rollout=200e9, kv_cache=30e9), ["the KV cache takes 30.0 GB per chip: rollout.slots=32"]),
        (dict(rollout=200e9), ["fewer rollout.prompts"]),
    ],
)
def test_advice_names_what_is_too_large(changes, wanted):
    c = config.default()
    c.model.remat = "full"
    found = advice(c, report(**changes))
    assert len(found) == len(wanted) and all(part in line for part, line in zip(wanted, found, strict=True)), found


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("measured update", "measure.every=0"),
        ("warm-up update", "warmup.micro_batches=2"),
        ("evaluation, greedy", "eval.batch=32"),
    ],
)
def test_advice_for_each_program_that_is_too_large(name, wanted):
    c = config.default()
    programs = {"update": {"peak": 1e9}, name: {"peak": 200e9}, "rollout": {"peak": 1e9}}
    (found,) = advice(c, report(programs=programs))
    assert wanted in found


def test_advice_starts_with_what_costs_least():
    c = config.default()
    c.model.remat, c.rollout.tensor = "dots", 2
    found = advice(c, report(update=200e9, rollout=200e9))
    assert found[0] == "model.remat='full'" and "a larger rollout.tensor" in found[2]


def test_text_shows_what_does_not_fit():
    programs = {"update": {"peak": 200e9, "error": "out of memory\nmore"}, "rollout": {"peak": 10e9}}
    found = text(report(update=200e9, programs=programs, advice=("take more chips",), by="a note"))
    assert "update: does not fit: out of memory\n" in found and "a note" in found
    assert found.endswith("does not fit; change:\n  take more chips")


def test_a_steps_share_of_a_cost():
    exchanges = {"all-gather fsdp": Exchange(4.0, 40.0, 0.4), "all-reduce fsdp": Exchange(8.0, 80.0, 0.8)}
    cost = Cost(20.0, 60.0, Seconds(1.0, 3.0, 2.0, 0.5), exchanges | {"none": Exchange()})
    assert cost.seconds.step == 3.5
    found = cost.per_step(2).to_json()
    assert found["flops"] == 10 and found["bytes"] == 30 and found["collective_bytes"] == 60
    assert found["time"] == {"compute": 0.5, "memory": 1.5, "wires": 1.0, "exposed": 0.25, "step": 1.75}
    assert [row["what"] for row in found["collectives"]] == ["all-reduce fsdp", "all-gather fsdp"]
    assert found["collectives"][1] == {"what": "all-gather fsdp", "times": 2.0, "bytes": 20.0, "seconds": 0.2}


@pytest.mark.parametrize(
    "message, needed",
    [
        ("Used 484.02G of 95.74G hbm. Exceeded hbm capacity by 388.28G.", 484.02 * chips.GIB),
        ("the total memory required for HLO temporaries (223.53G) exceeds available HBM (15.75G).", 223.53 * chips.GIB),
        ("something else", 101.0),
    ],
)
def test_the_memory_that_a_program_would_need_is_read_from_the_error(message, needed):
    """libtpu's message has two forms."""
    assert compiled.needed(message, 100.0) == pytest.approx(needed)
