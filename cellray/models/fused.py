"""What lies between products of matrices, done on a GPU in one pass over its memory.

Contract: the numbers of the plain expression, up to rounding. Only inference on a GPU takes the kernel that PyTorch's
compiler makes at the first call; where it can make none (there is no C compiler, say) a warning says so once and the
plain expression is computed. It knows no model.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Given = tuple[Tensor, Tensor, Tensor, Tensor, float]


def add_norm(update: Tensor, states: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return ``norm(states + update)`` of two arrays of one shape."""
    apart = not update.is_cuda or torch.is_grad_enabled()
    given = (update, states, norm.weight, norm.bias, norm.eps)
    return _plain(*given) if apart else _kernel()(given)


def _plain(update: Tensor, states: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(states + update, weight.shape, weight, bias, eps)


@cache
def _kernel() -> Callable[[_Given], Tensor]:
    from torch._dynamo.exc import BackendCompilerFailed

    compiled = torch.compile(_plain, dynamic=True, options={"compile_threads": 1})
    works = True

    def fused(given: _Given) -> Tensor:
        nonlocal works
        if works:
            try:
                return compiled(*given)
            except BackendCompilerFailed as error:
                works = False
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"encoding goes on without fused kernels: {reason}", RuntimeWarning, stacklevel=2)
        return _plain(*given)

    return fused
