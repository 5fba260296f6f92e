"""Variants that are tried before they enter a bundle, or never do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphSpec, Precision, Variant
from hybrid_deploy.calibration.recipes import Recipe
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import save_graphs


def described_variant(
    bundle: Bundle,
    source: str,
    recipe: Recipe,
    specs: Mapping[GraphRole, GraphSpec],
    provenance: str = "",
) -> Variant:
    """Describes a variant that was made from another one."""
    return Variant(
        precision=Precision(encoder=recipe.encoder.value, decoder=recipe.decoder.value),
        opset=bundle.variant(source).opset,
        encoder=specs[GraphRole.ENCODER],
        step=specs[GraphRole.STEP],
        prefill=specs.get(GraphRole.PREFILL),
        refine=specs.get(GraphRole.REFINE),
        beam_step=specs.get(GraphRole.BEAM_STEP),
        provenance=provenance,
    )


def with_variant(bundle: Bundle, name: str, variant: Variant, folder: Path) -> Bundle:
    """Returns a bundle as if it had a variant whose files lie in a folder anywhere."""
    home = folder.absolute()  # a relative file would be looked for in the bundle
    placed = {
        role.value: msgspec.structs.replace(spec, file=str(home / Path(spec.file).name))
        for role in GraphRole
        if (spec := getattr(variant, role.value)) is not None
    }
    variants = bundle.manifest.variants | {name: msgspec.structs.replace(variant, **placed)}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


@contextmanager
def trial_variant(
    bundle: Bundle,
    source: str,
    name: str,
    recipe: Recipe,
    graphs: Mapping[GraphRole, ir.Model],
) -> Iterator[Bundle]:
    """Yields the bundle with a variant that is gone afterwards.

    Args:
        bundle: stays as it is on disk.
        source: name of the variant that the graphs were made from.
        name: of the new one.
        recipe: what its numbers are.
        graphs: of the variant; the weights in them become references to a temporary file.
    """
    with TemporaryDirectory(prefix="hybrid-deploy-trial-") as written:
        folder = Path(written)
        specs = save_graphs(graphs, folder, ".", bundle.manifest.dims)
        variant = described_variant(bundle, source, recipe, specs)
        yield with_variant(bundle, name, variant, folder)
