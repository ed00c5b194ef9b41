"""Heat maps: heat where the numbers are, units beside it, text that wraps, and hostile text as it is."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest

from mmft.report import heat_maps
from mmft.report.figures import ORANGE
from mmft.report.heat_maps import (
    MAX_TOKENS,
    Choice,
    HeatMap,
    HeatPicture,
    HeatToken,
    draw_heat_map,
    flow,
    visible,
)

GREY = PIL.Image.new("RGB", (40, 40), (128, 128, 128))


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def heat(patches: list[float], grid: tuple[int, int], picture: PIL.Image.Image = GREY) -> HeatMap:
    return HeatMap("log-prob", [HeatPicture(picture, grid, patches)], [], {})


def panel(path: Path) -> np.ndarray:
    """The picture under its heat: what the drawing puts 3.4 inches from the left, 3 inches wide."""
    drawn = pixels(path)
    top = round(150 * (heat_maps.MARGIN + heat_maps.HEAD))
    return drawn[top : top + 450, 510 : 510 + 450]


def words(*texts: str, part: str = "answer") -> list[HeatToken]:
    return [HeatToken(text, 1.0, part) for text in texts]


def measure(text: str) -> float:
    return float(len(text))


def test_each_patch_gets_the_colour_of_its_number_at_its_place(tmp_path: Path):
    draw_heat_map(heat([0.0, 1.0, 2.0, 4.0, 0.0, 0.0], (2, 3)), tmp_path / "heat.png")
    drawn = panel(tmp_path / "heat.png")
    shades = matplotlib.colormaps[heat_maps.HEAT]
    for (row, column), number in {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 0): 4, (1, 2): 0}.items():
        seen = drawn[225 * row + 112, 150 * column + 75]
        # Over grey: veil * colour + (1 - veil) * 128.
        colour = 255 * np.array(shades(number / 4)[:3])
        expected = heat_maps.VEIL * colour + (1 - heat_maps.VEIL) * 128
        assert np.abs(seen - expected).max() <= 3


def test_the_scale_begins_at_zero_so_that_even_heat_shines(tmp_path: Path):
    draw_heat_map(heat([3.0, 4.0], (1, 2)), tmp_path / "heat.png")
    drawn = panel(tmp_path / "heat.png")
    colour = 255 * np.array(matplotlib.colormaps[heat_maps.HEAT](3 / 4)[:3])
    expected = heat_maps.VEIL * colour + (1 - heat_maps.VEIL) * 128
    assert np.abs(drawn[225, 100] - expected).max() <= 3


def test_the_picture_stands_upright_beside_and_under_its_heat(tmp_path: Path):
    picture = PIL.Image.new("RGB", (40, 40), "black")
    picture.paste("white", (0, 0, 40, 20))
    draw_heat_map(heat([1.0], (1, 1), picture), tmp_path / "heat.png")
    drawn = pixels(tmp_path / "heat.png")
    top = round(150 * (heat_maps.MARGIN + heat_maps.HEAD))
    for left in (38, 510):
        assert drawn[top + 100, left + 225].sum() > drawn[top + 350, left + 225].sum() + 200


def test_the_heat_of_a_wide_picture_lies_on_the_picture(tmp_path: Path):
    wide = GREY.resize((400, 100))
    draw_heat_map(heat([0.0, 0.0, 0.0, 1.0], (1, 4), wide), tmp_path / "heat.png")
    drawn = panel(tmp_path / "heat.png")[:112]
    assert drawn[56, 420].sum() > drawn[56, 40].sum() + 150  # the last quarter shines


def test_patches_that_do_not_fill_the_grid_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`patches` has 3 numbers for a `grid` of 2 x 2"):
        draw_heat_map(heat([0.0, 1.0, 2.0], (2, 2)), tmp_path / "heat.png")


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (900, 7), (2000, 1500)])
def test_pictures_of_any_shape_are_drawn(size: tuple[int, int], tmp_path: Path):
    draw_heat_map(heat([1.0] * 4, (2, 2), PIL.Image.new("RGB", size, "red")), tmp_path / "heat.png")
    assert pixels(tmp_path / "heat.png").shape[1] == round(150 * heat_maps.WIDTH)


def test_a_picture_without_a_grid_is_shown_without_heat(tmp_path: Path):
    draw_heat_map(HeatMap("log-prob", [HeatPicture(GREY)], [], {}), tmp_path / "heat.png")
    drawn = panel(tmp_path / "heat.png")
    assert (drawn[40:-40, 40:-40] == 128).all()


def test_numbers_that_are_all_zero_are_drawn(tmp_path: Path):
    tokens = [HeatToken("a", 0.0), HeatToken("b", 0.0, "answer")]
    nothing = HeatMap("nothing", [HeatPicture(GREY, (1, 1), [0.0])], tokens, {"image": 0.0, "prompt": 0.0})
    draw_heat_map(nothing, tmp_path / "heat.png")
    assert panel(tmp_path / "heat.png")[100, 100].max() < 128  # dark, and not the brightest of the scale


def test_hostile_text_is_drawn_as_it_is(tmp_path: Path):
    texts = (
        "$",
        r"$\frac{1}{0",
        "$$",
        "%s {}",
        "\x00\x1b[31m",
        "\u202eabc",
        "\ud800",
        "漢字",
        "a" * 5000,
        "",
    )
    tokens = words(*texts) + words(*texts, part="prompt")
    hostile = HeatMap(
        r"$\undefined{" * 50,
        [HeatPicture(GREY, (1, 1), [1.0])],
        tokens,
        {r"$im$": 0.5, "prompt": 0.5},
        unit=r"$\x$",
        choices=[Choice(r"$\y$", 1.0, chosen=True)],
        score=r"$\z$",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_heat_map(hostile, tmp_path / "heat.png")
    assert (tmp_path / "heat.png").is_file()


def test_a_dollar_sign_is_no_formula(tmp_path: Path):
    """Formulas would be set in italics without their dollars: three signs less, and narrower."""
    sizes = {}
    for name, text in {"formula": "$abc$", "dollars": "€abc€"}.items():
        draw_heat_map(HeatMap(text, [], [], {}), tmp_path / f"{name}.png")
        inked = (pixels(tmp_path / f"{name}.png") < 128).any(-1).nonzero()[1]
        sizes[name] = int(inked.max() - inked.min())
    assert abs(sizes["formula"] - sizes["dollars"]) <= 3


def test_lines_hold_every_token_in_order_and_end_before_the_edge():
    tokens = words(*[f" word{number}" for number in range(100)], "x" * 300)
    lines = flow(tokens, 40.0, measure)
    assert "".join(piece for line in lines for *_, piece in line) == "".join(each.text for each in tokens)
    assert all(left + wide <= 40.0 for line in lines for left, wide, *_ in line)
    assert all(line for line in lines)


def test_lines_put_tokens_side_by_side():
    (line,) = flow(words("ab", "cde"), 10.0, measure)
    assert [(left, wide) for left, wide, *_ in line] == [(0.0, 2.0), (2.0, 3.0)]


def test_control_characters_are_visible():
    assert visible("a\nb\tc\u202ed\x00") == "a↵b    c·d·"


def test_of_a_long_answer_the_beginning_is_shown_and_of_a_long_prompt_the_end():
    both = [
        *(HeatToken(str(number), 0.0, "prompt") for number in range(MAX_TOKENS + 5)),
        *(HeatToken(str(number), 0.0, "answer") for number in range(MAX_TOKENS + 5)),
    ]
    (read, prompt), (said, answer) = heat_maps._sections(both, lambda text: 0.01)
    assert "5 more tokens" in read
    assert "5 more tokens" in said
    assert prompt[0][0][2].text == "5"
    assert answer[-1][-1][2].text == str(MAX_TOKENS - 1)


def test_an_important_token_is_darker_than_another(tmp_path: Path):
    tokens = [HeatToken("mmmm", 0.0, "answer"), HeatToken("mmmm", 5.0, "answer")]
    draw_heat_map(HeatMap("", [], tokens, {}), tmp_path / "heat.png")
    shades = matplotlib.colormaps[heat_maps.SHADE]
    drawn = pixels(tmp_path / "heat.png")
    counts = []
    for number in (0.0, heat_maps.DARKEST):
        colour = 255 * np.array(shades(number)[:3])
        counts.append(int((np.abs(drawn - colour).max(-1) < 4).sum()))
    assert min(counts) > 500


def test_the_marked_token_has_a_frame(tmp_path: Path):
    for name, marked in {"marked": True, "plain": False}.items():
        token = HeatToken("star", 0.0, "answer", marked)
        draw_heat_map(HeatMap("", [], [token], {}), tmp_path / f"{name}.png")
    blue = [31, 95, 168]
    amounts = {
        name: int((np.abs(pixels(tmp_path / f"{name}.png") - blue).max(-1) < 30).sum())
        for name in ("marked", "plain")
    }
    assert amounts["marked"] > 100
    assert amounts["plain"] == 0


def test_the_chosen_action_is_orange_and_the_best_others_are_shown(tmp_path: Path):
    choices = [Choice(str(number), float(number)) for number in range(20)]
    choices[0] = Choice("0", 0.5, chosen=True)
    choices[19] = Choice("19", 99.0, legal=False)
    shown = [each.name for each in heat_maps._shown(choices)]
    assert shown == ["0", "10", "11", "12", "13", "14", "15", "16", "17", "18"]
    draw_heat_map(HeatMap("", [], [], {}, choices=choices, score="Q(s, a)"), tmp_path / "heat.png")
    orange = [int(ORANGE[place : place + 2], 16) for place in (1, 3, 5)]
    assert (np.abs(pixels(tmp_path / "heat.png") - orange).max(-1) < 12).sum() > 20


def test_shares_are_as_long_as_they_are_large(tmp_path: Path):
    lengths = {}
    for share in (0.25, 0.5):
        draw_heat_map(HeatMap("", [], [], {"image": share}), tmp_path / "heat.png")
        blue = (np.abs(pixels(tmp_path / "heat.png") - [31, 95, 168]).max(-1) < 12).any(0).nonzero()[0]
        lengths[share] = int(blue.max() - blue.min())
    assert lengths[0.5] == pytest.approx(2 * lengths[0.25], abs=3)
