"""Figures and pages of the planner: one for each answer, complete in itself."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from placement.cli.page import figure_of, save
from placement.cli.plots.style import styled
from placement.cli.serving_tables import group_table, model_table
from tests.unit.planner_answers import (
    CAPACITY,
    COMPARE,
    EMPTY_FRONT,
    EXPLAIN,
    FRONT,
    PLAN,
    SERVING,
)

NAMED = {
    "plan": PLAN,
    "serving": SERVING,
    "capacity": CAPACITY,
    "compare": COMPARE,
    "explain": EXPLAIN,
    "front": FRONT,
    "empty-front": EMPTY_FRONT,
}


class Outline(HTMLParser):
    """What a page has, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")


@pytest.mark.parametrize("name", NAMED)
def test_every_answer_has_a_figure(name: str):
    with styled():
        assert figure_of(NAMED[name]).axes


def test_answer_without_a_figure_is_an_error():
    with pytest.raises(TypeError, match="str has no figure"):
        figure_of("text")


def test_capacity_has_a_panel_for_each_sweep_and_a_line_for_each_policy():
    with styled():
        panels = figure_of(CAPACITY).axes

    assert len(panels) == 4
    names = {line.get_label() for line in panels[0].lines}
    assert {"ours", "alpaserve"} <= names


def test_image_is_a_png(tmp_path: Path):
    save(tmp_path / "plan.png", "Plan", COMPARE, (), ())

    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_page_has_figure_and_tables_and_fetches_nothing(tmp_path: Path):
    tables = (group_table(SERVING.groups), model_table(SERVING, 0.99))

    save(tmp_path / "plan.html", "Plan <of> mine", PLAN, tables, ("A & B.",))

    text = (tmp_path / "plan.html").read_text()
    outline = Outline(text)
    assert (outline.tags.count("svg"), outline.tags.count("table")) == (1, 2)
    assert outline.fetched == []
    assert "Plan &lt;of&gt; mine" in text
    assert "A &amp; B." in text


def test_equal_answers_make_equal_pages(tmp_path: Path):
    for name in ("one.html", "two.html"):
        save(tmp_path / name, "Front", COMPARE, (), ())

    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()
