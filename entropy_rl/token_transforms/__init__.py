"""Token transforms: which tokens may push the policy, and how hard. One file per method.

Between the objective and the pull-back to the parameters, a transform edits `TokenGrads` (d loss / d logp and
d loss / d entropy, f32[B, T] each). It is an Optax gradient transformation:

    state = transform.init(grads)
    grads, state = transform.update(grads, state, tokens=tokens, key=key)
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optax

from entropy_rl.model.head_extras import Extras
from entropy_rl.objective.registry import Spec, check_spec, split_spec
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.token_transforms.adapo import adapo
from entropy_rl.token_transforms.adaptive_entropy_bonus import adaptive_entropy_bonus
from entropy_rl.token_transforms.archer import archer
from entropy_rl.token_transforms.bapo import bapo
from entropy_rl.token_transforms.base import Masked, TokenMask
from entropy_rl.token_transforms.chain import Chain, ChainState, chain, kept_fraction
from entropy_rl.token_transforms.clip_cov import clip_cov
from entropy_rl.token_transforms.dcpo_clip import dcpo_clip
from entropy_rl.token_transforms.entropic import entropic
from entropy_rl.token_transforms.entropy_bonus import entropy_bonus
from entropy_rl.token_transforms.entropy_mask import keep_bottom_entropy, keep_top_entropy
from entropy_rl.token_transforms.entropy_ratio import entropy_ratio_clip
from entropy_rl.token_transforms.entropy_score_clip import entropy_score_clip_b, entropy_score_clip_v
from entropy_rl.token_transforms.entropy_shaping import entropy_shaped_advantage
from entropy_rl.token_transforms.fork_controls import (
    keep_by_probability,
    keep_entropy_positions,
    keep_shuffled_entropy,
    keep_top_ref_entropy,
)
from entropy_rl.token_transforms.gradient_mask import keep_top_gradient, keep_top_gradient_estimate
from entropy_rl.token_transforms.kl_cov import kl_cov
from entropy_rl.token_transforms.lopti import lopti
from entropy_rl.token_transforms.low_probability_reweighting import low_probability_reweighting
from entropy_rl.token_transforms.matched_norm import matched_norm
from entropy_rl.token_transforms.micro_scope import micro_scope
from entropy_rl.token_transforms.nonzero_advantage import keep_nonzero_advantage
from entropy_rl.token_transforms.positive_reweighting import positive_reweighting
from entropy_rl.token_transforms.random_mask import random_mask, random_positive_clip
from entropy_rl.token_transforms.reference_kl import reference_kl
from entropy_rl.token_transforms.repo import repo
from entropy_rl.token_transforms.rsi import rsi
from entropy_rl.token_transforms.schedule import Schedule, Scheduled, scheduled
from entropy_rl.token_transforms.siren import siren
from entropy_rl.token_transforms.stapo import stapo
from entropy_rl.token_transforms.steer import steer

TRANSFORMS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    f.__name__: f
    for f in (
        adapo,
        adaptive_entropy_bonus,
        archer,
        bapo,
        clip_cov,
        dcpo_clip,
        entropic,
        entropy_bonus,
        entropy_ratio_clip,
        entropy_score_clip_b,
        entropy_score_clip_v,
        entropy_shaped_advantage,
        keep_bottom_entropy,
        keep_by_probability,
        keep_entropy_positions,
        keep_nonzero_advantage,
        keep_shuffled_entropy,
        keep_top_entropy,
        keep_top_ref_entropy,
        keep_top_gradient,
        keep_top_gradient_estimate,
        kl_cov,
        lopti,
        low_probability_reweighting,
        matched_norm,
        positive_reweighting,
        random_mask,
        random_positive_clip,
        reference_kl,
        repo,
        rsi,
        stapo,
        siren,
        steer,
    )
}

# The optional field of TokenInfo that a transform reads, which the train step must then fill in.
NEEDS = {
    "archer": "ref_logp",
    "entropy_ratio_clip": "old_entropy",
    "entropy_score_clip_v": "score_mean",
    "keep_top_gradient": "prob_square",
    "keep_top_ref_entropy": "ref_entropy",
    "reference_kl": "ref_logp",
    "siren": "nucleus_entropy",
}

# How many turns a transform divides the tokens of a rollout among: the train loop then makes all updates that often.
TURNS = {"lopti": 2}

KEY = "algo.transforms"

__all__ = [
    "NEEDS",
    "TRANSFORMS",
    "TURNS",
    "Chain",
    "ChainState",
    "Masked",
    "Schedule",
    "TokenGrads",
    "TokenInfo",
    "TokenMask",
    "adapo",
    "adaptive_entropy_bonus",
    "archer",
    "bapo",
    "build",
    "chain",
    "check_updates_per_rollout",
    "clip_cov",
    "dcpo_clip",
    "entropic",
    "entropy_bonus",
    "entropy_ratio_clip",
    "entropy_score_clip_b",
    "entropy_score_clip_v",
    "entropy_shaped_advantage",
    "extras",
    "keep_bottom_entropy",
    "keep_by_probability",
    "keep_entropy_positions",
    "keep_nonzero_advantage",
    "keep_shuffled_entropy",
    "keep_top_entropy",
    "keep_top_ref_entropy",
    "keep_top_gradient",
    "keep_top_gradient_estimate",
    "kept_fraction",
    "kl_cov",
    "lopti",
    "low_probability_reweighting",
    "matched_norm",
    "micro_scope",
    "needs",
    "positive_reweighting",
    "random_mask",
    "random_positive_clip",
    "reference_kl",
    "repo",
    "rsi",
    "schedules",
    "stapo",
    "siren",
    "steer",
    "turns",
]


def build(transforms: Sequence[Spec], scope: str = "global", micro_batches: int = 1, group_size: int = 1) -> Chain:
    """The chain that a config names.

    Args:
        transforms: names, or pairs (name, options), in the order in which they act; an option that is a number may be
            a `Schedule`.
        scope: "global" takes statistics over the whole update, "microbatch" over each micro-batch separately.
        micro_batches: number of micro-batches per update; read only with scope "microbatch".
        group_size: rows per prompt; read only with scope "microbatch".

    Returns:
        One transform, with state `ChainState`.

    Raises:
        ValueError: If a name, option or scope is unknown, or two random transforms would draw the same tokens.
    """
    if scope not in ("global", "microbatch"):
        raise ValueError(f"algo.scope: got {scope!r}, choose 'global' or 'microbatch'")
    blocks = (micro_batches, group_size) if scope == "microbatch" else None
    made = [_make(spec, blocks) for spec in transforms]
    _check_salts(transforms)
    return chain(*made)


def _make(
    spec: Spec, blocks: tuple[int, int] | None, key: str = KEY
) -> optax.GradientTransformationExtraArgs | Scheduled:
    """The transform that `spec` names; `blocks` is (micro-batches, rows per prompt), None for the scope "global"."""
    name, options = split_spec(spec, key)
    plain = {k: v.start if isinstance(v, Schedule) else v for k, v in options.items()}
    factory = check_spec(TRANSFORMS, name, plain, key)
    if "inner" in options:  # the statistics are those of the inner transform, so only that gets the scope
        inner = _make(options["inner"], blocks, f"{key}.{name}.inner")
        if isinstance(inner, Scheduled):
            raise ValueError(f"{key}.{name}.inner: the options of a transform within another cannot have a schedule")
        return factory(**options | {"inner": inner})
    made = scheduled(factory, options, f"{key}.{name}")
    if blocks is None:
        return made
    if isinstance(made, Scheduled):
        return Scheduled(lambda step: micro_scope(made.at(step), *blocks))
    return micro_scope(made, *blocks)


def _walk(transforms: Sequence[Spec]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every transform that a config names, including inner ones, as (name, options)."""
    for spec in transforms:
        name, options = split_spec(spec, KEY)
        yield name, options
        if "inner" in options:
            yield from _walk([options["inner"]])


def _check_salts(transforms: Sequence[Spec]) -> None:
    """Raises a ValueError if two random transforms share a salt: they would draw the same tokens."""
    owners: dict[int, str] = {}
    for name, options in _walk(transforms):
        salt = inspect.signature(TRANSFORMS[name]).parameters.get("salt")
        if salt is None:
            continue
        value = options.get("salt", salt.default)
        if value in owners:
            raise ValueError(
                f"{KEY}: {owners[value]} and {name} both draw with salt={value!r} and would pick the same "
                "tokens; give each its own salt"
            )
        owners[value] = name


def needs(transforms: Sequence[Spec]) -> frozenset[str]:
    """The optional fields of TokenInfo, such as "ref_logp", that these transforms read."""
    return frozenset(NEEDS[name] for name, _ in _walk(transforms) if name in NEEDS)


def turns(transforms: Sequence[Spec]) -> int:
    """How often the train loop makes all updates of a rollout, see `TURNS`; 1 if no transform divides the tokens."""
    return max((TURNS.get(name, 1) for name, _ in _walk(transforms)), default=1)


def schedules(transforms: Sequence[Spec]) -> tuple[tuple[str, Schedule], ...]:
    """The options that move with the steps, as ("transform.option", its schedule)."""
    return tuple(
        (f"{name}.{option}", value)
        for name, options in _walk(transforms)
        for option, value in options.items()
        if isinstance(value, Schedule) and value.to != value.start
    )


def extras(transforms: Sequence[Spec]) -> Extras:
    """The statistics beside logp and entropy that the head must compute for these transforms.

    Raises:
        ValueError: If two transforms want the entropy of different nuclei.
    """
    fields = needs(transforms)
    asked = [
        options.get("top_p", inspect.signature(TRANSFORMS[name]).parameters["top_p"].default)
        for name, options in _walk(transforms)
        if NEEDS.get(name) == "nucleus_entropy"
    ]
    nuclei = {p.start if isinstance(p, Schedule) else p for p in asked}  # one that moves is refused by `build`
    if len(nuclei) > 1:
        raise ValueError(
            f"{KEY}: top_p={sorted(nuclei)}, but a recipe has one nucleus; give all of them the same top_p"
        )
    return Extras("prob_square" in fields, "score_mean" in fields, *nuclei)


def check_updates_per_rollout(transforms: Sequence[Spec], updates_per_rollout: int) -> None:
    """Refuses KL-Cov with one update per rollout: its penalty would have no gradient, and it would do nothing.

    Args:
        transforms: as for `build`.
        updates_per_rollout: `train.updates_per_rollout`.

    Raises:
        ValueError: If the chain has KL-Cov and there is one update; the message names both keys.
    """
    if updates_per_rollout < 2 and any(name == "kl_cov" for name, _ in _walk(transforms)):
        raise ValueError(
            f"{KEY}: kl_cov is plain policy gradient with train.updates_per_rollout = "
            f"{updates_per_rollout}, since its penalty has no gradient on-policy; set it to 2 or more"
        )
