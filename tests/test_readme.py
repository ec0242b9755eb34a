"""The README is true: its Python runs, its commands work, and CI runs its test command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"(lossopt (?:sweep|train) configs/\w+\.toml|lossopt list|lossopt --help)", README)))


def test_its_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    exec(compile("\n".join(blocks), "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command, tmp_path):
    os.symlink(ROOT / "configs", tmp_path / "configs")
    program = [sys.executable, "-c", "from lossopt_jax.cli import main; main()", *shlex.split(command)[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example, tmp_path):
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def test_ci_runs_its_test_command():
    command = re.search(r"^    (pip install -e .* pytest)\b", README, re.MULTILINE).group(1)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_config_is_in_its_table_with_its_command():
    for config in (ROOT / "configs").glob("*.toml"):
        assert f"`{config.stem}`" in README
        assert f"lossopt sweep configs/{config.name}" in config.read_text().splitlines()[0]
