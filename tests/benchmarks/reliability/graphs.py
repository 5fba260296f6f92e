"""Changed ONNX graphs with right hashes: the process lives, with an error of ours or a result."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.reliability.inputs import damaged
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import copy_of, manifest_of, record_of, sealed
from tests.benchmarks.reliability.trials import crash, row_of_trials
from tests.fakes.endless_graph import add_endless_loop

_CRASH = -1
_TIMEOUT_S = 2.0
_GRAPHS = ("encoder", "prefill", "step", "beam_step")


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Changes a graph of a bundle `count` times, seals the bundle again and runs it.

    Args:
        count: number of changed graphs.
        seed: seed of the first one.
        bundle: bundle whose graphs are changed, as a copy; None exports a tiny one.
    """
    return row_of_trials(
        "changed ONNX graphs with right hashes",
        "a crash of the process",
        lambda original, scratch: GraphTrial(original, copy_of(original, scratch)),
        range(seed, seed + count),
        (_CRASH,),
        bundle=bundle,
    )


@dataclass(frozen=True)
class GraphTrial:
    """Changes a graph of a bundle, seals the bundle again, loads it and runs its golden sample.

    Attributes:
        original: the bundle.
        copied: copy of the bundle, whose graphs are replaced.
    """

    original: Path
    copied: Path

    def __call__(self, seed: int) -> str:
        """Returns that the bundle was run.

        Raises:
            HybridDeployError: the bundle was refused, or failed.
        """
        if seed == _CRASH:
            return crash()
        rng = random.Random(seed)
        name = f"fp32/{rng.choice(_GRAPHS)}.onnx"
        content = (self.original / name).read_bytes()
        content = damaged(content, rng) if rng.random() < 0.3 else _edited(content, rng)
        manifest = manifest_of(self.original)
        manifest["files"][name] = record_of(content)
        (self.copied / name).write_bytes(content)
        (self.copied / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))
        try:
            session = load_session(self.copied, threads=1, large_pages=False)
            options = GenerateOptions(beams=rng.choice((1, 1, 2)), timeout_s=_TIMEOUT_S)
            session.run_files([self.original / "golden" / "page.png"], options=options)
        finally:
            shutil.copy(self.original / name, self.copied / name)
        return "run"


def _edited(content: bytes, rng: random.Random) -> bytes:
    """Returns an ONNX file with one or two of its nodes, tensors or types changed."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(_EDITS)(model.graph, rng)
    edited: bytes = model.SerializeToString()
    return edited


def _some(items: Sequence[Any], rng: random.Random) -> Any:
    return items[rng.randrange(len(items))]


def _change_operator(graph: onnx.GraphProto, rng: random.Random) -> None:
    _some(graph.node, rng).op_type = rng.choice(
        ("Add", "MatMul", "Reshape", "Softmax", "Loop", "If", "NoSuchOperator", "Expand", "Tile")
    )


def _change_attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    attribute = _some([a for node in graph.node for a in node.attribute], rng)
    attribute.i = rng.choice((-1, 0, 1, 2**31, 2**62, -(2**62)))
    attribute.f = rng.choice((0.0, float("nan"), float("inf"), -1e38))
    if attribute.ints:
        attribute.ints[0] = attribute.i


def _rewire(graph: onnx.GraphProto, rng: random.Random) -> None:
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    node = _some([node for node in graph.node if node.input], rng)
    node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nowhere"))


def _remove_node(graph: onnx.GraphProto, rng: random.Random) -> None:
    del graph.node[rng.randrange(len(graph.node))]


def _repeat_node(graph: onnx.GraphProto, rng: random.Random) -> None:
    graph.node.append(_some(graph.node, rng))


def _change_numbers(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Changes the numbers of a small tensor, such as a shape that others are reshaped to."""
    small = [tensor for tensor in graph.initializer if tensor.raw_data]
    if small:
        tensor = _some(small, rng)
        tensor.raw_data = rng.choice((b"\xff", b"\x7f", b"\x00", b"\x01")) * len(tensor.raw_data)


def _change_place(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Changes where a tensor lies in another file."""
    outside = [entry for tensor in graph.initializer for entry in tensor.external_data]
    if outside:
        entry = _some(outside, rng)
        entry.value = rng.choice(
            (
                "0",
                "-1",
                "20864",
                "99999999999",
                "x",
                "",
                "../manifest.json",
                "/etc/passwd",
                "/dev/zero",
            )
        )


def _change_shape(graph: onnx.GraphProto, rng: random.Random) -> None:
    tensor = _some(graph.initializer, rng)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, -1, 2**20, 2**40, 2**62))


def _change_type(graph: onnx.GraphProto, rng: random.Random) -> None:
    value = _some((*graph.input, *graph.output), rng)
    value.type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 8, 9, 10, 16, 99))


def _change_axis(graph: onnx.GraphProto, rng: random.Random) -> None:
    value = _some((*graph.input, *graph.output), rng)
    sizes = value.type.tensor_type.shape.dim
    if sizes:
        sizes[rng.randrange(len(sizes))].dim_value = rng.choice((0, 1, 2, -5, 2**40))


def _loop_for_ever(graph: onnx.GraphProto, rng: random.Random) -> None:
    add_endless_loop(graph)


_EDITS: tuple[Callable[[onnx.GraphProto, random.Random], None], ...] = (
    _change_operator, _change_attribute, _rewire, _remove_node, _repeat_node, _change_numbers,
    _change_place, _change_shape, _change_type, _change_axis, _loop_for_ever,
)  # fmt: skip
