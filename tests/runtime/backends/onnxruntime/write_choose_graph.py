"""Writes choose.onnx, the graph that chooses the next token from logits.

Run as `python -m tests.runtime.backends.onnxruntime.write_choose_graph`.
"""

from __future__ import annotations

import onnx
import onnx.parser

from hybrid_deploy.runtime.backends.onnxruntime.cuda_engine import CHOOSE

TEXT = """<ir_version: 8, opset_import: ["": 17]>
choose (float[batch,vocabulary] logits, int64[batch] position, int64[1] last_position)
  => (int64[batch] next_token, int64[batch] next_position, float[batch] score)
<int64[1] one = {1}, int64[1] row = {1}>
{
  next_token = ArgMax <axis = 1, keepdims = 0> (logits)
  best = ReduceMax <axes = [1], keepdims = 1> (logits)
  below = Sub (logits, best)
  likelihoods = Exp (below)
  total = ReduceSum <keepdims = 0> (likelihoods, row)
  surprise = Log (total)
  score = Neg (surprise)
  following = Add (position, one)
  next_position = Min (following, last_position)
}
"""


def chooser_model() -> onnx.ModelProto:
    """Returns the graph, parsed from its text."""
    model: onnx.ModelProto = onnx.parser.parse_model(TEXT)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(chooser_model(), CHOOSE)
