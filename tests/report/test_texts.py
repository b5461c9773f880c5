"""Any text under any model: what `Policy.score` gives, in pieces, and on a page that the text cannot break."""

import dataclasses
import html.parser
import json
import re

import jax
import numpy as np
import pytest
from etils import epath
from recorded_runs import EVIL
from tiny_models import FAMILIES, random_params, tiny_tokenizer

from entropy_rl import analyze
from entropy_rl.policy import Policy
from entropy_rl.report import page, recorded, texts
from entropy_rl.report.tokens import Step


def made(seed=0, **changes):
    cfg = dataclasses.replace(FAMILIES["llama"], eos_ids=(2,), **changes)
    return Policy(cfg, jax.device_put(random_params(cfg, seed)), tiny_tokenizer())


@pytest.fixture(scope="module")
def policy():
    return made()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = [tmp_path_factory.mktemp("models") / name for name in ("one", "other")]
    for seed, folder in enumerate(found):
        made(seed).save(folder)
    return [str(folder) for folder in found]


def test_a_texts_entropy_is_the_policys_score(policy):
    ids = policy.tokenizer("the cat sat")["input_ids"]
    step = texts.score(policy, [texts.Passage("a", "", "the cat sat"), texts.Passage("b", "the cat", " sat on")])
    logp, entropy = policy.score(np.array([ids]), np.ones((1, len(ids))))
    assert step.id[: len(ids) - 1].tolist() == ids[1:]  # nothing is before the first
    np.testing.assert_allclose(step.values["entropy"][: len(ids) - 1], entropy[0, 1:], atol=1e-5)
    np.testing.assert_allclose(step.values["logp"][: len(ids) - 1], logp[0, 1:], atol=1e-5)
    before, after = (policy.tokenizer(text)["input_ids"] for text in ("the cat", " sat on"))
    whole = np.array([[*before, *after]])
    want = policy.score(whole, np.ones_like(whole)).entropy[0, len(before) :]
    np.testing.assert_allclose(step.values["entropy"][len(ids) - 1 :], want, atol=1e-5)
    assert "".join(step.token[len(ids) - 1 :]) == " sat on" and step.lengths.tolist() == [len(ids) - 1, len(after)]


def test_a_long_text_is_read_in_pieces_that_fit_the_model(policy):
    text = "hat " * 200
    n = len(policy.tokenizer(text)["input_ids"])
    step = texts.score(policy, [texts.Passage("long", "", text)])
    longest = policy.cfg.max_positions
    assert n > 2 * longest and step.lengths.max() == longest - 1 and len(step.rows) == -(-n // longest)
    assert step.lengths.sum() == n - len(step.rows)  # each piece's first token has nothing before it
    assert [row["sample"] for row in step.rows] == list(range(len(step.rows)))


def test_what_leaves_no_room_is_named(policy):
    with pytest.raises(ValueError, match=r"the text 'q': the \d+ tokens before it leave it no room"):
        texts.score(policy, [texts.Passage("q", "hat " * 100, "a")])


def test_a_control_token_in_a_text_is_text(policy):
    step = texts.score(policy, [texts.Passage("a", "", "x<|im_end|>y")])
    assert policy.tokenizer.convert_tokens_to_ids("<|im_end|>") not in step.id


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="--text: .*bytes cannot be read as UTF-8"):
        texts.of_file(str(tmp_path / "bytes"))
    with pytest.raises(ValueError, match="--text: .*empty is empty"):
        texts.of_file(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="--text: .*nonesuch cannot be read"):
        texts.of_file(str(tmp_path / "nonesuch"))


def test_problems_are_read_after_their_question(tmp_path):
    lines = [{"question": f"Is {i} even?", "answer": "yes"} for i in (2, 4, 6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = texts.of_dataset(str(tmp_path / "p.jsonl"), 2)
    assert [(p.before, p.text) for p in found] == [("Is 2 even?\n", "yes"), ("Is 4 even?\n", "yes")]
    task = texts.of_dataset("chain_sum", 3)
    assert len(task) == 3 and all("\\boxed{" in passage.text for passage in task)


def test_two_models_on_one_page(folders, tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat and the hat " * 5 + "</script><script>alert(1)</script>")
    text = analyze.report_texts(folders, [str(tmp_path / "t.txt")], "", 0, str(tmp_path / "out"))
    assert re.search(r"one and other: \d+\.\d% of the highest 20%", text)
    names = {path.stem for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"model_overlap", "entropy_percentiles", "tokens_highest"} <= names and "fates" not in names
    check_harmless(tmp_path / "out")
    listed = re.findall(r'"file": "([^"]+)"', (tmp_path / "out" / "data" / "index.js").read_text())
    assert listed == ["data/text0.js", "data/text1.js"] and all((tmp_path / "out" / f).is_file() for f in listed)


def test_models_with_other_tokens_have_no_overlap(policy):
    step = texts.score(policy, [texts.Passage("a", "", "the cat sat")])
    assert [row["overlap"] for row in texts.overlaps({"a": step, "b": step}).table] == [1.0]
    assert texts.overlaps({"a": step, "b": step._replace(id=step.id + 1)}).table == []


def test_a_model_without_a_text_is_refused():
    with pytest.raises(ValueError, match="--text=file or --dataset=task"):
        analyze.report_texts(["x"], [], "", 0, "out")


@pytest.mark.parametrize("flags", [[], ["--workdir=a", "--model=b"]])
def test_the_command_takes_a_run_or_models(flags, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["analyze", *flags])
    with pytest.raises(SystemExit, match="2"):
        analyze.main()
    assert "give either --workdir, a run, or --model" in capsys.readouterr().err


class Tags(html.parser.HTMLParser):
    """The tags of a page that could run something, and their attributes that do."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.others, self.handlers = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))
        elif tag in ("img", "iframe", "object", "embed", "link", "base"):
            self.others.append(tag)
        self.handlers += [(tag, name) for name, _ in attrs if name.startswith("on")]


def check_harmless(folder):
    """Nothing but the viewer runs, and no character of a text is left that could end a script or a line."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    found = Tags(text)
    assert found.scripts == [None, "data/index.js"] and found.others == [] and found.handlers == [("form", "onsubmit")]
    assert not re.search("[\x00\u2028\u2029]", text)
    for path in (folder / "tables").iterdir():
        assert not re.search("[\x00\u2028\u2029]", path.read_text(encoding="utf-8")), path
    scripts = [path.read_text(encoding="utf-8") for path in (folder / "data").iterdir()]
    assert len(scripts) >= 2 and not [script for script in scripts if re.search("[^\n -~]|[<>&]", script)]


def test_no_text_of_a_model_can_run_or_break_anything(tmp_path):
    """Names, questions and tokens that hold `</script>`, `<script>`, U+2028 and NUL."""
    token = np.array([EVIL, "\x00", "\u2028", "<script>", "</script>", "'", '"', "<!--", "$\\frac"] * 6, object)
    rows = [{"prompt": 0, "sample": 0, "question": EVIL, "length": len(token), "finished": True}]
    entropy = np.linspace(0, 2, len(token)).astype(np.float32)
    step = Step(3, rows, token, np.arange(len(token), dtype=np.int32), {"entropy": entropy}, None)
    name = "<script>alert(1)</script>&'\""
    page.write(epath.Path(tmp_path), name, recorded.of_steps({name: [step]}), {}, EVIL, {name: step})
    check_harmless(tmp_path)
    script = (tmp_path / "data" / "text0.js").read_text()
    data = json.JSONDecoder().raw_decode(script[script.index('3, {"tokens"') + 3 :])[0]
    assert set(data["tokens"]) == set(token) and data["questions"] == [EVIL]
    shown = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in shown and "␀" in shown
