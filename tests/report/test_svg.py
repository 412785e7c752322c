"""Charts are well-formed XML for any text and any numbers, and draw what they were given."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.report import svg

NS = "{http://www.w3.org/2000/svg}"
texts = st.text(st.characters(codec=None), max_size=50)
counts = st.integers(0, 10**9)


def parse(markup):
    root = ET.fromstring(markup.encode("utf-8"))
    assert root.tag == f"{NS}svg"
    assert root[0].tag == f"{NS}title"
    assert not [
        e for e in root.iter() if e.tag.removeprefix(NS) not in {"svg", "g", "title", "rect", "path", "text", "circle"}
    ]
    return root


@given(st.lists(st.tuples(texts, counts, counts), max_size=6), texts)
def test_bars_are_well_formed(rows, title):
    names = [name for name, _, _ in rows]
    series = [("before", svg.OTHER, [b for _, b, _ in rows]), ("<after>", svg.PALETTE[0], [a for _, _, a in rows])]
    root = parse(svg.bars(names, series, title=title))
    assert len(root.findall(f"{NS}rect")) == 2 * len(rows) + 2


@given(st.lists(counts, min_size=1, max_size=10), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), texts)
def test_histograms_are_well_formed(values, start, width, text):
    edges = np.linspace(start, start + width, len(values) + 1).tolist()
    root = parse(svg.histogram(values, edges, title=text, x_label=text))
    assert len(root.findall(f"{NS}rect")) == len(values)


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(-1, 3)), max_size=20),
    st.lists(st.tuples(texts, texts), min_size=4, max_size=4),
)
def test_scatters_are_well_formed_and_draw_each_grouped_cell_once(cells, names):
    points = np.array([cell[:2] for cell in cells]).reshape(-1, 2)
    groups = np.array([cell[2] for cell in cells], dtype=int)
    looks = [(name, svg.PALETTE[i], badge) for i, (name, badge) in enumerate(names)]
    root = parse(svg.scatter(points, groups, looks, title="view"))
    drawn = sum(path.get("d").count("h0") for path in root.iter(f"{NS}path"))
    assert drawn == (groups >= 0).sum()


@given(st.integers(0, 5), st.integers(0, 5), st.data())
def test_heat_maps_are_well_formed(n_rows, n_columns, data):
    matrix = data.draw(st.lists(counts, min_size=n_rows * n_columns, max_size=n_rows * n_columns))
    rows = data.draw(st.lists(texts, min_size=n_rows, max_size=n_rows))
    columns = data.draw(st.lists(texts, min_size=n_columns, max_size=n_columns))
    root = parse(svg.heat_map(np.array(matrix), rows, columns, title="confusion"))
    assert len(root.findall(f"{NS}rect")) == n_rows * n_columns


def test_bars_are_proportional_and_carry_their_values():
    root = parse(svg.bars(["a", "b"], [("cells", "#000000", [1000, 500])], title="t"))
    long, short = (float(rect.get("width")) for rect in root.findall(f"{NS}rect"))
    assert long == pytest.approx(2 * short, abs=0.2)
    assert [text.text for text in root.findall(f"{NS}text")] == ["a", "1,000", "b", "500"]


def test_long_names_are_cut_and_kept_whole_in_the_title():
    name = "a very long name of a cell type that nobody could ever fit beside a bar"
    text = next(parse(svg.bars([name], [("cells", "#000000", [1])], title="t")).iter(f"{NS}text"))
    assert text.find(f"{NS}title").text == name
    assert "".join(text.itertext()).endswith("…")


def test_heat_map_shows_shares_of_the_truth():
    root = parse(svg.heat_map(np.array([[3, 1], [0, 0]]), ["x", "y"], ["x", "y"], title="t"))
    titles = [title.text for title in root.iter(f"{NS}title")]
    assert "truth x, predicted x: 3 (75%)" in titles
    assert "truth y, predicted y: 0 (0%)" in titles


def test_scatter_keeps_the_points_in_the_frame_and_the_y_axis_up():
    root = parse(svg.scatter(np.array([[0.0, 0.0], [10.0, 10.0]]), np.zeros(2, int), [("a", "#000000", "")], title="t"))
    low, high = (dot.split() for dot in root.find(f"{NS}path").get("d").replace("h0", "").strip("M").split("M"))
    assert float(low[0]) < float(high[0])
    assert float(low[1]) > float(high[1])
    assert all(0 <= float(value) <= 460 for value in low + high)


def test_badges_do_not_cover_each_other():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [50.0, 50.0]])
    looks = [(str(i), svg.PALETTE[i], str(i)) for i in range(3)]
    root = parse(svg.scatter(points, np.arange(3), looks, title="t"))
    assert [text.text for text in root.iter(f"{NS}text")] == ["0", "2"]


def test_the_palette_has_forty_distinct_colours():
    assert len(set(svg.PALETTE)) == 40
    assert svg.OTHER not in svg.PALETTE
