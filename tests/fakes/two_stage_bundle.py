"""A bundle whose manifest claims approximate logits; its graphs are those of an ordinary bundle."""

from __future__ import annotations

import msgspec

from hybrid_deploy.bundle.bundle import Bundle


def with_refine(bundle: Bundle) -> Bundle:
    """Returns the bundle whose variant fp32 has a refine graph; its file is the step graph's."""
    fp32 = bundle.variant("fp32")
    variants = {"fp32": msgspec.structs.replace(fp32, refine=fp32.step)}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))
