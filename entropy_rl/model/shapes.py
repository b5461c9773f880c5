"""The shapes of the papers' models by hub name, as their public config.json files give them.

Preflight and the configs' tests use them, without weights or a network. A run reads the model's own config.json.
"""

from entropy_rl.model.config import ModelConfig, RopeScaling


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


def _qwen3(d_model: int, n_layers: int, n_heads: int, d_ff: int) -> ModelConfig:
    return ModelConfig(
        151_936, d_model, n_layers, n_heads, 8, 128, d_ff, "qwen3", 1e6, None, 1e-6, qk_norm=True,
        tied=False, max_positions=32_768, eos_ids=(151_643,),
    )  # fmt: skip


SHAPES = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 64, 4864),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 128, 8960),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 128, 11_008),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 128, 18_944, 152_064, tied=False),
    "Qwen/Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 128, 27_648, 152_064, tied=False),
    "Qwen/Qwen3-8B-Base": _qwen3(4096, 36, 32, 12_288),
    "Qwen/Qwen3-14B-Base": _qwen3(5120, 40, 40, 17_408),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25_600),
    "meta-llama/Llama-3.1-8B": ModelConfig(
        128_256, 4096, 32, 32, 8, 128, 14_336, "llama", 5e5, RopeScaling(8.0, 1.0, 4.0, 8192),
        tied=False, max_positions=131_072, bos_id=128_000, eos_ids=(128_001,),
    ),
    "mistralai/Mistral-7B-v0.3": ModelConfig(
        32_768, 4096, 32, 32, 8, 128, 14_336, "mistral", 1e6, None,
        tied=False, max_positions=32_768, bos_id=1, eos_ids=(2,),
    ),
}  # fmt: skip
