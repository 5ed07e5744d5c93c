"""``attractor COMMAND``: find the command, run it, and print an error as one sentence."""

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from typing import Any

import attractor
from attractor.errors import AttractorError, printable, requires_extra
from attractor.files import first_line

OUT_OF_MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed", "array is too big")
DESCRIPTION = "Attractor Models: networks that propose an answer and refine it until it converges."
HELP = f"{DESCRIPTION} Add --debug to see the traceback of an error."


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
    from attractor.cli.options import checked
    from attractor.cli.retrofit import retrofit
    from attractor.cli.solve import solve
    from attractor.cli.train import train

    named: dict[str, Callable[..., Any]] = {
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
    return {name: checked(command) for name, command in named.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. With ``--debug`` anywhere, errors come with their traceback."""
    _accept_all_characters()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments == ["--version"]:
        print(f"attractor {attractor.__version__}")
        return 0
    code = 0
    try:
        with requires_extra("train"):
            import tyro

            from attractor.cli.output import PrintableStream
        run = tyro.extras.subcommand_cli_from_dict
        is_unsafe = any(printable(argument, keep="\n\t") != argument for argument in arguments)
        with redirect_stderr(PrintableStream(sys.stderr)) if is_unsafe else nullcontext():
            code = run(commands(), prog="attractor", description=HELP, args=arguments) or 0
    except KeyboardInterrupt:
        print("attractor: interrupted; every file that was written is complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        return _report(error)
    return code


def _accept_all_characters() -> None:
    """Write what an encoding lacks as an escape sequence, and read UTF-8 with or without a byte-order mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")


def _report(error: Exception) -> int:
    """Print an error as one sentence, on one process only if several train together. Return the exit code."""
    code, sentence = _sentence(error)
    if "WORLD_SIZE" not in os.environ or not isinstance(error, AttractorError):
        print(f"attractor: {sentence}", file=sys.stderr, flush=True)
        return code
    from attractor.training import Preemption, should_report_error

    with Preemption():  # torchrun sends SIGTERM to the other processes; finish the message first
        if should_report_error(error):
            print(f"attractor: {sentence}", file=sys.stderr, flush=True)
    return code


def _sentence(error: Exception) -> tuple[int, str]:
    """Return the exit code and one sentence: what is wrong, where, and what to do."""
    reason = printable(first_line(error))
    if isinstance(error, AttractorError):
        return 2, str(error)
    if isinstance(error, OSError):
        place = printable(error.filename) + ": " if error.filename is not None else ""
        return 2, f"{place}{error.strerror or reason}; check the path and its permissions."
    if isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY):
        return 2, f"not enough memory ({reason}); choose smaller sizes or batches."
    return (
        1,
        f"unexpected {type(error).__name__} ({reason}); report it in the project's issue tracker, with the output of --debug.",
    )
