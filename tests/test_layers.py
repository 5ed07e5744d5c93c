"""Each package imports only from lower layers, and files do not import each other in a circle."""

import ast
from pathlib import Path

import pytest

import attractor

ROOT = Path(attractor.__file__).parent
# A package imports only from lower layers and from itself; packages on one layer do not import each other.
LAYERS = {
    "errors": 0,
    "config": 1,
    "files": 1,
    "progress": 1,
    "solve": 2,
    "nn": 2,
    "data": 2,
    "optim": 2,
    "gradient": 3,
    "layer": 4,
    "root_finding": 5,
    "models": 5,
    "testing": 5,
    "objectives": 6,
    "evaluation": 6,
    "interop": 6,
    "training": 7,
    "plots": 7,
    "recipes": 8,
    "experiment": 9,
    "cli": 10,
    "__main__": 11,
}
FILES = sorted(ROOT.rglob("*.py"))


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the modules and names of this package that a file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports with the full name of the module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("attractor.")}


def imported_packages(source: str) -> set[str]:
    """Return the packages of this package from which a file imports."""
    return {name.split(".")[1] for name in imported_modules(ast.parse(source))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_layers_and_its_own_package(path: Path) -> None:
    """At any depth of nesting, so that a function does not hide an import."""
    relative = path.relative_to(ROOT)
    package = relative.parts[0].removesuffix(".py")
    if package == "__init__":
        return  # it exports names of every layer
    assert package in LAYERS, f"{relative} is in a package without a layer"
    for other in imported_packages(path.read_text()) - {"__version__"}:
        assert other == package or LAYERS[other] < LAYERS[package], f"{relative} must not import attractor.{other}"


def test_files_do_not_import_each_other_in_a_circle() -> None:
    """Imports for type checkers do not count."""
    graph = {module_name(path): dependencies(path) for path in FILES if path != ROOT / "__init__.py"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dependencies(path: Path) -> set[str]:
    """Return the modules that a file imports; a package stands for the file ``__init__.py``."""
    tree = RemoveTypeChecking().visit(ast.parse(path.read_text()))
    found = set()
    for name in imported_modules(tree):
        while not ((file := ROOT.parent / name.replace(".", "/")).is_dir() or file.with_suffix(".py").is_file()):
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"attractor", module_name(path)}


class RemoveTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def test_the_rule_finds_a_forbidden_import() -> None:
    """In a function, and of a name of the package itself."""
    assert imported_packages("def f():\n    from attractor.training import loop\n") == {"training"}
    assert imported_packages("from attractor import solve") == {"solve"}
