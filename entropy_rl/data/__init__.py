"""Problems, prompts, worked solutions and a small tokenizer: everything a run reads before it samples."""

from entropy_rl.data.datasets import DATASETS
from entropy_rl.data.mixture import Mixture
from entropy_rl.data.prompts import PAPER_CHAT, PAPER_PLAIN, Prompts, encode_prompts, render
from entropy_rl.data.sources import Source, Sources, share
from entropy_rl.data.stored import Stored
from entropy_rl.data.tasks import Problem, Task
from entropy_rl.data.tiny_tokenizer import tiny_tokenizer
from entropy_rl.data.worked import worked_solution

__all__ = [
    "DATASETS",
    "Mixture",
    "PAPER_CHAT",
    "PAPER_PLAIN",
    "Problem",
    "Prompts",
    "Source",
    "Sources",
    "Stored",
    "Task",
    "encode_prompts",
    "render",
    "share",
    "tiny_tokenizer",
    "worked_solution",
]
