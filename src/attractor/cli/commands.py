"""Every command by its name, and the text of ``attractor --help``."""

import inspect
from collections.abc import Callable
from typing import Any

import tyro

from attractor.cli.calibrate import calibrate
from attractor.cli.chat import chat
from attractor.cli.compare import compare
from attractor.cli.cost import cost
from attractor.cli.data import data
from attractor.cli.demo import demo
from attractor.cli.evaluate import evaluate
from attractor.cli.export import export
from attractor.cli.export_inference import export_inference
from attractor.cli.generate import generate
from attractor.cli.import_checkpoint import import_checkpoint
from attractor.cli.inspect import inspect as inspect_model
from attractor.cli.options import checked
from attractor.cli.paper import paper
from attractor.cli.play import play
from attractor.cli.recipes import recipes, show
from attractor.cli.retrofit import retrofit
from attractor.cli.serve import serve
from attractor.cli.solve import solve
from attractor.cli.train import train

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "recipes": recipes,
    "show": show,
    "cost": cost,
    "data": data,
    "train": train,
    "compare": compare,
    "evaluate": evaluate,
    "solve": solve,
    "play": play,
    "generate": generate,
    "serve": serve,
    "chat": chat,
    "inspect": inspect_model,
    "calibrate": calibrate,
    "retrofit": retrofit,
    "export": export,
    "export-inference": export_inference,
    "import": import_checkpoint,
    "paper": paper,
}
# Names in place of types for what a command requires; no {None}|TYPE; --flag without --no-flag.
STYLE = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)


def commands() -> dict[str, Callable[..., Any]]:
    """Return every command by its name, with its options checked."""
    return {name: checked(command) for name, command in COMMANDS.items()}


def overview(description: str) -> str:
    """Return the text of ``attractor --help``: the first line about each command."""
    lines = (f"  {name:<17} {(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items())
    return "\n".join(
        (
            "usage: attractor COMMAND [OPTIONS]",
            f"\n{description}\n",
            *lines,
            "\nattractor COMMAND --help: all options of a command. attractor --version: the version.",
            "attractor COMMAND --debug: print the traceback of an error.",
            "Tab completion: attractor --tyro-write-completion bash FILE, then source FILE in your shell's start file.",
        )
    )
