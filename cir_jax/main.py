# SPDX-License-Identifier: Apache-2.0
"""`cir-jax <command>`: the only entry point. It picks and runs a module of `cir_jax.commands`."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import cir_jax
from cir_jax import config as configs
from cir_jax import files, plugins, progress
from cir_jax.errors import UserError, nearest
from cir_jax.runtime import programs, supervision

COMMANDS = "cir_jax.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      The exit status: 0 done; 1 the command says no, or one of several processes failed; 2 bad
      input; 75 stopped by a signal (`train`, `evaluate`, `submit` and `demo`), or other workers are
      missing (`positives`), and the same command goes on; 130 Ctrl-C, of `train`, `evaluate` and
      `submit` a second one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # `import` is a word of Python, so its module is called `import_`.
    commands = {name.removesuffix("_"): name for name in plugins.available(COMMANDS)}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(commands))
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"cir_jax {cir_jax.__version__}")
        return 0
    try:
        return _run(argv[0], argv[1:], commands)
    except UserError as error:
        progress.show(f"cir-jax {argv[0]}: {error}", file=sys.stderr)
        return supervision.STOPPED if isinstance(error, supervision.Stopped) else 2
    except MemoryError as error:
        told = f" ({error})" if str(error) else ""
        progress.show(
            f"cir-jax {argv[0]}: out of memory{told}; what is written is kept. End other programs, "
            "give it fewer or smaller files at a time, or use a machine with more memory",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # `cir-jax inspect ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"cir-jax {argv[0]}: stopped; what is written is kept", file=sys.stderr)
        return 130


def _run(name: str, argv: list[str], commands: dict[str, str]) -> int:
    if name not in commands:
        raise UserError(
            f"no such command; there are: {', '.join(commands)}.{nearest(name, commands)}"
        )
    module = importlib.import_module(f"{COMMANDS}.{commands[name]}")
    parser = argparse.ArgumentParser(
        f"cir-jax {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args, unknown = parser.parse_known_args(_split_config_flags(argv))
    if unknown:
        raise UserError(
            f"unknown argument {unknown[0]}{configs.flag_hint(unknown[0])}; `cir-jax {name} "
            "--help` lists the flags"
        )
    for flag, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            for place in str(text).split(","):
                files.check_local(f"--{flag.replace('_', '-')}", place)
    programs.keep()
    if not getattr(module, "WATCHED", False):
        with files.permitted():
            return module.run(args) or 0
    with supervision.command(f"cir-jax {name}"), files.permitted():
        return module.run(args) or 0


def _split_config_flags(argv: list[str]) -> list[str]:
    """`--config.key=value`, the form of ml_collections, becomes `--set key=value`."""
    flags: list[str] = []
    for item in argv:
        if item.startswith("--config.") and "=" in item:
            flags += ["--set", item.removeprefix("--config.")]
        else:
            flags.append(item)
    return flags


def _usage(commands: dict[str, str]) -> str:
    lines = ["usage: cir-jax <command> [flags]", "", "commands:"]
    for name, file in commands.items():
        module = importlib.import_module(f"{COMMANDS}.{file}")
        lines.append(f"  {name:<12}{module.HELP}")
    return "\n".join([*lines, "", "cir-jax <command> --help lists a command's flags."])


def program() -> int:
    """The program `cir-jax`: `main` in a process of its own, which ends with its status."""
    status = main()
    # The work is done: a signal while the interpreter ends must not make another status of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(program())
