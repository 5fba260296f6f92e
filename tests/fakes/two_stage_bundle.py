"""A bundle whose manifest says that logits are rough; its graphs are those of another."""

from __future__ import annotations

import msgspec

from hybrid_deploy.bundle.bundle import Bundle


def with_refine(bundle: Bundle) -> Bundle:
    """Returns a bundle whose variant fp32 has a graph that refines."""
    fp32 = bundle.variant("fp32")
    variants = {"fp32": msgspec.structs.replace(fp32, refine=fp32.step)}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))
