"""Every key of metrics.jsonl and what it means: the one table that names them; docs/metrics.md is made from it.

A part of a key in angle brackets stands for one name, as in `eval/<set>/accuracy`. N is the number of valid response
tokens of an update, B of the responses of a rollout, G of the responses to one problem, H the entropy of a token's
distribution, A the advantage, η the learning rate; π_old is the policy that sampled.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """A key, or a family of keys.

    Attributes:
        key: with names in angle brackets if it is a family.
        unit: of its value.
        formula: how it is computed, in one line.
        moves: what makes it rise or fall.
        paper: the figure or table of a paper that shows it; "": none.
        always: every row has it, null if it was not measured; otherwise only the rows that measured it.
    """

    key: str
    unit: str
    formula: str
    moves: str
    paper: str = ""
    always: bool = False


def _always(key: str, unit: str, formula: str, moves: str, paper: str = "") -> Word:
    return Word(key, unit, formula, moves, paper, always=True)


EVAL_PATTERN = "eval/<set>/accuracy"  # in its place are, in a row, all keys of every evaluation

_LAW, _TAIL, _MOVES = "2505.22617, figures 1, 3 and 5", "2505.22617, table 1", "2505.22617, figure 8"
_THEOREM = "only a direction under AdamW: its scale is that of steps in logits"

# By section of the page, in the order of the file; the keys that only some rows have come after the others there.
# fmt: off
WORDS: dict[str, tuple[Word, ...]] = {
    "The row": (
        _always("step", "steps", "rollout steps done; 0 is the row after the warm-up", "the loop"),
        _always("time", "s", "seconds since 1970, when the row was written", "the clock"),
    ),
    "Reward": (
        _always("reward/mean", "reward",
            "mean over the scored responses of Σ weight · part, of the step's first rollout",
            "learning; longer responses under a length part. Before refills: what the policy itself did",
            "2505.22617, figure 1"),
        _always("reward/std", "reward",
            "standard deviation of the same rewards", "0 if all are alike: nothing to learn"),
        Word("reward/unscored", "responses", "responses whose reward could not be computed", "graders that fail"),
        Word("reward/<part>", "points",
            "mean of one part before its weight; `reward/answer` is the verdict, the training accuracy, also under "
            "another `reward.kind`, and `reward/control` what was trained on then",
            "learning; for `format`, whether an answer is boxed"),
    ),
    "Evaluation": (
        _always(EVAL_PATTERN, "share",
            "right / scored problems, decoded greedily; at step 0, each `eval.every` steps and at the end",
            "learning, and forgetting", "2505.22617, figures 1 and 11; 2506.01939, figure 6"),
        Word("eval/<set>/low", "share",
            "lower end of the 95% Wilson interval of the accuracy", "more problems raise it"),
        Word("eval/<set>/high", "share", "upper end of the same interval", "more problems lower it"),
        Word("eval/<set>/problems", "problems", "problems whose response was scored", "graders that fail"),
        Word("eval/<set>/avg@<k>", "share", "mean accuracy of the `eval.samples` samples per problem", "learning"),
        Word("eval/<set>/pass@<k>", "share",
            "1 − C(n−c, k)/C(n, k), the mean over problems: one of k samples is right",
            "what the policy can reach at all; it may fall while the accuracy rises"),
        Word("eval/<set>/maj@<k>", "share",
            "the most frequent answer of k samples is right", "agreement on right answers"),
        Word("eval/<set>/distinct@<k>", "answers", "different answers among k samples of a problem", "diversity"),
        Word("eval/<set>/answer_entropy@<k>", "nats",
            "−Σ f log f over the answers to a problem", "diversity of answers"),
    ),
    "Entropy": (
        _always("entropy/mean", "nats",
            "mean of H over the tokens of the rollout, under the policy and temperature that sampled",
            "falls where likely tokens are rewarded; bonuses, clips and covariance methods hold it",
            _LAW + "; 2506.01939, figure 7"),
        _always("entropy/response_mean", "nats",
            "mean over responses of the mean of H over each one's tokens: the paper's equation 5",
            "as `entropy/mean`, but short responses count as much as long ones", _LAW),
        _always("entropy/sampled", "nats",
            "mean of −log π of the drawn tokens: an estimate of `entropy/mean` from the draws alone",
            "noise; a lasting difference from `entropy/mean` means that the sampler draws from another distribution"),
        _always("entropy/p80", "nats",
            "80th percentile of H over the tokens: where the top 20%, the forking tokens, begin",
            "as `entropy/mean`; 0.672 for Qwen3-8B in the paper", "2506.01939, figure 2"),
        _always("entropy/frac_below_0.01", "share",
            "tokens with H < 0.01 nats", "rises in a collapse; 0.506 for Qwen3-8B in the paper",
            "2506.01939, figure 2"),
        _always("answers/distinct", "answers",
            "different answers per problem, of its G responses; the mean over the problems with an answer",
            "exploration; harder problems raise it. It depends on G"),
        _always("answers/entropy", "nats",
            "−Σ f log f over the answers to one problem, at most log G; the mean over the same problems",
            "exploration of answers, which is not that of tokens"),
    ),
    "Covariance": (
        _always("cov/mean", "nats · advantage",
            "mean over tokens of c = (log π − mean log π)(A − mean A), of each update",
            "positive: likely tokens are rewarded, and the entropy falls; near 0 once all tokens are likely", _MOVES),
        *(
            _always(
                f"cov/top_{share}pct",
                "nats · advantage",
                f"mean of c over the {share}% of the tokens with the highest c, at least one token",
                moves,
                _TAIL,
            )
            for share, moves in (
                ("0.02", "a few tokens that decide: what Clip-Cov and KL-Cov act on"),
                ("0.2", "the same"),
                ("2", "the same"),
                ("20", "as `cov/mean`"),
            )
        ),
        Word("cov/top_50pct", "nats · advantage", "the same of the upper half", "as `cov/mean`", _TAIL),
    ),
    "What one update does to the entropy": (
        _always("entropy/delta", "nats",
            "mean H of the first update's tokens after that update, minus before; with `measure.every`",
            "the learning rate, and the covariance", _MOVES),
        _always("entropy/delta_predicted", "nats",
            "⟨∇H, Δθ⟩ with the optimiser's own Δθ: the change to first order",
            "it differs from `entropy/delta` if steps are large"),
        _always("entropy/delta_thm1", "nats", "−η Cov(log π, π · A), Theorem 1", _THEOREM, _MOVES),
        _always("entropy/delta_thm2", "nats", "−η Cov(log π, A), Theorem 2", _THEOREM, _MOVES),
        _always("entropy/delta_score", "nats", "−η mean A (S − E_π S), S = π (H + log π) (2602.03392)", _THEOREM),
        Word("quadrant/<quadrant>/share", "share",
            "tokens in one quadrant: log π above the mean or not, A above or below 0 (`high_prob_positive`, …)",
            "the accuracy: rare right answers give few tokens with A > 0"),
        Word("quadrant/<quadrant>/covariance", "nats · advantage",
            "mean of c over the quadrant's tokens", "above 0 for likely tokens rewarded and unlikely ones punished"),
        Word("quadrant/<quadrant>/entropy_change", "nats",
            "mean over the quadrant's tokens of H after the update, minus before",
            "below 0 where the covariance is positive, as a rule"),
    ),
    "The update": (
        _always("tokens/kept_frac", "share",
            "valid tokens that no mask of the method stopped; 1 without masks; of the step's updates the mean",
            "the method: 0.2 for `forking`; not PPO's clip"),
        _always("ratio/clip_frac", "share",
            "valid tokens whose gradient the objective's clip stopped, before the transforms",
            "more updates per rollout, a higher learning rate; 0 in the first update"),
        _always("kl/old", "nats",
            "mean of log π_old − log π over the tokens, of each update",
            "more updates per rollout, a higher learning rate"),
        Word("loss", "–",
            "the objective's loss, before the transforms", "no measure of progress: at A's mean it is near 0"),
    ),
    "Length": (
        _always("length/mean", "tokens",
            "valid tokens per response", "learning; the limit `rollout.max_tokens`", "2506.01939, figure 6"),
        _always("length/clipped_frac", "share",
            "responses cut at the limit", "long responses; repetition after a collapse or explosion"),
    ),
    "Gradient": (
        _always("grad/norm", "–",
            "norm of the parameters' gradient before clipping, after the transforms",
            "rises before an explosion; 0 if there is nothing to learn"),
        _always("grad/skipped", "updates",
            "updates left out because their gradient was not finite", "overflow in 16 bits, wrong data"),
    ),
    "Speed": (
        _always("throughput/rollout_tokens_per_s", "tokens/s",
            "tokens sampled / `time/rollout_s`", "length, slots, the machine"),
        _always("throughput/train_tokens_per_s", "tokens/s",
            "tokens of prompts and responses trained on / `time/train_s`", "the machine"),
        Word("time/<part>_s", "s",
            "of the step: `rollout`, `reward` (waiting for graders), `train`, `eval`, and `other`",
            "the first step compiles"),
    ),
    "Groups": (
        _always("group/degenerate_frac", "share",
            "groups all right, all wrong or not scored, of the first rollout: they have no gradient",
            "problems too easy or too hard; at the end of learning it rises"),
        Word("refill/rounds", "rollouts",
            "extra rollouts of dynamic sampling (`rollout.refills`)", "degenerate groups"),
        Word("refill/replaced_frac", "share", "groups that were replaced", "degenerate groups"),
        Word("refill/degenerate_frac", "share", "groups that are degenerate after the refills", "too few refills"),
        Word("refill/tokens", "tokens", "tokens sampled for refills", "their cost"),
    ),
    "The law R = b − a·exp(H)": (
        _always("law/a", "reward",
            "least squares over the rows so far, with H = `entropy/mean` and R = `reward/mean`",
            "how much reward an entropy buys", _LAW),
        _always("law/b", "reward", "the intercept of the same fit", "as a", _LAW),
        _always("law/ceiling", "reward", "b − a, the reward at H = 0", "settles early, if the law holds", _LAW),
        *(
            _always(
                f"law/response_mean/{x}", "reward", "as above, with H = `entropy/response_mean`", f"as `law/{x}`", _LAW
            )
            for x in ("a", "b", "ceiling")
        ),
    ),
    "Sampler and trainer": (
        Word("sampler/gap_mean_abs", "nats",
            "mean over tokens of |log π_trainer − log π_sampler|, at equal parameters",
            "precision, another engine (2510.26788)"),
        Word("sampler/gap_max_abs", "nats", "the largest of the same", "one wrong token is enough"),
        Word("sampler/gap_kl", "nats",
            "mean of ρ − 1 − log ρ, ρ = π_trainer / π_sampler: KL(sampler ‖ trainer)", "as `sampler/gap_mean_abs`"),
        Word("correction/stopped_frac", "share", "tokens that `algo.correction` gave the weight 0", "the gap"),
        Word("correction/mean", "–",
            "mean weight of the tokens under `algo.correction`", "below 1 where it stops or truncates"),
    ),
    "The method's own numbers": (
        Word("schedule/<transform>.<option>", "the option's",
            "value of an option that moves with the steps", "`algo.schedule`"),
        Word("state/<transform>.kept", "share",
            "tokens that this mask kept at the step's last update", "as `tokens/kept_frac`, mask by mask"),
        Word("state/adapo.high", "ratio",
            "ε_high of the rollout's updates", "rises while the entropy is below the target"),
        Word("state/adapo.target", "nats",
            "the entropy that ADAPO holds; −1: not known yet", "the first rollout, unless it is set"),
        Word("state/adaptive_entropy_bonus.coef", "per nat",
            "c, the bonus of the next rollout", "rises while the entropy is below the target"),
        Word("state/adaptive_entropy_bonus.used", "per nat",
            "α, the bonus of this rollout: c, or 0 above the target", "the entropy"),
        Word("state/entropic.error", "nats", "Σ (H − target) over the updates so far", "the entropy"),
        Word("state/entropic.used", "–",
            "α of the last update, in [−1, 1]", "below 0 while the entropy is below the target"),
        Word("state/positive_reweighting.weight", "–",
            "λ, the weight of tokens with A > 0", "falls while the entropy is below the target"),
        Word("state/repo.coef", "advantage per nat",
            "ζ, by which log π + H lowers the advantage", "doubles below the target, halves above it"),
        Word("state/repo.target", "nats",
            "the entropy that REPO holds; −1: not known yet", "the first rollout, unless it is set"),
        Word("state/siren.anchor", "nats",
            "the entropy that SIREN's penalty aims at; −1: not known yet", "the first update, unless it is set"),
    ),
    "The warm-up": (
        Word("warmup/loss", "nats",
            "mean cross-entropy over the last updates of the warm-up, in the row of step 0", "the worked solutions"),
    ),
}
# fmt: on
