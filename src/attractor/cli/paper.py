"""``attractor paper``: tables of the paper beside those measured here."""

from pathlib import Path

from attractor.cli.output import say


def paper(item: str = "", /, scale: str = "tiny", results: Path = Path("results/paper")) -> None:
    """Print a table of the paper beside ours, as stored in a clone of the repository.

    Args:
        item: table1 to table6, or figure1 to figure7; without it, what is stored is listed.
        scale: The scale that was run, such as tiny or 140m.
        results: The folder in which python -m benchmarks.paper has written.
    """
    from attractor.errors import DataError

    if not results.is_dir():
        raise DataError(
            f"{results}: there is no such folder; results are not part of the installed package. In a clone of the repository, "
            "or with --results FOLDER, this command prints them; python -m benchmarks.paper makes them."
        )
    stored = sorted(results.glob(f"*/{scale}.md"))
    if not item:
        say(*(file.read_text().splitlines()[0].removeprefix("# ") for file in stored))
        return
    file = results / item / f"{scale}.md"
    if file not in stored:
        names = ", ".join(f.parent.name for f in stored) or "nothing"
        raise DataError(
            f"{file}: not stored; of scale {scale}, there is {names}. Make it: python -m benchmarks.paper {item}"
        )
    say(*file.read_text().splitlines())
