"""Pairing the traces at two lengths: slices that one trace lacks, nodes that compute the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.lowering.decoder_modules import EncoderGraph, StepGraph, split_outputs
from hybrid_deploy.export.model.interface import DecodePart, EncodePart
from hybrid_deploy.export.trace.capture import Capture, capture_decoder
from tests.closeness import assert_close_in_float32

VOCABULARY, WIDTH, LENGTH = 11, 8, 6


class ExactTables(nn.Module):
    """A decoder whose position table and mask are exactly as long as the longest sequence."""

    triangle: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.register_buffer("triangle", torch.tril(torch.ones(1, LENGTH, LENGTH)))
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def encode(self, memory: Tensor) -> Tensor:
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        rows = self.embedding(tokens) + self.positions[:, :length]
        scores = self.query(rows) @ self.key(rows).transpose(1, 2)
        is_future = self.triangle[:, :length, :length] == 0
        weights = scores.masked_fill(is_future, float("-inf")).softmax(-1)
        again = scores.masked_fill(is_future, float("-inf")).softmax(-1)
        mixed = weights @ rows + again @ rows + memory.mean(1, keepdim=True)
        logits: Tensor = self.head(mixed + self.positions[:, :length])
        return logits


def captured(model: nn.Module) -> Capture:
    return capture_decoder(DecodePart(model), (torch.randn(2, 3, WIDTH),), ((1,),), LENGTH)


def test_a_slice_that_only_the_shorter_trace_has_is_inserted() -> None:
    torch.manual_seed(0)
    model = ExactTables().eval()
    plan = analyse(captured(model))
    memory, tokens = torch.randn(3, 4, WIDTH), torch.randint(VOCABULARY, (3, LENGTH))
    with torch.no_grad():
        cross, caches = split_outputs(plan, EncoderGraph(EncodePart(model), plan)(memory), 3)
        expected, step = model.decode(tokens, memory), StepGraph(plan)
        for index in range(LENGTH):
            position = torch.full((3,), index)
            logits, *caches = step(tokens[:, index], position, *cross, *caches)
            assert_close_in_float32(logits, expected[:, index])


def test_equal_nodes_are_merged() -> None:
    capture = captured(ExactTables().eval())
    operators = [str(node.target) for node in capture.nodes]
    assert operators.count("aten.softmax.int") == 1
    assert operators.count("aten.transpose.int") == 1
    assert set(capture.shorter_trace) == set(capture.nodes)


def test_placeholders_of_tied_weights_are_merged() -> None:
    capture = captured(ExactTables().eval())
    (embedding,) = (n for n in capture.nodes if str(n.target) == "aten.embedding.default")
    (head,) = (
        n for n in capture.nodes if str(n.target) == "aten.linear.default" and not n.args[2:]
    )
    assert embedding.args[0] is head.args[1]
