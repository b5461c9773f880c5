"""Token transforms: which tokens may push the policy, and how hard. One method a file.

A transform edits `TokenGrads` (d loss / d logp and d loss / d entropy, f32[B, T] each) between the objective and
the pull-back to the parameters, as an Optax gradient transformation:

    state = transform.init(grads)
    grads, state = transform.update(grads, state, tokens=tokens, key=key)
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optax

from entropy_rl.objective.registry import check_spec, split_spec
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.token_transforms.adaptive_entropy_bonus import adaptive_entropy_bonus
from entropy_rl.token_transforms.base import Masked, TokenMask
from entropy_rl.token_transforms.chain import ChainState, chain, kept_fraction
from entropy_rl.token_transforms.clip_cov import clip_cov
from entropy_rl.token_transforms.entropy_bonus import entropy_bonus
from entropy_rl.token_transforms.entropy_mask import keep_bottom_entropy, keep_top_entropy
from entropy_rl.token_transforms.entropy_ratio import entropy_ratio_clip
from entropy_rl.token_transforms.entropy_shaping import entropy_shaped_advantage
from entropy_rl.token_transforms.kl_cov import kl_cov
from entropy_rl.token_transforms.matched_norm import matched_norm
from entropy_rl.token_transforms.micro_scope import micro_scope
from entropy_rl.token_transforms.positive_reweighting import positive_reweighting
from entropy_rl.token_transforms.random_mask import random_mask, random_positive_clip
from entropy_rl.token_transforms.reference_kl import reference_kl
from entropy_rl.token_transforms.steer import steer

TRANSFORMS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    f.__name__: f
    for f in (
        adaptive_entropy_bonus,
        clip_cov,
        entropy_bonus,
        entropy_ratio_clip,
        entropy_shaped_advantage,
        keep_bottom_entropy,
        keep_top_entropy,
        kl_cov,
        matched_norm,
        positive_reweighting,
        random_mask,
        random_positive_clip,
        reference_kl,
        steer,
    )
}

# The optional fields of TokenInfo that a transform reads, and that the train step must then fill in.
NEEDS = {"entropy_ratio_clip": "old_entropy", "reference_kl": "ref_logp"}

KEY = "algo.transforms"

__all__ = [
    "NEEDS",
    "TRANSFORMS",
    "ChainState",
    "Masked",
    "TokenGrads",
    "TokenInfo",
    "TokenMask",
    "adaptive_entropy_bonus",
    "build",
    "chain",
    "check_updates_per_rollout",
    "clip_cov",
    "entropy_bonus",
    "entropy_ratio_clip",
    "entropy_shaped_advantage",
    "keep_bottom_entropy",
    "keep_top_entropy",
    "kept_fraction",
    "kl_cov",
    "matched_norm",
    "micro_scope",
    "needs",
    "positive_reweighting",
    "random_mask",
    "random_positive_clip",
    "reference_kl",
    "steer",
]


def build(
    transforms: Sequence[Any], scope: str = "global", micro_batches: int = 1, group_size: int = 1
) -> optax.GradientTransformationExtraArgs:
    """The chain that a config names.

    Args:
      transforms: names, or pairs (name, options), in the order they act.
      scope: "global": statistics over the whole update; "microbatch": over each micro-batch by itself.
      micro_batches, group_size: how many these are, and the rows of a prompt; read with scope "microbatch" only.

    Raises:
      ValueError: unknown name, option or scope; two random transforms that would draw the same tokens.
    """
    if scope not in ("global", "microbatch"):
        raise ValueError(f"algo.scope: got {scope!r}, choose 'global' or 'microbatch'")
    blocks = (micro_batches, group_size) if scope == "microbatch" else None
    made = [_make(spec, blocks) for spec in transforms]
    _check_salts(transforms)
    return chain(*made)


def _make(spec: Any, blocks: tuple[int, int] | None) -> optax.GradientTransformationExtraArgs:
    name, options = split_spec(spec, KEY)
    factory = check_spec(TRANSFORMS, name, options, KEY)
    if "inner" in options:  # takes its statistics where its inner transform does
        return factory(**options | {"inner": _make(options["inner"], blocks)})
    return factory(**options) if blocks is None else micro_scope(factory(**options), *blocks)


def _walk(transforms: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every transform named in a config, inner ones too, as (name, options)."""
    for spec in transforms:
        name, options = split_spec(spec, KEY)
        yield name, options
        if "inner" in options:
            yield from _walk([options["inner"]])


def _check_salts(transforms: Sequence[Any]) -> None:
    """ValueError where two random transforms have one salt: they would draw the same tokens."""
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


def needs(transforms: Sequence[Any]) -> frozenset[str]:
    """The optional fields of TokenInfo ("old_entropy", "ref_logp") that these transforms read."""
    return frozenset(NEEDS[name] for name, _ in _walk(transforms) if name in NEEDS)


def check_updates_per_rollout(transforms: Sequence[Any], updates_per_rollout: int) -> None:
    """Refuses KL-Cov with one update per rollout, where its penalty has no gradient and it would do nothing.

    Raises:
      ValueError: naming both keys.
    """
    if updates_per_rollout < 2 and any(name == "kl_cov" for name, _ in _walk(transforms)):
        raise ValueError(
            f"{KEY}: kl_cov is plain policy gradient with train.updates_per_rollout = "
            f"{updates_per_rollout}, since its penalty has no gradient on-policy; set it to 2 or more"
        )
