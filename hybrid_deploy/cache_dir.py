"""Where this machine keeps what can be made again: engines, observations."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "HYBRID_DEPLOY_CACHE"


def cache_folder(kind: str) -> Path:
    """Returns `kind` in $HYBRID_DEPLOY_CACHE, by default in ~/.cache/hybrid_deploy."""
    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named) if named else Path.home() / ".cache" / "hybrid_deploy") / kind
