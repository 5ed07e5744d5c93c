"""Build steps of the site: mathematics without scripts, links to files outside ``docs``, notebooks, complete reference."""

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from attractor.experiment.play import play_page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)]*)?\))")
MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):<code>~?([\w.]+)</code>")
ENTRIES = re.compile(r"<!-- every name of ([\w.]+) -->")
# Public packages; every name in their ``__all__`` must have an entry in the reference.
PUBLIC = [
    "attractor",
    "attractor.recipes",
    "attractor.models.language",
    "attractor.models.reasoning",
    "attractor.nn",
    "attractor.gradient",
    "attractor.solve",
    "attractor.data.text",
    "attractor.data.sudoku",
    "attractor.data.maze",
    "attractor.objectives",
    "attractor.optim",
    "attractor.training",
    "attractor.evaluation",
    "attractor.interop",
    "attractor.plots",
    "attractor.experiment",
    "attractor.testing",
]


def on_files(files: Files, config: Any) -> Files:
    """Add the page on which puzzle models run, and a page for every notebook, with its stored outputs."""
    files.append(File.generated(config, "play.html", content=play_page()))
    for notebook in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        name = notebook.stem
        text, resources = MarkdownExporter().from_filename(str(notebook), {"unique_key": name})
        download = f"\n\n[Download this notebook](../../examples/notebooks/{notebook.name})\n"
        files.append(File.generated(config, f"notebooks/{name}.md", content=text + download))
        for image, data in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{image}", content=data))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, config: Any, **_: Any) -> str:
    """Write out the entries of a package, and copy linked files outside ``docs`` (results, examples) to ``files/``."""

    def replace(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        source = (ROOT / "docs" / posixpath.dirname(page.file.src_uri) / target).resolve()
        if source.is_relative_to(ROOT / "docs") or not source.is_relative_to(ROOT):
            return match[0]
        if not source.is_file():
            return match[0]  # the strict build then names the broken link
        uri = "files/" + source.relative_to(ROOT).as_posix().replace(".md", ".md.txt")
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=source.read_bytes()))
        return f"{match[1]}{posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{match[3]}"

    entries = ENTRIES.sub(lambda match: "\n".join(f"::: {name}\n" for name in public_names(match[1])), markdown)
    return LINK.sub(replace, entries)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load the script that makes the search work in files from the site itself."""
    local = posixpath.relpath("javascripts/iframe_worker.js", posixpath.dirname(page.url) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", local)


def on_page_content(text: str, **_: Any) -> str:
    """Turn LaTeX into MathML, which browsers draw without scripts, and roles of docstrings into links."""

    def replace(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return convert(html.unescape(match[3]), display=display)

    def link(match: re.Match[str]) -> str:
        identifier = match[1] if match[1].startswith("attractor.") else f"attractor.{match[1]}"
        return f'<autoref identifier="{identifier}" optional><code>{match[1].split(".")[-1]}</code></autoref>'

    return ROLE.sub(link, MATH.sub(replace, text))


def public_names(package: str) -> list[str]:
    """Return the qualified names in ``__all__``, else the public definitions, of a module, without importing it."""
    path = ROOT / "src" / package.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text()).body
    names = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return [f"{package}.{name}" for name in names]


def on_post_build(config: Any, **_: Any) -> None:
    """Refuse a site on which a public name has no entry."""
    autorefs = config.plugins["autorefs"]
    known = set(autorefs._primary_url_map) | set(autorefs._secondary_url_map)
    names = [name for package in PUBLIC for name in public_names(package)]
    modules = {name for name in names if (ROOT / "src" / name.replace(".", "/")).is_dir()}
    missing = [name for name in names if name not in known and name not in modules]
    if missing:
        raise PluginError("public names without an entry in docs/reference: " + ", ".join(missing))
