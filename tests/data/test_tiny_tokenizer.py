"""The small tokenizer."""

import string

import pytest
from transformers import AutoTokenizer

from entropy_rl.data import Task, tiny_tokenizer

QUESTION = "State the final answer to the following arithmetic problem: 47 - 85 ="


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION + "120+12=132 \\boxed{132}",
        "a , b . c  !  don 't\n\n\ttab \\boxed \\boxed{{}} {question}",
        string.digits + string.ascii_letters + string.punctuation + " \n\t",
        "State the final answer",
        " = =  ==",
        "",
    ],
)
def test_decoding_returns_the_text(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_sizes_and_specials():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 104
    assert (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ) == (0, 1, 2, 3)
    assert len(tokenizer(QUESTION)["input_ids"]) == 9
    assert len(tokenizer("\\boxed{1}")["input_ids"]) == 3


def test_it_has_the_sentence_of_the_installed_chain_sum():
    question = (
        Task("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}, 0).train(1, 1)[0].question
    )
    assert len(tiny_tokenizer()(question)["input_ids"]) == 9


def test_unknown_characters_and_specials():
    tokenizer = tiny_tokenizer()
    assert tokenizer("é1")["input_ids"] == [3, *tokenizer("1")["input_ids"]]
    ids = tokenizer("<eos>12<pad>")["input_ids"]
    assert ids[0] == 2 and ids[-1] == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == "12"


def test_round_trip_through_a_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a  , b\n" + QUESTION + "\\boxed{-38}"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 2, "left")


def test_words_are_one_token_each_and_the_longest_counts():
    words = ("Using ", "Using all", ".\nEach [x]?", "=")
    plain, tokenizer = tiny_tokenizer(), tiny_tokenizer(words[:3])
    assert len(tokenizer) == len(plain) + 3
    text = "Using all of 1 .\nEach [x]? Using 2 =?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids if i >= len(plain)] == ["Using all", ".\nEach [x]?", "Using "]
    assert plain(QUESTION)["input_ids"] == tokenizer(QUESTION)["input_ids"]
    with pytest.raises(ValueError, match=r"model\.tiny\.words: '=' is a token already"):
        tiny_tokenizer(words)
    with pytest.raises(ValueError, match=r"model\.tiny\.words: 'ab' is a token already"):
        tiny_tokenizer(("ab", "ab"))
    with pytest.raises(ValueError, match=r"model\.tiny\.words: '' is empty"):
        tiny_tokenizer(("",))
