"""Figures show the record's numbers, and an entrant looks the same in all of them."""

from __future__ import annotations

import pytest

from report.record_factory import ENTRANTS, make_record, make_tree
from slipstream.records.record import parse_record
from slipstream.records.schema import Entrant, Node
from slipstream.report.style import METHOD_COLOURS, PEER_LOOKS, drawing, looks, shade
from slipstream.report.tree_picture import depths_of, rows_of, visible


def entrant(name, method, kind="ours"):
    return Entrant(name, kind, method, {})


def test_no_two_methods_and_no_two_peers_look_alike():
    assert len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS) == 11
    assert len(set(PEER_LOOKS.values())) == len(PEER_LOOKS) == 9
    assert not {colour for colour, _ in PEER_LOOKS.values()} & set(METHOD_COLOURS.values())


def test_a_method_keeps_its_colour_whoever_else_runs_and_variants_get_lighter():
    alone = looks([entrant("eagle2", "eagle2")])
    among = looks([entrant("plain", "plain"), entrant("eagle2", "eagle2"), entrant("eagle2-60", "eagle2")])
    assert alone["eagle2"] == among["eagle2"]
    assert among["eagle2"].colour == METHOD_COLOURS["eagle2"]
    assert among["eagle2-60"].colour == shade(METHOD_COLOURS["eagle2"], 1) == "#4598C7"


def test_peers_are_hatched_or_grey_never_in_a_method_s_colour():
    found = looks([entrant("hf-assisted", "hf-assisted", "peer"), entrant("mine", "eagle2", "peer")])
    assert found["hf-assisted"].hatch
    assert found["mine"].hatch
    assert found["mine"].colour != METHOD_COLOURS["eagle2"]


def test_bars_hold_the_record_s_figures():
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")
    from slipstream.report.bars import speed_by_task

    data = make_record(temperatures=[0.0], tasks=["gsm8k"], entrants=ENTRANTS[:3])
    data["rows"][1]["ratio_to_plain"] = None  # eagle2 on gsm8k
    with drawing("test"):
        figure = speed_by_task(parse_record(data), 0.0)
    task, everything = figure.axes
    assert [label.get_text() for label in task.get_yticklabels()] == ["eagle2", "plain", "eagle2-60"]
    assert [bar.get_width() for bar in everything.patches] == [1.5 * 1.1, 1.0, 0.75 * 1.1]
    assert [bar.get_width() for bar in task.patches] == [1.0, 0.75]
    assert [text.get_text() for text in task.texts] == ["-", "1.00", "0.75"]


def test_a_tree_s_first_children_stay_in_their_parent_s_row():
    nodes = parse_record(make_record(trees=[make_tree("eagle2", 0.0, num_nodes=6)])).trees[0].nodes
    assert [node.parent for node in nodes] == [-1, 0, -1, 0, -1, 0]
    assert depths_of(nodes) == [1, 2, 1, 2, 1, 2]
    assert rows_of(nodes) == [0, 0, 3, 1, 4, 2]
    assert rows_of([Node("a", -1, 1.0, 1.0, True)]) == [0]


def test_token_texts_are_made_visible():
    assert visible(" a\n") == "␣a↵"
    assert visible("\x07\u202e") == "<07><2…"
    assert visible("generation") == "genera…"


def test_one_answer_s_quartile_does_not_stretch_the_axis():
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")
    from slipstream.report.bars import speed_by_task

    data = make_record(temperatures=[0.0])
    with drawing("speed"):
        before = speed_by_task(parse_record(data), 0.0).axes[0].get_xlim()
    for row in data["rows"]:
        if row["entrant"] == "eagle2":
            row["ratio_to_plain_spread"] = {"median": 1.8, "q1": 1.0, "q3": 40.0}
    with drawing("speed"):
        figure = speed_by_task(parse_record(data), 0.0)
    assert figure.axes[0].get_xlim() == before
    assert any(line.get_marker() == ">" for line in figure.axes[-1].lines)


def test_the_axis_of_positions_ends_above_the_highest_point():
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")
    from slipstream.report.nodes import positions

    data = make_record(temperatures=[0.0])
    for one in data["positions"]:
        for place in one["positions"].values():
            place.update(acceptance=0.1, acceptance_when_sure=0.2, acceptance_when_unsure=0.0)
    with drawing("positions"):
        panels = [axes for axes in positions(parse_record(data), 0.0).axes if axes.get_visible() and axes.axison]
    assert panels
    assert all(0.2 < axes.get_ylim()[1] < 0.3 for axes in panels)
