import pytest
from PIL import Image

from llmctl.config.errors import UsageError
from llmctl.train.curves import Curve, curves_of, draw, text

ROWS = [
    {"step": 1, "loss": 4.0, "tokens": 10},
    {"step": 2, "loss": 2.0, "tokens": 30},
    {"step": 2, "heldout_loss": 3.0, "tokens": 30},
    {"step": 3, "incident": "the loss is nan", "rows": [1, 2]},
    {"step": 4, "loss": 1.0, "tokens": 50},
]


def test_a_curve_is_the_rows_that_have_the_figure():
    found = curves_of({"a": ROWS, "b": ROWS[:1]}, ["loss", "heldout_loss"], "tokens", 0.0)
    assert found["loss"] == [Curve("a", [10.0, 30.0, 50.0], [4.0, 2.0, 1.0]), Curve("b", [10.0], [4.0])]
    assert found["heldout_loss"] == [Curve("a", [30.0], [3.0])]


def test_smoothing_is_a_weighted_mean_from_the_first_point_on():
    [curve] = curves_of({"a": ROWS}, ["loss"], "step", 0.5)["loss"]
    assert curve.y == pytest.approx([4.0, (0.5 * 4 + 2) / 1.5, (0.25 * 4 + 0.5 * 2 + 1) / 1.75])


def test_an_unknown_figure_names_the_known_ones():
    with pytest.raises(UsageError, match="no run has a figure lost") as caught:
        curves_of({"a": ROWS}, ["lost"], "step", 0.0)
    assert caught.value.hint == "known: heldout_loss, incident, loss"


def test_the_picture_has_a_chart_for_each_figure(tmp_path):
    curves = curves_of({"a$1": ROWS, "b": ROWS}, ["loss", "heldout_loss"], "step", 0.0)
    draw(curves, "step", tmp_path / "two.png")
    draw({"loss": curves["loss"]}, "step", tmp_path / "one.png")
    sizes = [Image.open(tmp_path / name).size for name in ("two.png", "one.png")]
    assert sizes == [(1800, 504), (900, 504)]
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_terminal_gets_plain_characters_of_the_width_that_was_asked_for():
    curves = curves_of({"a": ROWS, "b": ROWS[:2]}, ["loss"], "step", 0.0)
    drawn = text(curves, "step", 60, 12)
    assert "\x1b" not in drawn
    assert {len(line) for line in drawn.splitlines()} == {60}
    assert len(drawn.splitlines()) == 12
    assert "loss" in drawn
    assert " a " in drawn
    assert drawn == text(curves, "step", 60, 12)
