"""The whole loop on a model of a few thousand parameters: resume, repeat, refuse."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from etils import epath

import entropy_rl as erl
from entropy_rl import config, evaluate, loop
from entropy_rl.record import jsonl, manifest, word_table, words
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.lock import Lock
from entropy_rl.runtime.preemption import Stop
from entropy_rl.training import warmup

pytestmark = pytest.mark.usefixtures("compiled_once")
UNTIMED = ("time", "throughput")


def tiny(method="adaptive_entropy", **overrides):
    c = config.default()
    c.model.source = "tiny"
    c.model.tiny.update(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
    with c.data.settings.unlocked():
        c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    c.data.max_prompt_len = 9
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 16, 4, 20
    c.warmup.updates, c.warmup.batch, c.warmup.lr = 30, 32, 1e-2
    c.optim.lr, c.train.steps, c.train.updates_per_rollout = 1e-3, 6, 2
    c.eval.every, c.eval.problems, c.eval.batch = 3, 8, 8
    c.checkpoint.every, c.log.samples, c.mesh.data = 2, 2, 2
    config.apply_recipe(c, method)
    c.update_from_flattened_dict(overrides)
    return c


def rows(workdir):
    kept = [{k: v for k, v in r.items() if not k.startswith(UNTIMED)} for r in jsonl.read(workdir / "metrics.jsonl")]
    assert kept and not [key for row in kept for key in words.unknown(row)]
    return kept


def state_crcs(workdir, step):
    """(size, CRC32) of every data file of a checkpoint: equal if the state is, bit for bit."""
    manifest = json.loads((pathlib.Path(workdir) / "checkpoints" / str(step) / "manifest.json").read_text())["manifest"]
    return {name: record for name, record in manifest["files"].items() if re.search(r"/[\d.]+$", name)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """A run of six steps that nothing interrupts, with a transform that has a state."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.run(tiny(), str(workdir), profile=1)
    return workdir


@pytest.fixture(scope="module")
def continued(tmp_path_factory, compiled_once):
    """The same run, stopped after three steps and continued, which keeps more of its steps."""
    workdir, more = tmp_path_factory.mktemp("continued"), {"checkpoint.keep_every": 3, "checkpoint.hf_every": 2}
    loop.run(tiny(**more, **{"train.steps": 3}), str(workdir))
    loop.run(tiny(**more), str(workdir))
    return workdir


def test_every_key_of_the_contract_is_in_every_row(whole):
    for row in jsonl.read(whole / "metrics.jsonl"):
        assert not {k for k in words.METRIC_KEYS if k != word_table.EVAL_PATTERN} - row.keys()
    last = rows(whole)[-1]
    for key in (
        "reward/mean",
        "entropy/mean",
        "entropy/p80",
        "cov/mean",
        "cov/top_2pct",
        "tokens/kept_frac",
        "kl/old",
        "length/mean",
        "grad/norm",
        "group/degenerate_frac",
        "eval/chain_sum/accuracy",
    ):
        assert last[key] is not None, key
    assert [r["step"] for r in rows(whole)] == list(range(7))
    samples = jsonl.read(whole / "samples.jsonl")
    assert len(samples) == 12 and samples[0].keys() >= {"step", "question", "response", "reward", "entropy"}


def test_a_profile_is_a_trace_for_the_usual_viewer(whole):
    assert list((whole / "profile").rglob("*.xplane.pb"))


def test_training_changes_the_policy(whole):
    norms = [r["grad/norm"] for r in rows(whole)[1:]]
    assert max(norms) > 0
    assert len({r["entropy/mean"] for r in rows(whole)[1:]}) == 6


def test_interrupted_and_continued_equals_uninterrupted_bit_for_bit(whole, continued):
    assert rows(whole) == rows(continued)
    assert jsonl.read(whole / "samples.jsonl") == jsonl.read(continued / "samples.jsonl")
    assert state_crcs(whole, 6) == state_crcs(continued, 6)


def test_the_resume_test_sees_a_restore_that_restores_nothing(whole, tmp_path, monkeypatch):
    loop.run(tiny(**{"train.steps": 3}), str(tmp_path))
    true_restore = Checkpoints.restore

    def stub(self, abstract_state, **options):
        state, meta = true_restore(self, abstract_state, **options)
        return jax.tree.map(lambda x: x * 0 + 1 if x.dtype == np.float32 else x, state), meta

    monkeypatch.setattr(Checkpoints, "restore", stub)
    loop.run(tiny(), str(tmp_path))
    assert rows(whole) != rows(tmp_path)


def test_a_checkpoint_from_before_a_transform_had_all_of_its_state_continues_bit_for_bit(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    checkpoints, leaf = Checkpoints(tmp_path / "checkpoints"), "token_state.inner.0.used"
    leaves = manifest.read(epath.Path(tmp_path) / "checkpoints/4/manifest.json")["leaves"]
    assert leaf in leaves
    older = {k: jax.ShapeDtypeStruct(x["shape"], x["dtype"]) for k, x in leaves.items() if k != leaf}
    state, meta = checkpoints.restore(older, step=4, partial=True)
    checkpoints.save(4, state, {k: v for k, v in meta.items() if k != "step"})  # and drops step 6
    loop.run(tiny(), str(tmp_path))
    assert rows(whole) == rows(tmp_path)
    assert state_crcs(whole, 6) == state_crcs(tmp_path, 6)


def test_another_configuration_on_resume_is_refused(continued):
    with pytest.raises(ValueError, match=r"optim.lr: 0.001 in the run, 0.01 now"):
        loop.run(tiny(**{"optim.lr": 0.01}), str(continued))


def test_a_run_directory_loads_as_a_policy(whole):
    policy = erl.load(str(whole))
    question = "State the final answer to the following arithmetic problem: 4 + 3 ="
    (responses,) = policy.generate([question], n=2, max_tokens=8)
    assert len(responses) == 2 and all(np.isfinite(r.logp).all() for r in responses)


def test_a_run_is_loaded_without_its_optimiser(whole, tmp_path):
    """Its state is two to three times as large as the parameters."""
    shutil.copytree(whole, tmp_path / "run")
    lost = list((tmp_path / "run/checkpoints/6/state").glob("opt_state.*"))
    assert lost
    for folder in lost:
        shutil.rmtree(folder)
    here, there = (jax.tree.leaves(erl.load(str(path)).params) for path in (whole, tmp_path / "run"))
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_run_that_sampled_on_many_devices_loads_on_one(whole, tmp_path):
    (tmp_path / "checkpoints").symlink_to(whole / "checkpoints")
    saved = json.loads((whole / "config.json").read_text())
    saved["rollout"]["tensor"], saved["mesh"] = 4, {"data": 2, "fsdp": 4, "tensor": 1}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    here, there = (jax.tree.leaves(erl.load(str(path)).params) for path in (whole, tmp_path))
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def from_file(folder, **overrides):
    """A file and a task, refills, several parts of a reward, two evaluation sets with samples: all of it at once."""
    c = tiny("grpo", **{"train.steps": 4, "eval.every": 4, "warmup.updates": 20})
    file = {"task": str(folder / "minus.jsonl"), "settings": {"kind": "exact"}}
    c.data.task, c.data.mixture.minus = "mixture", file | {"weight": 1}
    c.data.mixture.plus = {"task": "chain_sum", "settings": c.data.settings.to_dict(), "weight": 3}
    c.warmup.task = "chain_sum"
    c.warmup.settings.update(c.data.settings)
    for key in list(c.data.settings):
        del c.data.settings[key]
    words = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1, operators=["+", "-"], allow_parentheses=False)
    c.eval.sets.minus, c.eval.sets.words = file, {"task": "basic_arithmetic", "settings": words}
    c.reward.weights.update(format=0.1, length=-0.05, overlong=0.5)
    c.reward.overlong_cache, c.reward.mask_truncated, c.rollout.refills = 8, True, 2
    c.data.max_prompt_len, c.eval.samples, c.eval.temperature = 24, 2, 0.7
    c.update_from_flattened_dict(overrides)
    return c


@pytest.mark.slow
def test_file_mixture_refills_and_samples_resume_bit_for_bit_and_refuse_another_file(tmp_path):
    file, cut = tmp_path / "minus.jsonl", tmp_path / "cut"
    lines = [{"question": f"{i} - {j} =", "answer": i - j} for i in range(10) for j in range(10)]
    before = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(before)
    loop.run(from_file(tmp_path), str(tmp_path / "whole"))
    loop.run(from_file(tmp_path, **{"train.steps": 2}), str(cut))
    file.write_text(before.replace('"answer": 9}', '"answer": 8}', 1))
    with pytest.raises(ValueError, match=r"the run was started with other data:\n  train: minus: 100 problems"):
        loop.run(from_file(tmp_path), str(cut))
    file.write_text(before)
    loop.run(from_file(tmp_path), str(cut))

    # The run that was cut evaluated at its end as well, at step 2.
    def plain(row):
        return {k: v for k, v in row.items() if not k.startswith("eval/")}

    assert [plain(r) for r in rows(tmp_path / "whole")] == [plain(r) for r in rows(cut)]
    assert rows(tmp_path / "whole")[-1] == rows(cut)[-1]
    assert jsonl.read(tmp_path / "whole" / "samples.jsonl") == jsonl.read(cut / "samples.jsonl")
    assert state_crcs(tmp_path / "whole", 4) == state_crcs(cut, 4)
    last = rows(cut)[-1]
    for key in ("accuracy", "low", "problems", "avg@2", "pass@2", "maj@2"):
        assert last[f"eval/minus/{key}"] is not None and last[f"eval/words/{key}"] is not None
    for row in rows(cut)[1:]:
        parts = {name: row[f"reward/{name}"] for name in ("answer", "format", "length", "overlong")}
        weights = {"answer": 1.0, "format": 0.1, "length": -0.05, "overlong": 0.5}
        assert row["reward/mean"] == pytest.approx(sum(weights[k] * v for k, v in parts.items()), abs=1e-6)
        assert 0 < row["refill/rounds"] <= 2 and row["refill/tokens"] > 0


@pytest.fixture
def signalled(monkeypatch):
    """A function that has a real signal sent to this process when the run comes to a place."""
    places, now = {}, Stop.now

    def arrive(self, doing, lost=""):
        now(self, doing, lost)
        if doing in places:
            os.kill(os.getpid(), places.pop(doing))

    monkeypatch.setattr(Stop, "now", arrive)
    return lambda doing, sent: places.update({doing: sent})


STOPS = {  # where the signal comes -> what is printed; one after the other, in one run directory
    "the warm-up, after 7 of 30 updates": "the warm-up, after 7 of 30 updates; update 7 of the warm-up is saved",
    "step 0's evaluation": "step 0's evaluation; step 0 is saved; the evaluation will be made again",
    "step 3's evaluation": "step 3's evaluation; step 3 is saved; the evaluation will be made again",
    "step 4's updates": "the end of step 4; step 4 is saved",
    "step 6's rollout": "step 6's rollout; step 5 is saved; step 6 will be made again",
}


def test_a_run_that_is_stopped_everywhere_equals_uninterrupted(whole, tmp_path, signalled, capsys):
    for i, (place, printed) in enumerate(STOPS.items()):
        sent, name, code = [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "Ctrl-C", 130)][i % 2]
        signalled(place, sent)
        with pytest.raises(SystemExit, match=f"{code}"):
            loop.run(tiny(), str(tmp_path))
        assert f"{name}: stopped in {printed}; the same command continues\n" in capsys.readouterr().err
        assert (tmp_path / "warmup").exists() == (i == 0) and not (tmp_path / "lock.json").exists()
        if "evaluation" in place:  # no row without its evaluation
            done = [r["step"] for r in jsonl.read(tmp_path / "metrics.jsonl")] if i > 1 else []
            assert done == list(range(int(place[5])))
    loop.run(tiny(), str(tmp_path))
    assert rows(whole) == rows(tmp_path)
    assert jsonl.read(whole / "samples.jsonl") == jsonl.read(tmp_path / "samples.jsonl")
    assert state_crcs(whole, 6) == state_crcs(tmp_path, 6)


def test_a_warm_up_that_was_killed_continues_from_its_last_save(whole, tmp_path, monkeypatch):
    def die(*args, **more):
        raise OSError("as if killed")

    c = tiny(**{"checkpoint.warmup_every": 8})
    with monkeypatch.context() as patched, pytest.raises(OSError, match="as if killed"):
        patched.setattr(
            warmup.Lessons,
            "batch",
            lambda self, i, true=warmup.Lessons.batch: die() if i == 20 else true(self, i),
        )
        loop.run(c, str(tmp_path))
    assert Checkpoints(tmp_path / "warmup").latest() == 16
    with pytest.raises(ValueError, match="optim.lr: 0.001 in the run, 0.01 now"):
        loop.run(tiny(**{"optim.lr": 0.01}), str(tmp_path))
    again = []
    with monkeypatch.context() as patched:
        true = warmup.Lessons.batch
        patched.setattr(warmup.Lessons, "batch", lambda self, i: again.append(i) or true(self, i))
        loop.run(tiny(**{"train.steps": 0}), str(tmp_path))
    assert [i for i in again if i] == list(range(16, 30)) and not (tmp_path / "warmup").exists()
    assert rows(whole)[:1] == rows(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, r"it has no checkpoint of step 0, the end of its warm-up"),  # it kept those of steps 4 and 6
        ({"warmup.updates": 0}, r"this run has no warm-up \(warmup\.updates=0\)"),
        ({"warmup.lr": 0.5}, r"that run's warm-up is another one, by warmup"),
    ],
)
def test_another_runs_warm_up_that_cannot_serve_is_refused(whole, tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"--warm_up_of={re.escape(str(whole))}: {message}"):
        loop.run(tiny(**changes), str(tmp_path), warm_up_of=str(whole))


def test_a_run_keeps_the_steps_that_it_is_asked_for(continued):
    assert Checkpoints(continued / "checkpoints").steps() == [0, 3, 4, 6]
    folders = sorted((continued / "hf").iterdir())
    assert [path.name for path in folders] == [f"step-{step:08d}" for step in (0, 2, 3, 4, 6)]
    for i, step in ((0, 0), (2, 3), (4, 6)):
        here, there = (
            jax.tree.leaves(erl.load(str(x), step=s).params) for x, s in ((continued, step), (folders[i], None))
        )
        assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True)), step
    with pytest.raises(ValueError, match=r"no checkpoint of step 2; the steps are \[0, 3, 4, 6\]"):
        erl.load(str(continued), step=2)
    with pytest.raises(ValueError, match=r"step=2: .*hf/step-00000002 is no run directory"):
        erl.load(str(folders[1]), step=2)


@pytest.mark.slow
def test_steps_that_are_kept_and_folders_are_those_asked_for_however_the_run_is_stopped(tmp_path, signalled, capsys):
    options = {"keep": 1, "keep_every": 3, "hf_every": 2, "every": 9}
    c = tiny(**{"warmup.updates": 0, "eval.every": 0, "train.steps": 5})
    c.checkpoint.update(options)
    signalled("step 3's rollout", signal.SIGTERM)
    with pytest.raises(SystemExit, match="75"):
        loop.run(c, str(tmp_path))
    assert "step 2 is saved" in capsys.readouterr().err
    loop.run(c, str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [0, 3, 5]
    folders = {step: tmp_path / f"hf/step-{step:08d}" for step in (0, 2, 4, 5)}
    assert sorted((tmp_path / "hf").iterdir()) == list(folders.values())
    shutil.rmtree(folders[5])  # as if it had been killed after its last checkpoint
    loop.run(c, str(tmp_path))
    erl.load(str(folders[5]))

    # and evaluated, step by step
    with pytest.raises(ValueError, match=r"--steps=0,2: .* has no checkpoint of step 2, but of \[0, 3, 5\]"):
        evaluate.check_steps(["0", "2"], [str(tmp_path)])
    e = evaluate.configuration(str(tmp_path))
    e.eval.every, e.eval.problems = 1, 4
    steps = evaluate.check_steps(["0", "3", "5"], [str(tmp_path)])
    request = evaluate.Request([("run", str(tmp_path))], e, str(tmp_path / "evaluation"), k=2, steps=steps)
    table = evaluate.run(request)
    assert [line.split(" | ")[1] for line in table.splitlines()[2:5]] == ["run@0", "run@3", "run@5"]
    assert "run@5 against run@0 on chain_sum" in table
    asked = jax.tree.leaves(evaluate.opened(request, str(tmp_path), 0).params)
    assert all(np.array_equal(a, b) for a, b in zip(asked, jax.tree.leaves(erl.load(str(folders[0])).params)))


def test_a_file_where_checkpoints_go_is_named_before_any_work(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(ValueError, match="checkpoints is a file, but checkpoints go into a folder there; move it away"):
        loop.run(tiny(**{"warmup.updates": 10**6}), str(tmp_path))
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_a_directory_in_use_is_refused_before_anything_in_it_is_changed(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    with Lock(whole), pytest.raises(ValueError, match=rf"in use by another run, process {os.getpid()}"):
        loop.run(tiny(), str(whole))
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


def test_a_run_that_lost_its_lock_writes_nothing_more(whole, tmp_path, signalled, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    taken = json.dumps({"host": "far", "machine": "m", "pid": 7, "born": "1", "token": "t", "time": time.time()})
    now = Stop.now

    def arrive(self, doing, lost=""):
        now(self, doing, lost)
        if doing == "step 8's updates":
            (tmp_path / "lock.json").write_text(taken)

    monkeypatch.setattr(Stop, "now", arrive)
    with pytest.raises(RuntimeError, match="process 7 on far, .*has taken this directory over"):
        loop.run(tiny(**{"train.steps": 9}), str(tmp_path))
    assert rows(tmp_path)[-1]["step"] == 7 and Checkpoints(tmp_path / "checkpoints").latest() == 6
    assert jsonl.read(tmp_path / "samples.jsonl")[-1]["step"] == 7
    assert (tmp_path / "lock.json").read_text() == taken


def test_checkpoints_that_are_gone_do_not_take_the_record_with_them(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"has rows up to step 6, but .*checkpoints holds no checkpoint any more"):
        loop.run(tiny(), str(tmp_path))
    assert rows(whole) == rows(tmp_path)
    loop.run(tiny(**{"train.steps": 0}), str(tmp_path), force=True)
    assert rows(whole) == rows(tmp_path / "before-1") and rows(whole)[:1] == rows(tmp_path)


def test_a_finished_run_says_so(whole, caplog):
    caplog.set_level("INFO")
    before = rows(whole)
    loop.run(tiny(**{"train.steps": 4}), str(whole))
    assert "finished already at step 6; raise train.steps (now 4) to continue" in caplog.text
    assert rows(whole) == before and Checkpoints(whole / "checkpoints").latest() == 6


def test_metrics_that_are_gone_on_resume_are_said_to_be_lost(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.jsonl").unlink()
    loop.run(tiny(), str(tmp_path))
    assert "metrics.jsonl has no rows of steps 0 to 5: they are lost" in caplog.text
    assert [r["step"] for r in rows(tmp_path)] == [6]
