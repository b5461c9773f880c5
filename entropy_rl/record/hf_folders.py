"""Hugging Face folders along a run, `hf/step-00000040`: each is there as a whole or not at all."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from etils import epath

from entropy_rl.model import lora
from entropy_rl.model.hf import in_order, save_folder
from entropy_rl.model.peft import CONFIG, save_adapter
from entropy_rl.model.transformer import ModelConfig, Params
from entropy_rl.record.files import in_bucket
from entropy_rl.record.lock import Lock
from entropy_rl.runtime import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAST = "config.json"  # in a bucket it is written last: without it a folder is no model
_ASIDE = ".new"


class HfFolders:
    """The folders of one run.

    Args:
        workdir: the run directory.
        every: steps between two folders, from step 0 on; 0: none are written.
        last: the run's last step, which has a folder too.
        model_config: the parameters' shape.
        tokenizer: a transformers tokenizer.
        lock: the run directory's; it is checked before every folder.
        base: the model that adapters belong to, if the parameters have any: these go into a folder of PEFT's too,
            `step-00000040-adapter`, beside the merged model.
    """

    def __init__(
        self,
        workdir: epath.Path | str,
        every: int,
        last: int,
        model_config: ModelConfig,
        tokenizer: "PreTrainedTokenizerBase",
        lock: Lock,
        base: str = "",
    ):
        self._directory, self._base = epath.Path(workdir) / "hf", base
        self._every, self._last = every, last
        self._model_config, self._tokenizer, self._lock = model_config, tokenizer, lock

    def folder(self, step: int) -> epath.Path:
        """The folder of a step."""
        return self._directory / f"step-{step:08d}"

    def reached(self, step: int, params: Params) -> None:
        """The run has made a step: its folder is written, if it has one. One that is there is replaced.

        Args:
            step: the steps done.
            params: after that step, on the devices of all processes.

        Raises:
            ValueError: No Hugging Face folder can hold such a model.
            OSError: It could not be written; what was there besides is as it was.
            RuntimeError: Another run has taken the directory over, or another process could not write.
        """
        if self._every and (step % self._every == 0 or step == self._last):
            self._lock.check()
            if self._model_config.lora:
                self._write_adapter(self.folder(step), params)
            self._write(self.folder(step), params)

    def resumed(self, step: int, params: Params) -> None:
        """The run continues after a step: if it was stopped before the step's folder was whole, that is written now.

        Args:
            step: as for `reached`, like the errors.
            params: as for `reached`.
        """
        if not distributed.collect((self.folder(step) / LAST).exists())[0]:
            self.reached(step, params)

    def _write_adapter(self, folder: epath.Path, params: Params) -> None:
        trained = distributed.fetch(lora.split(params)[0])

        def write(there: pathlib.Path) -> None:
            save_adapter(there, self._model_config, trained, self._base)

        def work() -> None:
            if distributed.first():
                _whole(folder.with_name(f"{folder.name}-adapter"), write)

        distributed.outcomes(work)

    def _write(self, folder: epath.Path, params: Params) -> None:
        """Every process brings each leaf to its host, in one order; the first one writes.

        If it cannot, it takes part to the end all the same, so that the others do not wait for it.
        """
        left = in_order(self._model_config, params)

        def fetch(x: Any) -> np.ndarray:
            left.pop(0)
            return np.asarray(distributed.fetch(lora.now(x)))

        def work() -> None:
            try:
                if distributed.first():
                    _whole(folder, lambda there: save_folder(there, self._model_config, params, self._tokenizer, fetch))
            finally:
                while left and jax.process_count() > 1:
                    fetch(left[0])

        distributed.outcomes(work)
        logging.info("%s is written", folder)


def _whole(folder: epath.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Has a folder written beside its place, and puts it there once every file of it is on disk.

    Raises:
        OSError: It could not be written; nothing of it is left.
    """
    try:
        if in_bucket(folder):
            with tempfile.TemporaryDirectory() as here:
                write(pathlib.Path(here))
                _upload(pathlib.Path(here), folder)
            return
        place = pathlib.Path(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        for leftover in place.parent.glob(f"step-*{_ASIDE}"):
            shutil.rmtree(leftover)
        beside = place.with_name(place.name + _ASIDE)
        try:
            write(beside)
            for file in beside.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            if place.exists():
                shutil.rmtree(place)
            beside.rename(place)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except ValueError:
        raise
    except Exception as error:  # an OSError, or whatever a tokenizer's library makes of one
        raise OSError(
            f"{folder} could not be written ({getattr(error, 'strerror', None) or error}); all else is as it "
            "was. Once that is mended, the same command continues; checkpoint.hf_every=0 writes no such folders"
        ) from error


def _upload(here: pathlib.Path, folder: epath.Path) -> None:
    """Copies a folder into a bucket, which does not rename, so that its config is there only while all the rest is."""
    folder.mkdir(parents=True, exist_ok=True)
    last = (LAST, CONFIG)
    for name in last:
        (folder / name).unlink(missing_ok=True)
    for file in sorted(here.iterdir(), key=lambda file: (file.name in last, file.name)):
        with file.open("rb") as source, (folder / file.name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
