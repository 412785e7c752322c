"""The arithmetic of GRPO: advantages within groups, the clipped loss of tokens, the divergence from a reference.

Contract: pure functions of tensors; equal to those of TRL (``loss_type="bnpo"``, the divergence without its correction
by the ratio) on the same tensors, which a test holds. A group whose rewards are all equal has no advantage and no NaN.
It knows neither models nor rollouts.

Deviations from Cell-o1 (arXiv 2506.02911, section 4.3) and its fork of verl:

1. The ratio is that of tokens, as in the released code; the paper writes it for whole answers.
2. The deviation of a group gets 1e-4 added, so that equal rewards divide by something; verl adds 1e-6.
3. The divergence is the estimator with low variance, as in the release, but not clamped to 10.
4. Loss is the mean over all tokens of a step, over all workers together.
5. Answers end at ``</answer>``, where the served engine stops too; the release goes on to the end token.
6. An answer that was cut at the limit teaches nothing (``overlong_filter``) but counts in the mean of its group. The
   release filters prompts that are too long, which is done here as well, and truncates nothing.

Source: DeepSeekMath (arXiv 2402.03300) for GRPO; DAPO (arXiv 2503.14476) for the filter of overlong answers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-4


def advantages(rewards: Tensor) -> Tensor:
    """Return (prompts, group) advantages of (prompts, group) rewards: less the group's mean, by its deviation."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + _LEAST)


@dataclass(frozen=True)
class TokenLoss:
    """(n,) each: the loss of tokens, their divergence from the reference, and whether they were clipped."""

    loss: Tensor
    divergence: Tensor
    clipped: Tensor


def token_loss(
    now: Tensor, before: Tensor, reference: Tensor | None, advantage: Tensor, *, clip: float, beta: float
) -> TokenLoss:
    """Return the loss of tokens.

    Parameters
    ----------
    now, before
        Their log-probabilities (n,) under the policy, and under the policy that wrote them.
    reference
        Under the reference; None for no divergence.
    advantage
        (n,) that of their answer.
    clip
        Ratios count from 1 - clip to 1 + clip.
    beta
        Weight of the divergence.
    """
    ratio = torch.exp(now - before)
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    divergence = torch.zeros_like(now)
    if reference is not None:
        away = reference - now
        divergence = torch.exp(away) - away - 1
        loss = loss + beta * divergence
    clipped = ((ratio < 1 - clip) & (advantage < 0)) | ((ratio > 1 + clip) & (advantage > 0))
    return TokenLoss(loss, divergence.detach(), clipped)
