"""The layers of the design, held: imports point downward only, and the centre knows no network."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from llada.cli import COMMANDS

PACKAGE = Path(__file__).parents[1] / "src" / "llada"

# The layer of every room: a module of the root, or a folder with all that is in it.
LAYERS = {
    "system": 0,
    "forward_process": 1,
    "tokenizers": 1,
    "optim": 1,
    "films": 1,
    "objective": 2,
    "models": 3,
    "data": 3,
    "sampling": 4,
    "costs": 4,
    "checkpoints": 5,
    "evaluation": 6,
    "training": 7,
    "model": 7,
    "serving": 8,
    "cli": 9,
    "__main__": 10,
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


def named_in(path: Path) -> set[str]:
    """The package's own modules that a file imports, or names in a string, dotted or as a file next to it."""
    constants = (node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_constant(node))
    strings = [value for value in constants if isinstance(value, str)]
    own_folder = path.parent.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else ()
    neighbours = {".".join((*own_folder, text.removesuffix(".py"))) for text in strings if text.endswith(".py")}
    return {*imports_of(path), *(text.split(":")[0].removeprefix("llada.") for text in strings), *neighbours}


def is_constant(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant)


def test_no_module_is_imported_by_tests_only() -> None:
    """But by another module, a benchmark or one of the founding scripts, or entered as a command."""
    from llada.cli import COMMANDS

    entered = {"__main__", "cli.harness", *(f"cli.{command}" for command in COMMANDS)}
    named = {name for path in FILES for name in named_in(path) - {module_name(path)}}
    for folder in ("benchmarks", "shakespeare"):
        named |= {name for path in (PACKAGE.parents[1] / folder).glob("*.py") for name in named_in(path)}
    modules = {module_name(path) for path in FILES if path.stem != "__init__"}
    assert modules - entered - named == set()


def test_root_is_the_mathematics_and_its_door() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "__main__", "forward_process", "model", "objective"}


SAMPLING = "config draws filling fills guidance plan policies predictions remask speculation steps unmask"
CENTRE = ["forward_process", "objective", *(f"sampling.{name}" for name in SAMPLING.split())]


@pytest.mark.parametrize("module", CENTRE)
def test_the_centre_knows_no_network_file_or_configuration(module: str) -> None:
    allowed = {*CENTRE, "system.errors", "system.literals"}
    if module.startswith("sampling."):
        # The signature of a predictor, and where fp64 can be computed.
        allowed |= {"models.predictor", "system.device"}
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
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "Console"), f"{module_name(path)}:{node.lineno} writes by itself"


def test_heavy_libraries_stay_where_they_belong() -> None:
    """matplotlib is imported when a curve is drawn, the hub's library when it is asked."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not any(name.startswith(("matplotlib", "huggingface_hub")) for name in names), path


# Flags that are not ours: of pip and of compilers.
FOREIGN_FLAGS = {
    "--dest", "--force-reinstall", "--hash", "--help", "--install", "--no-deps", "--only-binary", "--quiet",
    "--require-hashes", "--requirement", "--standalone", "--version",
}  # fmt: skip
# What proposes whole command lines, for a network that does not fit.
NAMES_FLAGS: set[str] = set()
# Styles of pages and pictures, whose variables look like flags.
HAS_CSS = {"films.html", "films.svg"}


def strings_of(path: Path) -> list[tuple[int, str]]:
    """The strings of a file with their lines; what an f-string puts in is "{}". Other names that a field has on the
    command line, `arg(aliases=...)`, are not among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    aliases = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "arg"]
    within |= {id(part) for call in aliases for part in ast.walk(call)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            found.append((node.lineno, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_command_line_names_its_flags(path: Path) -> None:
    """The library names options as Python does, in backticks, and `cli/flags.py` spells them."""
    if room_of(module_name(path)) == "cli" or module_name(path) in NAMES_FLAGS | HAS_CSS:
        return
    for line, text in strings_of(path):
        flags = re.findall(r"(?<![\w}-])--[a-z{][\w-]*", text)
        assert set(flags) <= FOREIGN_FLAGS, f"{module_name(path)}:{line} names {flags}"


def test_what_stands_in_backticks_alone_is_an_option() -> None:
    """It becomes a flag, so that a misspelled one would send people after a flag that is not there."""
    from llada.cli import chat, evaluate, export, prepare, sample, serve, size_report, train, watch
    from llada.cli.flags import WITH_THREE_VALUES
    from llada.evaluation.lm_eval.options import HarnessOptions
    from llada.training.config import TrainConfig

    def fields(options: type) -> dict[str, str]:
        found: dict[str, str] = {}
        for field in dataclasses.fields(options):
            has_factory = field.default_factory is not dataclasses.MISSING
            inner: Any = field.default_factory if has_factory else type(field.default)
            is_group = isinstance(inner, type) and dataclasses.is_dataclass(inner)
            found |= fields(inner) if is_group else {field.name: str(field.type)}
        return found

    types = (
        chat.ChatOptions, evaluate.EvaluateOptions, export.ExportOptions, prepare.PrepareOptions, sample.SampleOptions,
        serve.ServeOptions, size_report.SizeOptions, TrainConfig, HarnessOptions, watch.WatchOptions,
    )  # fmt: skip
    options = {name: kind for each in types for name, kind in fields(each).items()}
    known = {*options, *train.READ_BEFORE, "model_args"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and "UserError" in ast.unparse(node)):
                continue
            for name in re.findall(r"`([a-z_0-9]+)(?:=[^`]*)?`", ast.unparse(node)):
                assert name in known, f"{module_name(path)}:{node.lineno} names `{name}`"
    assert {name for name, kind in options.items() if kind == "bool | None"} == WITH_THREE_VALUES


def test_the_mask_id_is_written_once() -> None:
    places = [path for path in FILES if "126336" in path.read_text(encoding="utf-8")]
    assert [module_name(path) for path in places] == ["tokenizers.char"]


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"pickle\.loads?\b|Unpickler", source), path
        assert source.count("torch.load(") == source.count("weights_only=True"), path


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, llada.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_commands_do_not_wait_for_the_compiler() -> None:
    """It takes longer to import than the rest of torch."""
    modules = ", ".join(f"llada.cli.{name}" for name in COMMANDS)
    program = f"import sys, {modules}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_type_checkers_see_the_public_names() -> None:
    """What is imported for them is what `__getattr__` finds, at the same place."""
    import llada

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert all(name.name == name.asname for name in node.names)  # "as" makes it public
        seen.setdefault(str(node.module), []).extend(name.name for name in node.names)
    assert {module: tuple(names) for module, names in seen.items()} == llada._HOMES


def test_public_names_are_exactly_these() -> None:
    import llada

    assert llada.__all__ == [
        "Canvas", "Checkpoint", "Message", "Model", "NoisyBatch", "SamplerConfig", "Step", "TextBound", "UserError",
        "constrain", "generate", "generate_by_sliding", "infill", "load", "load_checkpoint", "loss_weights",
        "mask_bernoulli", "mask_exact_count", "masked_nll", "sequence_bounds", "suppress", "unmask", "weighted_loss",
    ]  # fmt: skip
    assert set(llada.__all__) <= set(dir(llada))
    for name in llada.__all__:
        assert getattr(llada, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(llada, "noth" + "ing")
