"""A device that was asked for is used, or the start is refused."""

from __future__ import annotations

import onnxruntime as ort
import pytest

from stream.ranker import DeviceError, available_providers

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


def test_the_cpu_is_always_there() -> None:
    assert available_providers("cpu") == ["CPUExecutionProvider"]


@pytest.mark.skipif(HAS_CUDA, reason="this machine has CUDA: nothing is missing")
def test_a_gpu_that_is_not_there_is_refused_and_the_message_names_what_is() -> None:
    with pytest.raises(DeviceError, match="CPUExecutionProvider"):
        available_providers("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a CUDA device")
def test_a_gpu_that_is_there_is_used() -> None:
    assert available_providers("cuda") == ["CUDAExecutionProvider"]
