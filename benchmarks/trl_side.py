"""The peer's side: TRL's own functions over transformers on the work of common.py, run by a Python that has TRL.

Rollouts are transformers' `generate` with its cache, 64 sequences at a time, as TRL samples without a server.
Scoring and training compute dense logits of the response positions in micro-batches, which is TRL's fastest setting on
a CPU (faster than its fused head), with its `selective_log_softmax` and `entropy_from_logits`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import common
import numpy as np
import torch
import transformers
import trl
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Tensors(NamedTuple):
    """The work on the device, B rows of a prompt of P positions and a response of T.

    Attributes:
        ids_BxS: i64, S = P + T.
        mask_BxS: i64.
        advantage_Bx1: f32.
        T: response positions.
    """

    ids_BxS: torch.Tensor
    mask_BxS: torch.Tensor
    advantage_Bx1: torch.Tensor
    T: int


def tensors(options: argparse.Namespace, vocab: int) -> Tensors:
    work = common.work(options.groups, options.samples, vocab, P=options.prompt, T=options.tokens)

    def repeated(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.repeat(x, options.samples, axis=0)).long()

    tokens = torch.from_numpy(work.tokens_BxT).long()
    return Tensors(
        torch.cat([repeated(work.prompt_NxP), tokens], 1).to(DEVICE),
        torch.cat([repeated(work.prompt_mask_NxP), torch.ones_like(tokens)], 1).to(DEVICE),
        torch.from_numpy(work.advantage_B)[:, None].to(DEVICE),
        options.tokens,
    )


def token_statistics(
    model: transformers.PreTrainedModel, data: Tensors, micro: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(rows, logp, entropy) of the response tokens, per micro-batch of `micro` rows."""
    ids, mask, T = data.ids_BxS, data.mask_BxS, data.T
    for start in range(0, len(ids), micro):
        rows = slice(start, start + micro)
        logits = model(input_ids=ids[rows], attention_mask=mask[rows], logits_to_keep=T + 1, use_cache=False).logits
        logits = logits[:, :-1]
        logp = selective_log_softmax(logits, ids[rows, -T:])
        with torch.no_grad():
            entropy = entropy_from_logits(logits)
        yield rows, logp, entropy


def whole_step(options: argparse.Namespace) -> common.Result:
    """Steps of GRPOTrainer, each from the end of the step before to its own end, without the first."""
    import datasets

    marks = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model = open_model(options)
    loaded = memory_mb()
    rows = options.groups * options.samples
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder,
            use_cpu=DEVICE == "cpu",
            bf16=DEVICE == "cuda",
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=options.micro,
            # one generation and one update of all rows per step
            gradient_accumulation_steps=rows // options.micro,
            num_generations=options.samples,
            max_completion_length=options.tokens,
            # The end-of-sequence token is never drawn, so that lengths are those of the other side.
            generation_kwargs={"min_new_tokens": options.tokens},
            gradient_checkpointing=False,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            max_steps=1 + options.repeats,
        )
        lines = [json.loads(line)["question"] for line in pathlib.Path(options.questions).read_text().splitlines()]
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [common.letters(text) for text in completions],
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"prompt": lines}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    row = next(r for r in trainer.state.log_history if "completions/mean_length" in r)
    assert row["completions/mean_length"] == options.tokens, row
    steps = np.diff(marks).tolist()
    seconds = statistics.median(steps)
    tokens, memory = rows * (options.prompt + options.tokens), memory_mb() - loaded
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "memory_mb": memory, "all": steps}


def open_model(options: argparse.Namespace) -> transformers.PreTrainedModel:
    """The folder's model, in float32 on a CPU and in bfloat16 on a GPU; with --random, only its shape is read."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    settings = {"dtype": dtype, "attn_implementation": "sdpa"}
    if not options.random:
        return transformers.AutoModelForCausalLM.from_pretrained(options.model, **settings).to(DEVICE)
    shape = transformers.AutoConfig.from_pretrained(options.model)
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(shape, **settings)


def memory_mb() -> float:
    """The peak memory so far of the GPU, otherwise of the process, MB."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else common.memory_mb()


def score(model: transformers.PreTrainedModel, data: Tensors, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(logp, entropy), [B, T]."""
    model.eval()
    with torch.no_grad():
        parts = list(token_statistics(model, data, micro))
    return torch.cat([logp for _, logp, _ in parts]), torch.cat([entropy for _, _, entropy in parts])


def train(model: transformers.PreTrainedModel, data: Tensors, micro: int, optimizer: torch.optim.Optimizer) -> None:
    """One update of GRPO's objective."""
    model.train()
    for rows, logp, _ in token_statistics(model, data, micro):
        ratio = torch.exp(logp - logp.detach())
        advantage = data.advantage_Bx1[rows]
        loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        (loss.sum() / (len(data.ids_BxS) * data.T)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def rollout(model: transformers.PreTrainedModel, data: Tensors) -> None:
    """Samples responses of full length to the prompts."""
    model.eval()
    P = data.ids_BxS.shape[1] - data.T
    made = model.generate(
        input_ids=data.ids_BxS[:, :P],
        attention_mask=data.mask_BxS[:, :P],
        generation_config=transformers.GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=data.T,
            max_new_tokens=data.T,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )
    assert made.shape == data.ids_BxS.shape


def one_part(options: argparse.Namespace) -> common.Result:
    """Scoring, one update, or rollouts."""
    model = open_model(options)
    data = tensors(options, model.config.vocab_size)
    loaded = memory_mb()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    if options.dump:
        logp, entropy = score(model, data, options.micro)
        np.savez(options.dump, logp=logp.float().cpu().numpy(), entropy=entropy.float().cpu().numpy())
    work: Callable[[], object] = {
        "score": lambda: score(model, data, options.micro),
        "train": lambda: train(model, data, options.micro, optimizer),
        "rollout": lambda: rollout(model, data),
    }[options.task]

    def run() -> None:
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    length = options.tokens if options.task == "rollout" else options.prompt + options.tokens
    found = common.measure(run, loaded, options.groups * options.samples * length, options.repeats)
    return found | {"memory_mb": memory_mb() - loaded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("score", "train", "rollout", "step"))
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--random", action="store_true", help="random weights in the folder's shape")
    parser.add_argument("--groups", type=int, default=common.GROUPS)
    parser.add_argument("--samples", type=int, default=common.SAMPLES)
    parser.add_argument("--prompt", type=int, default=common.P)
    parser.add_argument("--tokens", type=int, default=common.T)
    parser.add_argument("--micro", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path)
    parser.add_argument("--questions", help="a .jsonl file of questions, for the whole step")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(json.dumps(whole_step(options) if options.task == "step" else one_part(options)))


if __name__ == "__main__":
    main()
