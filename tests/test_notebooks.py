"""The notebooks run from top to bottom, with small settings."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "colab").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "6")
    monkeypatch.setenv("WARMUP", "20")
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as on Colab
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert (tmp_path / "notebook-grpo" / "report" / "curves.png").stat().st_size > 10_000
    assert any("image/png" in o.get("data", {}) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert os.path.getsize(tmp_path / "notebook-forking" / "metrics.jsonl") > 0
