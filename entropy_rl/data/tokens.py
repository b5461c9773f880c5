"""From text to tokens, with control tokens only where a template put them.

A question, a worked example and a worked solution are data: the text `<|im_end|>` in one of them must not become the
token that ends a turn. `quote` hides such texts behind characters that no text has, while a template is filled in, and
`encode_rendered` turns them back into text, not into tokens.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_FIRST, _LAST = 0xF0000, 0xFFFFD  # a plane of Unicode for private use: one character per special token


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The control tokens of a tokenizer: text -> id."""
    found = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(map(str, tokenizer.all_special_tokens), tokenizer.all_special_ids, strict=True))
    return {text: i for text, i in (found | named).items() if text}


def quote(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with every control token in it hidden; a text without any comes back as it is."""
    for number, special in enumerate(_longest_first(tokenizer)):
        if special in text:
            text = text.replace(special, chr(_FIRST + number))
    return text


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of text that is data: no BOS, no EOS, and no control token in it."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str, bos: bool = True) -> list[int]:
    """The tokens of a rendered prompt.

    Args:
        tokenizer: its control tokens are recognised, except where `quote` has hidden them.
        text: the prompt.
        bos: add the tokenizer's BOS if it would add one and the text has none.
    """
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=bos and not has_bos)["input_ids"])
    # Some tokenizers end every text with EOS, after which a model would have nothing left to write.
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()
    if not any(_FIRST <= ord(c) <= _LAST for c in text):
        return ids
    # Tokenizers cut a text at its control tokens first, so the parts between them can be encoded one by one.
    control = special_tokens(tokenizer)
    names = _longest_first(tokenizer)
    begin = [tokenizer.bos_token_id] if ids[0] == tokenizer.bos_token_id and not has_bos else []
    for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
        if part in control:
            begin.append(control[part])
        elif part:
            begin += encode_text(tokenizer, _unquoted(names, part))
    return begin


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], vocab_size: int | None, where: str) -> None:
    """Refuses a token that the tokenizer has and the model has not.

    Args:
        tokenizer: names the token.
        ids: the tokens.
        vocab_size: the model's; None: not checked.
        where: what they are the tokens of, for the message.

    Raises:
        ValueError: If there is one.
    """
    if vocab_size is not None and ids and max(ids) >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ValueError(
            f"{where} has the token {max(ids)} ({token!r}), but the model's vocabulary (config.json: vocab_size) has "
            f"the ids 0 to {vocab_size - 1}"
        )


def _longest_first(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return sorted(special_tokens(tokenizer), key=lambda text: (-len(text), text))


def _unquoted(names: Sequence[str], text: str) -> str:
    return "".join(
        names[ord(c) - _FIRST] if _FIRST <= ord(c) <= _LAST and ord(c) - _FIRST < len(names) else c for c in text
    )
