"""Every token transform again in NumPy float64, written from the papers and not from the code.

Each function takes gradients and tokens (both with NumPy arrays), the state as one number or None, the random draws if
it needs them, and options. It returns (logp gradient, entropy gradient, new state). As all have these arguments, their
types are given only here:

    f(grads: TokenGrads, tokens: TokenInfo, state: float | None, draws: np.ndarray | None, **options) -> Edited
"""

import math
from decimal import Decimal

import numpy as np

from entropy_rl.objective.tokens import TokenGrads, TokenInfo

Edited = tuple[np.ndarray, np.ndarray, float | None]


def size_of(fraction: float, n: int) -> int:
    """max(1, floor(fraction * n)) in decimal arithmetic, as a person would read the fraction; 0 if either is 0."""
    return 0 if n * fraction == 0 else max(1, math.floor(Decimal(str(fraction)) * int(n)))


def first_by(score: np.ndarray, tokens: TokenInfo, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k candidates of highest score, by a plain sort; ties go to the lower uid, then to the lower position."""
    B, T = score.shape
    places = [(b, t) for b in range(B) for t in range(T) if candidates[b, t]]
    places.sort(key=lambda p: (-float(score[p]), int(tokens.uid[p[0]]), p[1]))
    chosen = np.zeros((B, T), bool)
    for place in places[:k]:
        chosen[place] = True
    return chosen


def covariance(tokens: TokenInfo) -> np.ndarray:
    valid = tokens.mask > 0
    logp, advantage = tokens.logp.astype(np.float64), tokens.advantage.astype(np.float64)
    return np.where(valid, (logp - logp[valid].mean()) * (advantage - advantage[valid].mean()), 0.0)


def valid_and_count(tokens: TokenInfo, fraction: float) -> tuple[np.ndarray, int]:
    valid = tokens.mask > 0
    return valid, size_of(fraction, valid.sum())


def kept_only(grads: TokenGrads, keep: np.ndarray, tokens: TokenInfo, normalizer: str) -> tuple[np.ndarray, np.ndarray]:
    scale = 1.0
    if normalizer == "selected" and (tokens.weight * keep).sum() > 0:
        scale = tokens.weight.sum() / (tokens.weight * keep).sum()
    return grads.logp * keep * scale, grads.entropy * keep * scale


def clip_cov(grads, tokens, state, draws, fraction=2e-4, low=1.0, high=5.0, pick="random") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    cov = covariance(tokens)
    score = draws if pick == "random" else cov.astype(np.float32)
    stop = first_by(score, tokens, valid & ~tokens.clipped & (cov > low) & (cov < high), k)
    return grads.logp * ~stop, grads.entropy * ~stop, state


def kl_cov(grads, tokens, state, draws, fraction=2e-3, coef=1.0, kl="abs") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    # ranked in float32, so that covariances that tie in the code tie here too
    held = first_by(covariance(tokens).astype(np.float32), tokens, valid, k)
    x = tokens.logp - tokens.old_logp
    slope = np.sign(x) if kl == "abs" else np.expm1(x)
    return grads.logp + coef * tokens.weight * slope * held, grads.entropy, state


def keep_top_entropy(grads, tokens, state, draws, fraction=0.2, normalizer="selected", up=False) -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    k = math.ceil(Decimal(str(fraction)) * int(valid.sum())) if up else k
    return *kept_only(grads, first_by(tokens.entropy, tokens, valid, k), tokens, normalizer), state


def keep_bottom_entropy(grads, tokens, state, draws, fraction=0.8, normalizer="selected") -> Edited:
    rest = float(1 - Decimal(str(fraction)))
    valid, k = valid_and_count(tokens, rest)
    return *kept_only(grads, valid & ~first_by(tokens.entropy, tokens, valid, k), tokens, normalizer), state


def gradient_of_logp(tokens: TokenInfo) -> np.ndarray:
    """|ω|: the size of the PPO-clipped gradient with respect to logp."""
    ratio = np.exp(tokens.logp.astype(np.float64) - tokens.old_logp)
    return np.where(tokens.clipped, 0.0, np.abs(ratio * tokens.advantage))


def keep_top_gradient(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    norm = np.sqrt(1 - 2 * np.exp(tokens.logp.astype(np.float64)) + tokens.prob_square)
    # ranked in float32, so that sizes that tie in the code tie here too
    keep = first_by((gradient_of_logp(tokens) * norm).astype(np.float32), tokens, valid, k)
    return *kept_only(grads, keep, tokens, normalizer), state


def keep_top_gradient_estimate(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    keep = first_by((gradient_of_logp(tokens) * tokens.entropy).astype(np.float32), tokens, valid, k)
    return *kept_only(grads, keep, tokens, normalizer), state


def entropy_score(tokens: TokenInfo) -> np.ndarray:
    logp = tokens.logp.astype(np.float64)
    return np.exp(logp) * (tokens.entropy + logp)


def entropy_score_clip_b(grads, tokens, state, draws, bound=2.5, normalizer="selected") -> Edited:
    valid, score = tokens.mask > 0, entropy_score(tokens)
    low = score - score[valid].mean() < -bound * max(score[valid].std(), 1e-12)
    return *kept_only(grads, valid & ~(low & (tokens.advantage < 0)), tokens, normalizer), state


def entropy_score_clip_v(grads, tokens, state, draws, bound=8.5, max_fraction=1e-4, normalizer="selected") -> Edited:
    valid, most = valid_and_count(tokens, max_fraction)
    centred = entropy_score(tokens) - tokens.score_mean
    low = centred < -bound * max(centred[valid].std(), 1e-12)
    stop = first_by(-centred.astype(np.float32), tokens, valid & low & (tokens.advantage < 0), most)
    return *kept_only(grads, valid & ~stop, tokens, normalizer), state


def siren(grads, tokens, state, draws, coef=0.005, fraction=0.2, anchor=0.0) -> tuple[np.ndarray, ...]:
    """The fourth result is the gradient of the nucleus entropy."""
    means, where = [], []
    for h, mask in zip(tokens.nucleus_entropy.astype(np.float64), tokens.mask, strict=True):
        if not mask.any():
            where.append(np.zeros(len(h)))
            continue
        high = (h > np.quantile(h[mask > 0], 1 - fraction)) & (mask > 0)
        means.append(h[high].mean() if high.any() else 0.0)
        where.append(high / max(high.sum(), 1))
    pull = 2 * coef * (np.mean(means) - anchor) * np.stack(where) / len(means)
    return grads.logp, grads.entropy, np.float32(anchor), grads.nucleus_entropy + pull


def keep_nonzero_advantage(grads, tokens, state, draws, normalizer="selected") -> Edited:
    return *kept_only(grads, (tokens.mask > 0) & (tokens.advantage != 0), tokens, normalizer), state


def keep_shuffled_entropy(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    forks, keep = first_by(tokens.entropy, tokens, valid, k), np.zeros(valid.shape, bool)
    for b in range(len(valid)):
        own = valid & (np.arange(len(valid)) == b)[:, None]
        keep |= first_by(draws, tokens, own, forks[b].sum())
    return *kept_only(grads, keep, tokens, normalizer), state


def keep_entropy_positions(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    forks, keep = first_by(tokens.entropy, tokens, valid, k), np.zeros(valid.shape, bool)
    for t in range(valid.shape[1]):
        own = valid & (np.arange(valid.shape[1]) == t)
        keep |= first_by(draws, tokens, own, forks[:, t].sum())
    return *kept_only(grads, keep, tokens, normalizer), state


def keep_top_ref_entropy(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    return keep_top_entropy(grads, tokens._replace(entropy=tokens.ref_entropy), state, draws, fraction, normalizer)


def keep_by_probability(grads, tokens, state, draws, fraction=0.2, normalizer="selected", lowest=False) -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    p = tokens.logp.astype(np.float64)
    return *kept_only(grads, first_by(-p if lowest else p, tokens, valid, k), tokens, normalizer), state


def random_mask(grads, tokens, state, draws, fraction=0.2, normalizer="selected") -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    return *kept_only(grads, first_by(draws, tokens, valid, k), tokens, normalizer), state


def random_positive_clip(grads, tokens, state, draws, fraction=2e-4) -> Edited:
    valid, k = valid_and_count(tokens, fraction)
    stop = first_by(draws, tokens, valid & (tokens.advantage > 0), k)
    return grads.logp * ~stop, grads.entropy * ~stop, state


def entropy_bonus(grads, tokens, state, draws, coef) -> Edited:
    return grads.logp, grads.entropy - coef * tokens.weight, state


def adaptive_entropy_bonus(grads, tokens, state, draws, target=0.2, step=1e-4, max_coef=5e-3) -> Edited:
    entropy = tokens.entropy[tokens.mask > 0].mean()
    used = state if entropy <= target else 0.0
    moved = min(max(state + (step if entropy < target else -step), 0.0), max_coef)
    return grads.logp, grads.entropy - used * tokens.weight, moved


def ratio_of(tokens: TokenInfo) -> np.ndarray:
    return np.exp(tokens.logp.astype(np.float64) - tokens.old_logp)


def clip_mask(tokens: TokenInfo, least: float | np.ndarray, most: float | np.ndarray) -> np.ndarray:
    """The tokens that PPO's clip to [least, most] lets push."""
    ratio = ratio_of(tokens)
    return ~(((tokens.advantage > 0) & (ratio > most)) | ((tokens.advantage < 0) & (ratio < least)))


def bapo(
    grads,
    tokens,
    state,
    draws,
    target=1.0,
    low=0.6,
    low_most=0.8,
    low_step=0.05,
    high=1.2,
    high_most=2.0,
    high_step=0.05,
) -> Edited:
    ratio, push = ratio_of(tokens), tokens.advantage.astype(np.float64) * tokens.weight

    def too_negative() -> bool:
        positive = (push * np.minimum(ratio, high))[push > 0].sum()
        return positive < target * -(push * np.maximum(ratio, low))[push < 0].sum()

    while too_negative() and (low < low_most or high < high_most):
        if low < low_most:
            low = min(low + low_step, low_most)
        else:
            high = min(high + high_step, high_most)
    keep = (tokens.mask > 0) & clip_mask(tokens, low, high)
    return grads.logp * keep, grads.entropy * keep, state


def adapo(grads, tokens, state, draws, target, low=0.2, least=0.1, most=1.0, factor=1.1) -> Edited:
    entropy = tokens.entropy[tokens.mask > 0].mean()
    high = min(max(state * (factor if entropy < target else 1 / factor), least), most)
    return grads.logp * clip_mask(tokens, 1 - low, 1 + high), grads.entropy, high


def dcpo_clip(grads, tokens, state, draws, low=0.16, high=0.2, cap=10.0) -> Edited:
    q, ratio = np.exp(tokens.old_logp.astype(np.float64)), ratio_of(tokens)
    least = 0.5 + 0.5 * np.sqrt(np.maximum(1 - 4 * low / q, 0))
    most = 0.5 + 0.5 * np.sqrt(1 + 4 * high / q)
    keep = clip_mask(tokens, least, most) & ~((ratio > cap) & (tokens.advantage != 0))
    return grads.logp * keep, grads.entropy * keep, state


def entropic(
    grads, tokens, state, draws, target=0.1, proportional=1.0, integral=0.01, bound=0.95, normalizer="selected"
) -> Edited:
    error, total = tokens.entropy[tokens.mask > 0].mean() - target, 0.0 if state is None else state
    alpha = min(max(proportional * error + integral * total, -1.0), 1.0)
    sure = (tokens.mask > 0) & (np.exp(tokens.logp.astype(np.float64)) > bound)
    weight = tokens.weight * sure
    if normalizer == "selected" and weight.sum() > 0:
        weight = weight * tokens.weight.sum() / weight.sum()
    return grads.logp - alpha * np.abs(tokens.advantage) * ratio_of(tokens) * weight, grads.entropy, total + error


def positive_reweighting(grads, tokens, state, draws, target=0.2, step=0.05) -> Edited:
    entropy = tokens.entropy[tokens.mask > 0].mean()
    moved = min(max(state + (-step if entropy < target else step), 0.0), 1.0)
    return np.where(tokens.advantage > 0, state * grads.logp, grads.logp), grads.entropy, moved


def entropy_shaped_advantage(grads, tokens, state, draws, alpha=0.4, kappa=2.0) -> Edited:
    a = tokens.advantage
    shaped = a + np.minimum(alpha * tokens.entropy, np.abs(a) / kappa)
    return np.where(a == 0, grads.logp, grads.logp * shaped / np.where(a == 0, 1, a)), grads.entropy, state


def entropy_ratio_clip(grads, tokens, state, draws, low=0.95, high=1.05) -> Edited:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = tokens.entropy / tokens.old_entropy
    keep = ((ratio > low) & (ratio < high)) | (tokens.entropy == tokens.old_entropy)
    return grads.logp * keep, grads.entropy * keep, state


def steer(grads, tokens, state, draws, min_weight=0.8, floor=0.02) -> Edited:
    logp = tokens.logp.astype(np.float64)
    omega = np.abs(np.exp(logp - tokens.old_logp) * tokens.advantage * (1 - np.exp(logp)) * (logp + tokens.entropy))
    rate = -np.log(min_weight) / max((omega * tokens.mask).max(), floor)
    return grads.logp * np.exp(-rate * omega), grads.entropy, state


def archer(grads, tokens, state, draws, quantile=0.8, clip_above=0.5, clip_below=0.2, coef=1e-3) -> Edited:
    valid, above = tokens.mask > 0, np.zeros(tokens.mask.shape, bool)
    for b in np.flatnonzero(valid.any(axis=1)):
        above[b] = valid[b] & (
            tokens.entropy[b] > np.quantile(tokens.entropy[b][valid[b]].astype(np.float64), quantile)
        )
    logp, epsilon = tokens.logp.astype(np.float64), np.where(above, clip_above, clip_below)
    r = np.exp(logp - tokens.old_logp)
    stopped = ((tokens.advantage > 0) & (r > 1 + epsilon)) | ((tokens.advantage < 0) & (r < 1 - epsilon))
    sure = valid & ~above
    weight = tokens.weight * sure * tokens.weight.sum() / max((tokens.weight * sure).sum(), 1e-30)
    return grads.logp * ~stopped + coef * weight * (1 - np.exp(tokens.ref_logp - logp)), grads.entropy, state


def low_probability_reweighting(grads, tokens, state, draws, alpha=0.3) -> Edited:
    probability = np.exp(tokens.old_logp.astype(np.float64))
    return grads.logp * (alpha * probability + 1 - alpha), grads.entropy, state


def lopti(grads, tokens, state, draws, bound=0.5) -> Edited:
    unlikely = np.exp(tokens.old_logp.astype(np.float64)) < bound
    keep = np.where(tokens.turn[:, None] == 0, unlikely, ~unlikely)
    return grads.logp * keep, grads.entropy * keep, state


def repo(grads, tokens, state, draws, form="subtract", target=None, least=1e-4, most=0.05, factor=2.0) -> Edited:
    entropy, zeta = tokens.entropy[tokens.mask > 0].mean(), state
    if target is not None and entropy != target:
        towards = 1 if entropy < target else -1  # the sign of ζ that moves the entropy to its target
        if zeta * towards > 0:
            zeta = towards * min(abs(zeta) * factor, most)
        elif zeta != 0:
            zeta = zeta / factor if abs(zeta) / factor >= least else towards * least
    logp, a = tokens.logp.astype(np.float64), tokens.advantage
    if form == "rescale":
        shaped = np.where(a > 0, np.maximum(a - zeta * a * logp, 0), np.minimum(a - zeta * -a * logp, 0))
        return np.where(a == 0, grads.logp, grads.logp * shaped / np.where(a == 0, 1, a)), grads.entropy, zeta
    term = tokens.weight * np.exp(logp - tokens.old_logp) * zeta * (logp + tokens.entropy)
    return grads.logp + np.where(tokens.clipped, 0, term), grads.entropy, zeta


def stapo(grads, tokens, state, draws, probability=0.002, quantile=0.8) -> Edited:
    valid = tokens.mask > 0
    sure = tokens.entropy < np.quantile(tokens.entropy[valid].astype(np.float64), quantile)
    spurious = (tokens.advantage > 0) & (np.exp(tokens.logp.astype(np.float64)) < probability) & sure
    return *kept_only(grads, valid & ~spurious, tokens, "selected"), state


def rsi(grads, tokens, state, draws, low=0.1, high=3.0, normalizer="selected") -> Edited:
    with np.errstate(divide="ignore", invalid="ignore"):
        index = -tokens.logp.astype(np.float64) / tokens.entropy
    keep = ((index >= low) & (index <= high)) | ((tokens.logp == 0) & (tokens.entropy == 0))
    return *kept_only(grads, (tokens.mask > 0) & keep, tokens, normalizer), state


def reference_kl(grads, tokens, state, draws, coef, kind="k3") -> Edited:
    x = tokens.ref_logp.astype(np.float64) - tokens.logp
    slope = {"k1": np.ones_like(x), "k2": -x, "k3": 1 - np.exp(x), "abs": -np.sign(x)}[kind]
    return grads.logp + coef * tokens.weight * slope, grads.entropy, state


def matched_norm(grads, tokens, state, draws, inner) -> Edited:
    """`inner` is (function of this module, options)."""
    logp, entropy, _ = inner[0](grads, tokens, None, draws, **inner[1])
    before = np.sqrt((grads.logp**2).sum() + (grads.entropy**2).sum())
    ratio = np.sqrt((logp**2).sum() + (entropy**2).sum()) / (before if before > 0 else 1.0)
    return grads.logp * ratio, grads.entropy * ratio, state
