import sys

import numpy as np
import pytest
import torch

from embedsmith.machine import HUGE_PAGE, _find_memory, _without, choose_precision, huge_pages


def test_what_was_there_before_is_left_alone() -> None:
    assert [*_without([(0, 10), (20, 30)], [(2, 4), (8, 22), (30, 40)])] == [(0, 2), (4, 8), (22, 30)]
    assert [*_without([(0, 10)], [])] == [(0, 10)]
    assert [*_without([(5, 7)], [(0, 10)])] == []


def test_where_nothing_is_told_of_memory_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    assert _find_memory() == []
    with huge_pages():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_numbers_stay_what_they_are_in_huge_pages() -> None:
    before = np.arange(3 * HUGE_PAGE, dtype=np.uint8)
    with huge_pages():
        within = np.arange(16 * HUGE_PAGE // 8)
    assert before[-1] == 255
    assert within.tolist()[::4096] == [*range(0, len(within), 4096)]
    assert any(start <= within.ctypes.data < end for start, end in _find_memory())


def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts emulation as support unless it is told not to: a T4 would be slower, and the reason untrue."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", "cuda") == ("fp32", "fp32: no native bf16 on this cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", "cuda")[0] == "bf16"


def test_a_build_of_torch_without_onednn_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise NotImplementedError("mkldnn::_is_mkldnn_bf16_supported")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", refuse)
    assert choose_precision("auto", "cpu") == ("fp32", "fp32: no native bf16 on this cpu")
