"""Small files that are replaced as a whole, on a disk or in a bucket: a full disk or a kill leaves the old one."""

import os

from etils import epath


def in_bucket(path: epath.Path) -> bool:
    """Whether the path is one like gs://… or s3://…, not on a disk."""
    return "://" in str(path)


def replace(path: epath.Path, contents: str | bytes, aside: str = "new") -> None:
    """Writes a file, whole or not at all.

    Args:
        path: the file. In a bucket an object is replaced as a whole; on a disk a file is first written beside it.
        contents: its new contents.
        aside: ending of the name beside it; processes that may write at the same time need different ones.

    Raises:
        OSError: If it cannot be written; the old file is as it was.
    """
    data = contents.encode() if isinstance(contents, str) else contents
    if in_bucket(path):
        path.write_bytes(data)
        return
    beside = path.with_name(f".{path.name}.{aside}")  # hidden: a kill may leave it, and readers of the folder skip it
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except Exception:
        beside.unlink(missing_ok=True)
        raise


def move(path: epath.Path, to: epath.Path) -> None:
    """Moves a file; in a bucket, which does not rename, by a copy."""
    if in_bucket(path):
        to.write_bytes(path.read_bytes())
        path.unlink()
    else:
        path.rename(to)


def make_folder(path: epath.Path, name: str) -> None:
    """Makes a run's folder, unless it exists.

    Args:
        path: the folder.
        name: what it is to the user, for a message: "--workdir".

    Raises:
        ValueError: If it, or a folder above it, is a file.
        OSError: If it cannot be made; the message names it.
    """
    for place in (path, *path.parents):
        if not in_bucket(path) and place.exists():
            if not place.is_dir():
                raise ValueError(f"{name}={path}: {place} is a file; name a directory, or move the file away")
            break
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name}={path} cannot be made: {error.strerror or error}") from error
