"""From a problem to the tokens of its prompt.

Shapes: N prompts, P = max_len positions. Prompts are padded on the left, so that each ends at the last position.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from entropy_rl.data.chat import check_options, render_turns
from entropy_rl.data.source import Problem
from entropy_rl.data.tokens import check_ids, encode_rendered, encode_text, quote
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
    system_prompt: str = "",
    template_options: Mapping[str, Any] | None = None,
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
        system_prompt: of a system's turn before the others (`data.system_prompt`); "": none.
        template_options: variables for the chat template (`data.template_options`).

    Raises:
        ValueError: If the template has no "{question}", the question is empty, or the tokenizer has no chat template,
            or one that fails.
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
    return render_turns(tokenizer, asked, last, system_prompt, template_options or {})


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_len: int,
    uids: Sequence[int] | None = None,
    *,
    bos: bool = True,
    vocab_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of rendered prompts, padded on the left.

    Args:
        tokenizer: makes the tokens; an EOS that it would add is left out.
        texts: N rendered prompts; special tokens in them become tokens, except where `tokens.quote` has hidden them.
        max_len: P (`data.max_prompt_len`), the width whatever the texts, so that shapes are static.
        uids: the N problems' hashes, by which an error names a prompt; None: by its row.
        bos: add the tokenizer's BOS if it would add one and the text has none. A chat template writes its own.
        vocab_size: the model's; None: not checked.

    Returns:
        (tokens_NxP int32, mask_NxP int32), the mask 1 on the prompt's tokens and 0 on padding.

    Raises:
        ValueError: If a prompt is empty or longer than max_len, or has a token that the model lacks.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    pad = pad if vocab_size is None or pad < vocab_size else 0
    tokens_NxP = np.full((len(texts), max_len), pad, np.int32)
    mask_NxP = np.zeros((len(texts), max_len), np.int32)
    for row, text in enumerate(texts):
        name = f"row {row}" if uids is None else f"problem {uids[row]}"
        ids = encode_rendered(tokenizer, text, bos) if text.strip() else []
        if not ids:
            raise ValueError(f"the prompt of {name} is empty; data.template and the question make {text!r}")
        if len(ids) > max_len:
            raise ValueError(
                f"data.max_prompt_len is {max_len}, but the prompt of {name} has {len(ids)} tokens "
                f"({len(text)} characters); raise it, shorten data.template, or drop few-shot examples"
            )
        check_ids(tokenizer, ids, vocab_size, f"the prompt of {name}")
        tokens_NxP[row, max_len - len(ids) :] = ids
        mask_NxP[row, max_len - len(ids) :] = 1
    return tokens_NxP, mask_NxP


def check_templates(data: ConfigDict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Renders a question of its own with `data.template` and the chat template, so that a wrong one is known at once.

    Args:
        data: the config section `data`.
        tokenizer: the model's.

    Raises:
        ValueError: If a template is wrong, or a field has no effect; the message names the field.
    """
    for key in ("system_prompt", "template_options"):
        if data[key] and not data.chat:
            raise ValueError(f"data.{key} has no effect without data.chat=True; it is {data[key]!r}")
    if data.chat:
        check_options(tokenizer, data.template_options.to_dict())
    shown = [(f"example {i}", f"answer {i}") for i in range(data.few_shot)]
    text = _rendered(data, tokenizer, Problem(0, "question 7", "", "exact"), shown)
    if "question 7" not in text:
        raise ValueError(f"data.chat: the tokenizer's chat template leaves the user's turn out: it made {text!r:.200}")


def _rendered(
    data: ConfigDict, tokenizer: PreTrainedTokenizerBase, problem: Problem, few_shot: Sequence[tuple[str, str]]
) -> str:
    """The prompt's text, as the config section `data` describes it."""
    options = data.template_options.to_dict()
    return render(problem, data.template, few_shot, data.chat, tokenizer, data.system_prompt, options)


class PromptEncoder:
    """Encodes problems as prompt tokens, as the config section `data` describes.

    Worked examples (`data.few_shot`) are the same in every run. They are training problems, so no evaluation contains
    them.

    Special tokens in a question or a worked example are text: `<|im_end|>` in a question does not end a turn.

    Args:
        data: the config section `data`.
        tokenizer: the model's.
        examples: (step, n) -> n problems with worked solutions; called only if `data.few_shot` is above 0.
        vocab_size: the model's; None: tokens are not checked against it.

    Raises:
        ValueError: If the template or the chat template is wrong, or if `data.few_shot` is above 0 and there are no
            examples, or they have no worked solutions.
    """

    def __init__(
        self,
        data: ConfigDict,
        tokenizer: PreTrainedTokenizerBase,
        examples: Callable[[int, int], list[Problem]] | None = None,
        vocab_size: int | None = None,
    ):
        self._data, self._tokenizer, self._vocab_size = data, tokenizer, vocab_size
        check_templates(data, tokenizer)
        self._few_shot: tuple[tuple[str, str], ...] = ()
        if data.few_shot:
            if examples is None:
                raise ValueError(f"data.few_shot={data.few_shot} needs problems to take worked examples from")
            rng = random.Random(0)
            try:
                shown = examples(_EXAMPLES_STEP, data.few_shot)
            except ValueError as error:
                raise ValueError(f"data.few_shot={data.few_shot}: {error}") from error
            self._few_shot = tuple(
                (quote(tokenizer, p.question), quote(tokenizer, worked_solution(p, rng, 0.0))) for p in shown
            )

    def __call__(self, problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_NxP, mask_NxP) int32, padded on the left to `data.max_prompt_len`; see `encode_prompts`."""
        texts = [self._text(p) for p in problems]
        return encode_prompts(
            self._tokenizer,
            texts,
            self._data.max_prompt_len,
            [p.uid for p in problems],
            bos=not self._data.chat,
            vocab_size=self._vocab_size,
        )

    def solution(self, text: str) -> list[int]:
        """The tokens of a worked solution and of the end of sequence; special tokens in it are text.

        Raises:
            ValueError: If the tokenizer has no end token, or the model lacks a token.
        """
        if self._tokenizer.eos_token_id is None:
            raise ValueError("warmup.updates: the model's tokenizer has no end token to teach; set it to 0")
        ids = [*encode_text(self._tokenizer, text), self._tokenizer.eos_token_id]
        check_ids(self._tokenizer, ids, self._vocab_size, "a worked solution")
        return ids

    def fault(self, problem: Problem) -> str | None:
        """The reason why a problem cannot be made into a prompt, or None."""
        try:
            self([problem])
        except ValueError as error:
            return str(error)
        return None

    def _text(self, problem: Problem) -> str:
        question = quote(self._tokenizer, problem.question)
        return _rendered(self._data, self._tokenizer, problem._replace(question=question), self._few_shot)
