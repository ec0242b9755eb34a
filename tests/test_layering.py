"""Lower rooms never import higher ones and siblings never import each other: walked from the source, deferred imports included."""

import ast
from pathlib import Path

import lossopt_jax

PACKAGE = Path(lossopt_jax.__file__).parent
# Each room may import the rooms of the rows above it, and nothing else of the package.
LAYERS = [
    {"_types"},
    {"reduce", "hosts", "kinds", "products"},
    {"losses", "optimizers", "schedules", "models", "data", "recipe", "checkpoint", "domains", "measured", "watch"},
    {"combine", "plain", "step"},
    {"loop"},
    {"train"},
    {"sweep"},
    {"report"},
    {"lr_finder", "range_test"},
    {"saved"},
    {"config", "diagnose", "recommend", "tune"},
    {"compare", "evidence"},
    {"console"},
    {"cli"},
]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lossopt_jax.")}
        if isinstance(node, ast.ImportFrom):
            if node.level == depth:
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif node.level == 0 and node.module and node.module.startswith("lossopt_jax."):
                found.add(node.module.split(".")[1])
    return found


def test_every_file_has_a_room():
    rooms = {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set().union(*LAYERS)


def test_imports_point_down():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if room(path) != "__init__"
        for other in sorted(imported_rooms(path) - {room(path)})
        if level[other] >= level[room(path)]
    ]
    assert wrong == []


def test_the_walk_sees_imports():
    assert {"step", "recipe", "models"} <= imported_rooms(PACKAGE / "train.py")
    assert {"config", "report", "sweep"} <= imported_rooms(PACKAGE / "cli.py")
