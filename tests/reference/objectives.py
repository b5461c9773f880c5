"""Every objective again in NumPy float64, from the papers: (loss, d loss / d logp, clipped) of each token."""

import numpy as np

from entropy_rl.objective.tokens import TokenInfo

Losses = tuple[np.ndarray, np.ndarray, np.ndarray]


def ratio_of(tokens: TokenInfo) -> np.ndarray:
    return np.exp(tokens.logp.astype(np.float64) - tokens.old_logp)


def ppo_clip(
    tokens: TokenInfo,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    ratio: np.ndarray | None = None,
) -> Losses:
    r, a = ratio_of(tokens) if ratio is None else ratio, tokens.advantage.astype(np.float64)
    loss, slope, clipped = np.zeros(r.shape), np.zeros(r.shape), np.zeros(r.shape, bool)
    for place in np.ndindex(r.shape):
        held = min(max(r[place], 1 - low), 1 + high)
        objective = min(r[place] * a[place], held * a[place])
        clipped[place] = objective != r[place] * a[place]
        if dual is not None and a[place] < 0 and objective < dual * a[place]:
            objective, clipped[place] = dual * a[place], True
        loss[place] = -objective
        slope[place] = 0.0 if clipped[place] else -r[place] * a[place]
    return loss, slope, clipped


def policy_gradient(tokens: TokenInfo) -> Losses:
    loss = -ratio_of(tokens) * tokens.advantage
    return loss, loss, np.zeros(loss.shape, bool)


def gspo(tokens: TokenInfo, low: float = 3e-4, high: float = 4e-4) -> Losses:
    valid = tokens.mask > 0
    s = np.ones(valid.shape)
    for b in range(valid.shape[0]):
        if valid[b].any():
            s[b] = np.exp((tokens.logp[b].astype(np.float64) - tokens.old_logp[b])[valid[b]].mean())
    return ppo_clip(tokens, low, high, ratio=s)


def cispo(tokens: TokenInfo, low: float = 1.0, high: float = 4.0) -> Losses:
    weight = np.clip(ratio_of(tokens), 1 - low, 1 + high)
    slope = -weight * tokens.advantage
    return slope * tokens.logp, slope, np.zeros(slope.shape, bool)


def ce_gppo(
    tokens: TokenInfo, low: float = 0.2, high: float = 0.2, beta_low: float = 0.5, beta_high: float = 1.0
) -> Losses:
    r, a = ratio_of(tokens), tokens.advantage.astype(np.float64)
    factor = np.where((a < 0) & (r < 1 - low), beta_low * (1 - low), r)
    factor = np.where((a > 0) & (r > 1 + high), beta_high * (1 + high), factor)
    return -factor * a, -factor * a, np.zeros(r.shape, bool)


def sapo(tokens: TokenInfo, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Losses:
    r, a = ratio_of(tokens), tokens.advantage.astype(np.float64)
    tau = np.where(a > 0, tau_positive, tau_negative)
    gate = 1 / (1 + np.exp(-tau * (r - 1)))
    return -4 / tau * gate * a, -4 * gate * (1 - gate) * r * a, np.zeros(r.shape, bool)


def dppo(tokens: TokenInfo, low: float = 0.15, high: float = 0.15, cap: float = 20.0) -> Losses:
    r, a = ratio_of(tokens), tokens.advantage.astype(np.float64)
    logp, moved = tokens.logp.astype(np.float64), np.exp(tokens.logp) - np.exp(tokens.old_logp)
    stopped = ((a > 0) & (moved > high)) | ((a < 0) & (moved < -low))
    slope = np.where(stopped, 0.0, -np.minimum(r, cap) * a)
    return slope * logp, slope, stopped
