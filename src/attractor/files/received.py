"""Received models and tokenizers: their code never runs, and what loads them is quiet."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attractor.errors import AttractorError
from attractor.files import first_line, member, read_json, require_regular


def check_model_folder(folder: Path, error_class: type[AttractorError]) -> None:
    """Raise an error if a model's folder asks ``transformers`` to run code, names files outside of it, or has an adapter."""
    if (folder / "adapter_config.json").is_file():
        raise error_class(
            f"{folder}: holds an adapter of PEFT; load it with PEFT onto its own base, call merge_and_unload(), and save "
            "the result as a model."
        )
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.is_symlink():
            member(folder, file.name, error_class, folder)
        if not file.is_dir():
            require_regular(file, error_class)
        text = _config_text(file)
        if code := "auto_map" if file.name == "custom_generate" else _named_code(text):
            raise error_class(
                f"{file}: asks to run code of its own ({code}), and such code is never run; use another model."
            )
        if re.search(r'"[^"]*\\u00[0189][^"]*": ', text):  # a library prints names that it does not know
            raise error_class(f"{file}: has a setting with control characters in its name; use another model.")
        if file.name.endswith(".index.json"):
            names = read_json(file, error_class).get("weight_map")
            for name in names.values() if isinstance(names, dict) else [names]:
                member(folder, name, error_class, file)


def load_reason(error: BaseException) -> str:
    """Return in a few words why ``transformers`` could not load something."""
    if "trust_remote_code" in str(error):
        return "it asks to run code of its own (auto_map), and such code is never run"
    return first_line(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars of ``transformers``, and its messages, which repeat foreign text."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _config_text(file: Path) -> str:
    """Return the content of a configuration as ASCII with escapes, or nothing for other files."""
    try:
        return json.dumps(json.loads(file.read_bytes())) if file.name.endswith("config.json") else ""
    except (OSError, ValueError, RecursionError):
        return ""  # the library reports it


def _named_code(text: str) -> str:
    """Return what names code in a configuration: ``auto_map``, or attention kernels ``owner/name`` of the hub."""
    found = re.search(r'auto_map|\w+_implementation(?=": [^,}]*/)', text)
    return found[0] if found else ""
