"""The README is true: its Python runs, its commands work, and CI runs its test command."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = ("digits_nnx",)  # to compile
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"(lossopt (?:sweep|train) configs/\w+\.toml|lossopt list|lossopt --help)", README)))


def test_its_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    exec(compile("\n".join(blocks), "README.md", "exec"), {})


FIRST = "lossopt sweep configs/digits_mlp.toml"  # the others with a config are variants, of which test_cli runs some


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * ("configs" in c and c != FIRST)) for c in COMMANDS])
def test_its_commands_work(command, tmp_path):
    os.symlink(ROOT / "configs", tmp_path / "configs")
    program = [sys.executable, "-c", "from lossopt_jax.cli import main; main()", *shlex.split(command)[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "example", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in EXAMPLES]
)
def test_examples_run_two_steps(example, capsys):
    settings = {name: getattr(jax.config, name) for name in ("jax_num_cpu_devices", "jax_numpy_rank_promotion")}
    runpy.run_path(str(example))["main"](steps=2, count=2)
    assert settings == {name: getattr(jax.config, name) for name in settings}
    printed = capsys.readouterr().out
    assert "one recipe: " in printed
    assert not re.search(r"\bnan\b", printed)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_reach_what_they_say(example, tmp_path):
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.search(r"Expect (\w[\w ]*) (at least|at most) ([\d.]+)", ast.get_docstring(ast.parse(example.read_text())))
    name, side, number = promised.groups()
    reached = float(re.search(rf"one recipe: .*?{name} ([\d.]+)", done.stdout).group(1))
    assert reached >= float(number) if side == "at least" else reached <= float(number)


def test_ci_runs_its_test_command():
    command = re.search(r"^    (pip install -e .* pytest)\b", README, re.MULTILINE).group(1)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_config_is_in_its_table_with_its_command():
    for config in (ROOT / "configs").glob("*.toml"):
        assert f"`{config.stem}`" in README
        assert f"lossopt sweep configs/{config.name}" in config.read_text().splitlines()[0]
