"""The knob of each method and the three values that are tried, which every method gets alike."""

LEARNING_RATE = "optim.lr=1e-4,2e-4,4e-4"  # of a method that has no knob of its own
_T, _O = "algo.transforms", "algo.objective"
_RARE, _SHARES = "2e-4,2e-3,2e-2", "0.1,0.2,0.4"  # of Clip-Cov's kind, and of forking's

KNOBS = {
    "clip_higher": f"{_O}.high=0.28,0.5,1.0",
    "entropy_bonus": f"{_T}.entropy_bonus.coef=1e-3,5e-3,2e-2",
    "reference_kl": f"{_T}.reference_kl.coef=1e-3,1e-2,1e-1",
    "clip_cov": f"{_T}.clip_cov.fraction={_RARE}",
    "kl_cov": f"{_T}.kl_cov.fraction=2e-3,2e-2,2e-1",
    "kl_cov_32b": f"{_T}.kl_cov.coef=1,10,100",
    "clip_cov_official": f"{_T}.clip_cov.fraction={_RARE}",
    "kl_cov_official": f"{_T}.kl_cov.fraction=2e-3,2e-2,2e-1",
    "forking": f"{_T}.keep_top_entropy.fraction={_SHARES}",
    "forking_v1": f"{_T}.keep_top_entropy.fraction={_SHARES}",
    "forking_official": f"{_T}.keep_top_entropy.fraction={_SHARES}",
    "bottom80": f"{_T}.keep_bottom_entropy.fraction=0.5,0.8,0.95",
    "adaptive_entropy": f"{_T}.adaptive_entropy_bonus.max_coef=5e-3,5e-2,2e-1",
    "entropy_shaped": f"{_T}.entropy_shaped_advantage.alpha=0.1,0.4,1.0",
    "entropy_ratio": f"{_T}.entropy_ratio_clip.low=0.8,0.9,0.95",
    "steer": f"{_T}.steer.min_weight=0.5,0.8,0.95",
    "positive_reweighting": f"{_T}.positive_reweighting.target=0.1,0.2,0.4",
    "archer": f"{_T}.archer.quantile=0.7,0.8,0.9",
    "low_probability_reweighting": f"{_T}.low_probability_reweighting.alpha=0.1,0.3,0.6",
    "lopti": f"{_T}.lopti.bound=0.3,0.5,0.7",
    "repo": f"{_T}.repo.initial=1e-3,1e-2,5e-2",
    "repo_r": f"{_T}.repo.initial=1e-3,1e-2,5e-2",
    "stapo": f"{_T}.stapo.probability=0.002,0.01,0.05",
    "rsi": f"{_T}.rsi.high=2,3,5",
    "clip_cov_top": f"{_T}.clip_cov.fraction={_RARE}",
    "bapo": f"{_T}.bapo.high=1.2,1.5,1.8",
    "adapo": f"{_T}.adapo.initial=0.28,0.5,1.0",
    "dcpo": f"{_T}.dcpo_clip.high=0.2,0.5,1.0",
    "entropic": f"{_T}.entropic.target=0.05,0.1,0.2",
    "cispo": f"{_O}.high=1,4,9",
    "gspo": f"{_O}.high=4e-4,4e-3,4e-2",
    "ce_gppo": f"{_O}.beta_high=0.5,1.0,2.0",
    "sapo": f"{_O}.tau_negative=1.05,1.5,2.0",
    "dppo": f"{_O}.high=0.05,0.15,0.3",
    "quantile": "algo.advantage.k=0.2,0.4,0.6",
    "w_reinforce": "algo.advantage.right=0.05,0.1,0.3",
    "entropy_minimise": f"{_T}.entropy_bonus.coef=-1,-0.1,-0.01",
    "forking_shuffled": f"{_T}.keep_shuffled_entropy.fraction={_SHARES}",
    "forking_positions": f"{_T}.keep_entropy_positions.fraction={_SHARES}",
    "forking_base": f"{_T}.keep_top_ref_entropy.fraction={_SHARES}",
    "forking_likely": f"{_T}.keep_by_probability.fraction={_SHARES}",
    "forking_unlikely": f"{_T}.keep_by_probability.fraction={_SHARES}",
    "gmts": f"{_T}.keep_top_gradient.fraction={_SHARES}",
    "gmts_estimate": f"{_T}.keep_top_gradient_estimate.fraction={_SHARES}",
    "entropy_score_clip_b": f"{_T}.entropy_score_clip_b.bound=1.5,2.5,4",
    "entropy_score_clip_v": f"{_T}.entropy_score_clip_v.bound=4,8.5,16",
    "siren": f"{_T}.siren.coef=1e-3,5e-3,2e-2",
    "random_positive_clip": f"{_T}.random_positive_clip.fraction={_RARE}",
    "random_mask": f"{_T}.random_mask.fraction={_SHARES}",
    "matched_norm": f"{_T}.matched_norm.inner.fraction={_RARE}",
}


def knob_of(method: str) -> tuple[str, str]:
    """(key, values separated by commas) of a method's knob: the learning rate if it has none in the table."""
    key, _, values = KNOBS.get(method, LEARNING_RATE).partition("=")
    return key, values


def settings_of(method: str) -> tuple[str, ...]:
    """What a method needs besides: the official ones take their statistics from one of two pieces of an update."""
    return ("train.micro_batches=2",) if method.endswith("_official") else ()
