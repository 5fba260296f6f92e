"""A second variant for tests: the float variant with noise added to its weights."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step
from hybrid_deploy.onnx_graphs.files import load_graphs, save_graphs


def with_perturbed(bundle: Bundle, amount: float, name: str = "perturbed") -> Bundle:
    """Returns the bundle with one more variant, which the manifest on disk does not list.

    Args:
        bundle: the bundle; the variant's files are written to its folder.
        amount: standard deviation of the noise, as a multiple of each weight's own.
        name: name of the variant and of its folder.
    """
    graphs = load_graphs(bundle, "fp32")
    for model in graphs.values():
        for value in model.graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
                weight = value.const_value.numpy()
                rng = np.random.default_rng(
                    weight.size
                )  # the same weight of two graphs gets the same noise
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
