"""Count tables as text, and loom files."""

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest

from cellray.errors import InputError, ReadError
from cellray.ingest import find_sources, read_obs_text, read_rows, stage
from cellray.ingest.table import table_dialect


@pytest.fixture
def frame(counts, columns):
    """Genes in rows."""
    return pd.DataFrame(
        counts.toarray().astype(int).T, index=columns, columns=[f"sample1_{n:03d}" for n in range(counts.shape[0])]
    )


@pytest.fixture
def same(plan_of, counts, frame, tmp_path):
    """Return a function that reads a path and compares it with the counts; returns the plan."""

    def check(path):
        plan = stage(plan_of(path), str(tmp_path / "staged"), 20)
        block = read_rows(plan, 0, plan.n_cells)
        assert block.cell_ids == list(frame.columns)
        assert (block.counts != counts).nnz == 0
        return plan

    return check


@pytest.mark.parametrize("sep", [",", "\t", ";", " "])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("by_cell", [False, True])
def test_every_separator_either_way_round(same, frame, tmp_path, sep, packed, by_cell):
    text = (frame.T if by_cell else frame).to_csv(sep=sep, index_label="names")
    path = tmp_path / f"counts.txt{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    plan = same(path)
    assert (plan.source.kind, plan.source.dataset_id) == ("table", "counts")


def r_table(frame):
    """Write as R's write.table does: quotes, and no field above the names."""
    head = " ".join(f'"{name}"' for name in frame.columns) + "\n"
    return (
        head
        + "\n"
        + "".join(
            f'"{name}" ' + " ".join(map(str, row)) + "\n"
            for name, row in zip(frame.index, frame.to_numpy(), strict=True)
        )
    )


def r_csv(frame):
    """Write as R's write.csv does: numbered rows, the names in a column of their own."""
    numbered = frame.reset_index(names="gene")
    numbered.index = [str(n + 1) for n in range(len(frame))]
    return numbered.to_csv(quoting=2)


def feature_counts(frame):
    wide = frame.copy()
    wide.insert(0, "Length", 1000)
    wide.insert(0, "Chr", "chr1;chr1")
    return "# Program:featureCounts v2\n" + wide.to_csv(sep="\t", index_label="Geneid")


def with_symbols(frame):
    wide = frame.copy()
    wide.insert(0, "symbol", [f"S{n}" for n in range(len(frame))])
    return wide.to_csv(index_label="gene_id")


def marked(frame):
    return "\ufeff" + frame.to_csv().replace("\n", "\r\n")


@pytest.mark.parametrize("form", [r_table, r_csv, feature_counts, with_symbols, marked])
def test_tables_of_other_programs(same, frame, tmp_path, form):
    (tmp_path / "t.tsv").write_text(form(frame), newline="")
    plan = same(tmp_path / "t.tsv")
    assert plan.n_genes_known == 55


def test_text_columns_of_cells_are_obs(frame, tmp_path):
    wide = frame.T.copy()
    wide.insert(0, "donor", [f"d{n % 3}" for n in range(len(wide))])
    wide.to_csv(tmp_path / "t.csv", index_label="cell")
    (source,) = find_sources([str(tmp_path / "t.csv")])
    assert read_obs_text(source, "donor").tolist() == [f"d{n % 3}" for n in range(50)]


def test_fields_that_are_no_numbers(plan_of, frame, tmp_path):
    text = frame.to_csv().splitlines()
    text[50] = f"{text[50].rpartition(',')[0]},one"
    (tmp_path / "t.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(ReadError, match=r"one.*every field but the names must be a count"):
        stage(plan_of(tmp_path / "t.csv"), str(tmp_path / "staged"), 20)


@pytest.mark.parametrize(
    ("head", "dialect"),
    [
        (b"gene,c1,c2\nA,1,2\nB,0,3\n", ","),
        (b"c1\tc2\nA\t1\t2\nB\t0\t3\n", "\t"),
        (b'"","c1"\n"A",1\n', ","),
        (b"label,description\r\nT cell,CD3 positive\r\n", None),
        (b"T cells\nB cells\nNK cells\n", None),
        (b"", None),
        (b"\x00\x01\x02", None),
        (b"gene," + b",".join(b"cell%d" % n for n in range(3000)), ","),
    ],
)
def test_dialect(head, dialect):
    assert table_dialect(head[: 1 << 14]) == dialect


def test_a_list_of_labels_is_no_dataset(tmp_path):
    (tmp_path / "labels.csv").write_text("label,description\nT cell,CD3\n")
    with pytest.raises(InputError, match="no table of counts"):
        find_sources([str(tmp_path / "labels.csv")])


def write_loom(path, counts, columns, layers=()):
    with h5py.File(path, "w") as file:
        dense = counts.toarray().T
        file.create_dataset("matrix", data=dense, chunks=(16, 8), compression="gzip")
        for name in layers:
            file.create_dataset(f"layers/{name}", data=dense)
        text = h5py.string_dtype()
        file.create_dataset("row_attrs/Gene", data=np.array([f"S{n}" for n in range(60)], object), dtype=text)
        file.create_dataset("row_attrs/Accession", data=np.array(columns, object), dtype=text)
        file.create_dataset("col_attrs/CellID", data=np.array([f"c{n}" for n in range(50)], object), dtype=text)
        file.create_dataset("col_attrs/donor", data=np.array([f"d{n % 2}" for n in range(50)], object), dtype=text)


def test_loom(plan_of, counts, columns, tmp_path):
    write_loom(tmp_path / "a.loom", counts, columns, ["spliced"])
    plan = plan_of(tmp_path / "a.loom")
    assert (plan.source.kind, plan.layer, plan.gene_key, plan.layout) == ("loom", "X", "Accession", "dense")
    block = read_rows(plan, 7, 33)
    assert (block.counts != counts[7:33]).nnz == 0
    assert block.cell_ids == [f"c{n}" for n in range(7, 33)]
    assert read_obs_text(plan.source, "donor").tolist() == [f"d{n % 2}" for n in range(50)]
    assert plan_of(tmp_path / "a.loom", layer="spliced").layer == "layers/spliced"


def test_broken_loom(plan_of, counts, columns, tmp_path):
    write_loom(tmp_path / "a.loom", counts, columns)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        del file["row_attrs/Gene"], file["row_attrs/Accession"]
    with pytest.raises(ReadError, match="row_attrs holds no names of genes"):
        plan_of(tmp_path / "a.loom")
