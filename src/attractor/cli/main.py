"""``attractor COMMAND``: commands by name, errors in one sentence, no traceback for what a user can mend."""

import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from attractor.cli.calibrate import calibrate
from attractor.cli.cost import cost
from attractor.cli.data import data
from attractor.cli.demo import demo
from attractor.cli.evaluate import evaluate
from attractor.cli.export import export
from attractor.cli.export_inference import convert
from attractor.cli.generate import generate
from attractor.cli.import_official import import_official
from attractor.cli.inspect import inspect
from attractor.cli.retrofit import retrofit
from attractor.cli.solve import solve
from attractor.cli.train import train
from attractor.errors import AttractorError
from attractor.training import Preemption, should_report_error

COMMANDS: dict[str, Callable[..., Any]] = {
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
    "convert": convert,
    "export": export,
    "inspect": inspect,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="attractor",
            description="Attractor Models: propose an answer, then refine it until it stops changing.",
            args=arguments,
        )
    except AttractorError as error:
        with Preemption():  # against torchrun's SIGTERM, as in leaving the other processes
            if should_report_error(error):
                print(f"attractor: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("attractor: interrupted; what was written so far is whole.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
