"""Files of every format, as people write them: what is read, and what is named with its place and the remedy."""

import gzip
import json
import pathlib
import random
import warnings

import pytest

from entropy_rl.data import Stored
from entropy_rl.data.rows import short_name, text_of

CASES = [
    # (case, name, bytes, settings, the first question or the number of problems, or parts of the error)
    ("d01", "x.jsonl", '\ufeff{"question": "a?", "answer": "1"}\n{"question": "b?", "answer": "2"}\n', {}, 2),
    ("d02", "x.jsonl", '{"question":"a?","answer":NaN}\n{"question":"b?","answer":3}\n', {}, ("line 1", "answer")),
    (
        "d05",
        "x.jsonl",
        '{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}], '
        '"reward_model": {"ground_truth": "2"}}\n',
        {"question": "prompt", "answer": "reward_model.ground_truth"},
        ("line 1", "'prompt'", "'prompt.1.content'", "data.system_prompt"),
    ),
    (
        "d07",
        "x.jsonl",
        '{"question": "a?", "answer": "1"}\n{"question": "b?", "answer": null}\n',
        {},
        ("line 2", "is null"),
    ),
    ("d09", "x.jsonl.gz", '{"question": "a?", "answer": "1"}\n', {}, 1),
    ("d10", "x.csv", "question,answer\na?,1\n", {}, 1),
]


def put(folder, name, text):
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(folder / name)


def open_rows(path, settings=None, **options):
    return Stored(path, settings or {}, 0, 1, **options)


@pytest.mark.parametrize("case, name, text, settings, expected", CASES, ids=[case[0] for case in CASES])
def test_the_cases(tmp_path, case, name, text, settings, expected):
    path = put(tmp_path, name, text)
    if isinstance(expected, int):
        assert len(open_rows(path, settings).held_out(99)) == expected
        return
    with pytest.raises(ValueError, match=r"data\.task=") as caught:
        open_rows(path, settings)
    assert all(part in str(caught.value) for part in expected)
    assert "no field 'answer'" not in str(caught.value)


@pytest.mark.parametrize(
    "written, answer",
    [
        ("0.00001", "0.00001"),
        ("1e-05", "0.00001"),  # what Python's json writes for it
        ("4.5e33", "45" + "0" * 32),
        ("3.50", "3.50"),
        ("2.0", "2"),
        ("-0.0", "0"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ('"0.50"', "0.50"),
        ('["1", 2.0, 0.00001]', "1, 2, 0.00001"),
        ("true", "True"),
    ],
)
def test_numbers_keep_their_written_form(tmp_path, written, answer):
    path = put(tmp_path, "x.jsonl", f'{{"question": "a?", "answer": {written}}}\n')
    assert open_rows(path).held_out(1)[0].answer == answer


@pytest.mark.parametrize(
    "written, message",
    [
        ("Infinity", "is inf, not a number"),
        ("-Infinity", "is -inf, not a number"),
        ("1e400", "is inf, not a number"),
        ("1e-999999999", "is 1e-999999999, which is too small"),
        ("[1, NaN]", "is nan, not a number"),
        ("[1, null]", "is null"),
        ("[[1], [2]]", "is a list of lists or objects"),
        ('{"value": 3}', r"is an object with value; name the field inside it: 'name\.inner'"),
        ('"NaN"', "is the text 'NaN', as an empty cell is often written"),
        ('"None"', "is the text 'None', as an empty cell is often written"),
        ('"#N/A"', "is the text '#N/A', as an empty cell is often written"),
        ('["", " "]', "is a list with an empty text"),
        ('"2\\\\times 3", "answer": "5"', "not JSON .*the key 'answer' twice"),
        ('"\\frac{1}{2}"', "holds '.x0crac': a backslash of LaTeX was read as part of an escape"),
        ('"2\\times 3"', "holds '.times': a backslash of LaTeX"),
        ('"\\text{no}"', "holds '.text{': a backslash of LaTeX"),
        ('"\\binom{4}{2}"', "holds '.x08inom': a backslash of LaTeX"),
        ('"2 + 2 = 4\\n#### 4"', "is a worked solution; set data.settings.answer_after to '####'"),
        ('"\\ud800"', "holds a lone surrogate"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_answers_that_are_none(tmp_path, written, message):
    path = put(tmp_path, "x.jsonl", f'{{"question": "a?", "answer": {written}}}\n{{"question": "b?", "answer": 1}}\n')
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 1: .*{message}"):
        open_rows(path)
    assert len(open_rows(path, bad_rows="skip").held_out(9)) == 1


def test_decimals_and_floats_of_other_formats():
    assert [text_of(x) for x in (1e-05, 1e22, 0.1, 5, "x")] == ["0.00001", "1" + "0" * 22, "0.1", "5", "x"]


def test_rows_that_a_verifier_receives_have_plain_numbers(tmp_path):
    """They are sent to the graders' processes, which do not know this package's classes."""
    import pickle

    path = put(tmp_path, "x.jsonl", '{"question": "a?", "answer": "1", "metadata": {"level": 0.50}}\n')
    (problem,) = open_rows(path, {"kind": "reasoning_gym:gcd"}).held_out(1)
    assert b"entropy_rl" not in pickle.dumps(problem.entry)
    assert json.dumps(problem.entry["metadata"]) == '{"level": 0.5}'


ROWS = [{"question": f"{i} + 1?", "answer": f"{i + 1}"} for i in range(3)]
CSV = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.jsonl", LINES),
        ("x.JSONL", LINES),
        ("x.jsonl.gz", LINES),
        ("x.json", json.dumps(ROWS)),
        ("x.json", "\ufeff" + json.dumps(ROWS, indent=2)),
        ("x.json", LINES),
        ("x.json.gz", json.dumps(ROWS)),
        ("x.csv", CSV),
        ("x.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("x.csv.gz", CSV),
        ("x.jsonl", LINES.replace("\n", "\r\n\r\n")),
    ],
)
def test_every_format_gives_the_same_problems(tmp_path, name, text):
    stored = open_rows(put(tmp_path, name, text))
    assert sorted((p.question, p.answer) for p in stored.held_out(9)) == [(r["question"], r["answer"]) for r in ROWS]
    assert stored.name == "x"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.xlsx", "PK", r"a file of this kind cannot be read; convert it to one of \.jsonl, \.json, \.csv, \.parquet"),
        ("x.txt", "a", "a file of this kind cannot be read"),
        ("noending", "a", "a file of this kind cannot be read"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", "a file of this kind cannot be read"),
        ("x.jsonl", LINES.encode("utf-16"), r"x\.jsonl is UTF-16; save it as UTF-8"),
        ("x.csv", LINES.encode("utf-16"), r"x\.csv is not UTF-8 at byte 0; save it as UTF-8"),
        ("x.json", "[1, 2", r"x\.json is not JSON \(.*; it must hold one list of objects, or JSON Lines"),
        ("x.json", "[1]", r"x\.json, row 1: a int, not an object"),
        (
            "x.csv",
            "question,question\na,b\n",
            r"x\.csv, line 1: the names of the fields are .*; each must be different",
        ),
        ("x.csv", "question,answer\na?\n", r"x\.csv, line 2: it has fewer values than line 1 has names"),
        ("x.csv", "question,answer\na?,1,000\n", r"x\.csv, line 2: it has more values than line 1 has names"),
        ("x.csv", "question,answer\na?,\n", r"x\.csv, line 2: field 'answer' contains no answer"),
        ("x.csv", 'question,answer\n"a"b,1\n', r"x\.csv, line 2 is not CSV"),
        ("x.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "a Git LFS pointer"),
        ("x.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "a Git LFS pointer"),
        (
            "x.jsonl",
            '{"question": ["a"], "answer": 1}\n',
            r"field 'question' \(question\) is a list, not text; .*'question\.0'",
        ),
        ("x.jsonl", "[" * 100_000, r"x\.jsonl, line 1: not JSON"),
        ("x.jsonl", gzip.compress(LINES.encode(), mtime=0), r"x\.jsonl is compressed; add \.gz to its name"),
        (
            "x.jsonl",
            json.dumps({"question": "[{'role': 'user', 'content': 'a?'}]", "answer": "1"}),
            r"field 'question' \(question\) is a list of messages written as one text",
        ),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        open_rows(put(tmp_path, name, text))


def test_a_cell_may_be_longer_than_pythons_limit(tmp_path):
    (problem,) = open_rows(put(tmp_path, "x.csv", f"question,answer\n{'a' * 200_000},1\n")).held_out(1)
    assert len(problem.question) == 200_000


def test_a_row_without_the_mark_before_its_answer_is_bad(tmp_path):
    path = put(tmp_path, "x.jsonl", '{"question": "a?", "answer": "4 #### 4"}\n{"question": "b?", "answer": "5"}\n')
    with pytest.raises(ValueError, match=r"line 2: field 'answer' \(answer\) has no '####'"):
        open_rows(path, {"answer_after": "####"})


def test_a_gz_file_that_is_none(tmp_path):
    whole = gzip.compress(LINES.encode())
    for raw in (LINES.encode(), whole[:-9], whole[:30] + b"\xff" * 8 + whole[38:]):
        (tmp_path / "x.jsonl.gz").write_bytes(raw)
        with pytest.raises(ValueError, match=r"x\.jsonl\.gz(, line 1: not UTF-8| cannot be read: )"):
            open_rows(str(tmp_path / "x.jsonl.gz"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("https://huggingface.co/datasets/owner/name", "is a web address; give the hub name 'owner/name'"),
        ("https://example.com/x.jsonl", r'is a web address; give a hub name \("owner/name"\), or a path'),
        ("nonesuch://bucket/x.jsonl", "is not a file system that can be read here"),
        ("none.txt", "no such file"),
        ("a/b/none.txt", "no such file"),
        ("~/none.jsonl", "no such file"),
    ],
)
def test_names_that_are_no_file(name, message):
    with pytest.raises(ValueError, match=rf"data\.task='{name}'.* {message}|data\.task='{name}': {message}"):
        open_rows(name)


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """cases/s11."""
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "x.jsonl", LINES)
    assert len(open_rows("~/x.jsonl").held_out(9)) == 3


def test_names_without_their_format():
    names = ["a/b.jsonl.gz", "b.CSV", "owner/b", "~/c.d/b.parquet"]
    assert {short_name(name) for name in names} == {"b"}


def damaged(raw: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    at = rng.randrange(len(raw))
    return [
        raw[:at],
        raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :],
        raw[:at] + rng.choice([b"\xff", b"\0", b'"', b"[[", b"1e999", b"NaN", b"\\ud800", b"\n"]) + raw[at + 1 :],
        raw[:at] + raw[at : at + 20] + raw[at:],
    ][seed % 4]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.jsonl.gz"])
def test_damaged_files(tmp_path, name):
    """Cut, flipped or overwritten anywhere: they are read, or a ValueError names the file."""
    text = {"x.json": json.dumps(ROWS), "x.csv": CSV}.get(name, LINES)
    raw = pathlib.Path(put(tmp_path, name, text)).read_bytes()
    for seed in range(200):
        (tmp_path / name).write_bytes(damaged(raw, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                open_rows(str(tmp_path / name))
            except ValueError as error:
                assert name in str(error), f"seed {seed}"
