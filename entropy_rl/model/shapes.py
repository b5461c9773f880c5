"""The shapes of the papers' models and of those for one chip, by hub name, as their public config.json files give them.

Preflight and the configs' tests use them, without weights or a network. A run reads the model's own config.json.
"""

from entropy_rl.model.config import Llama3Scaling, ModelConfig, Rope
from entropy_rl.model.families import FAMILIES


def _qwen2(
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    d_ff: int,
    vocab_size: int = 151_936,
    tied: bool = True,
) -> ModelConfig:
    return ModelConfig(
        vocab_size, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, "qwen2", 1e6, None, 1e-6, True,
        tied=tied, max_positions=32_768, eos_ids=(151_643,),
    )  # fmt: skip


def _qwen3(d_model: int, n_layers: int, n_heads: int, d_ff: int, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        151_936, d_model, n_layers, n_heads, 8, 128, d_ff, "qwen3", 1e6, None, 1e-6, qk_norm="head",
        tied=tied, max_positions=32_768, eos_ids=(151_643,),
    )  # fmt: skip


def _gemma3_1b(eos_ids: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(
        262_144, 1152, 26, 4, 1, 256, 6912, "gemma3_text", 1e6, None, 1e-6, **FAMILIES["gemma3_text"].features,
        sliding_window=512, full_layers=(5, 11, 17, 23), local_rope=Rope(1e4),
        max_positions=32_768, bos_id=2, eos_ids=eos_ids,
    )  # fmt: skip


SHAPES = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 64, 4864),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 128, 8960),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 128, 11_008),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 128, 18_944, 152_064, tied=False),
    "Qwen/Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 128, 27_648, 152_064, tied=False),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-8B-Base": _qwen3(4096, 36, 32, 12_288),
    "Qwen/Qwen3-14B-Base": _qwen3(5120, 40, 40, 17_408),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25_600),
    "meta-llama/Llama-3.1-8B": ModelConfig(
        128_256, 4096, 32, 32, 8, 128, 14_336, "llama", 5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192),
        tied=False, max_positions=131_072, bos_id=128_000, eos_ids=(128_001,),
    ),
    "mistralai/Mistral-7B-v0.3": ModelConfig(
        32_768, 4096, 32, 32, 8, 128, 14_336, "mistral", 1e6, None,
        tied=False, max_positions=32_768, bos_id=1, eos_ids=(2,),
    ),
    "allenai/OLMo-2-0425-1B": ModelConfig(
        100_352, 2048, 16, 16, 16, 128, 8192, "olmo2", 5e5, None, 1e-6, **FAMILIES["olmo2"].features,
        tied=False, max_positions=4096, eos_ids=(100_257,),
    ),
    "google/gemma-3-1b-pt": _gemma3_1b((1,)),
    "google/gemma-3-1b-it": _gemma3_1b((1, 106)),
    "HuggingFaceTB/SmolLM3-3B": ModelConfig(
        128_256, 2048, 36, 16, 4, 128, 11_008, "smollm3", 5e6, None, 1e-6, nope_layers=tuple(range(3, 36, 4)),
        max_positions=65_536, bos_id=128_000, eos_ids=(128_012,),
    ),
}  # fmt: skip
