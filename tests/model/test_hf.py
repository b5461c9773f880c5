"""Hugging Face folders: they are read back bit for bit as they were written, and faults are named."""

import dataclasses
import json
import math
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_models import ALL, FAMILIES, assert_trees_equal, random_params, tiny_tokenizer

from entropy_rl.model import hf, tensor_file
from entropy_rl.model.config import Rope, YarnScaling
from entropy_rl.model.shapes import SHAPES


@pytest.fixture
def folder(tmp_path):
    save(tmp_path)
    return tmp_path


def save(path, family="llama", dtype=np.float32):
    cfg = FAMILIES[family]
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(cfg))
    hf.save_folder(path, cfg, params, tiny_tokenizer())
    return cfg, params


def rewrite(folder, change, name="model.safetensors"):
    """Rewrites a tensor file after `change` has edited its {name: array}."""
    file = tensor_file.TensorFile(folder / name)
    tensors = {key: file.read(key) for key in file.shapes}
    change(tensors)
    tensor_file.write(folder / name, [(k, v.shape, v.dtype) for k, v in tensors.items()], tensors.__getitem__)


def edit(folder, name="config.json", **changes):
    raw = json.loads((folder / name).read_text())
    raw.update(changes)
    (folder / name).write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def load(folder):
    return hf.load_params(folder, hf.read_config(folder))


@pytest.mark.parametrize("name", ALL)
def test_round_trip(tmp_path, name):
    cfg = ALL[name]
    params = random_params(cfg)
    hf.save_folder(tmp_path, cfg, params, tiny_tokenizer())
    assert hf.read_config(tmp_path) == cfg
    assert_trees_equal(hf.load_params(tmp_path, cfg), params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_kept_on_disk_and_read_as_float32(tmp_path, dtype):
    cfg, params = save(tmp_path, "qwen2", dtype)
    loaded = hf.load_params(tmp_path, cfg)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert_trees_equal(loaded, jax.tree.map(lambda x: x.astype(np.float32), params))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    cfg, params = save(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert not (tmp_path / "model.safetensors").exists()
    assert_trees_equal(hf.load_params(tmp_path, cfg), params)
    # Saved again as one file: no shard remains that could be read instead.
    monkeypatch.undo()
    save(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_lost_shard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    cfg, _ = save(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"{lost.name}: no such file; .* places model\..* there"):
        hf.load_params(tmp_path, cfg)


def test_shardings_place_every_leaf(folder):
    device = jax.local_devices()[-1]
    one = jax.sharding.SingleDeviceSharding(device)
    cfg = hf.read_config(folder)
    for shardings in (one, jax.tree.map(lambda _: one, load(folder))):
        params = hf.load_params(folder, cfg, shardings)
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(params))
        assert_trees_equal(params, load(folder))


def test_missing_tensor(folder):
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"missing tensor model\.layers\.1\.mlp\.up_proj\.weight, expected \(40, 24\)"):
        load(folder)


def test_wrong_shape(folder):
    rewrite(folder, lambda t: t.update({"model.norm.weight": np.zeros(25, np.float32)}))
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors: tensor model\.norm\.weight has shape \(25,\), expected "
        r"\(24,\)",
    ):
        load(folder)


def test_unexpected_tensor(folder):
    rewrite(folder, lambda t: t.update({"model.layers.3.input_layernorm.weight": np.zeros(24, np.float32)}))
    with pytest.raises(ValueError, match=r"model\.safetensors: unexpected tensor model\.layers\.3\.input_layernorm"):
        load(folder)


def test_tied_head_may_be_stored_twice_but_not_differ(folder):
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert "head" not in load(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ValueError, match=r"unexpected tensor lm_head\.weight .* differs from the embedding"):
        load(folder)


def test_stored_rope_frequencies_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda t: t.update({name: np.zeros(3, np.float32)}))
    load(folder)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_cut_tensor_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*cut short"):
        load(folder)


def test_a_file_that_is_not_a_tensor_file(folder):
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"what and more")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file: its header is not JSON"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        load(folder)


def test_integer_tensor(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ValueError, match=r"tensor model\.\S+ has dtype I32; expected one of F32, F16, BF16"):
        load(folder)


def test_byte_range_that_disagrees_with_the_shape(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F16"', 1))
    with pytest.raises(ValueError, match=r"tensor model\.\S+ .* of F16 does not fill"):
        load(folder)


def test_header_counts_against_official_reader(folder):
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(folder / "model.safetensors")
    ours = tensor_file.TensorFile(folder / "model.safetensors")
    assert set(theirs) == set(ours.shapes)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours.read(name))


def with_header(path, change):
    """Rewrites the header of a tensor file, whose data stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def norm(**changes):
    """A change of the entry of one tensor."""
    return lambda header: header | {"model.norm.weight": header["model.norm.weight"] | changes}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda header: list(header), "not a safetensors file: its header is a list"),
        (lambda header: header | {"model.norm.weight": 3}, r"tensor model\.norm\.weight has no dtype and shape"),
        (lambda header: header | {"model.norm.weight": {}}, r"tensor model\.norm\.weight has no dtype and shape"),
        (norm(shape="24"), r"tensor model\.norm\.weight has no dtype and shape"),
        (norm(shape=[-24]), r"tensor model\.norm\.weight has no dtype and shape"),
        (norm(shape=[24.0]), r"tensor model\.norm\.weight has no dtype and shape"),
        (norm(dtype=None), r"tensor model\.norm\.weight has no dtype and shape"),
        (norm(data_offsets=[-96, 0]), r"tensor model\.norm\.weight has the byte range \[-96, 0\]"),
        (norm(data_offsets=[96, 0]), r"tensor model\.norm\.weight has the byte range"),
        (norm(data_offsets=[0]), r"tensor model\.norm\.weight has the byte range"),
        (norm(data_offsets=["0", "96"]), r"tensor model\.norm\.weight has the byte range"),
        (norm(data_offsets=[0, 96]), r"tensor \S+ overlaps tensor \S+"),
        (norm(data_offsets=[10**9, 10**9 + 96]), r"cut short: \d+ bytes, expected .* \(tensor model\.norm\.weight\)"),
        (norm(shape=[1 << 40, 1 << 40]), r"has shape \(1099511627776, 1099511627776\), expected \(24,\)"),
    ],
)
def test_a_header_that_is_refused(folder, change, message):
    path = folder / "model.safetensors"
    with_header(path, change)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        load(folder)


def test_a_header_that_is_nested_deeply(folder):
    (folder / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file: its header is not JSON"):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(folder, value):
    rewrite(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 5), value))
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight is broken: 1 of its 960 weights",
    ):
        load(folder)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "..", "", 3, None, "a\\b"])
def test_an_index_that_names_no_file_of_the_folder(folder, tmp_path, shard):
    (tmp_path / "other").mkdir()
    names = list(tensor_file.TensorFile(folder / "model.safetensors").shapes)
    shutil.copy(folder / "model.safetensors", tmp_path / "other")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map\.\S+=.*; expected the name of a file"):
        load(folder)


def test_an_index_that_disagrees_with_its_files(folder):
    names = list(tensor_file.TensorFile(folder / "model.safetensors").shapes)
    index = dict.fromkeys(names, "model.safetensors")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": index | {"model.extra": "model.safetensors"}}))
    with pytest.raises(ValueError, match=r"model\.safetensors: has no tensor model\.extra, which .* places there"):
        load(folder)
    shutil.copy(folder / "model.safetensors", folder / "twice.safetensors")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": index | {names[0]: "twice.safetensors"}}))
    with pytest.raises(ValueError, match=r"twice\.safetensors: tensor \S+ is in model\.safetensors too"):
        load(folder)


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("llama", {"model_type": "mamba"}, "unknown architecture model_type='mamba'; expected one of llama, mistral"),
        ("llama", {"hidden_size": ...}, "missing key 'hidden_size'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; expected 'silu'"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised checkpoints are read from GGUF only"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_type='linear' lacks factor"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 0}}, r"rope_scaling\.factor=0; expected a finite number"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1}}, "mscale is not supported"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}},
            "truncate=False is not supported",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "'llama3' lacks low_freq_factor, high_freq",
        ),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer type"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("qwen3", {"head_dim": ...}, "missing key 'head_dim'"),
        # cases/s09: a list or a text
        ("llama", {"rope_scaling": ["linear"]}, r"rope_scaling=\['linear'\]; expected an object or null"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling='linear'; expected an object or null"),
        ("llama", {"rope_parameters": "default"}, "rope_parameters='default'; expected an object or null"),
        # both spellings of RoPE
        ("llama", {"rope_parameters": {"rope_theta": 7.0}}, r"disagree, .* rope_theta: 500\.0, rope_parameters\S+: 7"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}},
            "rope_parameters: None, rope_scaling: Llama3",
        ),
        ("llama", {"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope_type='default' and type='yarn'"),
        ("llama", {"rope_scaling": {"factor": 4.0}}, r"rope_scaling\.factor=4\.0 without a rope_type"),
        # values of another type, or out of range
        ("llama", {"num_attention_heads": 0}, "num_attention_heads=0; expected a whole number from 1 to 65536"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads=0; expected a whole number"),
        ("llama", {"hidden_size": "24"}, "hidden_size='24'; expected a whole number"),
        ("llama", {"hidden_size": 24.0}, "hidden_size=24.0; expected a whole number"),
        ("llama", {"hidden_size": True}, "hidden_size=True; expected a whole number"),
        ("llama", {"hidden_size": -24}, "hidden_size=-24; expected a whole number"),
        (
            "llama",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers=10{9}; expected a whole number from 1 to 10000",
        ),
        ("llama", {"vocab_size": 10**30}, "vocab_size=10{30}; expected"),
        ("llama", {"head_dim": 5}, "head_dim=5 must be even"),
        ("llama", {"rope_theta": "1e4"}, "rope_theta='1e4'; expected a finite number above 0"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta=nan; expected a finite number above 0"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=inf; expected a finite number above 0"),
        ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05; expected a finite number above 0"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ("llama", {"model_type": ["llama"]}, "unknown architecture model_type="),
        (
            "llama",
            {"eos_token_id": 300},
            "eos_token_id names the token 300; .* has the ids 0 to 299",
        ),
        ("llama", {"eos_token_id": [2, -1]}, "eos_token_id names the token -1"),
        ("llama", {"eos_token_id": "2"}, "eos_token_id names the token '2'"),
        ("llama", {"bos_token_id": 300}, "bos_token_id names the token 300"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0; expected a whole number"),
        # what differs from layer to layer
        ("gemma3_text", {"layer_types": ["full_attention"]}, r"layer_types=\[.*\]; expected a list of 3 of full_att"),
        ("olmo3", {"layer_types": ["linear_attention"] * 3}, "layer_types=.*; expected a list of 3"),
        ("smollm3", {"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\]; expected a list of 3, 1 \(RoPE\) or 0"),
        ("smollm3", {"no_rope_layers": [1, 0, 2]}, r"no_rope_layers=\[1, 0, 2\]; expected a list of 3"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 5.0}},
            "rope_theta: expected an object for each type of layer",
        ),
        (
            "gemma3_text",
            {"rope_local_base_freq": 7.0},
            r"disagree, .* rope_local_base_freq: 7\.0, rope_parameters\.slid",
        ),
        # other features
        (
            "gemma3_text",
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping=30.0 is not supported; expected null",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True .* expected false"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation='gelu' .* expected 'gelu_pytorch_tanh'"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0; expected a finite number above 0"),
        ("llama", {"model_type": "gemma2"}, r"'gemma2'; .* \(the nearest is gemma3_text\)"),
        ("llama", {"model_type": "gemma3"}, "the nearest is gemma3_text; of Gemma 3 the models for text alone are"),
        ("llama", {"model_type": "qwen3_moe"}, "the nearest is qwen3"),
    ],
)
def test_config_that_is_refused(tmp_path, family, changes, message):
    save(tmp_path, family)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"(config\.json: )?.*{message}"):
        hf.read_config(tmp_path)


def test_config_that_is_broken(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        hf.read_config(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
        hf.read_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        hf.read_config(folder)


@pytest.mark.parametrize(
    "key", ["quantization_config", "rope_scaling", "rope_theta", "rope_parameters", "num_key_value_heads", "head_dim"]
)
@pytest.mark.parametrize("more", [{}, {"rope_scaling": ...}])
def test_null_is_as_if_absent(folder, key, more):
    """cases/s09."""
    edit(folder, **more | {key: ...})
    absent = hf.read_config(folder)
    edit(folder, **{key: None})
    assert hf.read_config(folder) == absent


def test_null_is_no_window(tmp_path):
    save(tmp_path, "mistral")
    edit(tmp_path, sliding_window=None)
    assert hf.read_config(tmp_path).sliding_window is None


def test_an_end_token_of_generation_config_is_checked_too(folder):
    edit(folder, "generation_config.json", eos_token_id=[2, 999])
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id names the token 999"):
        hf.read_config(folder)


def test_both_spellings_of_rope_may_agree(folder):
    before = hf.read_config(folder)
    scaling = json.loads((folder / "config.json").read_text())["rope_scaling"]
    edit(folder, rope_parameters={**scaling, "rope_theta": 500.0})
    assert hf.read_config(folder) == before


def test_transformers_5_rope_parameters(folder):
    old = hf.read_config(folder)
    scaling = json.loads((folder / "config.json").read_text())["rope_scaling"]
    edit(folder, rope_theta=..., rope_scaling=..., rope_parameters={**scaling, "rope_theta": 500.0})
    assert hf.read_config(folder) == old


def test_windows_of_qwen(tmp_path):
    save(tmp_path, "qwen2")
    for first, window, full in ((0, 4, ()), (2, 4, (0, 1)), (3, None, ())):
        edit(tmp_path, use_sliding_window=True, sliding_window=4, max_window_layers=first, layer_types=...)
        cfg = hf.read_config(tmp_path)
        assert (cfg.sliding_window, cfg.full_layers) == (window, full)
    edit(tmp_path, use_sliding_window=False)
    assert hf.read_config(tmp_path).sliding_window is None


def published(family, cfg, **more):
    """The keys of a published config.json that the sizes of a model do not follow from."""
    return more | {
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": 1e-6,
        "eos_token_id": list(cfg.eos_ids),
        "bos_token_id": cfg.bos_id,
        "rope_scaling": None,
    }


GEMMA = {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "head_dim": 256, "query_pre_attn_scalar": 256}
TYPES = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)]
BOTH = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}


@pytest.mark.parametrize(
    "name, more",
    [
        ("allenai/OLMo-2-0425-1B", {"rope_theta": 500_000, "tie_word_embeddings": False}),
        ("HuggingFaceTB/SmolLM3-3B", {"rope_theta": 5e6, "no_rope_layer_interval": 4, "use_sliding_window": False}),
        ("HuggingFaceTB/SmolLM3-3B", {"rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0] * 9}),
        ("google/gemma-3-1b-it", GEMMA | {"sliding_window": 512, "sliding_window_pattern": 6}),
        ("google/gemma-3-1b-it", {"sliding_window": 512, "_sliding_window_pattern": 6}),
        ("google/gemma-3-1b-it", {"sliding_window": 512, "layer_types": TYPES, "rope_parameters": BOTH}),
    ],
)
def test_published_spellings(tmp_path, name, more):
    """In the spelling of transformers 4, with defaults left out, and in that of transformers 5."""
    cfg = SHAPES[name]
    (tmp_path / "config.json").write_text(json.dumps(published(cfg.family, cfg, **more)))
    assert hf.read_config(tmp_path) == cfg


def test_the_scaling_of_olmo_3_is_for_layers_without_a_window(tmp_path):
    """As it is published: one base, and YaRN, which transformers does not apply to layers with a window."""
    cfg = SHAPES["allenai/OLMo-2-0425-1B"]
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 32}
    raw = published("olmo3", cfg, sliding_window=4096) | {"rope_theta": 500_000, "rope_scaling": yarn}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    got = hf.read_config(tmp_path)
    assert got.local_rope == Rope(500_000.0) and got.full_layers == (3, 7, 11, 15)
    assert got.rope_scaling == YarnScaling(8.0, 8192, pytest.approx(0.1 * math.log(8) + 1))
    assert got.ropes == (got.local_rope, Rope(500_000.0, got.rope_scaling)) and got.windows == (4096, None)


def test_end_tokens_of_both_files(folder):
    edit(folder, eos_token_id=7)
    edit(folder, "generation_config.json", eos_token_id=[2, 7])
    assert hf.read_config(folder).eos_ids == (7, 2)


def test_save_refuses_what_the_family_cannot_hold(tmp_path):
    cfg = FAMILIES["qwen2"]
    params = random_params(cfg)
    wrong = dataclasses.replace(cfg, family="llama")
    with pytest.raises(ValueError, match=r"model\.qkv_bias=True with model\.family='llama'"):
        hf.save_folder(tmp_path, wrong, params, tiny_tokenizer())
    for name, change, message in (
        ("olmo2", {"norms": "both"}, r"model\.norms='both' with model\.family='olmo2'.* have 'after'"),
        ("llama", {"sliding_window": 4}, r"model\.sliding_window=4 with model\.family='llama'"),
        ("mistral", {"full_layers": (1,)}, r"model\.full_layers=\(1,\) with model\.family='mistral'"),
        ("qwen3", {"nope_layers": (1,)}, r"model\.nope_layers=\(1,\) with model\.family='qwen3'"),
        ("llama", {"local_rope": Rope(3.0)}, r"model\.local_rope=.* with model\.family='llama'"),
        ("llama", {"query_scalar": 3.0}, r"model\.query_scalar=3\.0 with model\.family='llama'"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.write_config(tmp_path, dataclasses.replace(FAMILIES[name], **change), "float32", None)
    params["layers"]["k"] = params["layers"]["k"][..., :3]
    with pytest.raises(ValueError, match=r"parameter layers/k has shape \(3, 24, 2, 3\), expected \(3, 24, 2, 6\)"):
        hf.save_folder(tmp_path, cfg, params, tiny_tokenizer())


def test_tokenizer_survives(folder):
    before, after = tiny_tokenizer(), hf.load_tokenizer(folder)
    for text in ("the cat <|im_end|> sat\n\n  on 12 mats", "naïve — 猫", ""):
        assert after(text)["input_ids"] == before(text)["input_ids"]
        assert after.decode(after(text)["input_ids"]) == text
    assert after.pad_token == "<|endoftext|>"
    assert after.apply_chat_template([{"content": "hat"}], tokenize=False) == "<|im_start|>hat<|im_end|>"
    # A class name that transformers 4 knows too.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_without_padding_pads_with_its_end(tmp_path):
    hf.save_folder(tmp_path, FAMILIES["llama"], random_params(FAMILIES["llama"]), tiny_tokenizer(pad=False))
    assert hf.load_tokenizer(tmp_path).pad_token == "<|im_end|>"


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer; expected one of tokenizer\.json"):
        hf.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        hf.load_tokenizer(folder)
