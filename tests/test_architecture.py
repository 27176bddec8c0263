"""The rooms of the package: imports go down only, and no folder grows past what a reader can keep in mind."""

import ast
from pathlib import Path

import pytest

import zskd_fast

PACKAGE = Path(zskd_fast.__file__).parent
# From top to bottom; a room may import its own modules and those of any lower line. See docs/architecture.md.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"repro", "report"},
    {"run"},
    {"distillation"},
    {"synthesis"},
    {"real_data"},
    {"store"},
    {"models"},
    {"config"},
    {"runtime"},
    {"nn", "distributions"},
    {"ops"},
    {"reference"},
    {"_extension"},
    {"errors", "__init__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MOST_MODULES = 12
MOST_LINES = 400


def _room(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else module.stem


def _imported_rooms(source: str) -> set[str]:
    """Rooms that a module imports, at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "zskd_fast":
            rooms |= {name.name if name.name in LEVEL else "__init__" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zskd_fast."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("zskd_fast.")}
    return rooms


def _upward(room: str, source: str) -> list[str]:
    """Imported rooms that are not below the given one."""
    return sorted(each for each in _imported_rooms(source) - {room} if LEVEL[each] <= LEVEL[room])


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_only(module):
    upward = _upward(_room(module), (PACKAGE / module).read_text("utf-8"))
    assert not upward, f"{module} imports {', '.join(upward)}, which is not below {_room(module)}"


def test_an_import_that_goes_up_is_found():
    assert _upward("store", "def f():\n    from zskd_fast.synthesis import plan") == ["synthesis"]
    assert _upward("report", "import zskd_fast.repro.table") == ["repro"]
    assert _upward("cli", "from zskd_fast import ops\nfrom zskd_fast.run.job import Job") == []


def test_every_room_has_a_place():
    assert {_room(module) for module in MODULES} == set(LEVEL)


def test_no_folder_has_more_than_twelve_modules_and_no_module_more_than_400_lines():
    folders = [folder for folder in PACKAGE.rglob("*") if folder.is_dir()]
    assert {str(f.relative_to(PACKAGE)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_MODULES} == {}
    lines = {str(module): len((PACKAGE / module).read_text("utf-8").splitlines()) for module in MODULES}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}
