"""The shape of a decoder: Llama, Mistral, Qwen2 and Qwen3 differ in these fields only."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


ADAPTER = "_lora_"  # the leaves of the adapter of a matrix, such as q, are q_lora_a and q_lora_b


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters beside frozen weights, see `lora.py`.

    Attributes:
        rank: inner size of an adapter.
        alpha: its product is multiplied by alpha / rank.
        targets: the leaves of the matrices that have one, such as "q".
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder.

    Raises:
        ValueError: If the key/value heads do not divide the query heads.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    family: str = "llama"  # llama | mistral | qwen2 | qwen3: the name that is written back to disk
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMSNorm over each head's q and k
    sliding_window: int | None = None  # Mistral: a token sees this many positions, itself included; None: all
    tied: bool = True  # the head is the embedding
    max_positions: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    lora: Lora | None = None  # adapters, which are leaves beside the weights; None: there are none

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs of numbers")
