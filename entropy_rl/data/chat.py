"""Turns of a chat as text, by the tokenizer's own template."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

_GIVEN = ("messages", "bos_token", "eos_token", "pad_token", "unk_token")  # variables that transformers sets itself


def check_options(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Refuses options that the chat template would not receive, or does not read.

    Args:
        tokenizer: has the template.
        options: variables for it (`data.template_options`).

    Raises:
        ValueError: If an option has no effect, or there is no template to read it.
    """
    if not options:
        return
    text = str(tokenizer.get_chat_template())
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in options:
        if name in taken or name in _GIVEN:
            raise ValueError(f"data.template_options.{name}: the code sets this itself; remove it")
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise ValueError(f"data.template_options.{name}: the tokenizer's chat template does not read it; remove it")


def render_turns(
    tokenizer: PreTrainedTokenizerBase | None,
    asked: Sequence[tuple[str, str]],
    last: str,
    system: str,
    options: Mapping[str, Any],
) -> str:
    """The text of a chat up to where the assistant's answer begins.

    Args:
        tokenizer: has the template.
        asked: (the user's turn, the assistant's) of worked examples.
        last: the user's turn to answer.
        system: the text of a system's turn before the others; "": none.
        options: variables for the template.

    Raises:
        ValueError: If there is no template, or it fails.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ValueError("data.chat is true, but this tokenizer has no chat template; set it to false")
    turns = [{"role": "system", "content": system}] if system else []
    for prompt, response in asked:
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    turns.append({"role": "user", "content": last})
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # a template is a program, which may fail in any way
        named = [key for key, value in (("system_prompt", system), ("template_options", options)) if value]
        fields = ", ".join(["data.chat", *(f"data.{key}" for key in named)])
        raise ValueError(f"{fields}: the tokenizer's chat template failed: {type(error).__name__}: {error}") from error
