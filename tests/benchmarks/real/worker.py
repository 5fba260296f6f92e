"""A contender's process. Run as `python -m tests.benchmarks.real.worker TASK_FILE`.

Prints one JSON object: the decoded files, the peak RAM in MB and the versions of the packages. This
module needs only the packages of the contender itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

from tests.benchmarks.cpu.worker import peak_mb, take_stdout
from tests.benchmarks.real.contender import Contender, Task

_WARM_UPS = 2


def main() -> None:
    """Decodes every file of the task, after warm-up runs of the first."""
    answers = take_stdout()
    task = Task.read(Path(sys.argv[1]))
    module = f"tests.benchmarks.real.contenders.{task.module}"
    contender = cast(Contender, importlib.import_module(module))
    runner = contender.load(task)
    for _ in range(_WARM_UPS):
        runner.decode(task.files[0])
    answer = {
        "files": [asdict(runner.decode(path)) for path in task.files],
        "peak_mb": peak_mb(),
        "versions": {name: importlib.metadata.version(name) for name in contender.PACKAGES},
    }
    answers.write(json.dumps(answer))
    answers.flush()


if __name__ == "__main__":
    main()
