"""``attractor COMMAND``: find the command, run it, and print an error as one sentence."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import attractor
from attractor.errors import AttractorError, requires_extra

DESCRIPTION = "Attractor Models: networks that propose an answer and refine it until it converges."


def commands() -> dict[str, Callable[..., Any]]:
    """Return every command by its name."""
    from attractor.cli.calibrate import calibrate
    from attractor.cli.cost import cost
    from attractor.cli.data import data
    from attractor.cli.demo import demo
    from attractor.cli.evaluate import evaluate
    from attractor.cli.export import export
    from attractor.cli.export_inference import export_inference
    from attractor.cli.generate import generate
    from attractor.cli.import_official import import_official
    from attractor.cli.inspect import inspect
    from attractor.cli.retrofit import retrofit
    from attractor.cli.solve import solve
    from attractor.cli.train import train

    return {
        "demo": demo,
        "solve": solve,
        "data": data,
        "retrofit": retrofit,
        "cost": cost,
        "train": train,
        "evaluate": evaluate,
        "calibrate": calibrate,
        "generate": generate,
        "import-official": import_official,
        "export-inference": export_inference,
        "export": export,
        "inspect": inspect,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    _accept_all_characters()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"attractor {attractor.__version__}")
        return 0
    try:
        with requires_extra("train"):
            import rich  # noqa: F401
            import tyro
        tyro.extras.subcommand_cli_from_dict(commands(), prog="attractor", description=DESCRIPTION, args=arguments)
    except AttractorError as error:
        _report(error)
        return 2
    except KeyboardInterrupt:
        print("attractor: interrupted; every file that was written is complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _accept_all_characters() -> None:
    """Write what an encoding lacks as an escape sequence, and read UTF-8 with or without a byte-order mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")


def _report(error: AttractorError) -> None:
    """Print an error, on one process only if several train together."""
    if "WORLD_SIZE" not in os.environ:
        print(f"attractor: {error}", file=sys.stderr, flush=True)
        return
    from attractor.training import Preemption, should_report_error

    with Preemption():  # torchrun sends SIGTERM to the other processes; finish the message first
        if should_report_error(error):
            print(f"attractor: {error}", file=sys.stderr, flush=True)
