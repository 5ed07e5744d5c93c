"""``attractor play``: a page in the browser on which puzzle models run."""

import tempfile
import webbrowser
from pathlib import Path

from attractor.cli.output import say


def play(out: Path | None = None) -> None:
    """Draw a maze or write a Sudoku in the browser, and watch the model's answer converge.

    The page is one file. It needs neither a server nor an internet connection.

    Args:
        out: Write the page into this file, and open no browser.
    """
    from attractor.experiment.play import play_page
    from attractor.files import write_text

    file = out or Path(tempfile.mkdtemp(prefix="attractor-")) / "play.html"
    write_text(file, play_page())
    say(f"{file}")
    if out is None and not webbrowser.open(file.as_uri()):
        say("no browser was found; open that file in one.")
