"""The peer's side: TRL's own helpers over transformers on the work of common.py, in a Python that has TRL.

Rollouts are transformers' `generate` with its cache, 64 sequences at a time, as TRL samples without a server.
Scoring and training: dense logits of the response positions in micro-batches, which is TRL's fastest setting on a CPU
(faster than its fused head), with its `selective_log_softmax` and `entropy_from_logits`.
"""

import argparse
import json
import pathlib

import common
import numpy as np
import torch
import transformers
from trl.trainer.utils import entropy_from_logits, selective_log_softmax


def statistics(model, ids, mask, micro: int, entropy: bool = True):
    """logp and entropy of the last T tokens of each row, in micro-batches."""
    for start in range(0, len(ids), micro):
        rows = slice(start, start + micro)
        logits = model(
            input_ids=ids[rows], attention_mask=mask[rows], logits_to_keep=common.T + 1, use_cache=False
        ).logits
        logits = logits[:, :-1]
        logp = selective_log_softmax(logits, ids[rows, -common.T :])
        with torch.no_grad():
            H = entropy_from_logits(logits) if entropy else None
        yield rows, logp, H


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("score", "train", "rollout"))
    parser.add_argument("--model", required=True, help="a Hugging Face folder of SmolLM2")
    parser.add_argument("--groups", type=int, default=common.GROUPS)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path)
    a = parser.parse_args()
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="sdpa")
    prompt, prompt_mask, tokens, advantage = common.work(a.groups)
    repeat = lambda x: torch.from_numpy(np.repeat(x, common.SAMPLES, axis=0)).long()
    ids = torch.cat([repeat(prompt), torch.from_numpy(tokens).long()], 1)
    mask = torch.cat([repeat(prompt_mask), torch.ones(tokens.shape, dtype=torch.long)], 1)
    advantage = torch.from_numpy(advantage)[:, None]
    loaded = common.rss_mb()

    def score():
        model.eval()
        with torch.no_grad():
            parts = list(statistics(model, ids, mask, a.micro))
        return torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def train():
        model.train()
        for rows, logp, _ in statistics(model, ids, mask, a.micro):
            ratio = torch.exp(logp - logp.detach())
            loss = -torch.min(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])
            (loss.sum() / tokens.size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if a.task == "score" and a.dump:
        logp, entropy = score()
        np.savez(a.dump, logp=logp.numpy(), entropy=entropy.numpy())

    def rollout():
        model.eval()
        rows = a.groups * common.SAMPLES
        made = model.generate(
            input_ids=ids[:, : common.P],
            attention_mask=mask[:, : common.P],
            generation_config=transformers.GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=common.T,
                max_new_tokens=common.T,
                eos_token_id=None,
                pad_token_id=0,
            ),
        )
        assert made.shape == (rows, common.P + common.T)

    work = {"score": score, "train": train, "rollout": rollout}[a.task]
    count = a.groups * common.SAMPLES * (common.T if a.task == "rollout" else common.P + common.T)
    print(json.dumps(common.measure(work, loaded, count, a.repeats)))


if __name__ == "__main__":
    main()
