"""Tables on the console keep their columns and rows apart at any width."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from mmjax.reporting.overview import print_key_values, print_subsets, wrap_name
from mmjax.reporting.progress import progress_bar


def columns_of(text: str) -> list[str]:
    """The headings of all tables, each as the text of its lines one after the other."""
    headings = []
    for block in text.split("┏")[1:]:
        lines = [line for line in block.split("┡")[0].splitlines()[1:] if line.startswith("┃")]
        cells = [[cell.strip() for cell in line.strip("┃\n").split("┃")] for line in lines]
        headings += ["".join(parts) for parts in zip(*cells, strict=True)]
    return headings


def printed(width: int, inputs: list[str], metrics: list[str], ceilings=None) -> str:
    console = Console(file=io.StringIO(), width=width)
    subsets = ["+".join(each) for count in range(1, len(inputs) + 1) for each in itertools.combinations(inputs, count)]
    rows = {subset: dict.fromkeys(metrics, number / 100) for number, subset in enumerate(subsets)}
    print_subsets(console, "test: metrics", rows, ceilings or {}, metrics)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for metric in metrics:
        assert metric.replace("/", "") in columns_of(text)
    for number in range(len(subsets)):
        assert f"{number / 100:.4f}" in text
    return text


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize(
    "tasks",
    [
        ["answer", "audio_digit", "image_digit", "operation"],
        [f"label_from_{name}_camera" for name in ("left_front", "left_rear", "right_front", "right_rear")],
        [f"averyveryverylongtaskname{letter}" for letter in "abc"],
        [f"averyveryverylongtask{letter}name" for letter in "abc"],
        [f"digit_{number}" for number in range(20)],
    ],
)
def test_headings_and_rows_are_distinguishable_whatever_their_common_prefix_or_suffix(width, tasks):
    text = printed(width, ["audio", "image", "text"], [f"{task}/accuracy" for task in tasks])
    assert "audio+image+text" in text


def test_long_names_of_inputs_are_wrapped_between_names():
    inputs = ["camera_front_left", "camera_front_right", "description", "lidar_roof"]
    text = printed(80, inputs, ["label/accuracy", "label_from_lidar/accuracy"])
    assert "camera_front_left+" in text and "┃ inputs" in text


def test_the_ceiling_stands_beside_its_metric():
    ceilings = {"answer/accuracy": dict.fromkeys(["audio", "image", "audio+image"], 0.5)}
    text = printed(80, ["audio", "image"], ["answer/accuracy", "other/accuracy"], ceilings)
    assert columns_of(text) == ["inputs", "answeraccuracy", "bestpossible", "otheraccuracy"]


def test_a_name_is_broken_after_separators_and_never_shortened():
    assert wrap_name("digit", 10, "_") == "digit"
    assert wrap_name("image_digit", 10, "_") == "image_\ndigit"
    assert wrap_name("a_b_c_d_e_f", 4, "_") == "a_b_\nc_d_\ne_f"
    for name in ("supercalifragilistic", "_leading", "trailing_", "a__b", "x" * 31 + "_y"):
        lines = wrap_name(name, 7, "_").split("\n")
        assert "".join(lines) == name and max(map(len, lines)) <= 7


def test_a_path_that_is_longer_than_a_line_can_be_copied():
    console, path = Console(file=io.StringIO(), width=80), "/folder" * 20 + "/card.html"
    print_key_values(console, "output files", {"data card": path})
    print_key_values(console, "title", {"a": "1", "long name": "[bold]"})
    expected = f"output files\ndata card  {path}\ntitle\na          1\nlong name  [bold]\n"
    assert console.file.getvalue() == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_counts_on_a_terminal_and_is_silent_elsewhere(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with progress_bar(console, "evaluating test", 3) as advance:
        for _ in range(3):
            advance()
    text = console.file.getvalue()
    assert ("evaluating test" in text and "3/3" in text) if terminal else text == ""
