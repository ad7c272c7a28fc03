"""The layers of the design, held: imports point downward only, and the centre knows no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "llada"

# The layer of every room: a module of the root, or a folder with all that is in it.
LAYERS = {
    "system": 0,
    "forward_process": 1,
    "tokenizers": 1,
    "optim": 1,
    "objective": 2,
    "models": 3,
    "data": 3,
    "sampling": 4,
    "costs": 4,
    "checkpoints": 5,
    "evaluation": 6,
    "training": 7,
    "cli": 8,
    "__main__": 9,
}
OPEN_TO_ALL = {"__init__"}  # it only gathers names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(path: Path) -> list[str]:
    """The package's own modules that a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llada."):
            module = node.module.removeprefix("llada.")
            for name in node.names:  # `from llada.data import corpus` imports a module
                inner = PACKAGE / module.replace(".", "/") / f"{name.name}.py"
                found.append(f"{module}.{name.name}" if inner.exists() else module)
        elif isinstance(node, ast.Import):
            found += [name.name.removeprefix("llada.") for name in node.names if name.name.startswith("llada.")]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    module = module_name(path)
    if module in OPEN_TO_ALL:
        return
    for imported in imports_of(path):
        room, below = room_of(module), room_of(imported)
        assert room == below or LAYERS[below] < LAYERS[room], f"{module} must not import {imported}"


def test_root_is_the_mathematics() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "forward_process", "objective"}


@pytest.mark.parametrize("module", ["forward_process", "objective", "sampling.unmask"])
def test_the_centre_knows_no_network_file_or_configuration(module: str) -> None:
    allowed = {"forward_process", "objective", "system.errors", "system.literals"}
    if module == "sampling.unmask":
        allowed.add("system.device")  # for where fp64 can be computed
    assert set(imports_of(PACKAGE / f"{module.replace('.', '/')}.py")) <= allowed


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=module_name)
def test_networks_know_nothing_of_ours(path: Path) -> None:
    """But the cross-entropy, which models/head.py takes in pieces."""
    allowed = {"objective"} if path.stem == "head" else set()
    assert {room_of(imported) for imported in imports_of(path)} <= {"models", *allowed}


def test_one_module_writes_for_people() -> None:
    """So that nothing raw reaches a terminal."""
    allowed = {"system.terminal", "system.console"}
    for path in FILES:
        if module_name(path) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert name not in ("print", "Console"), f"{module_name(path)}:{node.lineno} writes by itself"


def test_heavy_libraries_stay_where_they_belong() -> None:
    """matplotlib is imported when a curve is drawn."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not any(name.startswith("matplotlib") for name in names), path


def test_the_mask_id_is_written_once() -> None:
    places = [path for path in FILES if "126336" in path.read_text(encoding="utf-8")]
    assert [module_name(path) for path in places] == ["tokenizers.char"]


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert "pickle" not in source.replace("unpickled", ""), path
        assert source.count("torch.load(") == source.count("weights_only=True"), path


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, llada.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_type_checkers_see_the_public_names() -> None:
    """What is imported for them is what `__getattr__` finds, at the same place."""
    import llada

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert all(name.name == name.asname for name in node.names)  # "as" makes it public
        seen.setdefault(str(node.module), []).extend(name.name for name in node.names)
    assert {module: tuple(names) for module, names in seen.items()} == llada._HOMES


def test_public_names_are_exactly_these() -> None:
    import llada

    assert llada.__all__ == [
        "Canvas", "Checkpoint", "NoisyBatch", "SamplerConfig", "UserError", "generate", "infill", "load_checkpoint",
        "loss_weights", "mask_bernoulli", "mask_exact_count", "masked_nll", "sequence_bounds", "suppress", "unmask",
        "weighted_loss",
    ]  # fmt: skip
    assert set(llada.__all__) <= set(dir(llada))
    for name in llada.__all__:
        assert getattr(llada, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llada.nothing  # noqa: B018
