"""The command line: `mmjax COMMAND --flags`, or `python -m mmjax COMMAND --flags`.

Exit codes: 0 done; 1 the run failed (with a traceback); 2 the user's input is wrong (one line, no traceback); 130
interrupted. Commands and their flags are described in `mmjax.commands`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags as absl_flags

from mmjax import __version__
from mmjax.commands import COMMANDS
from mmjax.errors import UserError, nearest
from mmjax.files import cache_folder
from mmjax.host.compilation_cache import keep_compiled_programs
from mmjax.host.huge_pages import use_huge_pages
from mmjax.host.quiet import quiet_libraries
from mmjax.host.simulated_devices import enough_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Without `arguments`, those of this process."""
    if arguments is None:
        use_huge_pages()
        keep_compiled_programs(cache_folder(), os.environ)
        enough_threads(os.environ)
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"mmjax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmjax: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("help", "-h", "-help", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"mmjax {__version__}")
        return 0
    name, argv = argv[0], argv[1:]
    if name.startswith("-"):
        raise UserError(f"mmjax {name}", "flags come after the command", "write mmjax COMMAND --flags")
    if name not in COMMANDS:
        raise UserError(f"mmjax {name}", f"unknown command {name!r}", nearest(name, COMMANDS))
    quiet_libraries()
    command = importlib.import_module(COMMANDS[name][0])
    flags = absl_flags.FlagValues()
    command.define_flags(flags)
    before_dashes = argv[: argv.index("--")] if "--" in argv else argv
    asks_help = bool({"-h", "-help", "--help"} & set(before_dashes))
    if hasattr(command, "define_more_flags"):
        command.define_more_flags(flags, argv, asks_help)
    if asks_help:
        print(_help(name, command, flags))
        return 0
    arguments = _parse(name, flags, argv)
    if arguments and not hasattr(command, "ARGUMENTS"):
        where = f"mmjax {name} {arguments[0]}"
        raise UserError(where, f"unexpected {arguments[0]!r}", "flags are written --name=value")
    # Grain's worker processes read absl's global flags, which no one else parses here.
    absl_flags.FLAGS.mark_as_parsed()
    return command.run(flags, arguments) or 0


def _parse(name: str, flags: absl_flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses the words after the command into `flags`; returns those that are no flags."""
    see = f"`mmjax {name} --help` shows the flags"
    try:
        with _argv(["mmjax", *argv]):
            return flags(["mmjax", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        where = f"--{error.flagname}"
        section = error.flagname.partition(".")[0].removeprefix("no")
        if section != error.flagname and section in flags:
            remedy = f"give --{section}=configs/NAME.py first"
            raise UserError(where, f"changes a value of --{section}, which is not given", remedy) from error
        known = [f"--{flag}" for flag in flags if "." not in flag]
        raise UserError(where, "unknown flag", nearest(where, known)) from error
    except absl_flags.IllegalFlagValueError as error:
        text = str(error)
        missing = re.findall(r"Flag --(\S+) must have a value other than None", text)
        if missing:
            flag = f"--{missing[0]}"
            raise UserError(flag, "is missing", f"give {flag}=VALUE; {see}") from error
        where, _, problem = text.removeprefix("flag ").partition(": ")
        raise UserError(where, problem, _right_value(flags, where)) from error
    except absl_flags.Error as error:
        raise UserError(f"mmjax {name}", str(error), see) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # What config_flags raises for overrides that it cannot walk, for example `--config.layers[9]=1`.
        raise UserError(f"mmjax {name}", f"{type(error).__name__}: {error}", see) from error


def _right_value(flags: absl_flags.FlagValues, where: str) -> str:
    flag, _, value = where.removeprefix("--").partition("=")
    if flag not in flags:
        return "give another value"
    parser = flags[flag].parser
    if isinstance(parser, absl_flags.EnumParser):
        return nearest(value, parser.enum_values)
    kind = parser.flag_type()
    return f"give {'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@contextlib.contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """config_flags looks for overrides in sys.argv: with this, calling `main` from Python is like a command line."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


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
        holder = flags[flag]
        shown = f"--[no]{flag}" if holder.boolean else f"--{flag}={holder.flag_type().upper()}"
        choices = getattr(holder.parser, "enum_values", None)
        default = "" if holder.default is None else f" (default: {holder.default})"
        choice = f" ({', '.join(choices)})" if choices else ""
        text = f"{holder.help}{choice}{default}"
        lines += [f"  {shown}", textwrap.indent(textwrap.fill(" ".join(text.split()), 100), " " * 6)]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
