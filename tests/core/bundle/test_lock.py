import logging
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from hybrid_deploy.bundle.lock import exclusive


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, entered = tmp_path / "a.bundle", threading.Event()

    def write() -> None:
        with exclusive(target):
            entered.set()

    with caplog.at_level(logging.WARNING, "hybrid_deploy.bundle.lock"):
        logging.getLogger("hybrid_deploy").propagate = True
        with exclusive(target):
            writer = threading.Thread(target=write)
            writer.start()
            while not caplog.records:
                assert not entered.wait(0.01)
        writer.join(10)
    lines = {record.getMessage() for record in caplog.records}
    assert lines == {f"another process is writing {target}; waiting until it has ended"}
    assert entered.is_set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="its folders have no such modes")
def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    code = (
        "import filelock, os, sys; from pathlib import Path\n"
        "from hybrid_deploy.bundle.lock import exclusive\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "with exclusive(Path(sys.argv[1]), inside=True): pass\n"
        "try:\n"
        "    with exclusive(Path(sys.argv[1])): pass\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with tempfile.TemporaryDirectory() as parent:
        slots = Path(parent, "slots")
        slots.mkdir()
        slots.chmod(0o777)
        Path(parent).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, str(slots)], capture_output=True, text=True, check=False
        )
        Path(parent).chmod(0o755)
        assert done.stdout == (
            f"HybridDeployError {parent} is not writable (Permission denied), which it must be for "
            "the lock .slots.lock; change its permissions or the user\n"
        ), done.stderr
        assert list(slots.iterdir()) == []


def test_nobody_waits_for_a_free_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with exclusive(tmp_path / "a.bundle"):
        pass
    assert not caplog.records
