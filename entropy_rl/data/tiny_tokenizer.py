r"""A character tokenizer of 104 symbols, built in memory: nothing is downloaded or trained.

Each printable ASCII character is a token. So are `\boxed{` and the fixed words of a chain_sum question, so that the
prompt for two 2-digit terms has nine tokens, and further texts that are asked for.
"""

import re
import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_WHOLE = ("\\boxed{", "State the final answer to the following arithmetic problem: ", " =")
_CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n\t"


def tiny_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A transformers tokenizer that decodes an encoded text to the same text: printable ASCII, newline and tab.

    Other characters become `<unk>`. Neither BOS nor EOS is added to a text. The vocabulary has 104 entries in this
    order: pad 0, bos 1, eos 2, unk 3, pieces of several characters, characters. The words come after them.

    Args:
        words: further texts that are one token each (`model.tiny.words`); where several begin, the longest counts.

    Raises:
        ValueError: A word is empty or a token already.
    """
    known = (*_SPECIAL, *_WHOLE, *_CHARACTERS)
    for i, word in enumerate(words):
        if not word or word in (*known, *words[:i]):
            raise ValueError(f"model.tiny.words: {word!r} is {'a token already' if word else 'empty'}; leave it out")
    vocabulary = {piece: i for i, piece in enumerate((*known, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = "|".join(re.escape(piece) for piece in sorted((*_WHOLE, *words), key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{pieces}|(?m:.)"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
