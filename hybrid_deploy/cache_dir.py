"""Where this machine keeps what can be made again: engines, observations."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "HYBRID_DEPLOY_CACHE"


def cache_folder(kind: str) -> Path:
    """Gives `kind` in $HYBRID_DEPLOY_CACHE, or in ~/.cache/hybrid_deploy where that is not set."""
    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named) if named else Path.home() / ".cache" / "hybrid_deploy") / kind
