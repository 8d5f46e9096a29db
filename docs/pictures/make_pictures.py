"""Writes the pictures of README: the terminal at the end of a run, and the top of a data card.

    python docs/pictures/make_pictures.py --workdir=runs/digits --card=prepared/mine/card.html

--workdir is a finished run of `configs/digits.py`. --card is the data card that docs/own_data.md makes; its picture
needs the program `chromium`.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import re
import shutil
import subprocess
import tempfile

import PIL.Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI

from mmjax.recipe import load_recipe
from mmjax.runs.run import train

FOLDER = pathlib.Path(__file__).parent
WIDTH, HEIGHT, COLOURS = 1000, 1050, 64


def terminal(workdir: pathlib.Path) -> str:
    """Prints the run's summary and its final evaluation once more. Returns the terminal as SVG."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=False, color_system="truecolor")
    train(load_recipe("digits"), workdir, console)
    # Without the web fonts of rich's template, so that viewers load nothing from other hosts.
    template = re.sub(r"@font-face \{\{.*?\}\}\n?", "", CONSOLE_SVG_FORMAT, flags=re.S)
    svg = console.export_svg(title="mmjax train", theme=MONOKAI, code_format=template, unique_id="terminal")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def card(page: pathlib.Path) -> PIL.Image.Image:
    """Renders the top of a data card, with few colours so that the file is small."""
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder, "card.png")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}"]
        subprocess.run([*command, page.absolute().as_uri()], check=True, capture_output=True)
        with PIL.Image.open(picture) as image:
            return image.convert("RGB").quantize(COLOURS, dither=PIL.Image.Dither.NONE)


def main() -> None:
    """Writes the pictures that the flags ask for beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path)
    parser.add_argument("--card", type=pathlib.Path)
    flags = parser.parse_args()
    if flags.workdir:
        (FOLDER / "terminal.svg").write_text(terminal(flags.workdir))
    if flags.card:
        if not shutil.which("chromium"):
            parser.error("--card needs the program chromium; apt-get install chromium")
        card(flags.card).save(FOLDER / "card.png", optimize=True)


if __name__ == "__main__":
    main()
