r"""Problems of reasoning-gym tasks, worked solutions and prompts.

Shapes: N prompts, P positions.
"""

import random
import re

import numpy as np
import pytest

from entropy_rl.data import (
    PAPER_CHAT,
    PAPER_PLAIN,
    Task,
    encode_prompts,
    render,
    tiny_tokenizer,
    worked_solution,
)
from entropy_rl.rewards import gym

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # a space of 200 questions


@pytest.fixture(scope="module")
def task():
    return Task("chain_sum", SUMS, seed=0)


def questions(problems):
    return [p.question for p in problems]


def test_train_is_a_pure_function_of_seed_and_step(task):
    first = task.train(3, 32)
    task.train(9, 32)
    task.held_out(20)
    assert task.train(3, 32) == first == Task("chain_sum", SUMS, seed=0).train(3, 32)
    assert task.train(3, 8) == first[:8]
    others = [task.train(4, 32), Task("chain_sum", SUMS, seed=1).train(3, 32)]
    assert all(len(set(questions(first)) & set(questions(other))) < 4 for other in others)


def test_seeds_and_steps_share_no_draw():
    wide = {"min_terms": 6, "max_terms": 6, "min_digits": 4, "max_digits": 4}
    seen = [
        q for seed in (0, 1) for step in range(1, 21) for q in questions(Task("chain_sum", wide, seed).train(step, 16))
    ]
    assert len(set(seen)) == len(seen)


def test_a_batch_holds_different_problems():
    assert len(set(questions(Task("chain_sum", ONE_DIGIT, seed=0).train(1, 150)))) == 150


def test_held_out_problems_are_fixed_and_never_trained_on():
    a, b = (Task("chain_sum", ONE_DIGIT, seed=seed, held_out_modulus=5) for seed in (0, 1))
    held_out = a.held_out(30)
    assert held_out == b.held_out(30) and a.held_out(10) == held_out[:10]
    assert len(set(questions(held_out))) == 30
    trained = {q for step in range(1, 51) for q in questions(a.train(step, 64))}
    assert len(trained) > 100
    assert not trained & set(questions(held_out))


def test_uid_depends_only_on_the_text(task):
    assert len({p.uid for p in task.train(1, 100)}) == 100
    assert all(0 <= p.uid < 2**32 for p in task.held_out(50))
    assert {p.uid for p in task.held_out(50)} == {p.uid for p in Task("chain_sum", SUMS, seed=7).held_out(50)}


def test_a_space_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match=r"data\.settings: chain_sum .* different training problems .* 300 were asked"):
        Task("chain_sum", ONE_DIGIT, seed=0).train(1, 300)
    with pytest.raises(ValueError, match=r"data\.settings: chain_sum .* different held-out problems"):
        Task("chain_sum", ONE_DIGIT, seed=0).held_out(200)


@pytest.mark.parametrize(
    "name, settings, modulus, message",
    [
        ("chain_sums", {}, 10, r"data\.task: reasoning-gym has no task 'chain_sums'; near it: chain_sum"),
        ("chain_sum", {"max_digit": 2}, 10, r"data\.settings\.max_digit: .* max_digits"),
        ("chain_sum", {"seed": 2}, 10, r"data\.settings\.seed"),
        ("chain_sum", {"max_terms": 1}, 10, r"data\.settings: chain_sum refuses .*max_terms must be"),
        ("chain_sum", {}, 1, "held_out_modulus is 1"),
        ("pool_matrix", {}, 10, r"data\.task: pool_matrix could not make a problem: Seed"),
    ],
)
def test_wrong_settings(name, settings, modulus, message):
    with pytest.raises(ValueError, match=message):
        Task(name, settings, seed=0, held_out_modulus=modulus).train(1, 1)


@pytest.mark.parametrize("negation", [False, True])
def test_worked_solutions_without_errors_are_right(negation):
    settings = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3, "allow_negation": negation}
    rng = random.Random(0)
    for problem in Task("chain_sum", settings, seed=0).train(1, 400):
        text = worked_solution(problem, rng, 0.0)
        assert text.endswith(f"\\boxed{{{problem.entry['answer']}}}"), (problem.question, text)
        for step in re.split("[,;]", text.split(" ")[0]):
            values = [eval(side) for side in step.split("=")]
            # "47+80=127+5=132" is a chain: the text after each "=" starts with the value before it.
            starts = [int(re.match(r"-?\d+", side)[0]) for side in step.split("=")[1:]]
            assert values[:-1] == starts, (problem.question, text)


def test_worked_solutions_come_in_three_formats(task):
    problem = next(p for p in task.train(1, 64) if re.search(r"[1-9]{2} \+ [1-9]{2}", p.question))
    rng = random.Random(0)
    assert len({worked_solution(problem, rng, 0.0) for _ in range(64)}) == 3


def test_a_misread_solution_adds_everything(task):
    rng, problems = random.Random(0), [p for p in task.train(1, 2000) if " - " in p.question]

    def misread(problem, rate):
        added = sum(int(x) for x in re.findall(r"\d+", problem.entry["metadata"]["expression"]))
        return worked_solution(problem, rng, 0.0, rate).endswith(f"\\boxed{{{added}}}")

    assert all(misread(p, 1.0) for p in problems[:100])
    share = np.mean([misread(p, 0.3) for p in problems])
    assert 0.25 < share < 0.4  # some have the same answer either way
    with pytest.raises(ValueError, match=r"warmup\.misread_rate is -1"):
        worked_solution(problems[0], rng, 0.0, -1)


def test_worked_solutions_are_short(task):
    tokenizer, rng = tiny_tokenizer(), random.Random(0)
    lengths = [len(tokenizer(worked_solution(p, rng, 0.12))["input_ids"]) for p in task.train(1, 500)]
    assert max(lengths) <= 24


def test_errors_reach_the_answer_at_the_requested_rate(task):
    def right(error_rate):
        rng, problems = random.Random(0), task.train(1, 1000)
        return np.mean([f"{{{p.entry['answer']}}}" in worked_solution(p, rng, error_rate) for p in problems])

    assert 0.70 < right(0.12) < 0.80
    assert right(1.0) < 0.15  # two errors may cancel


COUNTDOWN = {"min_numbers": 3, "max_numbers": 4, "min_value": 1, "max_value": 9, "min_target": 1, "max_target": 40}


def attempts_of(text):
    """The attempts of a searched solution, each as its steps, and the expression in the box."""
    search, box = text.removesuffix("}").split(" \\boxed{")
    return [attempt.split(",") for attempt in search.split(";")], box


def test_worked_solutions_of_countdown_search_and_find():
    rng, points = random.Random(0), gym.verifier("countdown")
    problems = Task("countdown", {**COUNTDOWN, "operators": ("+", "-", "*")}, seed=0).train(1, 200)
    lengths, boxes = set(), set()
    for problem in problems:
        attempts, box = attempts_of(worked_solution(problem, rng, 0.0))
        assert points(box, problem.entry) == 1.0, (problem.entry, box)
        lengths.add(len(attempts))
        for i, steps in enumerate(attempts):
            assert len(steps) == len(problem.entry["metadata"]["numbers"]) - 1
            for step in steps:
                left, right = step.split("=")
                assert eval(left) == int(right), step
            last = i == len(attempts) - 1
            assert (int(steps[-1].split("=")[1]) == problem.entry["metadata"]["target"]) == last
    assert lengths == {1, 2, 3}
    boxes = {attempts_of(worked_solution(problems[0], rng, 0.0))[1] for _ in range(64)}
    assert len(boxes) > 2  # several solutions are taught


def test_a_misread_countdown_takes_no_notice_of_the_target_and_errors_stay_in_the_steps():
    rng, points = random.Random(0), gym.verifier("countdown")
    problems = Task("countdown", {**COUNTDOWN, "operators": ("+", "-", "*")}, seed=0).train(1, 300)

    def right(error_rate, misread_rate):
        """The shares of right boxes and of right steps."""
        texts = [attempts_of(worked_solution(p, rng, error_rate, misread_rate)) for p in problems]
        steps = [step.split("=") for attempts, _ in texts for attempt in attempts for step in attempt]
        boxes = [points(box, p.entry) == 1.0 for p, (_, box) in zip(problems, texts, strict=True)]
        return np.mean(boxes), np.mean([eval(left) == int(made) for left, made in steps])

    assert right(0.0, 0.0) == (1.0, 1.0)
    boxes, steps = right(0.0, 1.0)
    assert boxes < 0.15 and steps == 1.0
    assert 0.4 < right(0.0, 0.5)[0] < 0.7
    boxes, steps = right(0.1, 0.0)
    assert boxes == 1.0 and 0.85 < steps < 0.95


def test_a_countdown_without_a_solution_in_whole_numbers_is_named():
    problem = Task("countdown", COUNTDOWN, seed=0).train(1, 1)[0]
    metadata = {"numbers": [8, 8, 3, 3], "target": 24, "expression": "8/(3 - 8/3)"}
    with pytest.raises(ValueError, match=r"countdown, 8/\(3 - 8/3\), has no solution in whole numbers; leave '/' out"):
        for seed in range(9):
            worked_solution(problem._replace(entry={"metadata": metadata}), random.Random(seed), 0.0)


def test_worked_solutions_of_gsm_symbolic():
    problem = Task("gsm_symbolic", {}, seed=0).train(1, 1)[0]
    text = worked_solution(problem, random.Random(0), 0.0)
    assert text.endswith(f"\n\\boxed{{{problem.entry['answer']}}}") and "####" not in text
    assert text.startswith(problem.entry["metadata"]["answer_cot"][:20])
    with pytest.raises(ValueError, match=r"warmup\.error_rate is 0\.1"):
        worked_solution(problem, random.Random(0), 0.1)


def test_worked_solution_errors(task):
    problem = task.train(1, 1)[0]
    with pytest.raises(ValueError, match=r"warmup\.updates: reasoning_gym:gcd"):
        worked_solution(problem._replace(kind="reasoning_gym:gcd"), random.Random(0), 0.0)
    with pytest.raises(ValueError, match=r"warmup\.error_rate is 1\.5"):
        worked_solution(problem, random.Random(0), 1.5)


def test_render_plain(task):
    problem = task.train(1, 1)[0]
    assert render(problem, PAPER_PLAIN, (), False, None) == (
        f"User:\n{problem.question}\nPlease reason step by step, "
        "and put your final answer within \\boxed{}.\n\nAssistant:\n"
    )
    shots = (("1 + 1 =", "\\boxed{2}"),)
    assert render(problem, "Q: {question}\nA: ", shots, False, None) == (
        f"Q: 1 + 1 =\nA: \\boxed{{2}}\n\nQ: {problem.question}\nA: "
    )


def test_render_chat(task):
    problem, tokenizer = task.train(1, 1)[0], tiny_tokenizer()
    with pytest.raises(ValueError, match=r"data\.chat is true"):
        render(problem, PAPER_CHAT, (), True, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"
    )
    assert render(problem, "{question}?", (("1", "2"),), True, tokenizer) == (
        f"[user]1?[assistant]2[user]{problem.question}?[go]"
    )


def test_render_errors(task):
    problem = task.train(1, 1)[0]
    with pytest.raises(ValueError, match=r"data\.template has no \{question\}"):
        render(problem, "Solve it.", (), False, None)
    with pytest.raises(ValueError, match=rf"problem {problem.uid} .* empty question"):
        render(problem._replace(question=" "), "{question}", (), False, None)


def test_encode_prompts_pads_on_the_left():
    tokenizer = tiny_tokenizer()
    tokens_NxP, mask_NxP = encode_prompts(tokenizer, ["12", "1234"], 6)
    assert tokens_NxP.shape == mask_NxP.shape == (2, 6)
    assert tokens_NxP.dtype == mask_NxP.dtype == np.int32
    np.testing.assert_array_equal(mask_NxP, [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]])
    assert (tokens_NxP[0, :4] == tokenizer.pad_token_id).all()
    assert tokenizer.decode(tokens_NxP[1, 2:]) == "1234"


def test_encode_prompts_adds_bos_once_and_no_eos():
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokens_NxP, mask_NxP = encode_prompts(tokenizer, ["12", "<bos>12", "1<eos>"], 4)
    np.testing.assert_array_equal(tokens_NxP[0], tokens_NxP[1])
    assert tokens_NxP[0, 1] == 1 and mask_NxP[:2].sum() == 6
    assert tokens_NxP[2, -1] == 2  # the prompt's own


def test_encode_prompts_errors():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"data\.max_prompt_len is 3, but the prompt of problem 77 has 4 tokens"):
        encode_prompts(tokenizer, ["12", "1234"], 3, uids=[5, 77])
    with pytest.raises(ValueError, match=r"the prompt of row 1 is empty"):
        encode_prompts(tokenizer, ["12", " "], 3)
