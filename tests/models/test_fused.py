"""Sums and norms in one pass: the same numbers, also without a compiler. On GPUs: ``tests/encode/test_gpu.py``."""

import pytest
import torch
from torch import nn
from torch._inductor import config

from cellray.models import fused


def test_without_a_compiler_the_plain_expression_is_computed():
    norm, states, update = nn.LayerNorm(16), torch.randn(5, 16), torch.randn(5, 16)
    given = (update, states, norm.weight, norm.bias, norm.eps)
    fused._kernel.cache_clear()
    with config.patch({"cpp.cxx": (None, "/nowhere/c++")}), torch.inference_mode():
        with pytest.warns(RuntimeWarning, match="without fused kernels: InvalidCxxCompiler"):
            found = fused._kernel()(given)
        again = fused._kernel()(given)  # and says so once
        expected = fused.add_norm(update, states, norm)
    fused._kernel.cache_clear()
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert torch.equal(expected, norm(states + update))
