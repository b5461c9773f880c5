"""Names and files that a person gives: a leading ~, a web address instead of a path, a Git LFS pointer."""

import os
import pathlib
import re
from typing import Any

from etils import epath

_URL = re.compile(r"(https?|ftp|hf|git|ssh)://|git@|(www\.)?huggingface\.co/")
_HUB_URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)")
_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024  # bytes; the format's own limit


def expand(path: str) -> str:
    """The path with a leading ~ or ~user replaced by that home folder; any other text as it is."""
    return os.path.expanduser(path)


def refuse_url(key: str, value: str) -> None:
    """Refuses a web address where a path or a hub name belongs.

    >>> refuse_url("model.source", "Qwen/Qwen2.5-0.5B")

    Args:
        key: the config key, for the message.
        value: what was given.

    Raises:
        ValueError: If it is a web address; the message contains the hub name, if there is one in it.
    """
    if _URL.match(value.strip()):
        hub = _HUB_URL.match(value.strip())
        name = f"the hub name {hub[1]!r}" if hub else 'a hub name ("owner/name")'
        raise ValueError(f"{key}={value!r} is a web address; give {name}, or a path on this machine")


def refuse_pointer(path: pathlib.Path | epath.Path) -> None:
    """Refuses a Git LFS pointer: the three lines of text that a clone without LFS has in a file's place.

    Args:
        path: a file.

    Raises:
        ValueError: If it is a pointer, or cannot be read.
    """
    file: Any
    try:
        with path.open("rb") as file:
            start = file.read(_LARGEST_POINTER)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start.startswith(_POINTER):
        raise ValueError(f"{path}: a Git LFS pointer, not the file: run `git lfs pull` where it was cloned")
