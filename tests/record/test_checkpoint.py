"""Checkpoints with faults of the disk and of the caller, in one process. Kills are in test_checkpoint_kill."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from entropy_rl.record.checkpoint import Checkpoints


class Adaptive(NamedTuple):
    coef: jax.Array
    mask: optax.EmptyState


def make_state(seed: int):
    """All that a training state holds: nested parameters, Adam's state, NamedTuples, scalars of four dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (16, 8)),
        "layers": {"w": jax.random.normal(keys[1], (2, 8, 8)), "scale": jnp.ones((8,), jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    grads = jax.tree.map(lambda x: (x * (seed + 0.3)).astype(x.dtype), params)
    _, opt_state = optimizer.update(grads, optimizer.init(params), params)
    tokens = (Adaptive(coef=jnp.float32(0.1 * seed), mask=optax.EmptyState()), optax.EmptyState())
    counters = {"step": jnp.int32(seed), "seed": jnp.uint32(2**32 - 1), "done": jnp.array(seed % 2 == 0)}
    return {"params": params, "opt": opt_state, "tokens": tokens, "counters": counters}


ABSTRACT = jax.eval_shape(lambda: make_state(0))


def assert_bitwise(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def saved(directory: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"config": f"hash{step}", "position": [step, None]})
    return checkpoints


def data_files(directory: Path, step: int) -> list[Path]:
    return sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def warnings_in(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def test_round_trip_is_bitwise_with_structure_and_meta(tmp_path):
    checkpoints = saved(tmp_path, 3)
    state, meta = checkpoints.restore(ABSTRACT)
    assert_bitwise(state, make_state(3))
    assert isinstance(state["tokens"][0], Adaptive)
    assert meta == {"config": "hash3", "position": [3, None], "step": 3}


def test_nothing_saved_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert (checkpoints.steps(), checkpoints.latest(), checkpoints.restore(ABSTRACT)) == ([], None, None)


def test_saving_logs_nothing(tmp_path, caplog):
    saved(tmp_path, 1)
    assert warnings_in(caplog) == ""


def test_the_newest_are_kept_and_an_older_one_can_be_restored(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 10, 11)
    assert checkpoints.steps() == [10, 11]
    state, meta = checkpoints.restore(ABSTRACT, step=10)
    assert_bitwise(state, make_state(10))
    assert meta["step"] == 10
    with pytest.raises(ValueError, match=r"no checkpoint of step 1; the steps are \[10, 11\]"):
        checkpoints.restore(ABSTRACT, step=1)


def test_keep_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.keep: got 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_step_can_be_saved_again_and_later_ones_are_abandoned(tmp_path):
    """After falling back to 4, the run comes to 6 again; 8 belongs to the history that it has abandoned."""
    checkpoints = saved(tmp_path, 4, 8)
    checkpoints.save(6, make_state(6), {})
    assert checkpoints.steps() == [4, 6]
    checkpoints.save(6, make_state(7), {})
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(7))


def test_a_flipped_bit_names_its_leaf_and_falls_back(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2)
    expected = make_state(1)
    leaves = set(json.loads((tmp_path / "2/manifest.json").read_text())["manifest"]["leaves"])
    rng = np.random.default_rng(0)
    files = [f for f in data_files(tmp_path, 2) if f.name != "manifest.json"]
    for file in rng.permutation(np.array(files, object))[:30]:
        bit = int(rng.integers(8 * file.stat().st_size))
        flip_bit(file, bit)
        caplog.clear()
        state, meta = checkpoints.restore(ABSTRACT)
        flip_bit(file, bit)
        assert meta["step"] == 1
        assert_bitwise(state, expected)
        leaf = file.relative_to(tmp_path / "2/state").parts[0]
        named = f"leaf '{leaf}'" if leaf in leaves else f"file {leaf}"
        assert f"{tmp_path}/2 is damaged" in warnings_in(caplog)
        assert named in warnings_in(caplog)
        assert "CRC32" in warnings_in(caplog)
    assert checkpoints.restore(ABSTRACT)[1]["step"] == 2


def test_a_flipped_bit_in_the_manifest_itself(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2)
    manifest = tmp_path / "2/manifest.json"
    rng = np.random.default_rng(1)
    for bit in rng.integers(8 * (manifest.stat().st_size - 1), size=30).tolist():
        flip_bit(manifest, bit)
        # A flip in the layout of the JSON (say, a blank that becomes a tab) may leave every value as it was.
        state, meta = checkpoints.restore(ABSTRACT)
        flip_bit(manifest, bit)
        assert_bitwise(state, make_state(meta["step"]))
        assert meta["config"] == f"hash{meta['step']}"
    flip_bit(manifest, 8 * manifest.read_bytes().index(b"hash2"))
    assert checkpoints.restore(ABSTRACT)[1]["step"] == 1
    assert "manifest.json is damaged" in warnings_in(caplog)


def remove_chunk(folder: Path) -> None:
    (folder / "0.0").unlink()


def cut_chunk(folder: Path) -> None:
    data = (folder / "0.0").read_bytes()
    (folder / "0.0").write_bytes(data[: len(data) // 2])


def remove_leaf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "fault, message",
    [(remove_chunk, "is missing"), (cut_chunk, "has 256 bytes, 512"), (remove_leaf, "is missing")],
)
def test_a_lost_or_cut_shard_falls_back(tmp_path, caplog, fault, message):
    checkpoints = saved(tmp_path, 1, 2)
    fault(tmp_path / "2/state/params.embed")
    state, meta = checkpoints.restore(ABSTRACT)
    assert meta["step"] == 1
    assert_bitwise(state, make_state(1))
    assert "leaf 'params.embed' (file params.embed/0.0)" in warnings_in(caplog)
    assert message in warnings_in(caplog)


def test_never_a_silent_fresh_start(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    with pytest.raises(RuntimeError, match=r"no undamaged checkpoint among steps \[2\]"):
        cut_chunk(tmp_path / "2/state/params.embed")
        checkpoints.restore(ABSTRACT, step=2)
    cut_chunk(tmp_path / "1/state/params.embed")
    with pytest.raises(RuntimeError, match=r"no undamaged checkpoint among steps \[2, 1\]"):
        checkpoints.restore(ABSTRACT)


def test_leftovers_are_no_checkpoint_and_the_next_save_removes_them(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2, 3)
    (tmp_path / "3/manifest.json").unlink()
    torn = (tmp_path / "2/manifest.json").read_bytes()
    (tmp_path / "2/manifest.json").write_bytes(torn[:-1])
    saved(tmp_path / "only", 1)
    (tmp_path / "only/1/manifest.json").unlink()
    assert (checkpoints.steps(), checkpoints.restore(ABSTRACT)) == ([], None)
    assert f"{tmp_path}/3 has no manifest" in warnings_in(caplog)
    assert Checkpoints(tmp_path / "only").latest() is None
    checkpoints.save(1, make_state(1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "only"]


def test_stray_directories_are_ignored(tmp_path):
    checkpoints = saved(tmp_path, 1)
    for name in ("999", "tmp.7", "002", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes/1").mkdir()
    (tmp_path / "8").write_text("a file")
    (tmp_path / "31").mkdir()
    (tmp_path / "31/mine.txt").write_text("not a checkpoint's")
    assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
    assert checkpoints.restore(ABSTRACT)[1]["step"] == 1
    checkpoints.save(2, make_state(2), {})
    assert checkpoints.steps() == [1, 2]
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["002", "1", "2", "31", "8", "notes", "tmp.7"]
    assert (tmp_path / "31/mine.txt").exists()


def changed(path: tuple[str, ...], leaf) -> dict:
    tree = jax.tree.map(lambda x: x, ABSTRACT)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if leaf is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = leaf
    return tree


@pytest.mark.parametrize(
    "path, leaf, message",
    [
        (
            ("params", "embed"),
            jax.ShapeDtypeStruct((16, 12), jnp.float32),
            r"leaf 'params.embed' was saved as float32\[16, 8\], but float32\[16, 12\]",
        ),
        (
            ("params", "embed"),
            jax.ShapeDtypeStruct((16, 8), jnp.bfloat16),
            r"leaf 'params.embed' was saved as float32\[16, 8\], but bfloat16\[16, 8\]",
        ),
        (("params", "head"), jax.ShapeDtypeStruct((2,), jnp.float32), "it lacks leaf 'params.head'"),
        (("params", "embed"), None, "it also holds leaf 'params.embed'"),
    ],
    ids=["wider", "bf16", "new leaf", "leaf gone"],
)
def test_another_state_is_refused_by_name(tmp_path, path, leaf, message):
    checkpoints = saved(tmp_path, 1, 2)
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(changed(path, leaf))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_state_that_is_not_finite_is_refused(tmp_path, bad):
    checkpoints = saved(tmp_path, 1, keep=1)
    state = make_state(2)
    state["params"]["layers"]["scale"] = state["params"]["layers"]["scale"].at[3].set(bad)
    with pytest.raises(ValueError, match=r"NaN or infinity in leaf 'params\.layers\.scale'"):
        checkpoints.save(2, state, {})
    assert checkpoints.steps() == [1]
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(1))


@pytest.mark.parametrize("leaf, got", [(3, "int"), (np.zeros(2), "ndarray"), (jax.random.key(0), "key<fry>")])
def test_a_leaf_that_is_no_array_of_numbers_is_refused(tmp_path, leaf, got):
    with pytest.raises(ValueError, match=f"leaf 'a' is {got}"):
        Checkpoints(tmp_path).save(1, {"a": leaf}, {})


def test_two_leaves_with_the_same_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the name 'a\.b' is empty or belongs to two leaves"):
        Checkpoints(tmp_path).save(1, {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, {})


def test_buffers_may_be_donated_once_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    before = np.array(state["w"])
    step = partial(jax.jit, donate_argnums=0)(lambda s: jax.tree.map(lambda x: x * 0 - 1, s))
    checkpoints.save(1, state, {})
    jax.block_until_ready(step(state))
    restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct(before.shape, before.dtype)})
    np.testing.assert_array_equal(restored["w"], before)


def test_the_older_step_survives_a_next_save_that_fails(tmp_path):
    checkpoints = saved(tmp_path, 1, keep=1)
    (tmp_path / "2").write_text("a file in the way")
    with pytest.raises(OSError):
        checkpoints.save(2, make_state(2), {})
    assert checkpoints.steps() == [1]
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(1))


def test_a_state_restores_on_another_mesh(tmp_path):
    """Saved on 1 device, restored and saved on 8, restored on 4: the same bits, the same loss."""
    x_BxD = jax.random.normal(jax.random.key(1), (8, 16))
    loss = jax.jit(lambda params, x: jnp.mean(jnp.tanh(x @ params["w"] + params["b"][None, :]) ** 2))
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8)), "b": jnp.arange(8.0)}
    expected = float(loss(params, x_BxD))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, params, {})
    for step, shape in ((2, (4, 2)), (3, (2, 2))):
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        assert devices.size in (8, 4)
        mesh = Mesh(devices, ("fsdp", "tensor"))
        shardings = {"w": NamedSharding(mesh, P("fsdp", "tensor")), "b": NamedSharding(mesh, P("tensor"))}
        abstract = {n: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=shardings[n]) for n, p in params.items()}
        restored, _ = checkpoints.restore(abstract)
        assert restored["w"].sharding == shardings["w"]
        assert restored["w"].addressable_shards[0].data.shape == (16 // shape[0], 4)
        assert_bitwise(restored, params)
        assert float(loss(restored, x_BxD)) == pytest.approx(expected, rel=1e-6)
        checkpoints.save(step, restored, {})
