"""Trial variants: written to a folder outside the bundle, to be evaluated there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphSpec, Precision, Variant
from hybrid_deploy.calibration.recipes import Recipe
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import save_graphs
from hybrid_deploy.scratch import scratch_folder


def described_variant(
    bundle: Bundle,
    source: str,
    recipe: Recipe,
    specs: Mapping[GraphRole, GraphSpec],
    provenance: str = "",
) -> Variant:
    """Returns the manifest's entry of a variant that was made from another one.

    Args:
        bundle: the bundle.
        source: name of the variant that the new variant was made from.
        recipe: the precision of each component.
        specs: the graphs of the new variant, by role.
        provenance: a line that states how the variant was made.
    """
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
    """Returns the bundle with one more variant, whose files lie in any folder.

    Only the returned object has the variant; nothing is written.
    """
    home = folder.absolute()  # a relative path would be resolved within the bundle
    specs = {
        role.value: msgspec.structs.replace(spec, file=str(home / Path(spec.file).name))
        for role in GraphRole
        if (spec := getattr(variant, role.value)) is not None
    }
    variants = bundle.manifest.variants | {name: msgspec.structs.replace(variant, **specs)}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


@contextmanager
def trial_variant(
    bundle: Bundle,
    source: str,
    name: str,
    recipe: Recipe,
    graphs: Mapping[GraphRole, ir.Model],
) -> Iterator[Bundle]:
    """Yields the bundle with a temporary variant, whose files are deleted on exit.

    Args:
        bundle: the bundle; it does not change on disk.
        source: name of the variant that the graphs were made from.
        name: name of the temporary variant.
        recipe: the precision of each component.
        graphs: the graphs of the variant; afterwards their weights refer to the deleted file.
    """
    with scratch_folder("trial") as folder:
        specs = save_graphs(graphs, folder, ".", bundle.manifest.dims)
        variant = described_variant(bundle, source, recipe, specs)
        yield with_variant(bundle, name, variant, folder)
