"""The wheel: what is in it works from anywhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from entropy_rl.__main__ import COMMANDS
from entropy_rl.config.command_line import load_file

ROOT = pathlib.Path(__file__).parents[1]


def test_a_config_of_the_package_has_a_short_name_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_file("quickstart:kl_cov").to_dict() == load_file(f"{ROOT}/configs/quickstart.py:kl_cov").to_dict()
    with pytest.raises(ValueError, match="there is no file 'quickstop'; near it: quickstart"):
        load_file("quickstop:kl_cov")


def test_an_unknown_command_names_the_commands():
    done = subprocess.run([sys.executable, "-m", "entropy_rl", "learn"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: 'learn' is none of {', '.join(COMMANDS)}"


@pytest.mark.slow
def test_the_wheel_runs_from_an_empty_folder(tmp_path):
    """Installed without its dependencies into a folder of its own, which is all that Python finds of it."""
    source = tmp_path / "source"  # a build leaves files where it is made
    for name in ("entropy_rl", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "entropy_rl").rglob("*.py")}
    assets = {str(p.relative_to(ROOT)) for p in (ROOT / "entropy_rl" / "report" / "assets").iterdir()}
    configs = {f"entropy_rl/configs/{p.name}" for p in (ROOT / "configs").iterdir() if p.suffix in (".py", ".json")}
    assert names >= sources | assets | configs | {"entropy_rl/py.typed"}
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", site, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    for name in COMMANDS:
        done = subprocess.run(
            [site / "bin" / "entropy-rl", name, "--help"], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert "--config" in done.stdout + done.stderr or "--workdir" in done.stdout, name
    preflight = ["preflight", "--config=quickstart:kl_cov", "--topology=h100:1", "--json"]
    done = subprocess.run(
        [site / "bin" / "entropy-rl", *preflight], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0 and '"fits": true' in done.stdout, done.stderr[-2000:]
