"""House rules as tests: which room may import from which."""

import ast
from pathlib import Path

import pytest

import attractor

ROOT = Path(attractor.__file__).parent
# A room imports only from lower floors and from itself. Sisters, on the same floor, do not know each other.
FLOORS = {
    "errors": 0,
    "config": 1,
    "files": 1,
    "progress": 1,
    "solve": 2,
    "nn": 2,
    "data": 2,
    "optim": 2,
    "gradient": 3,
    "fixed_point": 4,
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


def imported_rooms(source: str) -> set[str]:
    """Rooms of this package that a module imports, at any depth of nesting."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports out in full, so that the room can be seen"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("attractor.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_floors_and_its_own_room(path: Path) -> None:
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the shop window may show any room
    assert room in FLOORS, f"{relative} stands in a room that docs/architecture.md does not know"
    for other in imported_rooms(path.read_text()):
        assert other == room or FLOORS[other] < FLOORS[room], f"{relative} must not import attractor.{other}"


def test_the_rule_sees_a_climbing_import() -> None:
    assert imported_rooms("def f():\n    from attractor.training import loop\n") == {"train"}
    assert imported_rooms("from attractor import solve") == {"solve"}
