"""A loaded bundle: runs files or arrays through preprocessing, encoder and decoder.

Files or arrays enter; tokens, texts, scores and times leave. No vendor library may be imported
here: `backends.registry` loads a backend by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid_deploy.runtime.session.session import Session, load_session

__all__ = ["Session", "load_session"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hybrid_deploy.runtime.session import session

    return getattr(session, name)
