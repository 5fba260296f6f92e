"""Lifts the sizes from which passes apply, so that tiny models show what large ones get."""

from __future__ import annotations

import pytest

from hybrid_deploy.calibration.onnxruntime_cpu import int8_cross_attention, two_stage_projection
from hybrid_deploy.calibration.qdq import rescored_logits
from hybrid_deploy.calibration.rewrite import decoder


def lift_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every vocabulary have its second stage, with 4 tokens, and every memory 8 bits."""
    monkeypatch.setattr(two_stage_projection, "MIN_VOCABULARY", 1)
    monkeypatch.setattr(decoder, "MIN_VOCABULARY", 1)
    monkeypatch.setattr(rescored_logits, "RESCORED_TOKENS", 4)
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 1)
    monkeypatch.setattr(int8_cross_attention, "MIN_HEAD_WIDTH", 8)
