"""Command line: output, exit codes, and one line instead of a traceback for invalid input."""

from __future__ import annotations

import email.message
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from absl import flags as absl_flags

from mmjax import commands
from mmjax.__main__ import main
from mmjax.commands import doctor
from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError
from mmjax.host import compilation_cache, huge_pages

ROOT = Path(__file__).parents[1]
RECIPE = """
import ml_collections

def get_config(arg="small"):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.size = arg
    config.train = ml_collections.ConfigDict({"steps": 100, "batch_size": 32, "rate": 0.1, "shuffle": True})
    config.views = [1, 2]
    config.limit = None
    return config
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "digits.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def seen(monkeypatch) -> list:
    """Adds the command `fake` (a recipe, a required workdir and arguments); returns the values that it received."""
    calls: list = []

    def define_flags(flags):
        define_config(flags)
        absl_flags.DEFINE_string("workdir", None, "where results go", required=True, flag_values=flags)
        absl_flags.DEFINE_enum("split", "test", ["train", "test"], "which part", flag_values=flags)
        absl_flags.DEFINE_integer("count", 1, "how many", flag_values=flags)

    def run(flags, arguments):
        calls.append((flags, arguments))

    module = types.ModuleType("fake_command", "Does nothing.\n\n    mmjax fake --config=digits.py --workdir=runs\n")
    module.define_flags, module.run = define_flags, run
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(commands.COMMANDS, "fake", ("fake_command", "does nothing"))
    return calls


def refusal(capsys, *words: str) -> str:
    """Runs a command that must fail with exit code 2; returns the one line that it prints."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmjax: error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_without_a_command_every_command_is_listed_with_an_example(capsys):
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in commands.COMMANDS)
        assert "example: mmjax train --config=" in out


def test_listing_the_commands_imports_none_of_them_and_no_jax():
    code = "import sys; from mmjax.__main__ import main; main(['--help']); print([m for m in sys.modules if m == 'jax'"
    code += " or m.startswith('mmjax.commands.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_help_of_a_command_shows_its_docstring_and_flags(capsys, seen):
    assert main(["fake", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: mmjax fake" in out and "mmjax fake --config=digits.py --workdir=runs" in out
    assert "--workdir=STRING" in out and "(train, test) (default: test)" in out and "--config=RECIPE" in out
    assert not seen


def test_an_unknown_command_names_the_nearest(capsys):
    assert "did you mean 'doctor'?" in refusal(capsys, "docter")
    assert "flags come after the command" in refusal(capsys, "--config=x.py", "train")


def test_overrides_change_the_recipe_that_the_command_sees(recipe, seen):
    words = [f"--config={recipe}:large", "--workdir=runs", "--config.train.steps=500", "--config.train.rate=1"]
    words += ["--noconfig.train.shuffle", "--config.views=[3]", "--config.limit=7", "--split=train"]
    assert main(["fake", *words]) == 0
    flags, arguments = seen[0]
    config = flags.config
    assert (config.size, config.train.steps, config.train.rate, config.train.shuffle) == ("large", 500, 1.0, False)
    assert (config.views, config.limit, config.train.batch_size) == ([3], 7, 32)
    assert (flags.workdir, flags.split, arguments) == ("runs", "train", [])


def test_an_override_may_have_another_type_than_the_value_of_the_recipe(recipe, seen):
    words = ["seed=0.5", "train.rate=None", "train.steps=None", "size=None", "views=None", "limit=[1, 2]"]
    assert main(["fake", f"--config={recipe}", "--workdir=runs", *(f"--config.{word}" for word in words)]) == 0
    config = seen[0][0].config
    assert config.seed == 0.5 and config.limit == [1, 2]
    assert config.train.rate is config.train.steps is config.size is config.views is None


def test_an_override_of_text_is_text(recipe, seen):
    assert main(["fake", f"--config={recipe}", "--workdir=runs", "--config.size=12"]) == 0
    assert seen[0][0].config.size == "12"


def test_two_calls_in_one_process_do_not_meet(recipe, seen):
    for steps in (1, 2):
        assert main(["fake", f"--config={recipe}", "--workdir=runs", f"--config.train.steps={steps}"]) == 0
    assert [flags.config.train.steps for flags, _ in seen] == [1, 2]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.train.stpes=5", "--config.train.stpes: the recipe has no key 'stpes' here; did you mean 'steps'?"),
        ("--config.trian.steps=5", "did you mean 'train'?"),
        ("--config.train.zzz=5", "choose from 'batch_size', 'rate', 'shuffle', 'steps'"),
        ("--config.seed.more=5", "the key before 'more' is a value, not a section; remove 'more'"),
        ("--config.train.steps=abc", "give an int"),
        ("--config.train.rate=fast", "give a float"),
        ("--config.train.shuffle=perhaps", "give a bool"),
        ("--config.views=3", "'3' is not a list; give a list"),
        ("--config.train=3", "--config.train: is a section, not a value"),
        ("--config.views[9]=3", "mmjax fake"),
        ("--wrkdir=x", "--wrkdir: unknown flag; did you mean '--workdir'?"),
        ("--split=tset", "did you mean 'test'?"),
        ("--count=many", "--count=many"),
        ("stray", "unexpected 'stray'; flags are written --name=value"),
    ],
)
def test_a_wrong_flag_is_one_line_with_what_would_be_right(capsys, recipe, seen, override, expected):
    assert expected in refusal(capsys, "fake", f"--config={recipe}", "--workdir=runs", override)
    assert not seen


def test_missing_flags_and_wrong_order_are_named(capsys, recipe, seen):
    assert "--workdir: is missing" in refusal(capsys, "fake", f"--config={recipe}")
    assert "--config: is missing" in refusal(capsys, "fake", "--workdir=runs")
    line = refusal(capsys, "fake", "--workdir=runs", "--config.train.steps=5")
    assert "--config.train.steps: overrides a value of --config, which is missing" in line
    assert "--config.seed" in refusal(capsys, "fake", "--config.seed=5", f"--config={recipe}", "--workdir=runs")
    assert "workdir" in refusal(capsys, "fake", f"--config={recipe}", "--workdir")


def test_a_recipe_that_is_not_there_names_the_nearest_file(capsys, recipe, seen):
    line = refusal(capsys, "fake", f"--config={recipe.parent}/digit.py", "--workdir=runs")
    assert "does not exist" in line and f"did you mean '{recipe}'?" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_of_this_name\n", "line 1 raises ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0\n", "line 2 raises ZeroDivisionError: division by zero"),
        ("def get_config():\n    open('not_there')\n", "line 2 raises FileNotFoundError"),
        ("def get_config(:\n", "line 1 raises SyntaxError"),
        ("x = 1\n", "the file has no function get_config"),
        ("def get_config(arg):\n    return {}\n", "missing a required argument"),
        ("def get_config():\n    return {}\n", "get_config returned a dict; return an ml_collections.ConfigDict"),
        (
            "from mmjax.errors import UserError\ndef get_config():\n    raise UserError('arg:x', 'is bad', 'say y')\n",
            "arg:x: is bad; say y",
        ),
    ],
)
def test_a_recipe_that_fails_is_one_line_with_its_line_number(capsys, tmp_path, seen, text, expected):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert expected in refusal(capsys, "fake", f"--config={path}", "--workdir=runs")


def test_exit_codes_distinguish_invalid_input_failure_and_interruption(capsys, monkeypatch, recipe, seen):
    def ending_with(error):
        def run(flags, arguments):
            raise error

        monkeypatch.setattr(sys.modules["fake_command"], "run", run)
        return main(["fake", f"--config={recipe}", "--workdir=runs"])

    assert ending_with(UserError("train.steps", "is 0", "give\n  more")) == 2
    assert capsys.readouterr().err == "mmjax: error: train.steps: is 0; give more\n"
    assert ending_with(KeyboardInterrupt()) == 130
    with pytest.raises(RuntimeError):  # Python prints the traceback and exits with 1.
        ending_with(RuntimeError("a bug"))


def test_grain_finds_absl_flags_parsed(recipe, seen):
    assert main(["fake", f"--config={recipe}", "--workdir=runs"]) == 0
    assert absl_flags.FLAGS.is_parsed()


def test_doctor_reports_versions_devices_and_what_is_missing(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MMJAX_CACHE": str(tmp_path / "data"), "COLUMNS": "80"}
    command = [sys.executable, "-m", "mmjax", "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["versions"]["jax"] and report["devices"][0]["platform"] == "cpu"
    assert report["data"]["folder"] == str(tmp_path / "data") and report["data"]["free_bytes"] > 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(report["extras"]) == set(declared)
    assert set(report["missing"]) == {extra for extra, installed in report["extras"].items() if not installed}
    table = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    assert "python" in table and "data folder" in table and "device" in table and "[/" not in table
    assert all(f"extra {extra}" in table for extra in declared)


def test_an_extra_is_installed_when_all_of_its_requirements_are(monkeypatch):
    """The names and versions are those of invented distributions; `outer` needs an extra of `inner`."""
    versions = {"outer": "1.0", "inner": "2.0", "present": "1.5", "old": "0.9"}
    requires = {
        "outer": ["present", "present>=1; extra == 'good'", "absent; extra == 'bad'", "old>=1.0; extra == 'bad'"]
        + ["inner[deep]; extra == 'nested'", "outer[good,bad]; extra == 'both'"]
        + ["never; extra == 'mac' and sys_platform == 'nowhere'"],
        "inner": ["absent; extra == 'deep'", "present; extra == 'deep'"],
    }
    metadata = email.message.Message()
    for extra in ("good", "bad", "nested", "both", "mac"):
        metadata["Provides-Extra"] = extra

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: (version(name), metadata)[1])
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires[name])
    monkeypatch.setattr(importlib.metadata, "version", version)
    expected = {"good": [], "bad": ["absent", "old>=1.0"], "nested": ["absent"], "mac": []}
    assert doctor.missing_packages("outer") == {**expected, "both": expected["bad"]}
    assert doctor.missing_packages("unknown") == {}


def test_doctor_ends_with_1_where_no_device_starts():
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    command = [sys.executable, "-m", "mmjax", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "no_such_platform" in json.loads(done.stdout)["devices_error"]


@pytest.mark.parametrize(
    ("environment", "setting", "libc", "begins_again"),
    [
        ({}, "always [madvise] never", "glibc 2.36", True),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, "always [madvise] never", "glibc 2.36", True),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "always [madvise] never", "glibc 2.36", False),
        ({}, "[always] madvise never", "glibc 2.36", False),
        ({}, "always madvise [never]", "glibc 2.36", False),
        ({}, "always [madvise] never", "glibc 2.31", False),
        ({}, "always [madvise] never", "", False),
    ],
)
def test_a_command_restarts_only_if_huge_pages_help_and_the_user_set_nothing(environment, setting, libc, begins_again):
    result = huge_pages.huge_page_environment(environment, setting, libc)
    assert (result is not None) == begins_again
    if result:
        assert huge_pages.huge_page_environment(result, setting, libc) is None, "the command restarts itself for ever"
        assert set(filter(None, environment.get("GLIBC_TUNABLES", "").split(":"))) < set(
            result["GLIBC_TUNABLES"].split(":")
        )


def test_compiled_programs_are_kept_unless_the_user_chose_where(tmp_path):
    environment: dict[str, str] = {}
    compilation_cache.enable_compilation_cache(tmp_path, environment)
    folder = Path(environment["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == tmp_path / "compiled" and folder.name.startswith(platform.machine())
    assert not folder.exists(), "a command without compilation must leave no cache folder"
    for chosen in ("", "/elsewhere"):
        environment = {"JAX_COMPILATION_CACHE_DIR": chosen}
        compilation_cache.enable_compilation_cache(tmp_path, environment)
        assert environment == {"JAX_COMPILATION_CACHE_DIR": chosen}


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_trains_the_same(tmp_path, digits_cache):
    environment = {**os.environ, "MMJAX_CACHE": str(digits_cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    environment |= compilation_cache.KEEP_ALL
    recipe = Path(__file__).parent / "matched_recipe.py"
    words = [f"--config={recipe}", "--config.train.steps=3", "--config.schedule.warmup=1"]
    hashes, programs = [], []
    for number in range(2):
        workdir = tmp_path / f"run{number}"
        command = [sys.executable, "-m", "mmjax", "train", *words, f"--workdir={workdir}"]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        hashes.append(json.loads((workdir / "result.json").read_text())["parameters_hash"])
        programs.append(sorted(path.name for path in (tmp_path / "compiled").iterdir()))
    assert hashes[0] == hashes[1]
    assert programs[0] == programs[1] and any("step" in name for name in programs[0])
