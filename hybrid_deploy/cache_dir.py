"""The cache folder of this machine: engines, observations and hashes, which can be made again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "HYBRID_DEPLOY_CACHE"
"""Environment variable that names the cache folder."""


def cache_folder(kind: str) -> Path:
    """Returns the folder `kind` in $HYBRID_DEPLOY_CACHE, by default in ~/.cache/hybrid_deploy.

    A `~` at the beginning of the variable is the home folder, as a shell reads it.
    """
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/hybrid_deploy"
    return Path(os.path.expanduser(folder)) / kind
