"""Tests that the README's commands run in their order, and that the names in it exist."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

from hybrid_deploy.cli.commands.export import export
from hybrid_deploy.export.exporter import export_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    block = re.search(r"<!-- tested.*?-->\n```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return block.group(1).strip().splitlines()


def test_commands_of_the_readme_run_in_order(tmp_path: Path) -> None:
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {
        "PATH": os.pathsep.join(folders),
        "HYBRID_DEPLOY_CACHE": str(tmp_path / "cache"),
    }
    commands = readme_commands()
    assert len(commands) >= 10
    printed = {}
    for command in commands:
        done = subprocess.run(
            command.split(),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        printed[command] = done.stdout
    labels = (tmp_path / "quickstart" / "lines" / "labels.csv").read_text().splitlines()[1:]
    (read,) = (text for command, text in printed.items() if command.endswith("0001.png"))
    expected = [label.split(",")[1] for label in labels[:2]]
    assert read.splitlines() == expected
    assert (tmp_path / "quickstart" / "readings.png").stat().st_size > 1000


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"quickstart", "test", "train"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_examples_are_valid() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # the imports must exist
    assert callable(names["job"]) and callable(names["export"])
    options = inspect.signature(export_model).parameters
    call = blocks[0].partition("export_model(\n")[2]
    assert set(re.findall(r"^        (\w+)=", call, re.MULTILINE)) <= set(options)


def test_options_of_export_that_the_readme_names_exist() -> None:
    section = README.partition("## Your own model")[2].partition("\n## ")[0]
    named = set(re.findall(r"--[a-z][a-z-]+", section))
    options = {option for parameter in export.params for option in parameter.opts}
    assert "--example" in named
    assert named <= options
