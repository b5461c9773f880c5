"""Files, data sets and mixtures: their order, their faults, and the separation of training and evaluation."""

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from entropy_rl import config
from entropy_rl.data import DATASETS, Mixture, PromptEncoder, Sources, Stored, Task, tiny_tokenizer, worked_solution
from entropy_rl.data.source import question_key

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(n, start=0, **more):
    return [{"question": f"What is {i} + 1?", "answer": i + 1, **more} for i in range(start, start + n)]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", sums(50))


def questions(problems):
    return [p.question for p in problems]


def run_config(task, **changes):
    c = config.default()
    c.data.task = task
    for key, value in changes.items():
        part, _, name = key.partition("__")
        with c.unlocked():
            c[part][name] = value
    return c


def sources_of(c):
    return Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)


def no_fault(problem):
    return None


def fit(sources):
    sources.fit(no_fault, no_fault, "error")
    return sources


def test_each_problem_once_per_epoch_and_another_order_in_each(file):
    stored = Stored(file, {}, seed=0, held_out_modulus=0)
    order = [q for step in range(1, 31) for q in questions(stored.train(step, 5))]  # 3 epochs of 50
    epochs = [order[:50], order[50:100], order[100:]]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 50 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_a_batch_that_does_not_divide_the_epoch_leaves_nothing_out(file):
    stored = Stored(file, {}, seed=0, held_out_modulus=0)
    order = [q for step in range(1, 23) for q in questions(stored.train(step, 7))][:150]
    assert all(sorted(order[i : i + 50]) == sorted(order[:50]) for i in (50, 100))


def test_any_step_can_be_asked_for_directly(file):
    whole = Stored(file, {}, seed=3)
    steps = [whole.train(step, 6) for step in range(1, 40)]
    for step in (39, 7, 22):
        assert Stored(file, {}, seed=3).train(step, 6) == steps[step - 1]
    assert Stored(file, {}, seed=4).train(1, 6) != steps[0]


def test_the_first_epoch_of_a_seed_is_not_the_second_of_the_seed_before(file):
    # Grain shuffles epoch e with seed + e.
    first, second = (Stored(file, {}, seed=seed, held_out_modulus=0) for seed in (0, 1))
    assert questions(first.train(2, 50)) != questions(second.train(1, 50))


def test_the_order_is_the_one_that_runs_were_made_with(tmp_path):
    """Golden: if a new version of grain shuffles differently, a run that resumes with it sees other problems."""
    stored = Stored(write(tmp_path / "a.jsonl", sums(10)), {}, seed=0, held_out_modulus=0)
    assert [int(p.answer) - 1 for p in stored.train(1, 10)] == [1, 6, 2, 9, 5, 3, 0, 4, 7, 8]


def test_steps_count_from_one_in_every_source(file):
    stored, task = Stored(file, {}, 0), Task("chain_sum", {}, 0)
    for source in (stored, task, Mixture({"a": (stored, 1), "b": (task, 1)})):
        assert len(source.train(1, 4)) == 4
        with pytest.raises(ValueError, match="step is 0; steps count from 1"):
            source.train(0, 4)


def test_a_refill_gives_fresh_problems_as_a_function_of_step_and_round(file):
    for source in (Stored(file, {}, 0), Task("chain_sum", {}, 0), Mixture({"a": (Stored(file, {}, 0), 1)})):
        rounds = [questions(source.train(3, 4, refill_round=i)) for i in range(4)]
        assert rounds == [questions(source.train(3, 4, refill_round=i)) for i in range(4)]
        assert len({tuple(r) for r in rounds}) == 4
        assert questions(source.train(4, 4)) == questions(source.train(4, 4, 0))


def test_held_out_problems_are_never_trained_on_and_the_same_for_every_seed(file, tmp_path):
    a, b = Stored(file, {}, 0, 5), Stored(file, {}, 1, 5)
    held_out = a.held_out(100)
    assert held_out == b.held_out(100) and a.held_out(3) == held_out[:3] and len(held_out) > 3
    backwards = Stored(write(tmp_path / "back.jsonl", sums(50)[::-1]), {}, 0, 5)
    assert backwards.held_out(100) == held_out
    trained = {q for step in range(1, 30) for q in questions(a.train(step, 8))}
    assert not trained & set(questions(held_out)) and len(trained) + len(held_out) == 50
    with pytest.raises(ValueError, match=r"held_out_modulus=0 holds out none of its 50 problems.*eval\.sets"):
        Stored(file, {}, 0, 0).held_out(3)
    with pytest.raises(ValueError, match=r"has 50 training problems; 51 were asked for"):
        Stored(file, {}, 0, 0).train(1, 51)


def test_a_mixtures_shares_are_exact_in_every_window(file):
    stored, task = Stored(file, {}, 0, 0), Task("chain_sum", {}, 0)
    mixed = Mixture({"file": (stored, 5), "task": (task, 2)})
    order = [p for step in range(1, 36) for p in mixed.train(step, 6)]
    for i in range(0, 210, 7):
        assert Counter(p.kind for p in order[i : i + 7]) == {"math": 5, "reasoning_gym:chain_sum": 2}
    kinds = [p.kind for p in order]
    assert kinds[:7] * 30 == kinds  # every window has the same pattern
    # The file continues in its own order, each problem once per epoch, whatever the size of a step.
    from_file = [p.question for p in order if p.kind == "math"]
    alone = [q for step in range(1, 16) for q in questions(stored.train(step, 10))]
    assert from_file == alone
    with pytest.raises(ValueError, match=r"data\.mixture\.a\.weight=0\.5 must be a whole number"):
        Mixture({"a": (task, 0.5)})


def test_a_mixtures_weights_may_be_the_sizes_of_its_parts():
    task = Task("chain_sum", {}, 0)
    mixed = Mixture({"a": (task, 60_000), "b": (task, 30_001)})  # quadratic code takes minutes
    assert mixed.train(1, 3)
    assert Mixture({"a": (task, 2_000_000), "b": (task, 1_000_000)}).train(1, 3)  # two to one
    with pytest.raises(
        ValueError, match=r"data\.mixture: the weights add up to 2000001, more than 1000000; round them"
    ):
        Mixture({"a": (task, 2_000_000), "b": (task, 1)})


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"question": "a", ', r"line 2: not JSON"),
        (b'{"question": "a", "answer": "\xff"}', r"line 2: not UTF-8 at byte 29"),
        (b'{"question": "a"}', r"line 2: no field 'answer' \(answer\); it has question"),
        (b'{"question": null, "answer": 3}', r"line 2: field 'question' \(question\) is null"),
        (b'{"question": "  ", "answer": 3}', r"line 2: field 'question' contains no question"),
        (b'{"question": "a", "answer": ""}', r"line 2: field 'answer' contains no answer"),
        (b'{"question": "\\ud800", "answer": 3}', r"line 2: .* lone surrogate"),
        (b'["question"]', r"line 2: a list, not an object"),
        (b'{"question": "What is 0 + 1?", "answer": 2}', r"line 2: another answer to the question of .*line 1"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, line, message, caplog):
    path = tmp_path / "bad.jsonl"
    rows = [json.dumps(row).encode() for row in sums(3)]
    path.write_bytes(b"\n".join([rows[0], line, *rows[1:], b""]))
    with pytest.raises(ValueError, match=r"1 bad rows\n.*" + message):
        Stored(str(path), {}, 0)
    with caplog.at_level("WARNING", "absl"):
        stored = Stored(str(path), {}, 0, 0, bad_rows="skip")
    assert "1 bad rows" in caplog.text and "skipped" in caplog.text
    assert sorted(questions(stored.train(1, 3))) == sorted(r["question"] for r in sums(3))


def test_faults_of_a_whole_file(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl' contains no problem \(0 rows"):
        Stored(str(empty), {}, 0)
    with pytest.raises(ValueError, match="no such file"):
        Stored(str(tmp_path / "none.jsonl"), {}, 0)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"broken\.parquet is not a sound Parquet file"):
        Stored(str(tmp_path / "broken.parquet"), {}, 0)
    good = write(tmp_path / "good.jsonl", sums(3))
    with pytest.raises(ValueError, match=r"data\.settings\.anser: .* it has answer"):
        Stored(good, {"anser": "a"}, 0)
    with pytest.raises(ValueError, match=r"data\.settings\.split: .* no such setting"):
        Stored(good, {"split": "test"}, 0)
    with pytest.raises(ValueError, match=r"data\.settings\.solution='cot': no row of .* has such a field"):
        Stored(good, {"solution": "cot"}, 0)
    with pytest.raises(ValueError, match=r"data\.bad_rows='ignore' must be 'error' or 'skip'"):
        Stored(good, {}, 0, bad_rows="ignore")


def test_repeated_rows_count_once(tmp_path):
    stored = Stored(write(tmp_path / "twice.jsonl", sums(10) * 3), {}, 0, 0)
    assert len(set(questions(stored.train(1, 10)))) == 10
    with pytest.raises(ValueError, match="has 10 training problems"):
        stored.train(1, 11)


def test_parquet_fields_and_kinds(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Solve: {i} (end)"}],
            "label": {"truth": [str(i), "7"]},
            "level": i % 3,
        }
        for i in range(12)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    settings = {
        "question": "prompt.0.content",
        "answer": "label.truth",
        "difficulty": "level",
        "before": "Solve: ",
        "after": " (end)",
    }
    problem = Stored(str(tmp_path / "a.parquet"), settings, 0, 1).held_out(1)[0]
    assert problem.answer == f"{problem.question}, 7" == problem.entry
    assert problem.difficulty == str(int(problem.question) % 3) and problem.kind == "math"
    own = Stored(str(tmp_path / "a.parquet"), settings | {"kind": "reasoning_gym:gcd"}, 0, 1).held_out(1)[0]
    assert own.entry["label"] == {"truth": own.answer.split(", ")}


def local_hub(root, name, rows, split="test"):
    folder = root / name
    folder.mkdir(parents=True)
    write(folder / f"{split}.jsonl", rows)


def test_data_sets_by_name_from_a_local_copy(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"problem": f"{i} + {i}", "answer": str(2 * i), "solution": f"so {2 * i}", "level": i % 5} for i in range(9)
    ]
    local_hub(tmp_path, DATASETS["math-500"].hub, rows)
    stored = Stored("math-500", {}, 0, 1, str(tmp_path))
    assert stored.name == "math-500" and len(stored.held_out(99)) == 9
    problem = stored.held_out(1)[0]
    assert problem.difficulty == str(int(problem.answer) // 2 % 5)
    assert Stored(DATASETS["math-500"].hub, {"question": "problem", "split": "test"}, 0, 1, str(tmp_path)).held_out(9)
    with pytest.raises(ValueError, match=r"split 'tset' could not be loaded: .*tset.*"):
        Stored("math-500", {"split": "tset"}, 0, 1, str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.root=.* holds no copy of math-ai/aime25"):
        Stored("aime-2025", {}, 0, 1, str(tmp_path))


def test_every_data_set_of_the_table_reads_a_row_of_its_shape(tmp_path, monkeypatch):
    """The table against rows of the data sets' shapes (their fields, with texts made up here)."""
    from entropy_rl.data.files import _problem

    before, after = DATASETS["dapo-math-17k"].before, DATASETS["dapo-math-17k"].after
    shapes = {
        "dapo-math-17k": {
            "prompt": [{"content": f"{before}What is 1 + 1?{after}", "role": "user"}],
            "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
        },
        "math-500": {"problem": "What is 1 + 1?", "answer": "2", "solution": "So \\boxed{2}.", "level": 1},
        "aime-2024": {"problem": "What is 1 + 1?", "answer": "2", "solution": "So 2."},
        "aime-2025": {"problem": "What is 1 + 1?", "answer": "2", "id": "0"},
        "amc-2023": {"question": "What is 1 + 1?", "answer": 2.0},
        "minerva": {"question": "What is 1 + 1?", "answer": "2"},
        "olympiadbench": {"question": "What is 1 + 1?", "final_answer": ["2"], "subfield": "Algebra"},
        "omni-math": {"problem": "What is 1 + 1?", "answer": "2", "solution": "2", "difficulty": 4.5},
        "gsm8k": {"question": "What is 1 + 1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
        "gsm8k-test": {"question": "What is 1 + 1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
    }
    assert shapes.keys() == DATASETS.keys()
    for name, row in shapes.items():
        problem, fault = _problem(row, DATASETS[name])
        assert not fault and (problem.question, problem.answer) == ("What is 1 + 1?", "2"), name
        if problem.solution:
            assert worked_solution(problem, None, 0.0).count("\\boxed{2}") == 1
    assert worked_solution(_problem(shapes["gsm8k"], DATASETS["gsm8k"])[0], None, 0.0) == "It is 1+1=2.\n\\boxed{2}"
    with pytest.raises(ValueError, match=r"warmup\.error_rate is 0\.1, but the solutions of a file are ready-made"):
        worked_solution(_problem(shapes["gsm8k"], DATASETS["gsm8k"])[0], None, 0.1)


def test_prompts_that_are_too_long_are_found_before_anything_runs(tmp_path):
    rows = [*sums(5), {"question": "What is " + "1 + " * 40 + "1?", "answer": 41}]
    c = run_config(write(tmp_path / "long.jsonl", rows), data__held_out_modulus=0, eval__every=0)
    prompts = PromptEncoder(c.data, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"long\.jsonl, line 6: data\.max_prompt_len is 64, but the prompt .* tokens"):
        sources_of(c).fit(prompts.fault, prompts.fault, "error")
    sources = sources_of(c)
    sources.fit(prompts.fault, prompts.fault, "skip")
    assert len(sources.train.train(1, 5)) == 5
    with pytest.raises(ValueError, match="has 5 training problems"):
        sources.train.train(1, 6)
    with pytest.raises(ValueError, match="none of its 6 problems can be used"):
        sources_of(c).fit(lambda problem: "no", lambda problem: "no", "skip")
    wide = Task("chain_sum", {"max_terms": 6}, 0)
    short = PromptEncoder(run_config("chain_sum", data__max_prompt_len=20).data, tiny_tokenizer())
    wide.fit(short.fault, "skip")
    assert all(short.fault(p) is None for p in wide.train(1, 64))


@pytest.mark.parametrize("every", [0, 10])
def test_evaluation_problems_are_removed_from_training(tmp_path, caplog, every):
    train, test = write(tmp_path / "train.jsonl", sums(40)), write(tmp_path / "test.jsonl", sums(10, start=35))
    shouted = [row | {"question": f" {row['question'].upper()}"} for row in sums(2)]  # the same words
    more = write(tmp_path / "more.jsonl", shouted)
    c = run_config(train, data__held_out_modulus=0, eval__sets={"test": {"task": test}, "more": {"task": more}})
    c.eval.problems, c.eval.every = 4, every  # those that are not evaluated are kept out as well
    sources = sources_of(c)
    with caplog.at_level("WARNING", "absl"):
        fit(sources)
    assert "train holds 7 problems of the evaluation sets" in caplog.text
    assert len(sources.evals["test"]) == 4 and len(sources.evals["more"]) == 2
    trained = {question_key(q) for step in range(1, 30) for q in questions(sources.train.train(step, 16))}
    assert len(trained) == 33
    assert not trained & {question_key(row["question"]) for row in sums(10, start=35) + shouted}


def test_a_training_file_that_contains_evaluation_problems_of_a_task(tmp_path):
    """The evaluation set is procedural, and the training file has rows drawn from the same task."""
    held_out = Task("chain_sum", SUMS, 0).held_out(5)
    rows = sums(20) + [{"question": p.question, "answer": p.answer} for p in held_out]
    c = run_config(
        write(tmp_path / "train.jsonl", rows),
        data__held_out_modulus=0,
        eval__sets={"sums": {"task": "chain_sum", "settings": SUMS}},
    )
    c.eval.problems = 5
    sources = fit(sources_of(c))
    assert sources.evals["sums"] == held_out
    assert len({q for step in range(1, 30) for q in questions(sources.train.train(step, 10))}) == 20


def test_an_evaluation_set_that_is_trained_on_is_the_held_out_part_of_its_source(file):
    c = run_config(file, eval__sets={"sums": {"task": file}})
    sources = fit(sources_of(c))
    held_out = set(questions(sources.evals["sums"]))
    assert held_out == set(questions(Stored(file, {}, 0).held_out(99)))
    assert len({q for step in range(1, 30) for q in questions(sources.train.train(step, 10))}) == 50 - len(held_out)


def test_a_mixture_is_evaluated_by_its_parts(file):
    parts = {"easy": {"task": "chain_sum", "settings": SUMS, "weight": 3}, "file": {"task": file}}
    c = run_config("mixture", data__mixture=parts)
    c.eval.problems = 4
    sources = fit(sources_of(c))
    assert {name: len(problems) for name, problems in sources.evals.items()} == {"easy": 4, "file": 4}
    assert Counter(p.kind for p in sources.train.train(1, 8)) == {"reasoning_gym:chain_sum": 6, "math": 2}


def test_the_warm_up_may_have_its_own_source(file, tmp_path):
    worked = write(tmp_path / "worked.jsonl", sums(20, start=45, how="count on one"))
    c = run_config(file, warmup__task=worked, warmup__settings={"solution": "how"})
    sources = fit(sources_of(c))
    assert {p.solution for p in sources.warmup.train(1, 8)} == {"count on one"}
    assert sources.digests().keys() == {"train", "warmup", "eval/sums"}


def test_rows_without_a_worked_solution_are_left_out_of_the_warm_up_only(tmp_path):
    rows = sums(20, how="count on one") + sums(20, start=20, how=None)
    c = run_config(write(tmp_path / "some.jsonl", rows), data__settings={"solution": "how"}, data__held_out_modulus=0)
    c.warmup.updates, c.eval.every = 1, 0

    def fault(problem):
        return None if problem.solution else "no worked solution"

    with pytest.raises(ValueError, match=r"20 bad rows\n.*line 21: no worked solution"):
        sources_of(c).fit(no_fault, fault, "error")
    sources = sources_of(c)
    sources.fit(no_fault, fault, "skip")
    assert len(sources.train.train(1, 40)) == 40 and len(sources.warmup.train(1, 20)) == 20


def test_the_digest_changes_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl"

    def digest(rows, **settings):
        return Stored(write(path, rows), settings, 0).digest

    before = digest(sums(9))
    assert before == digest(sums(9)) and before.startswith("9 problems")
    assert len({before, digest(sums(10)), digest(sums(9)[::-1]), digest(sums(9), kind="exact")}) == 4


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("mixture", {}, r"data\.task='mixture' with 0 parts in data\.mixture"),
        ("chain_sum", {"data__mixture": {"a": {"task": "gcd"}}}, r"data\.task='chain_sum' with 1 parts"),
        ("mixture", {"data__mixture": {"a": {"task": "gcd"}}, "data__settings": {"a": 1}}, r"data\.settings with data"),
        ("gcd", {"warmup__settings": {"a": 1}}, r"warmup\.settings without warmup\.task has no effect"),
        ("mixture", {"data__mixture": {"a": {"name": "gcd"}}}, r"data\.mixture\.a has \['name'\]; it may have"),
        ("mixture", {"data__mixture": {"a": {"weight": 2}}}, r"data\.mixture\.a\.task is missing"),
        ("mixture", {"data__mixture": {"a": {"task": "gdc"}}}, r"data\.mixture\.a: data\.task: .* near it: gcd"),
        ("chain_sum", {"eval__sets": {"a/b": {"task": "gcd"}}}, r"eval\.sets names \['a/b'\]"),
        ("chain_sum", {"eval__sets": {"a": {"task": "x.jsonl"}}}, r"eval\.sets\.a: .*no such file"),
        ("chain_sum", {"warmup__task": "x.jsonl"}, r"warmup: .*no such file"),
        ("chain_sum", {"rollout__refills": 16}, r"rollout\.refills=16 must be at most 15"),
    ],
)
def test_contradictions_are_named(task, changes, message):
    with pytest.raises(ValueError, match=message):
        sources_of(run_config(task, **changes))
