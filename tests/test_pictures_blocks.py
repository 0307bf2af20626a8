"""Pictures of flows that were trained block by block, seen as what is drawn in their panels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_blocks import SOLID, oval, record, run, stage

from flowzoo.bench import pictures
from flowzoo.bench.canvas import box_around
from flowzoo.bench.pictures_blocks import block_densities, blocks, depths
from flowzoo.bench.trained import load_trained
from flowzoo.flow import Chain
from flowzoo.traces import Exact

# --- NLL and movement -------------------------------------------------------------------------

FIRST = [stage("block 1", 1, 3.0, 0.9), stage("block 2", 2, 2.0, 0.1)]
EVENED = [
    stage("block 1, reparametrised 1", 1, 2.5, 0.6),
    stage("block 2, reparametrised 1", 2, 1.9, 0.5),
]
TUNED = {"stage": "all blocks", "nll": 1.8, "steps": 3}


def lines(axis):
    """Return what is drawn: (label, x, y) of each line."""
    return [
        (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines
    ]


def drawn(records):
    figure = blocks(records)
    assert figure is not None
    return figure


def test_a_line_for_each_pass_and_movement_beside_it():
    left, right = drawn([record(FIRST + EVENED + [TUNED], entropy=1.7)]).axes
    assert lines(left) == [
        ("first pass", [1, 2], [3.0, 2.0]),
        ("reparametrised 1", [1, 2], [2.5, 1.9]),
        ("all blocks", [0, 1], [1.8, 1.8]),
        ("entropy", [0, 1], [1.7, 1.7]),
    ]
    assert lines(right) == [
        ("first pass", [1, 2], [0.9, 0.1]),
        ("reparametrised 1", [1, 2], [0.6, 0.5]),
    ]
    assert left.get_title() == "chain on dots"
    assert (left.get_ylabel(), right.get_ylabel()) == ("NLL (nats)", "movement")
    styles = {(line.get_color(), line.get_marker()) for line in right.lines}
    assert len(styles) == 2


def test_nlls_are_in_the_coordinates_of_the_data():
    scaled = {"dim": 2, "standardised": {"mean": [0, 0], "std": [1, 1], "ladj": -2.0}}
    left, right = drawn([record(FIRST, dataset=scaled)]).axes
    assert lines(left)[0][2] == [5.0, 4.0]
    assert lines(right)[0][2] == [0.9, 0.1]


def test_a_row_for_each_flow_and_data_set_with_all_seeds_in_it():
    records = [
        record(FIRST), record(FIRST, seed=1), record(FIRST + EVENED, "other"),
        record(FIRST, data="rings"), record([{"stage": "likelihood"}], "whole"),
    ]  # fmt: skip
    figure = drawn(records)
    assert [axis.get_title() for axis in figure.axes[::2]] == [
        "chain on dots", "other on dots", "chain on rings"
    ]  # fmt: skip
    assert [len(axis.lines) for axis in figure.axes[::2]] == [2, 2, 1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first pass", "reparametrised 1"]
    colours = {line.get_color() for axis in figure.axes for line in axis.lines
               if line.get_label() == "first pass"}  # fmt: skip
    assert len(colours) == 1


def test_without_blocks_there_is_no_figure():
    assert blocks([record([{"stage": "likelihood", "steps": 3}])]) is None
    assert blocks([]) is None


def test_a_missing_number_is_left_out():
    broken = [FIRST[0], {**FIRST[1], "nll": None}, stage("block 3", 3, 1.0)]
    left, _ = drawn([record(broken)]).axes
    assert lines(left)[0][1:] == ([1, 3], [3.0, 1.0])


@pytest.mark.parametrize(
    ("n", "shown"),
    [(1, [1]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (16, [1, 3, 5, 7, 10, 12, 14, 16])],
)
def test_at_most_eight_depths_are_drawn(n, shown):
    assert depths(n) == shown


@pytest.mark.parametrize("n", range(9, 40))
def test_depths_are_even_and_end_with_the_whole_chain(n):
    found = depths(n)
    assert len(found) == 8
    assert (found[0], found[-1]) == (1, n)
    assert np.ptp(np.diff(found)) <= 1


# --- densities --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(0)
    return run(tmp_path_factory.mktemp("pictures"), ["noisy", "whole"], [1, 0], [SOLID])


@pytest.fixture(scope="module")
def figure(store):
    made = block_densities(store, store.records())
    assert made is not None
    return made


@pytest.fixture(scope="module")
def trained(store):
    """Return the flow of the first seed of the run, which is seed 1."""
    known = store.records()[0]
    assert (known.label, known.seed) == ("noisy", 1)
    return load_trained(store.folder / known.folder)


def first(trained, k):
    """Return the chain of the first k blocks, with exact divergences."""
    return Chain(trained.flow.flows()[:k]).with_numerics(trace=Exact()).eval()


def test_two_rows_for_the_one_chain_on_2d_data(figure):
    assert len(figure.axes) == 2 * 4
    titles = ["data", "1 block", "2 blocks", "3 blocks"]
    assert [axis.get_title() for axis in figure.axes[:4]] == titles
    assert figure.axes[0].get_ylabel().endswith("noisy")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_density_is_that_of_the_first_blocks(figure, trained, k):
    box = box_around(torch.tensor(oval(80)))
    image = np.asarray(figure.axes[k].images[0].get_array())
    side = len(image)
    x, y = (np.linspace(a, b, side) for a, b in box.T.tolist())
    grid = [[(a, b) for a in x] for b in y]  # rows are of the second coordinate
    inside = trained.scale.forward(torch.tensor(grid).reshape(-1, 2)).float()
    with torch.no_grad():
        expected = first(trained, k).log_prob(inside) + trained.scale.ladj
    np.testing.assert_allclose(image, expected.exp().reshape(side, side), rtol=1e-4, atol=1e-7)
    cell = float((box[1] - box[0]).prod()) / (side - 1) ** 2
    assert image.sum() * cell == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_points_are_the_test_points_after_so_many_blocks(figure, trained, k):
    x = trained.scale.forward(torch.tensor(oval(80))).float()
    with torch.no_grad():
        expected = first(trained, k).encode(x).z if k else x
    (line,) = figure.axes[4 + k].lines
    np.testing.assert_allclose(np.stack(line.get_data(), 1), expected, atol=1e-5)


def test_pushed_points_share_a_box_that_holds_the_noise(figure):
    boxes = {(*axis.get_xlim(), *axis.get_ylim()) for axis in figure.axes[4:]}
    ((left, right, low, high),) = boxes
    assert max(left, low) < -3
    assert min(right, high) > 3
    assert right - left == pytest.approx(high - low)


def test_a_run_s_pictures_have_the_blocks(store, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "densities", lambda *_: None)  # drawn elsewhere
    files = pictures.draw_run(store.folder, tmp_path)
    made = {f"{name}.{end}" for name in ("curves", "blocks", "block-densities")
            for end in ("png", "pdf")}  # fmt: skip
    assert {file.name for file in files} == made
    assert all(file.stat().st_size > 2000 for file in files)


def test_of_other_flows_there_are_no_densities(store):
    others = [r for r in store.records() if r.label == "whole" or r.dataset["dim"] == 3]
    assert len(others) == 6
    assert block_densities(store, others) is None
