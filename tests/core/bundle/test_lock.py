import logging
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


def test_nobody_waits_for_a_free_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with exclusive(tmp_path / "a.bundle"):
        pass
    assert not caplog.records
