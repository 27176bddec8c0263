"""The command line `zskd-fast`. A mistake in what the user gave ends in one sentence and exit code 2."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union

import tyro

from zskd_fast import __version__
from zskd_fast.cli.options import Command, Doctor, PrintRecipe, commands
from zskd_fast.config.recipe_files import load_recipe, recipe_to_toml
from zskd_fast.errors import InputError

_DESCRIPTION = "Zero-shot knowledge distillation: a smaller student from a trained classifier, without data."
_STYLE: dict[str, Any] = {"config": (tyro.conf.FlagConversionOff,)}
_BROKEN = 1
_BAD_INPUT = 2
_INTERRUPTED = 130
_TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0; 1 for a broken installation or a damaged store; 2 for bad input; 130 when interrupted (Ctrl-C) and 143 when
    terminated (SIGTERM), after which no file is half-written.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        if list(words) == ["--version"]:
            print(f"zskd_fast {__version__}")
            return 0
        command = parse(words)
        with _terminable():
            return _execute(command)
    except SystemExit as stop:  # tyro has printed the help, or what is wrong with an option
        return stop.code if isinstance(stop.code, int) else _BAD_INPUT
    except ImportError as error:  # the message of the compiled extension says how to rebuild it
        print(f"zskd-fast: {error}", file=sys.stderr)
        return _BROKEN
    except (InputError, OSError) as error:
        print(f"zskd-fast: {_sentence(error)}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        word = "terminated" if terminated else "interrupted"
        where = f"; the same command continues from {stop}" if str(stop) else ""
        print(f"zskd-fast: {word}{where}", file=sys.stderr)
        return _TERMINATED if terminated else _INTERRUPTED


def parse(argv: Sequence[str]) -> Command:
    """Parse in two stages: the recipe and the preset of the input give the defaults of all the other options."""
    argv, preset = _without_option(argv, "--input")
    defaults = commands(_without_option(argv, "--recipe")[1], preset)
    if argv and argv[0] in defaults:
        default = defaults[argv[0]]
        return tyro.cli(type(default), default=default, prog=f"zskd-fast {argv[0]}", args=list(argv[1:]), **_STYLE)
    subcommands: Any = tuple(
        Annotated[type(default), tyro.conf.subcommand(name=command, default=default)]
        for command, default in defaults.items()
    )
    return tyro.cli(
        Union[subcommands],  # noqa: UP007  (built at run time)
        prog="zskd-fast",
        description=_DESCRIPTION,
        args=list(argv),
        **_STYLE,
    )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: unfinished files are removed.

    The text of either is from where the same command continues; it is empty where nothing was finished.
    """


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may set a signal handler
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(command: Command) -> int:
    # torch takes seconds to import, so it is imported only for a command that was parsed
    if isinstance(command, Doctor):  # must work where the extension does not load
        from zskd_fast.cli.doctor import report

        return report()
    if isinstance(command, PrintRecipe):
        print(recipe_to_toml(load_recipe(command.recipe)), end="")
        return 0
    from zskd_fast.cli.commands import execute

    return execute(command)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _without_option(argv: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Return the words without an option ``--name VALUE`` or ``--name=VALUE``, and its value."""
    words = list(argv)
    for position, word in enumerate(words):
        if word == name and position + 1 < len(words):
            return words[:position] + words[position + 2 :], words[position + 1]
        if word.startswith(f"{name}="):
            return words[:position] + words[position + 1 :], word.removeprefix(f"{name}=")
    return words, None


if __name__ == "__main__":
    sys.exit(main())
