"""``attractor COMMAND``: find the command, run it, and print an error as one sentence."""

import io
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stderr

import attractor
from attractor.config import suggestion
from attractor.errors import AttractorError, ConfigError, printable, requires_extra
from attractor.files import first_line

OUT_OF_MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed", "array is too big")
DESCRIPTION = "Attractor Models: networks that propose an answer and refine it until it converges."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. With ``--debug`` anywhere, errors come with their traceback."""
    _accept_all_characters()
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        # PyTorch reads these when it is imported. Threads that wait spin for a short time only, so that they do not keep
        # the cores from other programs. Measured: nothing lost on idle cores, 1.4 to 1.5 times as fast beside a load.
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"}
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments == ["--version"]:
        print(f"attractor {attractor.__version__}")
        return 0
    code = 0
    try:
        with requires_extra("train"):
            import rich  # noqa: F401
            import tyro
        from attractor.cli.commands import STYLE, commands, overview
        from attractor.cli.output import PrintableStream

        if arguments[:1] in ([], ["-h"], ["--help"]):
            print(overview(DESCRIPTION))
            return 0
        known = commands()
        if arguments[0] not in known and not arguments[0].startswith("-"):
            raise ConfigError(f"there is no command {arguments[0]!r}; {suggestion(arguments[0], known)}")
        run = tyro.extras.subcommand_cli_from_dict
        is_unsafe = any(printable(argument, keep="\n\t") != argument for argument in arguments)
        with redirect_stderr(PrintableStream(sys.stderr)) if is_unsafe else nullcontext():
            code = run(known, prog="attractor", description=DESCRIPTION, args=arguments, config=STYLE) or 0
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
