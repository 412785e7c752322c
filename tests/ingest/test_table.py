"""Count tables as text."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellray.errors import InputError, ReadError
from cellray.ingest import find_sources, read_obs_text, read_rows, stage
from cellray.ingest.reader import open_dataset
from cellray.ingest.table import TableReader, table_dialect


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


def spaced_names(frame):
    """Write quoted names with blanks in them, parted by blanks."""
    return r_table(frame).replace('"sample1_', '"sample 1_')


def ended_rows(frame):
    """Write a delimiter at the end of each row, but not of the heading."""
    heading, *rows = frame.to_csv(index_label="gene").splitlines()
    return "\n".join([heading, *(f"{row}," for row in rows)]) + "\n"


def ended_lines(frame):
    return frame.to_csv(index_label="gene").replace("\n", ",\n")


def all_quoted(frame):
    return frame.to_csv(quoting=1)


def late_heading(frame):
    return "\n\n" + frame.to_csv()


def gct(frame):
    wide = frame.copy()
    wide.insert(0, "Description", "na")
    return f"#1.2\n{frame.shape[0]}\t{frame.shape[1]}\n" + wide.to_csv(sep="\t", index_label="Name")


FORMS = [r_table, r_csv, feature_counts, with_symbols, marked, ended_rows, ended_lines, all_quoted, late_heading, gct]


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_other_programs(same, frame, tmp_path, form):
    (tmp_path / "t.tsv").write_text(form(frame), newline="")
    plan = same(tmp_path / "t.tsv")
    assert plan.n_genes_known == 55


def test_names_with_blanks_between_blanks(plan_of, counts, frame, tmp_path):
    (tmp_path / "t.txt").write_text(spaced_names(frame))
    plan = stage(plan_of(tmp_path / "t.txt"), str(tmp_path / "staged"), 20)
    block = read_rows(plan, 0, 50)
    assert block.cell_ids[0] == "sample 1_000"
    assert (block.counts != counts).nnz == 0


@pytest.mark.parametrize("sep", [";", "\t"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_decimals(plan_of, frame, tmp_path, sep, decimal):
    (frame + 0.5).to_csv(tmp_path / "t.csv", sep=sep, decimal=decimal)
    reader = TableReader(str(tmp_path / "t.csv"))
    assert set(np.unique(reader.sample(reader.matrix("X")) % 1)) == {0.5}


def test_what_is_computed_of_cells_is_no_gene(plan_of, counts, frame, tmp_path):
    """Seurat and scanpy leave such columns in tables of cells; summed as genes they would double each cell's counts."""
    wide = frame.T.copy()
    more = {"nCount_RNA": 9, "nFeature_RNA": 5, "percent.mt": 0.5, "seurat_clusters": 1, "UMAP_1": -2.5}
    for name, value in more.items():
        wide.insert(len(wide.columns) // 2, name, value)
    wide.to_csv(tmp_path / "t.csv", index_label="cell")
    plan = stage(plan_of(tmp_path / "t.csv"), str(tmp_path / "staged"), 20)
    assert (read_rows(plan, 0, 50).counts != counts).nnz == 0
    assert plan.notes[0] == "the rows of the table are read as cells, its columns as genes"
    assert "5 columns of the table that are no counts" in plan.notes[1]
    assert read_obs_text(plan.source, "seurat_clusters").tolist() == ["1"] * 50


SYMBOLS = [
    f"{stem}{n}" for stem in ("RPL", "ZNF", "FAM", "OR", "CD", "KRT", "SLC", "TMEM", "IGHV", "MT-ND") for n in "1234"
]


@pytest.mark.parametrize(
    "cells",
    [
        ["ctrl", "stim", "KO"],
        [f"{n * 98765432198765:016x}" for n in range(1, 60)],
        ["ACGTACGTACGT" + "ACGT"[n % 4] + "ACGT"[n // 4 % 4] + "-1" for n in range(16)],
        [f"{row}{column}" for row in "ABCDEFGH" for column in range(1, 13)],
        [str(n) for n in range(1, 30)],
        [f"SRR19745{n}" for n in range(43, 80)],
        [f"T.Cell_{n}" for n in range(40)],
    ],
    ids=["samples", "hashes", "barcodes", "wells", "numbers", "runs", "types"],
)
@pytest.mark.parametrize("by_cell", [False, True])
def test_which_axis_is_genes_is_told_by_names(tmp_path, cells, by_cell):
    frame = pd.DataFrame(np.arange(len(SYMBOLS) * len(cells)).reshape(len(SYMBOLS), -1), SYMBOLS, cells)
    (frame.T if by_cell else frame).to_csv(tmp_path / "t.csv", index_label="name")
    reader = TableReader(str(tmp_path / "t.csv"))
    assert (reader.gene_names("X", "index"), reader.cell_names(0, len(cells))) == (SYMBOLS, cells)


def test_the_first_genes_may_be_those_of_no_cell(tmp_path):
    """A sample without values would be taken for a matrix without counts."""
    zeros = np.zeros((900, 300), int)
    zeros[850:] = 7
    pd.DataFrame(zeros, [f"GENE{n}" for n in range(900)]).add_prefix("c").to_csv(tmp_path / "t.csv")
    reader = TableReader(str(tmp_path / "t.csv"))
    assert set(reader.sample(reader.matrix("X"))) == {7}


def test_missing_values_stay_missing(plan_of, frame, tmp_path):
    holed = frame.astype(object)
    holed.iloc[2, 5], holed.iloc[3, 5], holed.iloc[4, 49] = "", "NA", None
    holed.to_csv(tmp_path / "t.csv")
    plan = stage(plan_of(tmp_path / "t.csv"), str(tmp_path / "staged"), 20)
    rows, columns = np.nonzero(np.isnan(read_rows(plan, 0, 50).counts.toarray()))
    assert list(zip(rows, columns, strict=True)) == [(5, 2), (5, 3), (49, 4)]


@pytest.mark.parametrize(("line", "width"), [("{}", 51), ("{},1", 52), ("GENE,1,2", 3), ('"a,b",{}', 52)])
def test_rows_of_another_length(plan_of, frame, tmp_path, line, width):
    rows = frame.to_csv().splitlines()
    rows[40] = line.format(rows[40])
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    if width == 51:
        stage(plan_of(tmp_path / "t.csv"), str(tmp_path / "staged"), 20)
    else:
        with pytest.raises(ReadError, match=f"line 41 of the table has {width} fields, but its first row has 51"):
            stage(plan_of(tmp_path / "t.csv"), str(tmp_path / "staged"), 20)


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
    says = r"line 51, column 'sample1_049' holds 'one'; every field but the names must be a count"
    with pytest.raises(ReadError, match=says):
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
        (b"gene," + b",".join(b"cell_number_%d" % n for n in range(700)) + b"\nA" + b",1.234567" * 700, ","),
        (b"a,b,c\nsome,text,without,end", None),
    ],
)
def test_dialect(head, dialect):
    assert table_dialect(head[: 1 << 14]) == dialect


def test_a_list_of_labels_is_no_dataset(tmp_path):
    (tmp_path / "labels.csv").write_text("label,description\nT cell,CD3\n")
    with pytest.raises(InputError, match="no table of counts"):
        find_sources([str(tmp_path / "labels.csv")])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
    sep=st.sampled_from([",", "\t", ";", " "]),
    quoting=st.sampled_from([0, 1, 2]),
    packed=st.booleans(),
    by_cell=st.booleans(),
    heading=st.sampled_from(["gene", "", None]),
    ends=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 40),
)
def test_any_small_table(
    tmp_path_factory, monkeypatch, shape, seed, sep, quoting, packed, by_cell, heading, ends, block
):
    path, (n_genes, n_cells) = tmp_path_factory.mktemp("t") / "t.txt", shape
    counts = np.random.default_rng(seed).poisson(0.7, shape)
    frame = pd.DataFrame(counts, [f"ENSG{n:011d}" for n in range(n_genes)], [f"cell_{n}" for n in range(n_cells)])
    text = (frame.T if by_cell else frame).to_csv(sep=sep, quoting=quoting, index_label=heading, lineterminator=ends)
    if heading is None or (heading == "" and sep == " "):
        text = text.split(sep, 1)[1]  # as R writes it
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with monkeypatch.context() as patch:
        patch.setattr("cellray.ingest.table._BLOCK_VALUES", block)
        reader = TableReader(str(path))
        matrix = reader.matrix("X")
        assert (matrix.n_cells, matrix.n_columns) == (n_cells, n_genes)
        assert reader.gene_names("X", "index") == list(frame.index)
        assert reader.cell_names(0, n_cells) == list(frame.columns)
        found = np.zeros((n_cells, n_genes))
        for entries in reader.entries(matrix):
            found[entries.cells, entries.columns] = entries.values
    np.testing.assert_array_equal(found, counts.T)


def test_a_line_without_end(plan_of, frame, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(frame.to_csv())
    monkeypatch.setattr("cellray.ingest.name_table.MAX_LINE", 300)
    with pytest.raises(ReadError, match="a line is longer than 300 bytes"):
        plan_of(tmp_path / "t.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 5), st.text('",\t \n;#0a\r%|1\0', max_size=4)),
        min_size=1,
        max_size=4,
    ),
    sep=st.sampled_from(",\t; "),
    quote=st.sampled_from(["", '"']),
)
def test_a_damaged_table_is_read_or_refused(tmp_path_factory, edits, sep, quote):
    """Whatever is in it: a table of one shape, or one line of error; never a bug."""
    rows = [["gene", "c1", "c2", "c3"], *([f"GENE{n}", "1", "0", str(n)] for n in range(6))]
    text = "".join(sep.join([f"{quote}{row[0]}{quote}", *row[1:]]) + "\n" for row in rows)
    for at, removed, added in edits:
        text = text[:at] + added + text[at + removed :]
    path = tmp_path_factory.mktemp("d") / "t.csv"
    path.write_text(text, newline="")
    try:
        (source,) = find_sources([str(path)])
        with open_dataset(source) as reader:
            matrix = reader.matrix("X")
            names = reader.gene_names("X", "index"), reader.cell_names(0, matrix.n_cells)
            assert tuple(map(len, names)) == (matrix.n_columns, matrix.n_cells)
            for entries in reader.entries(matrix):
                assert (entries.cells < matrix.n_cells).all()
                assert (entries.columns < matrix.n_columns).all()
    except (InputError, ReadError) as refused:
        said = str(refused)
    else:
        said = ""
    assert "\n" not in said
