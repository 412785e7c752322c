"""The main job on real cells that ship inside scanpy: ``python -m jobs.demo [--out out/demo]``, or ``make demo``.

The 700 PBMC of ``pbmc68k_reduced`` come as logarithms of normalised counts of 765 genes; the integers are recovered
as ``round(expm1(raw) * n_counts / 1e4)``. Their ``bulk_labels`` are named here by Cell Ontology terms, which are also
the label set. They are of the same donor and kind as one of the bundled model's training sets, so the accuracy is a
demonstration and no independent test, and the model has never seen a dendritic cell.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from cellray.errors import CellRayError, one_line
from cellray.pipeline import annotate
from cellray.pipeline.progress import showing
from cellray.report import evaluate, write_report
from cellray.settings import AnnotateSettings
from cellray.targets import reserve

TRUTH = "bulk_labels"
TERMS = {
    "CD14+ Monocyte": "CL:0001054",
    "CD19+ B": "CL:0000236",
    "CD34+": "CL:0008001",
    "CD4+/CD25 T Reg": "CL:0000792",
    "CD4+/CD45RA+/CD25- Naive T": "CL:0000895",
    "CD4+/CD45RO+ Memory": "CL:0000897",
    "CD56+ NK": "CL:0000623",
    "CD8+ Cytotoxic T": "CL:0000794",
    "CD8+/CD45RA+ Naive Cytotoxic": "CL:0000900",
    "Dendritic": "CL:0000451",
}


def main(arguments: list[str] | None = None) -> int:
    """Prepare, annotate, evaluate, print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    given = parser.parse_args(arguments)
    out: Path = given.out
    try:
        reserve(out / "input", ("pbmc68k.h5ad", "labels.txt"))
        cells, labels = prepare(out / "input")
        with showing() as progress:
            result = annotate(
                AnnotateSettings.checked(inputs=(str(cells),), labels=str(labels), out=str(out)), progress
            )
        numbers = evaluate(str(out), TRUTH)
        report = write_report(str(out), evaluation=numbers)
    except CellRayError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    before, after = (numbers["overall"][when] for when in ("before", "after"))
    rate = f"{result.cells_per_s:,.0f}" if result.cells_per_s else "all cells were scored by an earlier run;"
    sys.stdout.write(
        f"annotated cells  {out / 'pbmc68k.h5ad'}\n"
        f"table            {out / 'datasets' / 'pbmc68k' / 'annotations.parquet'}\n"
        f"report           {report}\n"
        f"against {TRUTH}: accuracy {before['accuracy']:.3f} before GRIT, {after['accuracy']:.3f} after; "
        f"macro-F1 {before['macro_f1']:.3f} before, {after['macro_f1']:.3f} after\n"
        f"{rate} cells/s\n"
    )
    return result.exit_code


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write the cells with recovered counts and the label file; returns their paths."""
    import anndata
    import scanpy
    from scipy import sparse

    folder.mkdir(parents=True, exist_ok=True)
    reduced = scanpy.datasets.pbmc68k_reduced()
    per_cell = reduced.obs["n_counts"].to_numpy()[:, None] / 1e4
    counts = np.rint(np.expm1(reduced.raw.X.toarray()) * per_cell).astype(np.float32)
    cells = anndata.AnnData(sparse.csr_matrix(counts), reduced.obs[[TRUTH]].copy(), reduced.raw.var[[]].copy())
    cells.obs[f"{TRUTH}_ontology_term_id"] = cells.obs[TRUTH].astype(str).map(TERMS)
    path, labels = folder / "pbmc68k.h5ad", folder / "labels.txt"
    cells.write_h5ad(path)
    labels.write_text("\n".join(TERMS.values()) + "\n")
    return path, labels


if __name__ == "__main__":
    sys.exit(main())
