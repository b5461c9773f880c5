"""Problems, prompts, worked solutions and a small tokenizer: everything that a run reads before it samples."""

from entropy_rl.data.datasets import DATASETS
from entropy_rl.data.mixture import Mixture
from entropy_rl.data.prompts import PAPER_CHAT, PAPER_PLAIN, PromptEncoder, encode_prompts, render
from entropy_rl.data.source import Problem, Source
from entropy_rl.data.sources import Sources
from entropy_rl.data.stored import Stored
from entropy_rl.data.tasks import Task
from entropy_rl.data.tiny_tokenizer import tiny_tokenizer
from entropy_rl.data.worked import worked_solution

__all__ = [
    "DATASETS",
    "Mixture",
    "PAPER_CHAT",
    "PAPER_PLAIN",
    "Problem",
    "PromptEncoder",
    "Source",
    "Sources",
    "Stored",
    "Task",
    "encode_prompts",
    "render",
    "tiny_tokenizer",
    "worked_solution",
]
