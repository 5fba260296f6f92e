"""Turns off the telemetry of ONNX Runtime, which official builds have on since version 1.32.

Left on, it writes a device id and an event database below ~/.cache/Microsoft, with the CPU's model,
the names of graphs and the texts of errors, and looks up the host that it sends them to.
"""

from __future__ import annotations

import os

SWITCHES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
"""Environment variables that ONNX Runtime reads when it starts; later versions renamed the first.

Source: microsoft/onnxruntime pull request 29843, "Make ORT_TELEMETRY_DISABLED a full telemetry
opt-out". Version 1.32 reads the first name.
"""


def turn_off() -> None:
    """Sets the switches for this process and its children, where the user has not set them.

    It has an effect only before ONNX Runtime makes its first session.
    """
    for name in SWITCHES:
        os.environ.setdefault(name, "1")
