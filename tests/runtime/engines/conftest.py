from __future__ import annotations

import pytest

from hybrid_deploy.bundle.bundle import Bundle
from tests.runtime.engines.tiny_bundle_files import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of tiny graphs, in the variants fp32, fp16 and int8."""
    return write_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle", "fp32", "fp16", "int8")
