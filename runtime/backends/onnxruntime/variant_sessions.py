"""The graphs of one variant as sessions of ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.contract import TOKEN, GraphRole
from hybrid_deploy.errors import BackendError, MissingDependencyError
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    failures,
    make_session,
    too_old,
    wrong_optimizers,
)
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.backends.tensor_checks import DTYPES

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

_SPIN_US = dict.fromkeys((GraphRole.STEP, GraphRole.BEAM_STEP), 1000)
"""How long threads of graphs that are called again and again wait: longer than between two steps,
and not into the next encoder. Measured with two threads: a tenth less time than without a limit."""


class VariantSessions:
    """The graphs of one variant, on the CPU; what is not always needed is loaded when it is."""

    def __init__(self, bundle: Bundle, variant: str, options: BackendOptions) -> None:
        self._bundle = bundle
        self._variant = variant
        self._options = options
        self._specs = bundle.graphs(variant)
        self._disabled = wrong_optimizers(bundle.variant(variant).precision)
        _check_types(self._specs[GraphRole.STEP], f"variant {variant} of {bundle.folder}")
        self._step_role = GraphRole.BEAM_STEP if _serves_both(self._specs) else GraphRole.STEP
        self._loading = threading.Lock()
        self._sessions: dict[GraphRole, ort.InferenceSession] = {}
        for role in (GraphRole.ENCODER, self._step_role, GraphRole.REFINE):
            self._loaded(role)

    @property
    def encoder_session(self) -> ort.InferenceSession:
        """The encoder graph."""
        return self._sessions[GraphRole.ENCODER]

    @property
    def step_session(self) -> ort.InferenceSession:
        """The step graph, or that of beam searches if only the owners of memory differ."""
        return self._sessions[self._step_role]

    @property
    def prefill_session(self) -> ort.InferenceSession | None:
        """The prefill graph, loaded when it is first needed; None if the variant has none."""
        return self._loaded(GraphRole.PREFILL)

    @property
    def beam_session(self) -> ort.InferenceSession | None:
        """The step of beam searches, loaded when it is first needed; None if there is none."""
        return self._loaded(GraphRole.BEAM_STEP)

    @property
    def refine_session(self) -> ort.InferenceSession | None:
        """What makes rough logits true; None if the variant's logits are true."""
        return self._loaded(GraphRole.REFINE)

    @property
    def capacity(self) -> int:
        """How many tokens a cache holds, besides what the encoder has put before them."""
        return self._bundle.manifest.capacity

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size of the step graph; None if it takes any."""
        size = next(t.shape[0] for t in self._specs[GraphRole.STEP].inputs if t.name == TOKEN)
        return size if isinstance(size, int) else None

    def spec(self, role: GraphRole) -> GraphSpec:
        """The description of one graph."""
        return self._specs[role]

    @property
    def prefill_outputs(self) -> Sequence[TensorSpec]:
        """What the prefill graph returns; nothing if the variant has none."""
        prefill = self._specs.get(GraphRole.PREFILL)
        return () if prefill is None else prefill.outputs

    def _loaded(self, role: GraphRole) -> ort.InferenceSession | None:
        if role in self._specs and role not in self._sessions:
            with self._loading:
                if role not in self._sessions:
                    self._sessions[role] = self._session(role)
        return self._sessions.get(role)

    def _threads(self, role: GraphRole) -> int | None:
        """Returns the threads of a graph; of a small one they would be in the way of the step's."""
        return 1 if role is GraphRole.REFINE else self._options.threads

    def _session(self, role: GraphRole) -> ort.InferenceSession:
        path = self._bundle.graph_path(self._variant, role)
        with failures(f"loading {path}"):
            try:
                return make_session(
                    path,
                    self._threads(role),
                    disabled=self._disabled,
                    planned=role is not GraphRole.ENCODER,
                    spin_us=_SPIN_US.get(role, 0),
                )
            except Exception as error:
                explained = too_old(error)
                if explained is None:
                    raise
                raise explained from error


def _serves_both(specs: Mapping[GraphRole, GraphSpec]) -> bool:
    """Returns whether the step of beam searches is the step, but for whose memory is whose."""
    step, beams = specs[GraphRole.STEP], specs.get(GraphRole.BEAM_STEP)
    return beams is not None and _names(step) == _names(beams)


def _names(spec: GraphSpec) -> tuple[set[str], set[str]]:
    return {tensor.name for tensor in spec.inputs}, {tensor.name for tensor in spec.outputs}


def _check_types(step: GraphSpec, name: str) -> None:
    unknown = {tensor.dtype for tensor in step.inputs} - DTYPES.keys()
    if unknown:
        raise BackendError(
            f"onnxruntime has no CPU kernels for {', '.join(sorted(unknown))}, in which {name} "
            "computes; build it for TensorRT, or run another variant"
        )
