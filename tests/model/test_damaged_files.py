"""Model files with bytes flipped or cut off anywhere: they load, or a ValueError names the file."""

import dataclasses
import random
import shutil
import warnings

import pytest
from test_gguf import tensors, write
from tiny_models import FAMILIES, random_params, tiny_tokenizer

from entropy_rl.model import hf, source

CFG = dataclasses.replace(FAMILIES["llama"], rope_scaling=None, eos_ids=(2,), vocab_size=276)
PLACES = 120


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    hf.save_folder(root / "folder", CFG, random_params(CFG), tiny_tokenizer())
    write(root / "m.gguf", CFG, tensors(CFG, random_params(CFG)))
    return root


def damaged(raw: bytes, seed: int) -> bytes:
    """The bytes, cut, flipped, repeated or overwritten; mostly near the start, where the structure is."""
    rng = random.Random(seed)
    at = rng.randrange(len(raw) if seed % 3 else min(len(raw), 2000))
    kind = seed % 5
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
    if kind == 2:
        return raw[:at] + rng.randbytes(4) + raw[at + 4 :]
    if kind == 3:
        return raw[:at] + rng.choice([b"-", b"9", b"null", b'"', b"[[[[", b"1e999", b"NaN"]) + raw[at + 1 :]
    return raw[:at] + raw[at : at + 40] + raw[at:]


def survive(raw, path, load, seed):
    path.write_bytes(damaged(raw, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            load()
        except ValueError as error:
            assert path.name in str(error) or str(path.parent) in str(error), f"seed {seed}: {error}"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_damaged_file_of_a_folder(good, tmp_path, name):
    folder = tmp_path / "folder"
    shutil.copytree(good / "folder", folder)
    raw = (folder / name).read_bytes()
    for seed in range(PLACES):
        survive(raw, folder / name, lambda: hf.load_params(folder, hf.read_config(folder)), seed)


def test_a_damaged_tokenizer(good, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(good / "folder", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        raw = (folder / name).read_bytes()
        for seed in range(PLACES // 2):
            survive(raw, folder / name, lambda: source.open_model(str(folder)), seed)
        (folder / name).write_bytes(raw)


def test_a_damaged_gguf_file(good, tmp_path):
    path = tmp_path / "m.gguf"
    raw = (good / "m.gguf").read_bytes()
    for seed in range(PLACES):
        survive(raw, path, lambda: source.open_model(str(path)), seed)
