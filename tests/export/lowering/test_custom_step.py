"""Models with their own step: any state, carried from token to token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import HybridDeployError, ParityError, UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.token_loop import decode_greedily
from hybrid_deploy.runtime.session.session import load_session
from tests.models.zoo.case import random_floats
from tests.models.zoo.cases import find
from tests.models.zoo.check import compare_bundle, export

WIDTH, VOCABULARY, MAX_LENGTH = 24, 31, 20
PROMPTS = [[1, 5, 9], [2], [7, 3]]
LIMITS = Limits(end_tokens=(), pad_token=0, max_length=MAX_LENGTH, capacity=MAX_LENGTH)

State = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    """A recurrent decoder without `decode`, whose memory is also its first state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, WIDTH)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, features: Tensor) -> Tensor:
        vector: Tensor = self.encoder(features)
        return vector

    def initial_state(self, vector: Tensor) -> State:
        return vector, vector

    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, State]:
        hidden = self.cell(self.embedding(token), state[0])
        return self.head(hidden + vector), (hidden, state[1])


class GrowingState(Recurrent):
    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, State]:
        logits, (hidden, earlier) = super().step(token, (state[0], state[1]), vector)
        return logits, (hidden, torch.cat([earlier, hidden], -1))


class LayersFirst(Recurrent):
    """A stack of nn.LSTM, whose state is (layers, batch, width), in a dict in another key order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(WIDTH, WIDTH, num_layers=2)

    def initial_state(self, vector: Tensor) -> Any:
        hidden = vector.repeat(2, 1, 1)
        return {"hidden": hidden, "cell": hidden.tanh()}

    def step(self, token: Tensor, state: Any, vector: Tensor) -> tuple[Tensor, Any]:
        before = state["hidden"], state["cell"]
        output, (hidden, cell) = self.layers(5 * self.embedding(token)[None], before)
        return self.head(9 * output[0]), {"cell": cell, "hidden": hidden}


class CountInState(Recurrent):
    def initial_state(self, vector: Tensor) -> Any:
        return vector, {"count": 0}

    def step(self, token: Tensor, state: Any, vector: Tensor) -> tuple[Tensor, Any]:
        logits, (hidden, _) = super().step(token, (state[0], vector), vector)
        return logits, (hidden, {"count": state[1]["count"] + 1})


class NoneAfterStep(Recurrent):
    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, Any]:
        logits, (hidden, _) = super().step(token, state, vector)
        return logits, (hidden, None)


class ListAfterTuple(Recurrent):
    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, Any]:
        logits, after = super().step(token, (state[0], state[1]), vector)
        return logits, list(after)


class StateOfNoBatch(Recurrent):
    def initial_state(self, vector: Tensor) -> State:
        return torch.zeros(1, WIDTH), vector


class LogitsOfASequence(Recurrent):
    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, State]:
        logits, state = super().step(token, state, vector)
        return logits.unsqueeze(1), state


class FailingStep(Recurrent):
    def step(self, token: Tensor, state: State, vector: Tensor) -> tuple[Tensor, State]:
        raise ValueError("no such token")


class OtherDecode(Recurrent):
    """A model whose `decode` does not add the memory to the logits as its `step` does."""

    def decode(self, tokens: Tensor, vector: Tensor) -> Tensor:
        rows, hidden = [], vector
        for token in tokens.unbind(1):
            hidden = self.cell(self.embedding(token), hidden)
            rows.append(self.head(hidden))
        return torch.stack(rows, 1)


def make(kind: type[Recurrent]) -> Recurrent:
    torch.manual_seed(4)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def export_recurrent(kind: type[Recurrent], out: Path) -> None:
    export_model(
        make(kind), random_floats(2, 6), out, max_length=MAX_LENGTH, start_tokens=1, pad_token=0
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "recurrent.bundle"
    export_recurrent(Recurrent, out)
    return out


def decoded(backend: Backend, features: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    decoding = backend.start({"features": features})
    return [s.tokens for s in decode_greedily(decoding, PROMPTS, LIMITS).sequences]


def test_attention_over_a_varying_memory(tmp_path: Path) -> None:
    case = find("attend-and-tell")
    model = case.model()
    assert compare_bundle(case, model, export(case, model, tmp_path / "bundle")).passed


def test_a_state_of_layers_first_is_batch_first_in_the_graphs(tmp_path: Path) -> None:
    export_recurrent(LayersFirst, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    shapes = {tensor.name: tensor.shape for tensor in bundle.graph("fp32", GraphRole.STEP).inputs}
    assert shapes["recurrent_0"] == shapes["recurrent_1"] == ("batch", 2, WIDTH)
    features = random_floats(3, 6, seed=9).numpy()
    backend = load_backend("onnxruntime", bundle, "fp32", BackendOptions())
    expected = decoded(FullRerun(make(LayersFirst), MAX_LENGTH), features)
    assert decoded(backend, features) == expected
    assert len({token for tokens in expected for token in tokens}) > 5


def test_there_is_no_prefill_and_the_step_has_only_the_inputs_that_it_reads(path: Path) -> None:
    bundle = open_bundle(path)
    assert set(bundle.graphs("fp32")) == {GraphRole.ENCODER, GraphRole.STEP}
    step = bundle.graph("fp32", GraphRole.STEP)
    names = [tensor.name for tensor in step.inputs]
    assert names == ["token", "cross_state_0", "recurrent_0", "recurrent_1"]
    assert [t.name for t in step.outputs] == ["logits", "recurrent_0_next", "recurrent_1_next"]


def test_unequal_prompts_are_fed_token_by_token(path: Path) -> None:
    features = random_floats(3, 6, seed=9).numpy()
    bundle = open_bundle(path)
    expected = decoded(FullRerun(make(Recurrent), MAX_LENGTH), features)
    backend = load_backend("onnxruntime", bundle, "fp32", BackendOptions())
    assert decoded(backend, features) == expected
    assert len({token for tokens in expected for token in tokens}) > 5


def test_a_prompt_continues_the_start_tokens(path: Path) -> None:
    features = {"features": random_floats(1, 6, seed=9).numpy()}
    session = load_session(path)
    (complete,), _ = session.run_arrays(features)
    (continued,), _ = session.run_arrays(features, prompt=complete.tokens[:4])
    assert continued.tokens == complete.tokens[4:]


def test_quantized_variants_of_a_recurrent_model_agree_with_float(path: Path) -> None:
    features = [{"features": random_floats(8, 6, seed=11).numpy()}]
    for precision in ("fp16", "int8"):
        report = quantize_bundle(path, precision, features)
        assert report.evaluation.agreement.tokens >= 8 * (MAX_LENGTH - 1)
        assert report.evaluation.agreement.same_tokens > 0.5 * report.evaluation.agreement.tokens


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            GrowingState,
            UnsupportedModelError,
            r"turns a state of \(float32 \(2, 24\), .*\(2, 48\)\)",
        ),
        (
            CountInState,
            UnsupportedModelError,
            r"state 1 is int in what initial_state\(\) .*torch\.full\(\(len\(memory\),\), 0\)",
        ),
        (NoneAfterStep, UnsupportedModelError, r"state 1 is None in what step\(\) returns.*leave"),
        (
            ListAfterTuple,
            UnsupportedModelError,
            r"turns a state of \(float32 \(2, 24\), .*\) into one of \[float32 \(2, 24\), .*\];",
        ),
        (
            StateOfNoBatch,
            UnsupportedModelError,
            r"float32 \(1, 24\) as state 0 for a batch of 2.*one axis of the batch size",
        ),
        (LogitsOfASequence, UnsupportedModelError, r"logits \(batch, vocabulary\), got \(2, 1, 31"),
        (
            FailingStep,
            UnsupportedModelError,
            r"test_custom_step\.py:\d+: .*step\(\).*no such token",
        ),
        (OtherDecode, ParityError, r"differ from the model"),
    ],
)
def test_an_invalid_step_is_refused(
    kind: type[Recurrent], error: type[HybridDeployError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_recurrent(kind, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
