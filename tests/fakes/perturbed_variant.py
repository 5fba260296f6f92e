"""A second variant for tests: the float one with its weights changed a little."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step
from hybrid_deploy.onnx_graphs.files import load_graphs, save_graphs


def with_perturbed(bundle: Bundle, amount: float, name: str = "perturbed") -> Bundle:
    """Returns the bundle with one more variant; the manifest on disk does not know of it.

    Args:
        bundle: its folder gets the files.
        amount: standard deviation of the noise, as a share of each weight's own.
        name: of the variant and its folder.
    """
    graphs = load_graphs(bundle, "fp32")
    for model in graphs.values():
        for value in model.graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
                weight = value.const_value.numpy()
                rng = np.random.default_rng(weight.size)  # equal weights stay equal
                noise = amount * weight.std() * rng.standard_normal(weight.shape)
                value.const_value = ir.tensor((weight + noise).astype(np.float32), name=value.name)
    add_beam_step(graphs)
    folder = bundle.folder / name
    folder.mkdir()
    specs = save_graphs(graphs, folder, name, bundle.manifest.dims)
    variant = msgspec.structs.replace(
        bundle.variant("fp32"), **{role.value: spec for role, spec in specs.items()}
    )
    variants = bundle.manifest.variants | {name: variant}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))
