"""docs/design.md is true of the imports: every room stands on a floor, above all that it imports."""

import ast
import re
from pathlib import Path

from tests import ROOT

PACKAGE = ROOT / "unlearn_metrics"


def rooms() -> dict[str, list[Path]]:
    """Room -> its files: a folder with Python code, or a module. The package's face and the demo's data are none."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if not room.startswith("__"):
            found.setdefault(room, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("unlearn_metrics.")} & rooms().keys()


def test_rooms_import_only_from_floors_below():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    floors = {room: int(floor) for floor, room in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert floors.keys() == rooms().keys()
    upwards = {
        (str(file.relative_to(PACKAGE)), other)
        for room, files in rooms().items()
        for file in files
        for other in imported(file) - {room}
        if floors[other] >= floors[room]
    }
    assert upwards == set()
