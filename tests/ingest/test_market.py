"""Matrix Market matrices as every pipeline writes them."""

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellray.errors import InputError, ReadError
from cellray.ingest import check_beside, find_sources, read_obs_text, read_rows, read_shard, stage
from cellray.ingest.market import MarketReader, is_market
from cellray.ingest.market_files import find_markets

BANNER = "%%MatrixMarket matrix coordinate integer general\n"


def market(path, matrix, header=BANNER, ends="\n"):
    """Write a matrix in its own orientation."""
    entries = sparse.coo_matrix(matrix)
    lines = [header, "{} {} {}\n".format(*matrix.shape, entries.nnz)]
    lines += [f"{r + 1} {c + 1} {v:g}\n" for r, c, v in zip(entries.row, entries.col, entries.data, strict=True)]
    write(path, "".join(lines).replace("\n", ends))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def lines(names, *more):
    return "".join("\t".join(row) + "\n" for row in zip(names, *more, strict=True))


@pytest.fixture
def cell_names(counts):
    return [f"c{row}" for row in range(counts.shape[0])]


@pytest.fixture
def read(plan_of, tmp_path):
    """Return a function that reads a path whole: plan and counts."""

    def whole(path):
        plan = stage(plan_of(path), str(tmp_path / "staged"), 20)
        return plan, read_rows(plan, 0, plan.n_cells)

    return whole


def ten_x(folder, counts, columns, cells, prefix="", gz="", header=BANNER, genes="features.tsv"):
    market(folder / f"{prefix}matrix.mtx{gz}", counts.T, header)
    symbols = [f"SYMBOL{n}" for n in range(len(columns))]
    write(folder / f"{prefix}{genes}{gz}", lines(columns, symbols, ["Gene Expression"] * len(columns)))
    write(folder / f"{prefix}barcodes.tsv{gz}", lines(cells))
    return folder


def kallisto(folder, counts, columns, cells):
    market(folder / "cells_x_genes.mtx", counts)
    write(folder / "cells_x_genes.barcodes.txt", lines(cells))
    write(folder / "cells_x_genes.genes.txt", lines([f"{name}.3" for name in columns]))
    write(folder / "cells_x_genes.genes.names.txt", lines([f"S{n}" for n in range(len(columns))]))
    return folder


def alevin(folder, counts, columns, cells):
    market(folder / "quants_mat.mtx", counts)
    write(folder / "quants_mat_rows.txt", lines(cells))
    write(folder / "quants_mat_cols.txt", lines(columns))
    return folder


def parse(folder, counts, columns, cells):
    market(folder / "count_matrix.mtx", counts)
    write(
        folder / "cell_metadata.csv",
        "bc_wells,sample\n" + "".join(f"{name},s{n % 2}\n" for n, name in enumerate(cells)),
    )
    rows = "".join(f'{name},"NAME,{n}",hg38\n' for n, name in enumerate(columns))
    write(folder / "all_genes.csv", "gene_id,gene_name,genome\n" + rows)
    return folder


def portal(folder, counts, columns, cells):
    market(folder / "matrix.mtx.gz", counts.T)
    write(folder / "genes.tsv.gz", "featurekey\tfeaturename\n" + lines(columns, columns))
    write(folder / "cells.tsv.gz", "cellkey\tdonor\n" + lines(cells, ["d1"] * len(cells)))
    return folder


def ebi(folder, counts, columns, cells):
    market(folder / "E-1.counts.mtx", counts.T)
    write(folder / "E-1.counts.mtx_rows", lines(columns, columns))
    write(folder / "E-1.counts.mtx_cols", lines(cells, cells))
    return folder


def old_starsolo(folder, counts, columns, cells):
    return ten_x(folder, counts, columns, cells, header="%%\n%\n", genes="genes.tsv")


def no_banner(folder, counts, columns, cells):
    return ten_x(folder, counts, columns, cells, header="")


def starsolo(folder, counts, columns, cells):
    market(folder / "UniqueAndMult-EM.mtx", counts.T * 1.25, "%%MatrixMarket matrix coordinate real general\n%\n")
    return ten_x(folder, counts, columns, cells)


DIALECTS = [ten_x, kallisto, alevin, parse, portal, ebi, old_starsolo, no_banner, starsolo]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_pipeline(read, counts, columns, cell_names, tmp_path, dialect):
    plan, block = read(dialect(tmp_path / "run1", counts, columns, cell_names))
    assert (block.counts != counts).nnz == 0
    assert block.cell_ids == cell_names
    assert plan.source.dataset_id == ("E-1.counts" if dialect is ebi else "run1")
    assert plan.gene_kind == "ensembl"


def test_one_file_of_a_folder(read, counts, columns, cell_names, tmp_path):
    folder = starsolo(tmp_path / "run1", counts, columns, cell_names)
    _, block = read(folder / "matrix.mtx")
    assert (block.counts != counts).nnz == 0
    (source,) = find_sources([str(folder / "UniqueAndMult-EM.mtx")])
    assert source.uri.endswith("UniqueAndMult-EM.mtx")


def test_several_samples_in_one_folder(read, plan_of, counts, columns, cell_names, tmp_path):
    folder = tmp_path / "GSE1"
    for name, part in (("GSM1_donorA_", slice(0, 20)), ("GSM2_donorB_", slice(20, 50))):
        ten_x(folder, counts[part], columns, cell_names[part], prefix=name, gz=".gz")
    found = find_sources([str(folder)])
    assert [source.dataset_id for source in found] == ["GSM1_donorA", "GSM2_donorB"]
    assert [find_sources([source.uri])[0] for source in found] == found
    _, block = read(found[1].uri)
    assert (block.counts != counts[20:]).nnz == 0
    assert block.cell_ids == cell_names[20:]


def test_samples_that_share_their_genes():
    names = ["A.matrix.mtx.gz", "A.barcodes.tsv.gz", "B.matrix.mtx.gz", "B.barcodes.tsv.gz", "GSE1_features.tsv.gz"]
    assert [(one.matrix, one.cells, one.genes) for one in find_markets(names)] == [
        ("A.matrix.mtx.gz", "A.barcodes.tsv.gz", "GSE1_features.tsv.gz"),
        ("B.matrix.mtx.gz", "B.barcodes.tsv.gz", "GSE1_features.tsv.gz"),
    ]


def test_spliced_and_unspliced_columns_of_one_gene(read, counts, columns, cell_names, tmp_path):
    """alevin-fry's USA mode: a gene's spliced and ambiguous counts are summed, its unspliced ones left out."""
    folder = tmp_path / "af"
    usa = sparse.hstack([counts, counts * 7, counts * 2]).tocsr()
    alevin(folder, usa, [*columns, *(f"{name}-U" for name in columns), *(f"{name}-A" for name in columns)], cell_names)
    plan, _ = read(folder)
    assert plan.notes == ("left out: 60 columns of unspliced counts",)
    shard = read_shard(plan, 0, 50, min_genes=1, n_slots=60)
    np.testing.assert_array_equal(shard.counts.toarray()[:, :55], counts.toarray()[:, :55] * 3)


def test_spliced_counts_where_there_are_no_others(read, counts, columns, cell_names, tmp_path):
    folder = ten_x(tmp_path / "velocyto", counts, columns, cell_names)
    (folder / "matrix.mtx").rename(folder / "spliced.mtx")
    market(folder / "unspliced.mtx", counts.T * 3)
    market(folder / "ambiguous.mtx", counts.T * 5)
    plan, block = read(folder)
    assert (block.counts != counts).nnz == 0
    assert plan.notes == ("counts are those of spliced.mtx (spliced), one of the parts of this run",)
    assert find_sources([str(folder / "unspliced.mtx")])[0].uri.endswith("unspliced.mtx")


def test_several_matrices_of_the_same_cells(tmp_path, counts, columns, cell_names):
    folder = ten_x(tmp_path / "a", counts, columns, cell_names)
    (folder / "matrix.mtx").rename(folder / "first.mtx")
    market(folder / "second.mtx", counts.T)
    with pytest.raises(InputError, match=r"\(first\.mtx, second\.mtx\); give the file of one of them"):
        find_sources([str(folder)])


def groups(*names):
    return [(one.prefix, one.matrix, one.cells, one.genes) for one in find_markets(names)]


KB = ("cells_x_genes.barcodes.txt", "cells_x_genes.genes.txt")


@pytest.mark.parametrize(
    ("parts", "chosen"),
    [
        (("mature", "nascent", "ambiguous"), "mature"),
        (("mature", "nascent", "ambiguous", "cell", "nucleus"), "cell"),
        (("mature", "nascent", "ambiguous", "cell", "nucleus", "total"), "total"),
    ],
)
def test_which_part_of_kallisto_bustools_is_read(parts, chosen):
    ((_, matrix, cells, genes),) = groups(*KB, *(f"cells_x_genes.{part}.mtx" for part in parts))
    assert (matrix, cells, genes) == (f"cells_x_genes.{chosen}.mtx", *KB)


def test_spliced_counts_with_tables_of_their_own():
    names = [f"{part}.{kind}" for part in ("spliced", "unspliced") for kind in ("mtx", "barcodes.txt", "genes.txt")]
    assert groups(*names) == [("", "spliced.mtx", "spliced.barcodes.txt", "spliced.genes.txt")]


def test_samples_named_behind_the_role():
    names = [f"{role}_{one}.tsv" for role in ("barcodes", "genes") for one in "AB"]
    assert groups("matrix_A.mtx", "matrix_B.mtx", *names) == [
        ("A", "matrix_A.mtx", "barcodes_A.tsv", "genes_A.tsv"),
        ("B", "matrix_B.mtx", "barcodes_B.tsv", "genes_B.tsv"),
    ]


@pytest.mark.parametrize("joint", ["_", ".", "-"])
def test_samples_whose_names_begin_alike(joint):
    """Neither S1 and S10, nor names that begin with the letter of a role, get each other's tables."""
    samples = [f"GSM1{joint}S1", f"GSM2{joint}S10", f"GSM3{joint}Bulk", f"GSM3{joint}Tcell"]
    names = {one: [f"{one}{joint}{role}" for role in ("matrix.mtx", "barcodes.tsv", "genes.tsv")] for one in samples}
    assert groups(*(name for three in names.values() for name in three)) == [
        (f"{one}{joint}", *three) for one, three in names.items()
    ]


def test_barcodes_of_another_sample_are_not_taken():
    with pytest.raises(ValueError, match=r"no table of barcodes \(barcodes\.tsv\) for B_matrix\.mtx"):
        groups("A_matrix.mtx", "B_matrix.mtx", "A_barcodes.tsv", "A_features.tsv", "B_features.tsv")


@pytest.mark.parametrize(
    "more",
    [
        ("._matrix.mtx",),
        ("matrix.mtx.gz", "barcodes.tsv.gz", "genes.tsv.gz"),
        ("cells.csv", "genes_of_interest.tsv", "README.txt", "UniqueAndMult-EM.mtx", "spliced.mtx"),
    ],
)
def test_other_files_beside_a_dataset(more):
    three = ("matrix.mtx", "barcodes.tsv", "genes.tsv")
    assert groups(*three, *more) == [("", *three)]


def test_peaks_are_no_genes():
    with pytest.raises(ValueError, match=r"counts peaks, not genes .*; give the matrix of the gene expression"):
        groups("matrix.mtx", "barcodes.tsv", "peaks.bed")


@pytest.mark.parametrize("turned", [False, True])
def test_tables_whose_names_say_nothing(read, counts, columns, cell_names, tmp_path, turned):
    folder = tmp_path / "a"
    market(folder / "data.mtx", counts if turned else counts.T)
    write(folder / "rows.txt", lines(cell_names if turned else columns))
    write(folder / "cols.txt", lines(columns if turned else cell_names))
    _, block = read(folder)
    assert (block.counts != counts).nnz == 0
    assert block.cell_ids == cell_names


def quoted(columns, cells):
    """As R's write.csv: quotes, and numbers before the rows."""
    table = {"genes.csv": ["gene", columns], "barcodes.csv": ["x", cells]}
    for name, (heading, values) in table.items():
        yield name, f'"","{heading}"\n' + "".join(f'"{n}","{value}"\n' for n, value in enumerate(values, 1))


def short_heading(columns, cells):
    """As R's write.table: no heading above the names of rows."""
    yield "genes.tsv", "symbol\n" + lines(columns, [f"S{n}" for n in range(len(columns))])
    yield "barcodes.tsv", "well_sequence\n" + lines([f"ACGTACGTAC{'ACGT'[n % 4]}-{n}" for n in range(len(cells))])


def long_heading(columns, cells):
    yield "genes.tsv", "gene_id\tsymbol\tnote\n" + lines(columns, columns)
    yield "barcodes.tsv", lines(cells)


def other_delimiters(columns, cells):
    yield "genes.txt", "".join(f"{name},S{n}\n" for n, name in enumerate(columns))
    yield "cells.txt", "cell;donor\n" + "".join(f"{name};d\n" for name in cells)


@pytest.mark.parametrize("tables", [quoted, short_heading, long_heading, other_delimiters])
def test_name_tables_of_other_programs(plan_of, read, counts, columns, cell_names, tmp_path, tables):
    folder = tmp_path / "a"
    market(folder / "matrix.mtx", counts.T)
    for name, text in tables(columns, cell_names):
        write(folder / name, text)
    plan, block = read(folder)
    assert plan.n_genes_known == 55
    if tables is not short_heading:
        assert block.cell_ids == cell_names


def test_columns_of_cells_can_be_asked_for(plan_of, counts, columns, cell_names, tmp_path):
    (source,) = find_sources([str(parse(tmp_path / "p", counts, columns, cell_names))])
    check_beside(source, {"sample": "obs"})
    assert read_obs_text(source, "sample").tolist() == [f"s{n % 2}" for n in range(50)]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("%%MatrixMarket matrix array real general\n", "dense Matrix Market file (array); write it as a sparse one"),
        ("%%MatrixMarket matrix coordinate integer symmetric\n", "is symmetric, a matrix of genes by genes"),
        ("%%MatrixMarket matrix coordinate pattern general\n", "how many (pattern); give the matrix with its values"),
        ("%%MatrixMarket matrix coordinate complex general\n", "does not start with"),
        ("hello\n", "does not start with"),
    ],
)
def test_matrices_of_other_kinds(plan_of, counts, columns, cell_names, tmp_path, header, says):
    with pytest.raises(ReadError) as caught:
        plan_of(ten_x(tmp_path / "a", counts, columns, cell_names, header=header))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "%%matrixmarket MATRIX Coordinate Integer General\n",
        "%%MatrixMarket matrix coordinate unsigned-integer general\n",
        "%%MatrixMarket matrix coordinate double general\n% a comment\n\n",
        "% made by hand\n",
    ],
)
def test_banners_of_other_programs(read, counts, columns, cell_names, tmp_path, header):
    assert is_market((header + "60 50 1\n1 1 1\n").encode())
    _, block = read(ten_x(tmp_path / "a", counts, columns, cell_names, header=header))
    assert (block.counts != counts).nnz == 0


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("1 1 3 9\n2 3 4 9\n", "4 numbers on its first line of entries"),
        ("1 1 3\n2 3 4 9\n", "Expected 3 fields"),
        ("1 1 3\n2 3", "an entry without its value"),
    ],
)
def test_lines_with_more_or_fewer_numbers(tmp_path, entries, says):
    write(tmp_path / "m.mtx", f"{BANNER}2 3 2\n{entries}")
    write(tmp_path / "g.tsv", "g1\ng2\n")
    write(tmp_path / "c.tsv", "c1\nc2\nc3\n")
    files = {"matrix": f"{tmp_path}/m.mtx", "cells": f"{tmp_path}/c.tsv", "genes": f"{tmp_path}/g.tsv"}
    with pytest.raises(ValueError, match=says):
        values_of(files)


def values_of(files):
    reader = MarketReader(files)
    return list(reader.entries(reader.matrix("X")))


def test_tables_of_another_matrix(plan_of, counts, columns, cell_names, tmp_path):
    with pytest.raises(ReadError, match=r"matrix\.mtx is 60 x 50, but barcodes\.tsv 47 lines and the gene table"):
        plan_of(ten_x(tmp_path / "a", counts, columns, cell_names[:47]))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
    by_cell=st.booleans(),
    packed=st.booleans(),
    heading=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_any_small_matrix(tmp_path_factory, shape, seed, by_cell, packed, heading, ends):
    folder, (n_cells, n_genes) = tmp_path_factory.mktemp("m"), shape
    counts = np.random.default_rng(seed).poisson(0.7, shape)
    gz = ".gz" if packed else ""
    market(folder / f"{'cells_x_genes' if by_cell else 'matrix'}.mtx{gz}", counts if by_cell else counts.T, ends=ends)
    cells, genes = [f"c{n}" for n in range(n_cells)], [f"g{n}" for n in range(n_genes)]
    write(folder / f"x.barcodes.tsv{gz}", (("barcode\n" if heading else "") + lines(cells)).replace("\n", ends))
    write(folder / f"x.genes.tsv{gz}", (("gene_id\n" if heading else "") + lines(genes)).replace("\n", ends))
    (files,) = find_markets(sorted(path.name for path in folder.iterdir()))
    reader = MarketReader({role: str(folder / name) for role, name in files.roles()})
    matrix = reader.matrix("X")
    assert (matrix.n_cells, matrix.n_columns) == shape
    assert (reader.cell_names(0, n_cells), reader.gene_names("X", "index")) == (cells, genes)
    found = np.zeros(shape)
    for entries in reader.entries(matrix):
        np.add.at(found, (entries.cells, entries.columns), entries.values)
    np.testing.assert_array_equal(found, counts)
