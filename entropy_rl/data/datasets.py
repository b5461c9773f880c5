"""The usual data sets: where each is stored and the names of its fields.

`files.read` reads their rows, either from the hub through the `datasets` library, or from a local copy of the same
layout below `data.root` (a folder owner/name, as `hf download --repo-type dataset` leaves it).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fields:
    """How the rows of a file or a data set become problems; each attribute can be set in `data.settings`.

    A field of a row is named by its path: "answer", "reward_model.ground_truth", "prompt.0.content".

    Attributes:
        hub: owner/name; "" for a file.
        split: the split of the hub's data set; "" for a file.
        subset: the hub's "configuration"; "" for a file.
        question: the field with the question.
        answer: the field with the right answer.
        solution: the field with a worked solution, for the warm-up and for worked examples; "": none.
        difficulty: a field to report accuracy by; "": none.
        kind: the verifier, a `kind` of `rewards.score`; for reasoning_gym:<task> and module:function the verifier
            receives the whole row as its entry.
        before: text before the question that is removed: instructions, which here are part of `data.template`.
        after: the same after the question.
        answer_after: the answer is the text after the last occurrence of this in its field; "": the whole field.
    """

    hub: str = ""
    split: str = ""
    subset: str = ""
    question: str = "question"
    answer: str = "answer"
    solution: str = ""
    difficulty: str = ""
    kind: str = "math"
    before: str = ""
    after: str = ""
    answer_after: str = ""


_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

# dapo-math-17k holds each of its 17k problems a hundred times; `files.read` drops repeated questions of any data set.
DATASETS: dict[str, Fields] = {
    "dapo-math-17k": Fields(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        "train",
        question="prompt.0.content",
        answer="reward_model.ground_truth",
        before=_DAPO_BEFORE,
        after=_DAPO_AFTER,
    ),
    "math-500": Fields("HuggingFaceH4/MATH-500", "test", question="problem", solution="solution", difficulty="level"),
    "aime-2024": Fields("HuggingFaceH4/aime_2024", "train", question="problem", solution="solution"),
    "aime-2025": Fields("math-ai/aime25", "test", question="problem"),
    "amc-2023": Fields("math-ai/amc23", "test"),
    "minerva": Fields("math-ai/minervamath", "test"),
    "olympiadbench": Fields(
        "Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP", answer="final_answer", difficulty="subfield"
    ),
    "omni-math": Fields(
        "KbsdJames/Omni-MATH", "test", question="problem", solution="solution", difficulty="difficulty"
    ),
    "gsm8k": Fields("openai/gsm8k", "train", "main", solution="answer", answer_after="####"),
    "gsm8k-test": Fields("openai/gsm8k", "test", "main", solution="answer", answer_after="####"),
}
