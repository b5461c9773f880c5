"""The notebooks run from top to bottom, with small settings."""

import dataclasses
import json
import pathlib

import jax
import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from tiny_models import FAMILIES, tiny_tokenizer

from entropy_rl.model.hf import save_folder
from entropy_rl.model.transformer import init_params

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "colab"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the kernel's own
]


CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
---
"""  # of the data set, as on the hub


def executed(name, monkeypatch, runs, **environment):
    """The notebook after it ran in an environment of small settings; its runs are in a folder."""
    for key, value in {"RUNS": str(runs), **environment}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as on Colab
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_notebook_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_0")}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == tested


def test_01_entropy_collapse_in_ten_minutes(tmp_path, monkeypatch):
    outputs = executed("01_entropy_collapse_in_ten_minutes", monkeypatch, tmp_path, STEPS="6", WARMUP="20")
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 5  # collapse, law, hold it, the reader's method, the atlas
    (table,) = (data["text/markdown"] for data in shown if "entropy kept" in data.get("text/markdown", ""))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| grpo", "| kl_cov", "| mine"]
    made = json.loads((tmp_path / "notebook-mine" / "config.json").read_text())["algo"]
    assert made["chain"] == ["keep_unsure"] and made["transforms"] == {"keep_unsure": {"bound": 0.95}}
    rows = [json.loads(line) for line in (tmp_path / "notebook-mine" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(7))


def test_02_forking_tokens(tmp_path, monkeypatch):
    outputs = executed("02_forking_tokens", monkeypatch, tmp_path, STEPS="6", WARMUP="20", K="2")
    shown = [output.get("data", {}) for output in outputs]
    assert {"**entropy_overlap**", "**tokens_highest**"} <= {data.get("text/markdown") for data in shown}
    assert (tmp_path / "forks-grpo" / "evaluation" / "forks.csv").read_text().count("\n") == 1 + 5
    (table,) = (data["text/markdown"] for data in shown if "entropy kept" in data.get("text/markdown", ""))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| grpo", "| dapo", "| forking", "| bottom80"]


def test_03_math_on_one_chip(tmp_path, monkeypatch):
    """With an untrained model of the same format, and a handful of problems laid out as the hub has them."""
    model, data = tmp_path / "model", tmp_path / "data" / "openai" / "gsm8k" / "main"
    tokenizer = tiny_tokenizer()
    cfg = dataclasses.replace(FAMILIES["qwen2"], max_positions=512)
    save_folder(model, cfg, jax.device_get(init_params(cfg, jax.random.key(0))), tokenizer)
    data.mkdir(parents=True)
    (data.parent / "README.md").write_text(CARD)
    for split in ("train", "test"):
        rows = [
            {"question": f"Tom has {a} cats and buys {b} in {split}. How many?", "answer": f"{a} + {b}\n#### {a + b}"}
            for a in range(3, 9)
            for b in (2, 5)
        ]
        pq.write_table(pa.Table.from_pylist(rows), data / f"{split}-00000-of-00001.parquet")
    runs = tmp_path / "runs"
    outputs = executed(
        "03_math_on_one_chip", monkeypatch, runs, STEPS="2", MODEL=str(model), DATA_ROOT=str(tmp_path / "data")
    )
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/svg+xml" in data for data in shown) > 3
    (accuracies,) = (data["text/markdown"] for data in shown if "greedy accuracy" in data.get("text/markdown", ""))
    assert len(accuracies.splitlines()) == 2 + 4  # two methods, before and after
    for method in ("grpo", "kl_cov"):
        rows = [json.loads(line) for line in (runs / f"gsm8k-{method}" / "metrics.jsonl").open()]
        assert [row["step"] for row in rows] == [0, 1, 2]
        assert (runs / f"gsm8k-{method}" / "rollouts").is_dir()
