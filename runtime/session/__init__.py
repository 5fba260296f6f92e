"""A loaded bundle: files or arrays come in, tokens, texts, scores and times leave."""

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
