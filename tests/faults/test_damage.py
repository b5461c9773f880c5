"""Rows 3, 4, 5, 7, 8: a checkpoint that was damaged on the disk, or that belongs to another state."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import ABSTRACT, assert_bitwise, cut_chunk, data_files, flip_bit, make_state, saved, warnings_in


def test_03_a_flipped_bit_names_its_leaf_and_falls_back(tmp_path, caplog):
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


def test_03_a_flipped_bit_in_the_manifest_itself(tmp_path, caplog):
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


def remove_leaf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "fault, message",
    [(remove_chunk, "is missing"), (cut_chunk, "has 256 bytes, 512"), (remove_leaf, "is missing")],
)
def test_04_a_lost_or_cut_shard_falls_back(tmp_path, caplog, fault, message):
    checkpoints = saved(tmp_path, 1, 2)
    fault(tmp_path / "2/state/params.embed")
    state, meta = checkpoints.restore(ABSTRACT)
    assert meta["step"] == 1
    assert_bitwise(state, make_state(1))
    assert "leaf 'params.embed' (file params.embed/0.0)" in warnings_in(caplog)
    assert message in warnings_in(caplog)


def test_04_never_a_silent_fresh_start(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    with pytest.raises(RuntimeError, match=r"no undamaged checkpoint among steps \[2\]"):
        cut_chunk(tmp_path / "2/state/params.embed")
        checkpoints.restore(ABSTRACT, step=2)
    cut_chunk(tmp_path / "1/state/params.embed")
    with pytest.raises(RuntimeError, match=r"no undamaged checkpoint among steps \[2, 1\]"):
        checkpoints.restore(ABSTRACT)


def test_05_stray_directories_are_ignored(tmp_path):
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
def test_07_another_state_is_refused_by_name(tmp_path, path, leaf, message):
    checkpoints = saved(tmp_path, 1, 2)
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(changed(path, leaf))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_08_a_state_that_is_not_finite_is_refused(tmp_path, bad):
    checkpoints = saved(tmp_path, 1, keep=1)
    state = make_state(2)
    state["params"]["layers"]["scale"] = state["params"]["layers"]["scale"].at[3].set(bad)
    with pytest.raises(ValueError, match=r"NaN or infinity in leaf 'params\.layers\.scale'"):
        checkpoints.save(2, state, {})
    assert checkpoints.steps() == [1]
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(1))
