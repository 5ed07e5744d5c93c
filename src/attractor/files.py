"""Files: the checks of output folders, and JSON that is written whole or not at all."""

import json
import math
import os
from pathlib import Path
from typing import Any

from attractor.errors import ConfigError


def check_output_dir(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something already, unless told what to do with it. Nothing is touched, nor made."""
    if resume and overwrite:
        raise ConfigError("--resume continues what is in the folder and --overwrite replaces it; give one of them.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise ConfigError(f"{out}: this folder is in use; choose another with --out, or say --overwrite.")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{out}: cannot be written; choose another folder with --out.")


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write beside the place and rename into it."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(part, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); choose another place.") from error


def finite(value: Any) -> Any:
    """Return the figures with null for what no JSON number can say."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
