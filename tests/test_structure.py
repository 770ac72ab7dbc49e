"""The structure of the production code: which module imports which, private names, and sizes."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", "utils/**/*.py", "experiments/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "__init__.py"
}
# A module imports modules of its own package and of lower numbers; the two bottom packages do not
# know each other.
LAYERS = {
    "utils.pruning": 1,
    "utils.data": 1,
    "utils.modeling": 2,
    "utils.tasks": 3,
    "utils.training": 4,
    "utils.runs": 5,
    "utils.imp": 6,
    "utils.finetune": 6,
    "utils.released": 7,
    "utils.cli": 7,
}
# What a module outside the layers may import of ours; all modules may import these five.
FOUNDATION = {
    "utils.errors": set(),
    "utils.files": set(),
    "utils.hub": {"utils.errors", "utils.files"},
    "utils.config": {"utils.errors"},
    "utils.schema": {"utils.errors"},
}

FILE, FUNCTION, CLASS, PARAMETERS = 350, 60, 150, 6
EXCEPTIONS = {  # (name, what is counted) -> reason
    ("utils.modeling.attention.packed_attention", "parameters"): "the interface of transformers"
}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """Pairs (module imported, name from it or ""); names that are modules count as modules."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole, "") if whole in MODULES else (node.module, alias.name))
    return tuple(found)


def own_imports(module: str) -> set[str]:
    return {name for name, _ in imports(module) if name in MODULES}


def package(module: str) -> str:
    """The entry of LAYERS: utils.imp, or utils.pruning for utils.pruning.masks."""
    return ".".join(module.split(".")[:2])


def library_modules() -> list[str]:
    return [module for module in MODULES if module.startswith("utils.")]


@pytest.mark.parametrize("module", library_modules())
def test_imports_go_one_way(module):
    """cli -> imp, finetune -> runs -> training -> tasks -> modeling -> pruning, data."""
    if module in FOUNDATION:
        assert own_imports(module) <= FOUNDATION[module]
        return
    assert package(module) in LAYERS, "a new module or package needs a layer"
    for imported in sorted(own_imports(module) - FOUNDATION.keys()):
        same_package = package(imported) == package(module)
        lower = LAYERS.get(package(imported), 99) < LAYERS[package(module)]
        assert same_package or lower, f"{module} imports {imported}"


def test_imports_form_no_circle():
    graph = {module: own_imports(module) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_scripts_alone_import_the_released_variants():
    importing = {module for module in MODULES if "utils.released" in own_imports(module)}
    assert importing <= set(SCRIPTS) and importing


def test_nothing_imports_a_script():
    assert {name for module in MODULES for name in own_imports(module)}.isdisjoint(SCRIPTS)


def test_packages_export_nothing():
    """Each __init__.py is one line, the charter of its package."""
    for package in ("utils", "experiments"):
        for path in (ROOT / package).glob("**/__init__.py"):
            module = ast.parse(path.read_text(encoding="utf-8"))
            assert len(module.body) == 1, path
            assert "\n" not in ast.get_docstring(module), path


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined_names(module: str) -> Iterator[str]:
    """Names of functions, classes, variables and attributes that the module defines."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def root_name(node: ast.expr) -> str:
    """The name that an expression such as a.b(c).d starts with."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module):
    ours = [name for source, name in imports(module) if source in MODULES]
    assert [name for name in ours if is_private(name)] == []
    libraries = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if not (getattr(node, "module", None) or alias.name).startswith(("utils", "experiments"))
    }
    allowed = {"self", "cls", "super", *libraries}
    known = set(defined_names(module))
    used = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and node.attr not in known
        and root_name(node) not in allowed
    ]
    assert used == []


def parameters(function: ast.FunctionDef) -> int:
    named = function.args
    every = [*named.posonlyargs, *named.args, *named.kwonlyargs]
    return len([each for each in every if each.arg not in ("self", "cls")])


def sizes(module: str) -> Iterator[tuple[str, str, int, int]]:
    """Name, what is counted, the count and the limit, of a file and of all that it defines."""
    path: Path = MODULES[module]
    yield module, "lines", len(path.read_text(encoding="utf-8").splitlines()), FILE
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name, lines = f"{module}.{node.name}", node.end_lineno - node.lineno + 1
            limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            yield name, "lines", lines, limit
            if isinstance(node, ast.FunctionDef):
                yield name, "parameters", parameters(node), PARAMETERS


def test_files_functions_classes_and_parameter_lists_are_short():
    above = {
        (name, what): count
        for module in MODULES
        for name, what, count, limit in sizes(module)
        if count > limit
    }
    assert {key: above[key] for key in above if key not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() <= above.keys(), "these need no exception any more"
