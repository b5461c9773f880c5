"""Names that a person gives: a leading ~ is the home folder wherever a path is read."""

import pytest

from entropy_rl import analyze, config, loop, policy
from entropy_rl.runtime.files import refuse_pointer, refuse_url
from entropy_rl.sampling import client


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_run_directory(home):
    (home / "run" / "checkpoints").mkdir(parents=True)
    (home / "run" / "checkpoints" / "7").write_text("a file, where a checkpoint is a folder")
    c = config.default()
    with pytest.raises(ValueError, match=rf"{home}/run/checkpoints/7"):
        loop.run(c, "~/run")
    with pytest.raises(ValueError, match=rf"--workdir: {home}/run/metrics\.jsonl holds no metrics"):
        analyze.report("~/run")
    with pytest.raises(FileNotFoundError, match=rf"{home}/run/config\.json"):
        policy.load("~/run")


def test_a_servers_folder(home):
    assert client.connect("http://127.0.0.1:9", "~/shared").weights == f"{home}/shared"


def test_a_file_system_that_is_not_known():
    with pytest.raises(ValueError, match=r"model\.source='nonesuch://a/b': no such folder or \.gguf file"):
        policy.load("nonesuch://a/b")


def test_paths_and_hub_names_are_no_web_addresses():
    for name in ("owner/name", "/a/b.jsonl", "gs://bucket/x.jsonl", "~/x", "hf/x", "https.jsonl"):
        refuse_url("data.task", name)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        refuse_pointer(tmp_path)
