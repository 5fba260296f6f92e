"""The sessions of ONNX Runtime for the graphs of one variant, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.contract import TOKEN, GraphRole
from hybrid_deploy.errors import BackendError, BundleError, MissingDependencyError
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    loading_errors,
    make_session,
    unsafe_optimizers,
)
from hybrid_deploy.runtime.backends.onnxruntime.verified_graphs import VerifiedGraphs
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.backends.tensor_checks import DTYPES

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

_SPIN_US = dict.fromkeys((GraphRole.STEP, GraphRole.BEAM_STEP), 1000)
"""Time in microseconds that the threads of a step graph wait for the next call without sleeping.

It is longer than the pause between two steps, and too short to disturb the next run of the encoder.
Measured with two threads: generation takes a tenth less time than without a limit.
"""


class VariantSessions:
    """The sessions of one variant.

    Encoder, step and refine graph are loaded at once, prefill and beam step at their first use. All
    methods may be called from several threads.

    Args:
        bundle: the bundle.
        variant: name of the variant.
        options: options of the backend.
        complete: whether all graphs are loaded at once, and the step graph also where the beam step
            could replace it.

    Raises:
        BundleError: a file is missing or has changed, or holds another graph than its manifest
            says.
        BackendError: ONNX Runtime cannot load a graph, or has no CPU kernels for its dtypes.
    """

    def __init__(
        self, bundle: Bundle, variant: str, options: BackendOptions, *, complete: bool = False
    ) -> None:
        self._bundle = bundle
        self._variant = variant
        self._options = options
        self._specs = bundle.graphs(variant)
        self._disabled = unsafe_optimizers(bundle.variant(variant).precision)
        for role in self._specs.keys() & {GraphRole.STEP, GraphRole.PREFILL}:
            _check_types(self._specs[role], f"variant {variant} of {bundle.folder}")
        shared = not complete and _have_same_tensors(self._specs)
        self._step_role = GraphRole.BEAM_STEP if shared else GraphRole.STEP
        self._loading = threading.Lock()
        self._replacements: dict[GraphRole, str] = {}
        self._sessions: dict[GraphRole, ort.InferenceSession] = {}
        used = dict(self._specs)
        if self._step_role is not GraphRole.STEP:
            del used[GraphRole.STEP]
        self._graphs = VerifiedGraphs(bundle, used)
        at_once = [GraphRole.ENCODER, self._step_role, GraphRole.REFINE]
        self._load(list(self._specs) if complete else at_once)

    @property
    def encoder_session(self) -> ort.InferenceSession:
        """Session of the encoder graph."""
        return self._sessions[GraphRole.ENCODER]

    @property
    def step_session(self) -> ort.InferenceSession:
        """Session of the step graph.

        It is the session of the beam step graph if both graphs have the same inputs and outputs:
        then the weights are loaded once.
        """
        return self._sessions[self._step_role]

    @property
    def prefill_session(self) -> ort.InferenceSession | None:
        """Session of the prefill graph, loaded at its first use; None if there is none.

        There is none either if its files have changed since the variant was loaded: its prompts are
        decoded by steps then, and `notes` says so.
        """
        return self._late_session(GraphRole.PREFILL, "prompts are decoded token by token")

    @property
    def beam_session(self) -> ort.InferenceSession | None:
        """Session of the beam step graph, loaded at its first use; None if there is none.

        There is none either if its files have changed since the variant was loaded: every beam has
        a copy of the memory then, and `notes` says so.
        """
        return self._late_session(GraphRole.BEAM_STEP, "every beam has a copy of the memory")

    @property
    def notes(self) -> tuple[str, ...]:
        """What replaces graphs that could not be loaded at their first use; mostly empty."""
        return tuple(self._replacements.values())

    @property
    def refine_session(self) -> ort.InferenceSession | None:
        """Session of the refine graph; None if the variant's logits are exact."""
        return self._session(GraphRole.REFINE)

    @property
    def capacity(self) -> int:
        """Number of token positions in a cache.

        In a decoder-only model, positions of the memory precede them.
        """
        return self._bundle.manifest.capacity

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the step graph was exported with; None if it takes any."""
        size = next(t.shape[0] for t in self._specs[GraphRole.STEP].inputs if t.name == TOKEN)
        return size if isinstance(size, int) else None

    def spec(self, role: GraphRole) -> GraphSpec:
        """Returns the description of one graph."""
        return self._specs[role]

    @property
    def prefill_outputs(self) -> Sequence[TensorSpec]:
        """Outputs of the prefill graph; empty if the variant has none."""
        prefill = self._specs.get(GraphRole.PREFILL)
        return () if prefill is None else prefill.outputs

    def _late_session(self, role: GraphRole, replacement: str) -> ort.InferenceSession | None:
        """Returns the session of a graph; None if it is absent or its files have changed."""
        if role in self._replacements:
            return None
        try:
            return self._session(role)
        except BundleError as error:
            self._replacements[role] = f"{replacement}, because {error}"
            return None

    def _session(self, role: GraphRole) -> ort.InferenceSession | None:
        """Returns the session of a graph, loads it first if needed; None for an absent graph."""
        if role in self._specs and role not in self._sessions:
            with self._loading:
                if role not in self._sessions:
                    self._load([role])
        return self._sessions.get(role)

    def _load(self, roles: Sequence[GraphRole]) -> None:
        """Loads those of the graphs that the variant has."""
        present = [role for role in roles if role in self._specs]
        with self._graphs.loading(present) as self._loadable:
            for role in present:
                self._sessions[role] = self._open(role)

    def _threads(self, role: GraphRole) -> int | None:
        """Returns the number of threads; 1 for the small refine graph leaves cores to the step."""
        return 1 if role is GraphRole.REFINE else self._options.threads

    def _open(self, role: GraphRole) -> ort.InferenceSession:
        path = self._bundle.graph_path(self._variant, role)
        with loading_errors(str(path)):
            session = make_session(
                self._loadable[role],
                self._threads(role),
                disabled_optimizers=self._disabled,
                mem_pattern=role is not GraphRole.ENCODER,
                spin_us=_SPIN_US.get(role, 0),
            )
        _check_tensors(session, self._specs[role], str(path))
        return session


def _have_same_tensors(specs: Mapping[GraphRole, GraphSpec]) -> bool:
    """Returns whether the beam step graph has the same inputs and outputs as the step graph."""
    step, beam_step = specs[GraphRole.STEP], specs.get(GraphRole.BEAM_STEP)
    return beam_step is not None and _names(step) == _names(beam_step)


def _names(spec: GraphSpec) -> tuple[set[str], set[str]]:
    return {tensor.name for tensor in spec.inputs}, {tensor.name for tensor in spec.outputs}


def _check_tensors(session: ort.InferenceSession, spec: GraphSpec, path: str) -> None:
    """Refuses a graph that has other inputs or outputs than the manifest says."""
    for what, loaded, described in (
        ("inputs", session.get_inputs(), spec.inputs),
        ("outputs", session.get_outputs(), spec.outputs),
    ):
        if {tensor.name for tensor in loaded} != {tensor.name for tensor in described}:
            raise BundleError(
                f"{path} is another graph than the manifest says: its {what} differ; export the "
                "bundle again"
            )


def _check_types(graph: GraphSpec, name: str) -> None:
    """Refuses a decoder graph with tensors of a dtype that the CPU kernels lack, as bfloat16."""
    unsupported = {tensor.dtype for tensor in (*graph.inputs, *graph.outputs)} - DTYPES.keys()
    if unsupported:
        raise BackendError(
            f"onnxruntime has no CPU kernels for {', '.join(sorted(unsupported))}, in which {name} "
            "computes; build it for TensorRT, or run another variant"
        )
