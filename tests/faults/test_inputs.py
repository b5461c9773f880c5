"""Rows 28 to 30: a bad data file, model folder or configuration is named before anything is compiled."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import small_runs
from tiny_models import FAMILIES, random_params, tiny_tokenizer

from entropy_rl import loop
from entropy_rl.model import hf, tensor_file

PROGRAMS = "admit", "advance", "decode", "init_state", "prefill", "score", "train_step"  # what takes long to compile
SUMS = [{"question": f"{i} + {j} =", "answer": str(i + j)} for i in range(4) for j in range(4)]


@pytest.fixture
def refused(tmp_path):
    """A function that has the loop refuse a configuration with a message, and sees that no step was compiled."""
    compiled = []

    def listen(event: str, seconds: float, **more):
        if "backend_compile" in event:
            compiled.append(more.get("fun_name"))

    def refuse(c, message):
        compiled.clear()
        with pytest.raises(ValueError, match=message):
            loop.run(c, str(tmp_path / "run"))
        assert not [name for name in compiled if any(program in name for program in PROGRAMS)]
        assert not (tmp_path / "run/metrics.jsonl").exists() and not (tmp_path / "run/checkpoints").exists()

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(np.float32(len(str(tmp_path))))
    assert any("lambda" in name for name in compiled)  # the listener hears names
    yield refuse
    jax.monitoring.unregister_event_duration_listener(listen)


def with_line(folder: pathlib.Path, line: bytes):
    """A configuration whose file has this line as its third."""
    rows = [json.dumps(row).encode() for row in SUMS]
    (folder / "sums.jsonl").write_bytes(b"\n".join([*rows[:2], line, *rows[2:], b""]))
    c = small_runs.get_config("file")
    c.data.task = str(folder / "sums.jsonl")
    return c


BAD_LINES = {
    "broken JSON": (b'{"question": "1 + ', r"sums\.jsonl.*(\n.*)*line 3: not JSON"),
    "missing field": (b'{"question": "1 + 1 ="}', r"line 3: no field 'answer'"),
    "empty prompt": (b'{"question": " ", "answer": "3"}', r"line 3: field 'question' contains no question"),
    "not UTF-8": (b'{"question": "1 + 1 =", "answer": "\xff"}', r"line 3: not UTF-8 at byte"),
    "prompt over length": (b'{"question": "1 + 2 + 3 + 4 + 5 =", "answer": "15"}', r"line 3.*data\.max_prompt_len"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_28_a_bad_line_is_named_before_anything_is_compiled(tmp_path, refused, case):
    line, message = BAD_LINES[case]
    refused(with_line(tmp_path, line), message)


def test_28_a_file_without_rows(tmp_path, refused):
    c = small_runs.get_config("file")
    c.data.task = str(tmp_path / "empty.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    refused(c, r"empty\.jsonl' contains no problem")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_28_bad_lines_are_skipped_and_counted_if_the_configuration_says_so(tmp_path, caplog):
    c = with_line(tmp_path, b"\n".join(line for line, _ in BAD_LINES.values()))
    c.data.bad_rows, c.train.steps, c.checkpoint.every, c.log.samples = "skip", 2, 1, 32
    with caplog.at_level("WARNING", "absl"):
        loop.run(c, str(tmp_path / "run"))
    assert "4 bad rows" in caplog.text and "skipped" in caplog.text
    lines = (tmp_path / "run/samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["question"] for line in lines} == {row["question"] for row in SUMS}


def lose_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def reshape_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.zeros(25, np.float32)}))


def rewrite(folder, change):
    file = tensor_file.TensorFile(folder / "model.safetensors")
    tensors = {key: file.read(key) for key in file.shapes}
    change(tensors)
    entries = [(name, x.shape, x.dtype) for name, x in tensors.items()]
    tensor_file.write(folder / "model.safetensors", entries, tensors.__getitem__)


def another_architecture(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"architectures": ["RwkvForCausalLM"], "model_type": "rwkv"}))


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def cut_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "fault, message",
    [
        (lose_tensor, r"missing tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (reshape_tensor, r"model\.safetensors: tensor model\.norm\.weight has shape \(25,\), expected"),
        (another_architecture, r"config\.json.*rwkv"),
        (lose_tokenizer, r"no tokenizer; expected one of tokenizer\.json"),
        (cut_weights, r"model\.safetensors"),
    ],
)
def test_29_a_bad_model_folder_is_named(tmp_path, refused, fault, message):
    folder = tmp_path / "model"
    folder.mkdir()
    model = dataclasses.replace(FAMILIES["llama"], max_positions=256)
    hf.save_folder(folder, model, random_params(model), tiny_tokenizer())
    c = small_runs.get_config("grpo")
    c.model.source, c.warmup.updates, c.data.max_prompt_len = str(folder), 0, 80
    fault(folder)
    refused(c, message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh.data": 3}, r"mesh\.data"),
        ({"rollout.prompts": 9}, r"rollout\.prompts"),
        ({"rollout.top_p": 0.9}, r"rollout\.top_p"),
        ({"algo.aggregation": "mean"}, r"algo\.aggregation='mean' must be one of token-mean"),
        ({"train.layout": "rows"}, r"train\.layout='rows' must be one of auto, group, packed"),
    ],
)
def test_30_a_bad_configuration_is_refused_by_key(refused, changes, message):
    c = small_runs.get_config("grpo")
    c.update_from_flattened_dict(changes)
    refused(c, message)


COMMANDS = {
    "28 a bad line": ("file", "--config.data.task={folder}/sums.jsonl", "sums.jsonl"),
    "29 no such model": ("grpo", "--config.model.source={folder}/none", "none"),
    "30 an unknown key": ("grpo", "--config.optim.larning_rate=1", "larning_rate"),
    "30 a wrong type": ("grpo", "--config.train.steps=many", "train.steps"),
    "30 a contradiction": ("grpo", "--config.rollout.top_p=0.5", "rollout.top_p"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_30_the_command_says_so_in_a_sentence(cache, tmp_path, case):
    method, flag, named = COMMANDS[case]
    with_line(tmp_path, BAD_LINES["broken JSON"][0])
    flags = f"--config={small_runs.__file__}:{method}", flag.format(folder=tmp_path)
    output = small_runs.finish(tmp_path / "run", cache, *flags, code=1)
    assert named in output and "Traceback" not in output
    assert not (tmp_path / "run/metrics.jsonl").exists()
