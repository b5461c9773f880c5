"""Adapter folders: written here and loaded by peft, written by peft and loaded here, and what cannot be read."""

import json

import jax
import numpy as np
import pytest
from smollm2 import smollm2_folder  # noqa: F401
from test_model_torch import load_torch, our_logits, padded, torch_logits
from tiny_models import FAMILIES, random_params, tiny_tokenizer

import entropy_rl as erl
from entropy_rl import config
from entropy_rl.model import hf, lora, peft
from entropy_rl.model.config import Lora
from entropy_rl.model.matrices import WEIGHTS
from entropy_rl.training import engine as engine_lib

torch = pytest.importorskip("torch")

# peft asks transformers by a name that transformers means to remove
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CFG = FAMILIES["qwen2"]
LORA = Lora(3, 6.0, ("q", "o", "up", "down"))
ADAPTED = lora.adapted(CFG, LORA)
HERE = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


@pytest.fixture(scope="module")
def params():
    return random_params(ADAPTED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, params):
    """(a base, an adapter of it written here)."""
    root = tmp_path_factory.mktemp("folders")
    hf.save_folder(root / "base", CFG, lora.split(params)[1], tiny_tokenizer(), np.asarray)
    peft.save_adapter(root / "adapter", ADAPTED, params, str(root / "base"))
    return root / "base", root / "adapter"


@pytest.fixture
def adapter(folders, tmp_path):
    """A copy of the adapter that a test may damage."""
    for file in folders[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def tokens():
    mask = padded("right")
    return np.random.default_rng(0).integers(3, CFG.vocab_size, mask.shape), mask


def test_peft_loads_a_folder_written_here_and_gives_the_same_logits(folders, params):
    from peft import PeftModel

    base, folder = folders
    model = PeftModel.from_pretrained(load_torch(base), folder).eval()
    ours, theirs = our_logits(ADAPTED, params, *tokens()), torch_logits(model, *tokens())
    mask = tokens()[1]
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-4)
    assert np.abs(theirs - torch_logits(load_torch(base), *tokens()))[mask].max() > 0.1


def test_a_folder_of_peft_is_loaded_here_merged(folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    modules = ["q_proj", "k_proj", "v_proj", "gate_proj"]
    model = get_peft_model(load_torch(folders[0]), LoraConfig(r=2, lora_alpha=3, target_modules=modules))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    policy = erl.load(str(tmp_path))
    mask = tokens()[1]
    ours, theirs = np.asarray(policy.logits(*tokens())), torch_logits(model.eval(), *tokens())
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-4)
    assert jax.tree.structure(policy.params) == jax.tree.structure(lora.split(random_params(ADAPTED))[1])


def test_an_adapter_that_was_written_is_read_back_bit_for_bit(folders, params):
    c = config.default()
    c.model.source, c.model.lora.rank, c.model.lora.alpha = str(folders[1]), 3, 6.0
    c.model.lora.targets = ("down_proj", "q_proj", "o_proj", "up_proj")
    loaded = engine_lib.load(c.model, 0)
    assert engine_lib.base_of(c.model) == str(folders[0])
    read = loaded.weights(jax.tree.map(lambda _: HERE, params))
    assert jax.tree.structure(read) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))
    c.model.lora.rank = 0
    merged = engine_lib.load(c.model, 0).weights(HERE)
    want = lora.merged(ADAPTED, jax.device_put(params), np.float32)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, want))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rank": 2}, r"model\.lora\.rank=2, but the adapter in .* has 3; set it to that, or model\.lora\.rank to 0"),
        ({"alpha": 3.0}, r"model\.lora\.alpha=3\.0, but the adapter in .* has 6\.0"),
        ({"targets": ("q_proj",)}, r"model\.lora\.targets=\('q_proj',\), but the adapter in .* has \('q_proj', 'o_pr"),
    ],
)
def test_an_adapter_is_trained_as_what_it_is(folders, change, message):
    c = config.default()
    c.model.source = str(folders[1])
    c.model.lora.update({"rank": 3, "alpha": 6.0, "targets": ("q_proj", "o_proj", "up_proj", "down_proj")} | change)
    with pytest.raises(ValueError, match=message):
        engine_lib.load(c.model, 0)


def edit(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, r"adapter_config\.json: peft_type is 'IA3'; only LORA can be read"),
        ({"use_dora": True}, r"use_dora=True is not supported; merge the adapter with peft"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern=.* is not supported"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' is not supported"),
        ({"base_model_name_or_path": None}, r"base_model_name_or_path=None must name the model"),
        ({"r": 4}, r"tensor .*down_proj\.lora_A\.weight has shape \(3, 40\), expected \(4, 40\)"),
        ({"r": 0}, r"adapter_config\.json: .*r"),
        ({"lora_alpha": "8"}, r"adapter_config\.json: .*lora_alpha"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_named(adapter, changes, message):
    edit(adapter, **changes)
    with pytest.raises(ValueError, match=message):
        erl.load(str(adapter))


def test_an_adapter_of_something_else_than_the_matrices_is_named(adapter):
    from safetensors.numpy import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    first = next(iter(whole))
    for extra, message in (
        (
            "base_model.model.lm_head.lora_A.weight",
            r"holds base_model\.model\.lm_head\.lora_A\.weight; expected lora_A",
        ),
        (first.replace("layers.0", "layers.9"), r"unexpected tensor .*layers\.9\..*; .*base has 3 layers"),
    ):
        save_file(whole | {extra: whole[first]}, path)
        with pytest.raises(ValueError, match=message):
            erl.load(str(adapter))
    save_file({name: x for name, x in whole.items() if name != first}, path)
    with pytest.raises(ValueError, match=r"tensor .* has shape None, expected"):
        erl.load(str(adapter))
    path.unlink()
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors beside adapter_config\.json"):
        erl.load(str(adapter))


def test_an_adapter_of_an_adapter_is_refused(folders, adapter):
    edit(adapter, base_model_name_or_path=str(folders[1]))
    with pytest.raises(ValueError, match=r"its base, .*adapter, is an adapter too; merge that one first"):
        erl.load(str(adapter))


def test_a_merged_folder_is_written_from_adapted_parameters(params, tmp_path):
    hf.save_folder(tmp_path, ADAPTED, jax.device_put(params), tiny_tokenizer())
    want = lora.merged(ADAPTED, params, np.float32)
    got = hf.load_params(tmp_path, hf.read_config(tmp_path))
    assert jax.tree.structure(got) == jax.tree.structure(want) and set(got["layers"]) >= set(WEIGHTS)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6, atol=1e-7), got, want))
    torch_says = torch_logits(load_torch(tmp_path), *tokens())
    mask = tokens()[1]
    np.testing.assert_allclose(our_logits(ADAPTED, params, *tokens())[mask], torch_says[mask], rtol=0, atol=2e-4)
