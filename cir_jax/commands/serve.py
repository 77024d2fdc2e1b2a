# SPDX-License-Identifier: Apache-2.0
"""Serves one or several indexes: a page to search with, and an API for programs.

Examples:
  cir-jax serve INDEX
  cir-jax serve INDEX INDEX2 --port 8080
  cir-jax serve INDEX --host 0.0.0.0 --token-file token
Several indexes are compared on the page, side by side. An index that `cir-jax index` brings up to
date meanwhile is taken over when it is whole. Only programs on this machine can connect, unless
--host says otherwise, and then they must show a token. SIGTERM or Ctrl-C ends it: requests under
way are answered first.
"""

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cir_jax.commands.evaluate import add_code_arguments
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.retrieval.clicks import HeldOut
    from cir_jax.retrieval.index.opened import Index
    from cir_jax.serving.settings import Settings

HELP = "search an index in a browser, and from programs"
TOKEN_VARIABLE = "CIR_JAX_TOKEN"
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "index", nargs="+", metavar="INDEX", help="folders that `cir-jax index` has made"
    )
    add = parser.add_argument_group("where, and for whom").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen at (default 127.0.0.1, this machine alone)")  # fmt: skip
    add("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    add("--token-file", default="", metavar="FILE",
        help="file with the token that clients must show; no flag takes the token itself, since "
        "every user of a machine can read the flags of a program")  # fmt: skip
    add("--token-env", metavar="NAME",
        help=f"environment variable with it instead (default {TOKEN_VARIABLE})")  # fmt: skip
    add("--name", action="append", default=[], metavar="HOST",
        help="a further name under which this server is reached, e.g. of a proxy")  # fmt: skip
    add = parser.add_argument_group("how much").add_argument
    add("--batch", type=int, default=32, metavar="N",
        help="questions at a time on the device (default 32)")  # fmt: skip
    add("--queue", type=int, default=48, metavar="N",
        help="questions under way; the next one is refused (503; default 48)")  # fmt: skip
    add("--timeout", type=float, default=30.0, metavar="SECONDS",
        help="an answer that takes longer is given up (503; default 30)")  # fmt: skip
    add("--rate", type=float, default=100.0, metavar="N",
        help="questions a second of one client (429; default 100; 0 for no limit)")  # fmt: skip
    add("--upload-mb", type=float, default=25.0, metavar="MB",
        help="largest image that may be sent (413; default 25)")  # fmt: skip
    add = parser.add_argument_group("clicks").add_argument
    add("--held-out", nargs="+", default=[], metavar="DATA",
        help="folders of data sets, as `prepare` makes them, whose images are evaluated with: none "
        "of these is saved as a triplet")  # fmt: skip
    add_model_arguments(parser)
    add_recall_argument(parser)


def add_recall_argument(parser: argparse.ArgumentParser) -> None:
    """The flag of what approximate rankings aim at."""
    parser.add_argument("--recall", type=float, metavar="SHARE",
        help="of the best images, that approximate rankings on a TPU or GPU aim at (default 0.95)"
    )  # fmt: skip


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for weights that are not where they were when the index was made."""
    add = parser.add_argument_group("the model").add_argument
    add("--model", nargs="+", default=[], metavar="WEIGHTS",
        help="the weights of the index, where they are not where they were")  # fmt: skip
    add_code_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Opens the indexes, warms up, and answers until it is told to stop."""
    _require()
    from cir_jax.serving import running

    settings = _settings(args)
    running.check(settings)
    port = running.bound(settings)
    try:
        from cir_jax.runtime import distributed

        distributed.initialize()  # before jax starts a backend
        _serve(args, settings, port)
    finally:
        port.close()
    return 0


def _serve(args: argparse.Namespace, settings: "Settings", port: "object") -> None:
    import socket
    from functools import partial

    import jax

    from cir_jax import progress
    from cir_jax.serving import app, running, served, warming

    assert isinstance(port, socket.socket)
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes would serve one port; start one, which uses all "
            "devices of its machine"
        )
    held_out = [_held_out(os.path.expanduser(data)) for data in args.held_out]
    opened_all = [opened(args, folder) for folder in args.index]
    indexes = dict(zip(served.named(args.index), opened_all, strict=True))
    for name, index in indexes.items():
        progress.say(f"{name}: {len(index):,} images; {index.model!r}")
        check_vectors(index, args.model)
    progress.say(f"compiling for batches of up to {settings.batch}")
    warm = partial(warming.warm, batch=settings.batch)
    made = app.make(indexes, settings, warm=warm, held_out=held_out)
    running.serve(made, settings, port)


def _held_out(data: str) -> "HeldOut":
    """What a data set holds out.

    Raises:
      UserError: nothing, so that the flag would guard nothing.
    """
    from cir_jax.retrieval import clicks

    found = clicks.held_out_of("folder", data)
    if not len(found):
        raise UserError(
            f"--held-out {data} holds no image out; name a folder as `cir-jax prepare` makes it, "
            "with val.jsonl or gallery.txt in it, or leave the flag away"
        )
    return found


def opened(args: argparse.Namespace, folder: str) -> "Index":
    """An index with the model that the flags of `add_model_arguments` name, if they name one.

    Raises:
      UserError: they name one, and there are several indexes; or see `Index`.
    """
    if args.model and len(args.index) > 1:
        raise UserError(
            "--model names the weights of one index, and there are several; give `cir-jax index "
            "--model WEIGHTS --out INDEX` for each whose weights have moved"
        )
    from functools import partial

    from cir_jax.retrieval import opening
    from cir_jax.retrieval.index.opened import Index

    load = partial(
        opening.model_of,
        places=tuple(map(os.path.expanduser, args.model)),
        trust_code=args.trust_code,
        ignore_remote_code=args.ignore_remote_code,
    )
    index = Index(os.path.expanduser(folder), load)
    if getattr(args, "recall", None) is not None:
        index.recall = args.recall
    return index


def check_vectors(index: "Index", places: Sequence[str] = ()) -> None:
    """Compares what the model makes of the golden inputs here with what is kept of it.

    Args:
      index: with its vectors, or those of the weights that it was made by, or none.
      places: where its weights are now; () for where they were.

    Raises:
      UserError: they differ; what does is named.
    """
    from cir_jax.retrieval import golden

    now, said = index.model.golden(), index.record["weights"]
    golden.check(golden.kept_with(index.folder), now, f"the index {index.folder}")
    golden.check_places(places or (said["places"] if said else ()), "best", now)


def _settings(args: argparse.Namespace) -> "Settings":
    from cir_jax.serving.settings import MB, Settings

    for flag, value, least, most in (
        ("port", args.port, 0, 65535),
        ("batch", args.batch, 1, 1024),
        ("queue", args.queue, 1, 100_000),
        ("timeout", args.timeout, 0.01, 86_400),
        ("rate", args.rate, 0, 1e6),
        ("upload-mb", args.upload_mb, 0.001, 1000),
    ):
        if not least <= value <= most:
            raise UserError(f"--{flag}={value} is not within {least} and {most:g}")
    for name in args.name:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--name {name} is no name of a host; give one as it stands in an address, without "
                "http://, port or path: --name search.example.org"
            )
    upload = int(args.upload_mb * MB)
    return Settings(
        host=args.host,
        port=args.port,
        token=_token(args),
        names=tuple(name.lower() for name in args.name),
        batch=args.batch,
        queue=args.queue,
        timeout=args.timeout,
        rate=args.rate,
        upload_bytes=upload,
        body_bytes=2 * upload,  # base64 takes a third more, and there may be several images
    )


def _token(args: argparse.Namespace) -> str:
    """The token from where it is; "" if there is none."""
    if not args.token_file:
        token = os.environ.get(args.token_env or TOKEN_VARIABLE, "").strip()
        if args.token_env and not token:
            raise UserError(
                f"--token-env {args.token_env}: there is no such variable, or it is empty; export "
                "it with the token, or give --token-file FILE"
            )
        return token
    try:
        with open(os.path.expanduser(args.token_file), encoding="utf-8") as file:
            token = file.read(10_000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--token-file {args.token_file} cannot be read ({error}); "
            "`(umask 077; openssl rand -hex 32 > token)` makes one"
        ) from None
    if not token:
        raise UserError(f"--token-file {args.token_file} is empty; write a token into it")
    return token


def _require() -> None:
    """Raises UserError unless what only this command needs is there."""
    try:
        import fastapi  # noqa: F401
        import mcp  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name}, which is not installed; pip install 'cir_jax[serve]'"
        ) from None
