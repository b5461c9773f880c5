r"""The test beds of results/claims: small models, each with a task that leaves it a choice.

    python -m entropy_rl.train --config=configs/study.py:two_readings,grpo --workdir=runs/two_readings
    python -m entropy_rl.sweep --config=configs/study.py:countdown --methods=grpo,kl_cov --seeds=10 --out=runs/sweep

After the colon: a bed, and after a comma any method of entropy_rl/config/recipes.py (grpo if there is none).

    two_readings   0.7M parameters, sums of three digits. Two in three worked sums read every minus as a plus: wherever
                   there is a minus, the model has to choose. The quickstart's model and task, trained longer.
    countdown      0.7M parameters. Three numbers have to make a target; worked solutions make up to three attempts,
                   drawn at random until one meets it. At every step the model chooses what to try, and most problems
                   have several solutions.
    countdown_10m  The same task for a model of 10M parameters.
"""

from ml_collections import ConfigDict

from entropy_rl import config

_RULES = (
    "\n\nFinal answer format instructions:\n1. Provide your solution as a arithmetic expression (no '=' sign).\n"
    "2. Do not include the target number in the expression.\n3. Use '*' for multiplication.\n4. Use '/' for division.\n"
    "5. Do not include any other text or formatting.\n"
)
# The fixed texts of countdown's three questions, so that a prompt is a dozen tokens.
WORDS = (
    "Calculate ",
    "Find a way to make ",
    "Using all the numbers ",
    " using all of these numbers: ",
    ", create an expression that equals ",
    ", ",
    f".\nEach number may be used at most once.{_RULES}",
    f".\nEach number can only be used once.{_RULES}",
    f".\nYou can only use each number once.{_RULES}",
)


def _two_readings(c: ConfigDict) -> None:
    c.model.tiny.d_ff = 320
    c.data.settings.update(min_terms=3, max_terms=3, min_digits=1, max_digits=1)
    c.data.max_prompt_len, c.rollout.max_tokens = 11, 28
    c.warmup.updates, c.warmup.error_rate, c.warmup.misread_rate = 600, 0.05, 0.65
    c.optim.lr, c.train.steps = 2e-4, 200


def _countdown(c: ConfigDict) -> None:
    c.data.task, c.model.tiny.words = "countdown", WORDS
    for key in list(c.data.settings):
        del c.data.settings[key]
    c.data.settings.update(
        min_numbers=3, max_numbers=3, min_value=1, max_value=9, min_target=1, max_target=40, operators=("+", "-", "*")
    )
    c.data.max_prompt_len, c.rollout.max_tokens = 16, 72
    c.warmup.updates, c.warmup.error_rate, c.warmup.misread_rate = 1000, 0.02, 0.3
    c.warmup.layout = "packed"  # a solution may be one attempt or three
    c.optim.lr, c.train.steps = 5e-4, 200


def _countdown_10m(c: ConfigDict) -> None:
    _countdown(c)
    c.model.tiny.update(d_model=320, n_layers=8, n_heads=5, n_kv_heads=5, head_dim=64, d_ff=960)
    c.warmup.lr = 1e-3


BEDS = {"two_readings": _two_readings, "countdown": _countdown, "countdown_10m": _countdown_10m}


def get_config(bed_and_method: str = "two_readings,grpo") -> ConfigDict:
    bed, _, method = bed_and_method.partition(",")
    if bed not in BEDS:
        raise ValueError(f"config bed: unknown name {bed!r}; legal names: {', '.join(BEDS)}")
    c = config.default()
    c.model.source = "tiny"
    c.rollout.prompts, c.rollout.samples = 32, 8
    c.warmup.batch, c.warmup.lr = 64, 2e-3
    c.train.updates_per_rollout = 2
    c.data.held_out_modulus = 4  # the sums of three digits are about 3,900 questions
    c.eval.every, c.eval.problems, c.eval.batch = 40, 768, 256
    c.checkpoint.every = 40
    BEDS[bed](c)
    return config.apply_recipe(c, method or "grpo")
