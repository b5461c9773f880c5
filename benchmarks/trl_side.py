"""The peer's side: TRL's own helpers over transformers on the work of common.py, in a Python that has TRL.

Rollouts are transformers' `generate` with its cache, 64 sequences at a time, as TRL samples without a server.
Scoring and training: dense logits of the response positions in micro-batches, which is TRL's fastest setting on a CPU
(faster than its fused head), with its `selective_log_softmax` and `entropy_from_logits`.
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

import common
import numpy as np
import torch
import transformers
import trl
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def token_statistics(model, ids, mask, T: int, micro: int, entropy: bool = True):
    """logp and entropy of the last T tokens of each row, in micro-batches."""
    for start in range(0, len(ids), micro):
        rows = slice(start, start + micro)
        logits = model(input_ids=ids[rows], attention_mask=mask[rows], logits_to_keep=T + 1, use_cache=False).logits
        logits = logits[:, :-1]
        logp = selective_log_softmax(logits, ids[rows, -T:])
        with torch.no_grad():
            H = entropy_from_logits(logits) if entropy else None
        yield rows, logp, H


def whole_step(a) -> dict:
    """Steps of GRPOTrainer, from the end of one to the end of the next, those after the first."""
    import datasets

    marks = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())

    tokenizer = transformers.AutoTokenizer.from_pretrained(a.model, padding_side="left")
    model = open_model(a)
    loaded = memory_mb()
    rows = a.groups * a.samples
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder,
            use_cpu=DEVICE == "cpu",
            bf16=DEVICE == "cuda",
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=a.micro,
            gradient_accumulation_steps=rows // a.micro,  # so one generation and one update of all of them a step
            num_generations=a.samples,
            max_completion_length=a.tokens,
            # eos is never drawn, so that lengths are those of the other side
            generation_kwargs={"min_new_tokens": a.tokens},
            gradient_checkpointing=False,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            max_steps=1 + a.repeats,
        )
        lines = [json.loads(line)["question"] for line in pathlib.Path(a.questions).read_text().splitlines()]
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
    assert row["completions/mean_length"] == a.tokens, row
    steps = np.diff(marks).tolist()
    seconds = statistics.median(steps)
    tokens, memory = rows * (a.prompt + a.tokens), memory_mb() - loaded
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "memory_mb": memory, "all": steps}


def open_model(a):
    """The folder's model in float32 on a CPU, in bfloat16 on a GPU; with --random only its shape is read."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    how = {"dtype": dtype, "attn_implementation": "sdpa"}
    if not a.random:
        return transformers.AutoModelForCausalLM.from_pretrained(a.model, **how).to(DEVICE)
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(a.model), **how)


def memory_mb() -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else common.memory_mb()


def part(a) -> dict:
    """Scoring, one update, or rollouts."""
    model = open_model(a)
    P, T, rows = a.prompt, a.tokens, a.groups * a.samples
    prompt, prompt_mask, tokens, advantage = common.work(a.groups, a.samples, model.config.vocab_size, P=P, T=T)
    repeat = lambda x: torch.from_numpy(np.repeat(x, a.samples, axis=0)).long()
    ids = torch.cat([repeat(prompt), torch.from_numpy(tokens).long()], 1).to(DEVICE)
    mask = torch.cat([repeat(prompt_mask), torch.ones(tokens.shape, dtype=torch.long)], 1).to(DEVICE)
    advantage = torch.from_numpy(advantage)[:, None].to(DEVICE)
    loaded = memory_mb()

    def score():
        model.eval()
        with torch.no_grad():
            parts = list(token_statistics(model, ids, mask, T, a.micro))
        return torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def train():
        model.train()
        for some, logp, _ in token_statistics(model, ids, mask, T, a.micro):
            ratio = torch.exp(logp - logp.detach())
            loss = -torch.min(ratio * advantage[some], ratio.clamp(0.8, 1.2) * advantage[some])
            (loss.sum() / tokens.size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def rollout():
        model.eval()
        made = model.generate(
            input_ids=ids[:, :P],
            attention_mask=mask[:, :P],
            generation_config=transformers.GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=T,
                max_new_tokens=T,
                eos_token_id=None,
                pad_token_id=0,
            ),
        )
        assert made.shape == (rows, P + T)

    if a.dump:
        logp, entropy = score()
        np.savez(a.dump, logp=logp.float().cpu().numpy(), entropy=entropy.float().cpu().numpy())
    work = {"score": score, "train": train, "rollout": rollout}[a.task]

    def run():
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    found = common.measure(run, loaded, rows * (T if a.task == "rollout" else P + T), a.repeats)
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
    a = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(json.dumps(whole_step(a) if a.task == "step" else part(a)))


if __name__ == "__main__":
    main()
