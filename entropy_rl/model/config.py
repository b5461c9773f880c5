"""The shape of a decoder: the families (see `families.py`) differ in these fields only."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3's scaling of RoPE's frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All of RoPE's frequencies are divided by a factor (`rope_type: linear`)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (`rope_type: yarn`; Peng et al., 2023): low frequencies are divided by a factor, and scores grow.

    Attributes:
        factor: that of the low frequencies.
        original_max_positions: of the model before it was extended.
        attention_factor: q and k are multiplied by it.
        beta_fast: frequencies that turn more often than this within the original positions stay as they are.
        beta_slow: those that turn less often are divided by the whole factor.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: the base of their wavelengths, and how these are scaled."""

    theta: float
    scaling: RopeScaling | None = None


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
        ValueError: If the key/value heads do not divide the query heads, heads have an odd size, a choice has an
            unknown value, or a layer is named that does not exist.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    family: str = "llama"  # the name that is written back to disk, see `families.py`
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False  # Qwen2
    qk_norm: str | None = None  # RMSNorm of q and k: "head": over each head (Qwen3); "width": over all (OLMo 2)
    sliding_window: int | None = None  # Mistral: a token sees this many positions, itself included; None: all
    tied: bool = True  # the head is the embedding
    max_positions: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    lora: Lora | None = None  # adapters, which are leaves beside the weights; None: there are none
    norms: str = "before"  # where attention and the MLP have RMSNorms: "before", "after" (OLMo 2) or "both" (Gemma)
    norm_offset: bool = False  # Gemma: a norm multiplies by 1 + its weight
    activation: str = "silu"  # of the MLP's gate: "silu", or "gelu_tanh" (Gemma)
    scaled_embedding: bool = False  # Gemma: embeddings are multiplied by the root of d_model
    query_scalar: float | None = None  # Gemma: scores are divided by its root; None: by that of head_dim
    full_layers: tuple[int, ...] = ()  # layers that see all positions although the model has a window
    nope_layers: tuple[int, ...] = ()  # SmolLM3: layers without RoPE
    local_rope: Rope | None = None  # RoPE of the layers with a window; None: the same as that of the others

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs of numbers")
        for name, allowed in (
            ("qk_norm", (None, "head", "width")),
            ("norms", ("before", "after", "both")),
            ("activation", ("silu", "gelu_tanh")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"model.{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
        for name in ("full_layers", "nope_layers"):
            if bad := [i for i in getattr(self, name) if not 0 <= i < self.n_layers]:
                raise ValueError(f"model.{name} names layer {bad[0]}; the layers are 0 to {self.n_layers - 1}")

    def window_of(self, layer: int) -> int | None:
        """The number of positions that a token sees in this layer; None: all."""
        return None if layer in self.full_layers else self.sliding_window

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of this layer; None: it has none."""
        if layer in self.nope_layers:
            return None
        if self.local_rope is not None and self.window_of(layer) is not None:
            return self.local_rope
        return Rope(self.rope_theta, self.rope_scaling)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The different windows of the layers, in the order in which they first occur."""
        return tuple(dict.fromkeys(map(self.window_of, range(self.n_layers))))

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """The different rotary positions of the layers, in the order in which they first occur."""
        return tuple(dict.fromkeys(map(self.rope_of, range(self.n_layers))))
