"""Cells to puzzles: cells of one donor, each of another type, their types as candidates; split without shared cells.

Contract: a pure function of the cells and the settings. Ours puts whole donors, or where there are too few of them
single cells, into training, validation and test before any puzzle is drawn, so no cell is in two of them; candidates
are shuffled. ``official`` repeats the released construction (ncbi-nlp/cell-o1) instead: candidates sorted, puzzles of
one pool split afterwards, so that its splits share cells, which ``cellray.puzzles.audit`` shows. The release draws from
unseeded generators; its choices can be repeated in kind only.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cellray.errors import SettingError
from cellray.puzzles.cells import RankedCells
from cellray.puzzles.puzzle import Puzzle

SPLITS = ("train", "validation", "test")
_FEWEST_DONORS = 5
_TEST_AT_LEAST = 5


@dataclass(frozen=True)
class BuildSettings:
    """How puzzles are drawn.

    Attributes
    ----------
    min_cells, max_cells
        Smallest and largest puzzle.
    per_size
        Puzzles of each number of cells and dataset; those held out get a tenth each, at least five.
    split_by
        ``donor``, ``cell``, or ``auto``: donors where there are at least five.
    held_out
        Share of donors or cells in validation, and in test.
    shuffled
        Whether candidates are in random order instead of sorted.
    most_test
        Largest test set of the official construction.
    """

    min_cells: int = 8
    max_cells: int = 15
    per_size: int = 40
    split_by: Literal["auto", "donor", "cell"] = "auto"
    held_out: float = 0.1
    shuffled: bool = True
    official: bool = False
    most_test: int = 1100
    seed: int = 0


def build(sets: Sequence[RankedCells], settings: BuildSettings) -> dict[str, list[Puzzle]]:
    """Return the puzzles of each split.

    Raises
    ------
    SettingError
        If no dataset has a donor with ``min_cells`` types.
    """
    if not 2 <= settings.min_cells <= settings.max_cells:
        msg = f"puzzles of {settings.min_cells} to {settings.max_cells} cells: at least 2, and the smallest first"
        raise SettingError(msg)
    found: dict[str, list[Puzzle]] = {split: [] for split in SPLITS}
    by_donor = _by_donor(sets, settings)
    for cells in sets:
        rng = np.random.default_rng([settings.seed, _number(cells.dataset)])
        if settings.official:
            pool = list(_draw(cells, range(len(cells.labels)), settings, settings.per_size, rng))
            found["train"] += pool
            continue
        for split, rows in split_rows(cells, settings.held_out, by_donor=by_donor).items():
            per_size = settings.per_size if split == "train" else max(_TEST_AT_LEAST, settings.per_size // 10)
            found[split] += _draw(cells, rows, settings, per_size, rng)
    if settings.official:
        found["train"], found["test"] = _split_puzzles(found["train"], settings)
        found["validation"] = []
    if not any(found.values()):
        types = max((len(set(cells.labels)) for cells in sets), default=0)
        msg = f"no donor has {settings.min_cells} cell types (at most {types} in a dataset); lower --min-cells"
        raise SettingError(msg)
    return found


def split_rows(cells: RankedCells, held_out: float, *, by_donor: bool) -> dict[str, list[int]]:
    """Return the cells of each split: by hash of the donor's or the cell's name, the same for every selection."""
    names = cells.donors if by_donor else [f"{cells.dataset}\0{name}" for name in cells.cell_ids]
    drawn = np.array([_number(name) / 2**32 for name in names])
    bounds = {"test": (0.0, held_out), "validation": (held_out, 2 * held_out), "train": (2 * held_out, 1.0)}
    return {split: np.flatnonzero((drawn >= low) & (drawn < high)).tolist() for split, (low, high) in bounds.items()}


def split_kind(sets: Sequence[RankedCells], settings: BuildSettings) -> str:
    """Return what is kept together: ``puzzle``, ``donor`` or ``cell``."""
    return "puzzle" if settings.official else "donor" if _by_donor(sets, settings) else "cell"


def _by_donor(sets: Sequence[RankedCells], settings: BuildSettings) -> bool:
    if settings.split_by != "auto":
        return settings.split_by == "donor"
    return len({(cells.dataset, donor) for cells in sets for donor in cells.donors}) >= _FEWEST_DONORS


def _draw(
    cells: RankedCells, rows: Sequence[int], settings: BuildSettings, per_size: int, rng: np.random.Generator
) -> Iterator[Puzzle]:
    """Draw puzzles group by group until every size has its number, or a round finds none."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[cells.donors[row], cells.batches[row]][cells.labels[row]].append(row)
    usable = {name: types for name, types in groups.items() if len(types) >= settings.min_cells}
    left = dict.fromkeys(range(settings.min_cells, settings.max_cells + 1), per_size)
    found = True
    while found:
        found = False
        for (donor, batch), types in sorted(usable.items()):
            sizes = [n for n, quota in left.items() if quota and n <= len(types)]
            if not sizes:
                continue
            found = True
            n = int(rng.choice(sizes))
            left[n] -= 1
            labels = [str(name) for name in rng.permutation(sorted(types))[:n]]
            chosen = [int(rng.choice(types[label])) for label in labels]
            yield Puzzle(
                context=cells.contexts[chosen[0]],
                cells=tuple(cells.genes[row] for row in chosen),
                candidates=tuple(
                    [str(name) for name in rng.permutation(labels)]
                    if settings.shuffled and not settings.official
                    else sorted(labels)
                ),
                answer=tuple(labels),
                dataset=cells.dataset,
                group="/".join(filter(None, (donor, batch))),
                cell_ids=tuple(cells.cell_ids[row] for row in chosen),
            )


def _split_puzzles(pool: list[Puzzle], settings: BuildSettings) -> tuple[list[Puzzle], list[Puzzle]]:
    """Split as the release does: of every size at least five for the test, the rest in proportion."""
    rng = np.random.default_rng([settings.seed, 1])
    by_size: dict[int, list[Puzzle]] = defaultdict(list)
    for puzzle in pool:
        by_size[len(puzzle)].append(puzzle)
    share = min(settings.held_out, settings.most_test / max(len(pool), 1))
    train: list[Puzzle] = []
    test: list[Puzzle] = []
    for _, puzzles in sorted(by_size.items()):
        order = rng.permutation(len(puzzles))
        n_test = min(len(puzzles), max(_TEST_AT_LEAST, round(share * len(puzzles))))
        test += [puzzles[at] for at in order[:n_test]]
        train += [puzzles[at] for at in order[n_test:]]
    return train, test


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
