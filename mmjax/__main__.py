"""Command line entry point: `mmjax COMMAND --flags`, or `python -m mmjax COMMAND --flags`.

`mmjax.errors.ExitCode` lists the exit codes, and `mmjax.commands` the commands.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from absl import flags as absl_flags

from mmjax import __version__
from mmjax.commands import COMMANDS
from mmjax.errors import ExitCode, Restart, RunError, UserError, nearest
from mmjax.files import cache_folder
from mmjax.host.compilation_cache import enable_compilation_cache
from mmjax.host.huge_pages import use_huge_pages
from mmjax.host.interruption import TERMINATIONS, handle_signals
from mmjax.host.libtpu import expects_tpu, use_as_compiler
from mmjax.host.quiet import quiet_libraries
from mmjax.host.simulated_devices import set_thread_count
from mmjax.host.streams import open_standard_streams

_MAX_NAME = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `arguments` defaults to `sys.argv[1:]`."""
    if arguments is not None:
        return _exit_code(lambda: _run(list(arguments)))
    use_huge_pages()
    open_standard_streams()
    with handle_signals(*TERMINATIONS):
        return _exit_code(_run_process)


def _run_process() -> int:
    """Sets up this process and runs the command of its command line."""
    enable_compilation_cache(cache_folder(), os.environ)
    set_thread_count(os.environ)
    if not expects_tpu(os.environ):
        use_as_compiler(os.environ)
    return _run(sys.argv[1:])


def _exit_code(run: Callable[[], int]) -> int:
    """Runs one command; prints its error as one line."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except Restart as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return error.exit_code
    except (UserError, RunError) as error:
        print(f"mmjax: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"mmjax: interrupted: {error}".removesuffix(": "), file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("help", "-h", "-help", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"mmjax {__version__}")
        return 0
    # Names of files may be undecodable, and the locale may be ASCII.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    name, *argv = argv
    if name.startswith("-"):
        raise UserError(f"mmjax {name}", "flags come after the command", "write mmjax COMMAND --flags")
    if name not in COMMANDS:
        raise UserError(f"mmjax {name}", f"unknown command {name!r}", nearest(name, COMMANDS))
    quiet_libraries()
    command = importlib.import_module(COMMANDS[name][0])
    flags = absl_flags.FlagValues()
    command.define_flags(flags)
    before_dashes = argv[: argv.index("--")] if "--" in argv else argv
    show_help = bool({"-h", "-help", "--help"} & set(before_dashes))
    if hasattr(command, "define_dynamic_flags"):
        with _file_errors():
            command.define_dynamic_flags(flags, argv, show_help)
    if show_help:
        print(_help(name, command, flags))
        return 0
    with _file_errors():
        arguments = _parse(name, flags, argv)
    if arguments and not hasattr(command, "ARGUMENTS"):
        where = f"mmjax {name} {arguments[0]}"
        raise UserError(where, f"unexpected {arguments[0]!r}", "flags are written --name=value")
    # Grain's worker processes read absl's global flags, which mmjax does not parse.
    absl_flags.FLAGS.mark_as_parsed()
    with _file_errors():
        return command.run(flags, arguments) or 0


@contextlib.contextmanager
def _file_errors() -> Iterator[None]:
    """Converts an error of a file that no other code handles to a UserError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        remedy = "check the path, its permissions and the free space"
        raise UserError(repr(error.filename), error.strerror or type(error).__name__, remedy) from error


def _parse(name: str, flags: absl_flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses `argv`, which excludes the command name, into `flags`. Returns the positional arguments."""
    help_hint = f"`mmjax {name} --help` shows the flags"
    for word in argv:
        # Absl compares an unknown name with all flags, recursively over its letters.
        if word.startswith("-") and len(word.partition("=")[0]) > _MAX_NAME:
            raise UserError(f"{word[:40]}…", f"the name of a flag has more than {_MAX_NAME} characters", help_hint)
    try:
        with _argv(["mmjax", *argv]):
            return flags(["mmjax", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        where = f"--{error.flagname}"
        section = error.flagname.partition(".")[0].removeprefix("no")
        if section != error.flagname and section in flags:
            remedy = f"give --{section}=configs/NAME.py first"
            raise UserError(where, f"overrides a value of --{section}, which is missing", remedy) from error
        known = [f"--{flag}" for flag in flags if "." not in flag]
        raise UserError(where, "unknown flag", nearest(where, known)) from error
    except absl_flags.IllegalFlagValueError as error:
        text = str(error)
        missing = re.findall(r"Flag --(\S+) must have a value other than None", text)
        if missing:
            flag = f"--{missing[0]}"
            raise UserError(flag, "is missing", f"give {flag}=VALUE; {help_hint}") from error
        where, _, problem = text.removeprefix("flag ").partition(": ")
        once = problem.startswith("already defined as")
        remedy = f"give {where.partition('=')[0]} once" if once else _valid_value(flags, where)
        raise UserError(where, problem, remedy) from error
    except absl_flags.Error as error:
        raise UserError(f"mmjax {name}", str(error), help_hint) from error
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # config_flags raises these for overrides that it cannot resolve, for example `--config.layers[9]=1`.
        raise UserError(f"mmjax {name}", f"{type(error).__name__}: {error}", help_hint) from error


def _valid_value(flags: absl_flags.FlagValues, where: str) -> str:
    """Returns a remedy that names the valid values of the flag in `where`, "--NAME=VALUE"."""
    flag, _, value = where.removeprefix("--").partition("=")
    if flag not in flags:
        return "give another value"
    parser = flags[flag].parser
    if isinstance(parser, absl_flags.EnumParser):
        return nearest(value, parser.enum_values)
    type_name = parser.flag_type()
    return f"give {'an' if type_name[0] in 'aeiou' else 'a'} {type_name}"


@contextlib.contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """Replaces sys.argv, where config_flags looks for overrides, so that `main` can be called from Python."""
    original, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = original


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mmjax COMMAND [--flags]",
            "",
            *lines,
            "",
            "example: mmjax train --config=configs/digits.py --workdir=runs/digits --config.train.steps=500",
            "`mmjax COMMAND --help` shows a command's flags.",
        ]
    )


def _help(name: str, command: ModuleType, flags: absl_flags.FlagValues) -> str:
    usage = f"usage: mmjax {name} {getattr(command, 'ARGUMENTS', '')} [--flags]".replace("  ", " ")
    lines = [usage, "", textwrap.dedent(command.__doc__ or "").strip(), ""]
    for flag in sorted(flags):
        definition = flags[flag]
        shown = f"--[no]{flag}" if definition.boolean else f"--{flag}={definition.flag_type().upper()}"
        choices = getattr(definition.parser, "enum_values", None)
        default = "" if definition.default is None else f" (default: {definition.default})"
        listed = f" ({', '.join(choices)})" if choices else ""
        text = f"{definition.help}{listed}{default}"
        lines += [f"  {shown}", textwrap.indent(textwrap.fill(" ".join(text.split()), 100), " " * 6)]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
