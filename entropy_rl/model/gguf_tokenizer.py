"""The tokenizer of a GGUF file as a transformers tokenizer: byte-level BPE only."""

from typing import TYPE_CHECKING

from entropy_rl.model.foreign import token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from entropy_rl.model.gguf import Metadata

# How text is cut before the byte-level merges, by `tokenizer.ggml.pre`: a pattern from llama.cpp's llama-vocab.cpp,
# or None for GPT-2's own; and whether digits are cut apart.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (LLAMA3, False),
    "qwen2": (LLAMA3.replace("{1,3}", ""), False),
}
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def read_tokenizer(meta: "Metadata", vocab_size: int) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer from the file's tokens and merges, with its special tokens and its chat template.

    Args:
        meta: the file's metadata.
        vocab_size: the number of tokens.

    Raises:
        ValueError: If it is not a byte-level BPE that is known here, or is broken.
    """
    import transformers  # slow to import

    tokens, named = meta.need("tokenizer.ggml.tokens", list), {}
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) < len(tokens):
        raise ValueError(f"{meta.path}: tokenizer.ggml.tokens: expected different texts")
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (i := meta.get(full := f"tokenizer.ggml.{key}_token_id")) is not None:
            named[f"{role}_token"] = tokens[token_id(meta.path, full, i, vocab_size)]
    named.setdefault("pad_token", named.get("eos_token"))
    template = meta.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{meta.path}: tokenizer.chat_template is a {type(template).__name__}; expected text")
    core = byte_level_bpe(meta, tokens)
    if meta.get("tokenizer.ggml.add_bos_token", meta.get("tokenizer.ggml.pre") == "llama-bpe"):
        if "bos_token" not in named:
            raise ValueError(f"{meta.path}: tokenizer.ggml.add_bos_token without tokenizer.ggml.bos_token_id")
        begin_with(core, named["bos_token"], meta.get("tokenizer.ggml.bos_token_id"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, chat_template=template, **named
    )


def byte_level_bpe(meta: "Metadata", tokens: list[str]) -> "Tokenizer":
    """Merges, and the way that text is cut before them; raises as `read_tokenizer`."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    kind, pre = meta.need("tokenizer.ggml.model", str), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"{meta.path}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={pre!r} is not supported; "
            f"expected 'gpt2' with one of {', '.join(PRE_TOKENIZERS)}"
        )
    kinds = meta.need("tokenizer.ggml.token_type", list)
    if len(kinds) != len(tokens):
        raise ValueError(f"{meta.path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
    known = set(tokens)
    merges = [_merge(meta, merge, known) for merge in meta.need("tokenizer.ggml.merges", list)]
    core = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    pattern, digits = PRE_TOKENIZERS[pre]
    steps: list = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()  # llama.cpp omits it, but the model was trained with it
    core.add_tokens(
        [
            tokenizers.AddedToken(t, normalized=False, special=k == CONTROL)
            for t, k in zip(tokens, kinds, strict=True)
            if k in (CONTROL, USER_DEFINED)
        ]
    )
    return core


def _merge(meta: "Metadata", merge: object, known: set[str]) -> tuple[str, str]:
    """The two parts of a merge, which are tokens and make a token; raises as `read_tokenizer`."""
    left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
    if not {left, right, left + right} <= known:
        raise ValueError(f"{meta.path}: tokenizer.ggml.merges: {merge!r} does not join two tokens to a token")
    return left, right


def begin_with(core: "Tokenizer", bos: str, bos_id: int) -> None:
    """Makes every text begin with this token."""
    from tokenizers import processors

    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
            ),
        ]
    )
