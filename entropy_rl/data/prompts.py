"""From a problem to the tokens of its prompt.

Shapes: N prompts, P = max_len positions. Prompts are padded on the left, so that each ends at the last position.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from entropy_rl.data.source import Problem
from entropy_rl.data.worked import worked_solution

_EXAMPLES_STEP = 1 << 21  # a step that neither RL nor the warm-up reaches

# The wording of both papers (arXiv 2506.01939): plain text for base models, the user's turn for chat models.
PAPER_CHAT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
PAPER_PLAIN = f"User:\n{PAPER_CHAT}\n\nAssistant:\n"
TEMPLATES = {"paper_plain": PAPER_PLAIN, "paper_chat": PAPER_CHAT}  # names that `data.template` may have as its value


def render(
    problem: Problem,
    template: str,
    few_shot: Sequence[tuple[str, str]],
    chat: bool,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    r"""The prompt's text.

    >>> render(Problem(1, "1 + 2 =", "3", "exact"), "Q: {question}\nA: ", [("1 + 1 =", "2")], False, None)
    'Q: 1 + 1 =\nA: 2\n\nQ: 1 + 2 =\nA: '

    Args:
        problem: its question is used.
        template: a name of `TEMPLATES`, or text with "{question}" in it (`data.template`); other braces stay as they
            are.
        few_shot: worked (question, response) pairs, put before the question in the same template.
        chat: whether to render turns with the tokenizer's chat template; `template` then makes the user's turn.
        tokenizer: used only for chat.

    Raises:
        ValueError: If the template has no "{question}", the question is empty, or the tokenizer has no chat template.
    """
    template = TEMPLATES.get(template, template)
    if "{question}" not in template:
        names = ", ".join(TEMPLATES)
        raise ValueError(f"data.template has no {{question}} in it, nor is it one of {names}: {template!r}")
    if not problem.question.strip():
        raise ValueError(f"problem {problem.uid} ({problem.kind}) has an empty question")
    asked = [(template.replace("{question}", question), response) for question, response in few_shot]
    last = template.replace("{question}", problem.question)
    if not chat:
        return "".join(f"{prompt}{response}\n\n" for prompt, response in asked) + last
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ValueError("data.chat is true, but this tokenizer has no chat template; set it to false")
    turns = []
    for prompt, response in asked:
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    turns.append({"role": "user", "content": last})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_len: int, uids: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of rendered prompts, padded on the left.

    Args:
        tokenizer: its BOS is added if it would add one and the text has none; an EOS that it would add is left out.
        texts: N rendered prompts.
        max_len: P (`data.max_prompt_len`), the width whatever the texts, so that shapes are static.
        uids: the N problems' hashes, by which an error names a prompt; None: by its row.

    Returns:
        (tokens_NxP int32, mask_NxP int32), the mask 1 on the prompt's tokens and 0 on padding.

    Raises:
        ValueError: If a prompt is empty or longer than max_len.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    tokens_NxP = np.full((len(texts), max_len), pad, np.int32)
    mask_NxP = np.zeros((len(texts), max_len), np.int32)
    for row, text in enumerate(texts):
        name = f"row {row}" if uids is None else f"problem {uids[row]}"
        ids = _encode(tokenizer, text) if text.strip() else []
        if not ids:
            raise ValueError(f"the prompt of {name} is empty; data.template and the question make {text!r}")
        if len(ids) > max_len:
            raise ValueError(
                f"data.max_prompt_len is {max_len}, but the prompt of {name} has {len(ids)} tokens "
                f"({len(text)} characters); raise it, shorten data.template, or drop few-shot examples"
            )
        tokens_NxP[row, max_len - len(ids) :] = ids
        mask_NxP[row, max_len - len(ids) :] = 1
    return tokens_NxP, mask_NxP


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=not has_bos)["input_ids"])
    # Some tokenizers end every text with EOS, after which a model would have nothing left to write.
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()
    return ids


class PromptEncoder:
    """Encodes problems as prompt tokens, as the config section `data` describes.

    Worked examples (`data.few_shot`) are the same in every run. They are training problems, so no evaluation contains
    them.

    Args:
        data: the config section `data`.
        tokenizer: the model's.
        examples: (step, n) -> n problems with worked solutions; called only if `data.few_shot` is above 0.

    Raises:
        ValueError: If `data.few_shot` is above 0 and there are no examples, or they have no worked solutions.
    """

    def __init__(
        self,
        data: ConfigDict,
        tokenizer: PreTrainedTokenizerBase,
        examples: Callable[[int, int], list[Problem]] | None = None,
    ):
        self._data, self._tokenizer = data, tokenizer
        self._few_shot: tuple[tuple[str, str], ...] = ()
        if data.few_shot:
            if examples is None:
                raise ValueError(f"data.few_shot={data.few_shot} needs problems to take worked examples from")
            rng = random.Random(0)
            shown = examples(_EXAMPLES_STEP, data.few_shot)
            self._few_shot = tuple((p.question, worked_solution(p, rng, 0.0)) for p in shown)

    def __call__(self, problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_NxP, mask_NxP) int32, padded on the left to `data.max_prompt_len`; see `encode_prompts`."""
        uids = [p.uid for p in problems]
        return encode_prompts(self._tokenizer, [self._text(p) for p in problems], self._data.max_prompt_len, uids)

    def fault(self, problem: Problem) -> str | None:
        """The reason why a problem cannot be made into a prompt, or None."""
        try:
            self([problem])
        except ValueError as error:
            return str(error)
        return None

    def _text(self, problem: Problem) -> str:
        return render(problem, self._data.template, self._few_shot, self._data.chat, self._tokenizer)
