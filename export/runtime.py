"""ONNX Runtime as all of Driftline uses it: without its telemetry.

The official builds report usage over the network unless they are told not to before they are first
imported. A worker talks to Kafka and to nobody else, so ONNX Runtime is imported here and nowhere
else. Whoever wants to report sets ORT_DISABLE_TELEMETRY=0.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
