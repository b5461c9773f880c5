"""Random batches for the tests of the maths: any shape, any mask, with or without ties."""

import jax.numpy as jnp
import numpy as np

from entropy_rl.token_transforms import TokenGrads, TokenInfo

SHAPES = ((1, 1), (5, 1), (6, 20))


def random_mask(rng: np.random.Generator, B: int, T: int) -> np.ndarray:
    """Responses of random length, possibly 0, as f32[B, T]; at least one token is valid."""
    length_Bx1 = rng.integers(0, T + 1, (B, 1))
    length_Bx1[rng.integers(B)] = T
    return (np.arange(T)[None] < length_Bx1).astype(np.float32)


def random_tokens(seed: int, B: int = 8, T: int = 33, ties: bool = False) -> tuple[TokenGrads, TokenInfo]:
    """Gradients and statistics of a batch; with `ties` there are few different values, so ranks have many ties."""
    rng = np.random.default_rng(seed)
    mask_BxT = random_mask(rng, B, T)

    def draw(scale: float) -> np.ndarray:
        x_BxT = rng.normal(size=(B, T)) * scale
        return (np.round(x_BxT) if ties else x_BxT).astype(np.float32)

    logp_BxT = -np.abs(draw(2.0))
    advantage_BxT = np.repeat(np.round(rng.normal(size=(B, 1)), 0 if ties else 6), T, axis=1).astype(np.float32)
    advantage_BxT[rng.integers(B)] = 0.0
    entropy_BxT = np.abs(draw(1.0))
    moved_BxT = rng.choice([0.9, 0.97, 1.0, 1.03, 1.2], (B, T))
    of_ref = np.random.default_rng(seed + 2**32).normal(size=(B, T))  # draws of its own: the others keep theirs
    tokens = TokenInfo(
        logp=logp_BxT,
        old_logp=-np.abs(logp_BxT + draw(0.4)),
        advantage=advantage_BxT,
        entropy=entropy_BxT,
        mask=mask_BxT,
        clipped=rng.random((B, T)) < 0.1,
        old_entropy=(entropy_BxT * moved_BxT).astype(np.float32),
        ref_logp=-np.abs(logp_BxT + draw(0.3)),
        ref_entropy=np.abs(np.round(of_ref) if ties else of_ref).astype(np.float32),
        uid=rng.integers(0, 2**32, B, dtype=np.uint32),
        weight=mask_BxT / mask_BxT.sum(),
    )
    grads = TokenGrads(draw(1.0) * mask_BxT, draw(1.0) * mask_BxT, np.zeros_like(mask_BxT))
    tokens = tokens._replace(turn=rng.integers(0, 2, B, dtype=np.int32))  # a real update has one
    # drawn last, so that everything else is the same with and without them
    square_BxT = np.exp(logp_BxT) ** 2
    tokens = tokens._replace(
        prob_square=square_BxT + np.abs(draw(0.2)) * (1 - np.exp(logp_BxT)) ** 2,
        score_mean=draw(0.2),
        nucleus_entropy=np.abs(draw(1.0)) * entropy_BxT / (1 + entropy_BxT),
    )
    return (TokenGrads(*map(jnp.asarray, grads)), TokenInfo(*map(jnp.asarray, tokens)))
