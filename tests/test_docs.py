"""The documentation matches the code: config tables, commands, flags, links."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags as absl_flags

from mmjax.commands import COMMANDS
from mmjax.datasets import DATASETS
from mmjax.encoders import ENCODERS
from mmjax.experiment import ExperimentConfig
from mmjax.fusion import FUSIONS
from mmjax.modalities import MODALITIES
from mmjax.recipe import check_key, load_recipe
from mmjax.tasks import TASKS
from mmjax.training import ESTIMATORS, HOOKS, LOSS_TRANSFORMS, TRANSFORMS
from mmjax.training.optim.schedules import SCHEDULES

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = [
    DATASETS, MODALITIES, ENCODERS, FUSIONS, TASKS, TRANSFORMS, SCHEDULES, ESTIMATORS, LOSS_TRANSFORMS, HOOKS,
]  # fmt: skip


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("make_config_reference")
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def config_page() -> str:
    return (ROOT / "docs" / "config.md").read_text()


def test_the_tables_of_the_config_page_are_those_of_the_code(generator, config_page):
    message = "docs/config.md is out of date: run `python docs/make_config_reference.py`"
    assert generator.reference(config_page) == config_page, message


def test_the_config_page_has_every_section_and_every_table(generator, config_page):
    shown = [generator.look_up(place) for place in generator.places(config_page)]
    for table in TABLES:
        assert any(table is other for other in shown), f"the page has no section for the table {list(table)}"
    for name, annotation in generator.typing.get_type_hints(ExperimentConfig).items():
        assert f"\n## `{name}`\n" in config_page
        if generator.dataclasses.is_dataclass(annotation):
            assert annotation in shown, f"the page has no section for {annotation.__name__}"


def test_an_undocumented_field_is_an_error(generator):
    @generator.dataclasses.dataclass
    class Config:
        """Sizes.

        Attributes:
          width, depth: of the trunk,
            in units.
          kind: one: or two.
        """

        width: int = 1
        depth: int = 2
        kind: str = "one"

    assert generator.attributes(Config) == {
        "width": "of the trunk, in units.",
        "depth": "of the trunk, in units.",
        "kind": "one: or two.",
    }

    @generator.dataclasses.dataclass
    class Wider(Config):
        heads: int = 3

    with pytest.raises(ValueError, match="heads has no line"):
        generator.table(Wider)


def simple_commands(line: str) -> list[list[str]]:
    """Arguments of each command in a line of bash, including those inside `gcloud … --command="…"`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";"):
            commands.append([])
        elif word.startswith("--command="):
            commands[0:0] = simple_commands(word.removeprefix("--command="))
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def shell_commands() -> list:
    """Commands of all bash blocks of the pages."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found += [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for words in simple_commands(line)]
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """Files that the recipe of `docs/own_data.md` reads from a prepared folder."""
    folder = tmp_path_factory.mktemp("prepared")
    sizes = {name: {"mean": 8.0, "median": 8.0, "largest": 8.0} for name in ("height", "width", "channels", "bytes")}
    columns = {name: {"present": 9, "measures": sizes} for name in ("picture", "caption")}
    manifest = {
        "version": 1,
        "inputs": {"picture": "image", "caption": "text"},
        "targets": {"digit": {"kind": "label", "classes": ["0", "1"]}},
        "splits": {"train": {"examples": 9}, "test": {"examples": 9}},
        "shards": {"train": [], "test": []},
        "checksum": "",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "statistics.json").write_text(json.dumps({"train": {"columns": columns}}))
    return folder


@pytest.mark.parametrize("words", shell_commands())
def test_commands_in_the_pages_have_flags_that_exist(words, prepared):
    program, *arguments = words
    if pathlib.Path(program).name == "tpu_setup.sh":
        usage = (ROOT / "tpu_setup.sh").read_text()
        assert all(f"  {argument.partition('=')[0]}" in usage for argument in arguments)
    elif pathlib.Path(program).name == "mmjax":
        config = f"configs/prepared.py:{prepared}"
        check_mmjax(*(re.sub(r"configs/prepared.py:prepared/\w+", config, word) for word in arguments))


def check_mmjax(name: str, *arguments: str) -> None:
    if name in ("--help", "--version"):
        return
    command = importlib.import_module(COMMANDS[name][0])
    flags = absl_flags.FlagValues()
    command.define_flags(flags)
    recipe = next((word for word in arguments if word.startswith("--config=")), "--config=configs/digits.py")
    recipe = recipe.removeprefix("--config=")
    # `mmjax predict` has one flag per input of the run; the recipe of docs/extending.md is written by that page.
    inputs = {"near", "far"} if "runs/gestures" in " ".join(arguments) else set()
    inputs |= {"picture", "caption"} if {"--workdir=runs/mine", "--workdir=runs/photos"} & {*arguments} else set()
    if (ROOT / recipe.partition(":")[0]).is_file():
        recipe = load_recipe(f"{ROOT}/{recipe}")
        inputs |= set(recipe.model.encoders)
    words = [word for word in arguments if not word.startswith("-")]
    assert not words or hasattr(command, "ARGUMENTS"), f"{name} takes no words"
    for word in arguments:
        flag = word.partition("=")[0].removeprefix("--")
        if not word.startswith("-") or flag == "help":
            continue
        if flag.startswith("config."):
            check_key(recipe, flag.removeprefix("config."), word)
        else:
            known = flag in flags or flags.find_module_defining_flag(flag.removeprefix("no"))
            assert known or hasattr(command, "define_dynamic_flags") and flag in inputs, f"{name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_command_beside_each_promise_selects_tests():
    commands = re.findall(r"`(pytest tests/[^`]*)`", (ROOT / "README.md").read_text())
    assert len(commands) > 4
    for command in commands:
        words = shlex.split(command)
        names = [
            name
            for word in words
            if word.startswith("tests/")
            for name in re.findall(r"def (test_\w+)", (ROOT / word).read_text())
        ]
        assert names
        if "-k" in words:
            assert any(words[words.index("-k") + 1] in name for name in names), command
