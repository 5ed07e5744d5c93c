"""A case of bad input, how to damage a folder for it, and how to run it and find what is wrong with its end.

A case must end within a limit of time with exit code 0, or 2 and one sentence; without a traceback, without control
characters in its output, without a temporary or half-written file, and without a change of what it only reads.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.cli import main
from attractor.errors import printable
from attractor.files import is_temporary

CPU_SECONDS = 30  # the limit of a case
IDLE_SECONDS = 20  # after twice as long without work, a case is waiting for something
TEXTS = [
    "", " ", "-", "--", ".", "..", "/", "//", "~", "[/x]", "[bold]", "\x1b[31m", "a\nb", "\0", "x" * 300, "x/" * 3000,
    "\u202eabc", "\udc80", "é中😀", "%s", "{0}", "$(x)", "*", "?", "null", "true", "nan", "inf", "-inf", "1e999", "-1", "0",
    "9" * 20, "9" * 5000, "1.5", "0x10", "[" * 5000, "{" * 5000, '{"a": 1}', "[1,2]", "none", "/dev/null", "/proc/self/mem",
    "loop", "pipe", "folder", "secret", "broken", "1234" * 4, "....34..12...." + "..", "#####\n#S G#\n#####", "owner/..",
]  # fmt: skip
VALUES: list[Any] = [
    *TEXTS, None, True, False, -1, 0, 1, 7, 10**6, 2**40, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    [], {}, [[]], [None], {"a": {"b": 1}}, "../../x", "/etc/passwd", "relu2", "cuda", "float16",
]  # fmt: skip
Prepare = Callable[[Path], object]


class TooLong(BaseException):
    """The time limit of a case."""


@dataclass(frozen=True)
class Case:
    """A command, what is put into its folder before, and whether only a refusal is right."""

    arguments: list[str]
    prepare: Prepare = lambda folder: None
    must_fail: bool = False
    stdin: bytes = b""


def make_odd_paths(folder: Path) -> None:
    """Write paths that are hard to read."""
    (folder / "folder").mkdir(exist_ok=True)
    for name in ("pipe", "loop", "broken", "secret"):
        (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "broken").symlink_to("nowhere")
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0)


def some_options(names: list[str], rng: random.Random) -> list[str]:
    """Return one or two options with odd values."""
    return [word for name in rng.sample(names, rng.randint(1, 2)) for word in (name, rng.choice(TEXTS))]


def damage(source: str, rng: random.Random) -> tuple[Prepare, str]:
    """Return a function that copies the folder ``source`` to ``copy`` and damages one file, and the kind of damage."""
    how = rng.choice([*["flip"] * 4, *["json"] * 4, *DAMAGES])

    def prepare(folder: Path) -> None:
        copy = shutil.copytree(folder / source, folder / "copy")
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        chosen = [path for path in files if path.suffix == ".json"] if how == "json" else files
        if how in ("removed", "renamed"):  # without checksums, damage cannot be found
            chosen = [path for path in files if path.name != "checksums.json"]
        DAMAGES[how](rng.choice(chosen or files), rng, files)

    return prepare, how


def _flip(file: Path, rng: random.Random, files: list[Path]) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 20]) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _change_json(file: Path, rng: random.Random, files: list[Path]) -> None:
    """Replace, remove or add a value at any depth, with a right checksum of the checksum file itself."""
    try:
        data: Any = json.loads(file.read_text())
    except ValueError:
        return
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        break
    action = rng.randrange(6)
    if action == 0:
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = rng.choice(VALUES)
    else:
        place[key] = rng.choice(VALUES)
    file.write_text(json.dumps(data))


def _replace(file: Path, make: Callable[[], object]) -> None:
    file.unlink()
    make()


def _rename(file: Path, rng: random.Random, files: list[Path]) -> None:
    with contextlib.suppress(OSError, ValueError):  # not every text is a name
        file.rename(file.with_name(rng.choice(TEXTS) + rng.choice(["", file.suffix])))


DAMAGES: dict[str, Callable[[Path, random.Random, list[Path]], object]] = {
    "flip": _flip,
    "json": _change_json,
    "cut": lambda file, rng, files: os.truncate(file, int(rng.random() * file.stat().st_size)),
    "empty": lambda file, rng, files: file.write_bytes(b""),
    "garbage": lambda file, rng, files: file.write_bytes(rng.randbytes(rng.choice([1, 9, 500]))),
    "text": lambda file, rng, files: file.write_text(rng.choice(TEXTS), errors="surrogateescape"),
    "longer": lambda file, rng, files: file.write_bytes(file.read_bytes() + rng.randbytes(9)),
    "foreign": lambda file, rng, files: file.write_bytes(rng.choice(files).read_bytes()),
    "removed": lambda file, rng, files: file.unlink(),
    "renamed": _rename,
    "folder": lambda file, rng, files: _replace(file, file.mkdir),
    "loop": lambda file, rng, files: _replace(file, lambda: file.symlink_to(file.name)),
    "link": lambda file, rng, files: _replace(file, lambda: file.symlink_to("/etc/passwd")),
    "pipe": lambda file, rng, files: _replace(file, lambda: os.mkfifo(file)),
    "deep": lambda file, rng, files: file.write_text("[" * 100_000),
}


def run(case: Case, folder: Path) -> str | None:
    """Run a case in ``folder``, with its input files, and return what is wrong."""
    inputs = _snapshot(folder)
    case.prepare(folder)
    prepared, start = _snapshot(folder), time.perf_counter()
    code, text = _run(case.arguments, case.stdin, folder)
    seconds, after = time.perf_counter() - start, _snapshot(folder)
    created = sorted(after.keys() - prepared.keys())
    changed = sorted(path for path in prepared if after.get(path) != prepared[path])
    for path in folder.iterdir():
        if path.name not in inputs:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if changed:
        make_odd_paths(folder)  # an output may be one of these
    if isinstance(code, BaseException):
        place = "".join(traceback.format_tb(code.__traceback__)[-4:])
        return f"raises {type(code).__name__} after {seconds:.0f} s: {code}\n{place}"
    is_wrong_answer = code == 1 and case.arguments[0] == "solve" and "attractor: " not in text
    if (code not in (0, 2) and not is_wrong_answer) or "Traceback" in text:
        return f"exit code {code}: {text[-1000:]}"
    if printable(text, keep="\n\t") != text:
        return f"control characters: {text[-300:]!r}"
    if code == 2 and "For full helptext" not in text and not text.splitlines()[-1].startswith("attractor: "):
        return f"no sentence: {text[-300:]}"
    if parts := [path for path in created if is_temporary(Path(path)) or ".part-" in path]:
        return f"leaves {parts}"
    if code == 2 and (created or changed):
        return f"leaves {created}, changes {changed}, and says: {text[-300:]}"
    writes_copy = case.arguments[0] == "calibrate" or "--resume" in case.arguments
    outputs = ("folder/", "copy/") if writes_copy else ("folder/",)
    if wrong := [path for path in changed if "/" in path and not path.startswith(outputs)]:
        return f"changes {wrong}"
    if case.must_fail and code == 0:
        return f"accepts it, and says: {text[-300:]}"
    return None


def _run(arguments: list[str], stdin: bytes, folder: Path) -> tuple[int | BaseException, str]:
    """Return the exit code, or what was raised, and the output."""
    out, code = io.StringIO(), 0

    used = [time.process_time()]

    def stop(*_: object) -> None:
        raise TooLong("it computes too long")

    def stop_if_idle(*_: object) -> None:  # a slow machine is no fault, but waiting for nothing is
        used.append(time.process_time())
        if used[-1] - used[-3:][0] < 0.02 and len(used) > 2:
            raise TooLong("it waits for something")

    handlers = {signal.SIGALRM: stop_if_idle, signal.SIGPROF: stop}
    previous = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    here, real = Path.cwd(), sys.stdin
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    signal.setitimer(signal.ITIMER_REAL, IDLE_SECONDS, IDLE_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as raised:
        return raised, out.getvalue()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for each, handler in previous.items():
            signal.signal(each, handler)
        sys.stdin = real
        os.chdir(here)
    return code, out.getvalue()


def _snapshot(folder: Path) -> dict[str, object]:
    """Return size and time of every file by its path."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        is_file = not path.is_dir() or path.is_symlink()
        found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns) if is_file else None
    return found
