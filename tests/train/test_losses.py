"""Losses against the definition written out."""

import math

import torch

from cellray.train import losses


def unit(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrastive_is_the_mean_of_both_directions():
    cells, texts = unit(4, 8, seed=0), unit(3, 8, seed=1)
    relations = torch.tensor([[1, -1, 0], [-1, 1, -1], [-1, -1, 1], [1, -1, -1]], dtype=torch.int8)
    logits = (cells @ texts.T / 0.1).tolist()
    to_text, to_cell = [], {0: [], 1: [], 2: []}
    for i in range(4):
        j = relations[i].tolist().index(1)
        row = [logits[i][c] for c in range(3) if relations[i, c] != 0]
        to_text.append(-logits[i][j] + math.log(sum(map(math.exp, row))))
        column = [logits[r][j] for r in range(4) if relations[r, j] != 0]
        to_cell[j].append(-logits[i][j] + math.log(sum(map(math.exp, column))))
    expected = (sum(to_text) / 4 + sum(sum(part) / len(part) for part in to_cell.values()) / 3) / 2
    assert abs(losses.contrastive(cells, texts, relations, 0.1).item() - expected) < 1e-5


def test_hard_negatives_are_negatives_and_prefer_the_similar():
    cells, texts = unit(1, 8, seed=0).repeat(500, 1), unit(6, 8, seed=1)
    relations = torch.tensor([[1, -1, 0, -1, -1, 0]], dtype=torch.int8).repeat(500, 1)
    drawn = losses.hard_negatives(cells, texts, relations, 0.5, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= {1, 3, 4}
    similarity = cells[0] @ texts.T
    assert drawn.bincount().argmax().item() == max((1, 3, 4), key=lambda j: similarity[j].item())


def test_a_cell_without_a_negative_counts_only_its_match():
    logits = torch.tensor([[[0.0, 2.0], [0.0, 5.0]], [[0.0, 2.0], [1.0, 0.0]]])
    both = losses.matching(logits, torch.tensor([True, True]))
    first_dropped = losses.matching(logits, torch.tensor([False, True]))
    match = math.log(1 + math.exp(-2))
    wrong, right = math.log(1 + math.exp(5)), math.log(1 + math.exp(-1))
    assert abs(both.item() - (2 * match + wrong + right) / 4) < 1e-5
    assert abs(first_dropped.item() - (2 * match + right) / 3) < 1e-5


def test_masked_genes_is_cross_entropy_through_the_embedding():
    states, embedding = torch.eye(3), torch.eye(3) * 4
    loss = losses.masked_genes(states, torch.tensor([0, 1, 2]), embedding, torch.zeros(3))
    assert abs(loss.item() - (-4 + math.log(math.exp(4) + 2))) < 1e-5
