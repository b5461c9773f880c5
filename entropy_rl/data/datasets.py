"""Where the usual data sets are and what their fields are called: one row each.

Rows are read by `files.read`, from the hub through the `datasets` library, or from a local copy of the same layout
below `data.root` (what `hf download --repo-type dataset` leaves, in a folder owner/name).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a file or a data set become problems; each field can be set in `data.settings`.

    A field is named by its path: "answer", "reward_model.ground_truth", "prompt.0.content".

    Attributes:
        hub: owner/name; "" for a file.
        split, subset: of the hub's data set (its "configuration"); "" for a file.
        question, answer: the fields of these.
        solution: the field with a worked solution, for the warm-up and for worked examples; "": none.
        difficulty: a field to report accuracy by; "": none.
        kind: the verifier, a `kind` of `rewards.score`; for reasoning_gym:<task> and module:function the whole row is
            the verifier's entry.
        before, after: text around the question that is taken away: instructions, which `data.template` gives here.
        answer_after: the answer is what follows the last of this in its field.
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

# The first holds each of its 17k problems a hundred times; repeated questions are dropped wherever they occur.
DATASETS: dict[str, Layout] = {
    "dapo-math-17k": Layout(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        "train",
        question="prompt.0.content",
        answer="reward_model.ground_truth",
        before=_DAPO_BEFORE,
        after=_DAPO_AFTER,
    ),
    "math-500": Layout("HuggingFaceH4/MATH-500", "test", question="problem", solution="solution", difficulty="level"),
    "aime-2024": Layout("HuggingFaceH4/aime_2024", "train", question="problem", solution="solution"),
    "aime-2025": Layout("math-ai/aime25", "test", question="problem"),
    "amc-2023": Layout("math-ai/amc23", "test"),
    "minerva": Layout("math-ai/minervamath", "test"),
    "olympiadbench": Layout(
        "Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP", answer="final_answer", difficulty="subfield"
    ),
    "omni-math": Layout(
        "KbsdJames/Omni-MATH", "test", question="problem", solution="solution", difficulty="difficulty"
    ),
    "gsm8k": Layout("openai/gsm8k", "train", "main", solution="answer", answer_after="####"),
    "gsm8k-test": Layout("openai/gsm8k", "test", "main", solution="answer", answer_after="####"),
}
