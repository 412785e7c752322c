"""Gene programs switched on and off in training cells: sets of genes that go together, whatever the cell's type.

Contract: a program is the genes nearest to one gene in the space of the initial gene vectors
(``cellray.train.initial``). Switching one off takes it out of a cell; switching one on puts it among the cell's first
ranks, as a response (to interferon, say) does. The label stays: a model so trained does not let one program decide. A
pure function of the generator that is passed.
"""

import numpy as np

_DIRECTIONS = 40
_JITTER = 0.05
_SMALLEST_OFF, _LARGEST_OFF = 0.01, 0.15  # of all genes
_SMALLEST_ON, _LARGEST_ON = 20, 80  # genes
_FEWEST_LEFT = 20


class Programs:
    """Programs over the gene tokens from ``first`` on.

    Parameters
    ----------
    vectors
        (n_tokens, width) gene vectors, zero for tokens that are no genes.
    first
        Token of the first gene.
    """

    def __init__(self, vectors: np.ndarray, first: int) -> None:
        directions = vectors[:, :_DIRECTIONS]
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        self._directions = directions / np.where(length > 0, length, 1)
        self._is_gene = (length[:, 0] > 0) & (np.arange(len(vectors)) >= first)

    def off(self, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
        """Take a program around one of the cell's own ``genes`` out, unless too little would be left."""
        nearness = self._nearness(rng, rng.choice(genes))
        size = int(len(nearness) * np.exp(rng.uniform(np.log(_SMALLEST_OFF), np.log(_LARGEST_OFF))))
        size = max(1, size)
        kept = genes[nearness[genes] < np.partition(nearness, -size)[-size]]
        return kept if len(kept) >= _FEWEST_LEFT else genes

    def on(self, rng: np.random.Generator, genes: np.ndarray, around: int) -> np.ndarray:
        """Put the program around gene ``around`` into the first half of the cell's ranks, most of it near the top."""
        nearness = np.where(self._is_gene, self._nearness(rng, around), -np.inf)
        size = min(int(rng.uniform(_SMALLEST_ON, _LARGEST_ON)), int(self._is_gene.sum()))
        new = np.setdiff1d(np.argpartition(-nearness, size - 1)[:size], genes)
        at = (rng.random(len(new)) ** 2 * len(genes) / 2).astype(np.int64)
        return np.insert(genes, at, new.astype(genes.dtype))

    def _nearness(self, rng: np.random.Generator, gene: int) -> np.ndarray:
        wanted = self._directions[gene] + _JITTER * rng.standard_normal(self._directions.shape[1])
        return self._directions @ wanted
