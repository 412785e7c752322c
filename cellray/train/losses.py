"""Losses as pure functions of tensors: LangCell-style pre-training, and plugins.

Pre-training has three (Zhao et al. 2024, section 3): contrastive, matching, masked genes; which texts count as
negatives is decided in ``cellray.train.terms``. Plugins have cross-entropy over an ontology, and distillation.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(cells: Tensor, texts: Tensor, relations: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between (b, d) cells and (t, d) distinct texts, both of unit length.

    ``relations`` (b, t): 1 for the cell's text, -1 for a negative, 0 for a pair left out. Text to cell has several
    positives, whose log-probabilities are averaged.
    """
    logits = (cells @ texts.T / temperature).masked_fill(relations == 0, -torch.inf)
    target = relations == 1
    to_text = -logits.log_softmax(1)[target].mean()
    to_cell = logits.log_softmax(0).masked_fill(~target, 0).sum(0) / target.sum(0).clamp(min=1)
    return (to_text - to_cell.mean()) / 2


def hard_negatives(
    cells: Tensor, texts: Tensor, relations: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    """Draw one negative text for each cell, the likelier the more similar. Returns (b,) indices into ``texts``."""
    with torch.no_grad():
        logits = (cells @ texts.T / temperature).masked_fill(relations != -1, -torch.inf)
        # A cell that every text is true of has no negative; its draw is uniform and its pair is dropped by the caller.
        logits = torch.where((relations == -1).any(1, keepdim=True), logits, torch.zeros_like(logits))
        return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def random_negatives(relations: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one negative text for each cell, all alike; (b,) indices. A cell without any gets an arbitrary text."""
    negative = (relations == -1).float()
    return torch.multinomial(negative + (~negative.any(1, keepdim=True)).float(), 1, generator=generator)[:, 0]


def matching(logits: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of cell-text matching: (b, 1 + m, 2) logits of the true text and m negatives, class 1 = match.

    ``valid`` (b,) is false where the cell has no negative.
    """
    target = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    target[:, 0] = 1
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    return (loss[:, 0].sum() + loss[valid, 1:].sum()) / (len(logits) + valid.sum() * (logits.shape[1] - 1))


def masked_genes(states: Tensor, genes: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    """Cross-entropy of (m, d) states at masked positions against the (m,) genes there; (v, d) embedding is tied."""
    return F.cross_entropy(states @ embedding.T + bias, genes)


def hierarchical(logits: Tensor, target: Tensor, below: Tensor) -> Tensor:
    """Cross-entropy over an ontology: a class is given whenever one of its kinds is, -log of the sum of their shares.

    Of (b, c) ``logits`` and (b,) ``target``; ``below`` (c, c): whether the column's class is the row's or a kind of it.
    With ``below`` the identity this is plain cross-entropy (scTab's successor, Nature Computational Science 2025).
    """
    shares = logits.log_softmax(1).masked_fill(~below[target], -torch.inf)
    return -shares.logsumexp(1).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean divergence of (b, c) ``logits`` from those of a ``teacher``, both softened (Hinton et al. 2015)."""
    wanted = (teacher / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, wanted, log_target=True, reduction="batchmean")
