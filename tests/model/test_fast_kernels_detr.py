"""Fused kernels are used only where they give the numbers of the plain form."""

import torch

from detr_hf.model.fast_kernels_detr import fused_kernels


def test_a_kernel_that_errs_or_is_missing_is_not_used(monkeypatch):
    fused_kernels.cache_clear()
    monkeypatch.setattr(
        "detr_hf.model.fast_kernels_detr.FusedKernels.conv_relu", lambda self, conv, x, into=None: conv(x)
    )
    assert fused_kernels(torch.device("cpu"), torch.float32) is None
    fused_kernels.cache_clear()
