"""What tests/test_architecture.py asks of a module's syntax tree; nothing is imported, nothing is run."""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: What takes a number out of the autograd graph, or copies it off.
GRAPH_CUTS = ("torch.tensor", ".item", ".detach", ".numpy", ".tolist")


@dataclass(frozen=True)
class Module:
    """A module by its dotted name and its syntax tree."""

    name: str
    tree: ast.Module

    @classmethod
    def of(cls, name: str, source: str) -> "Module":
        return cls(name, ast.parse(source))


def modules(root: Path, packages: tuple[str, ...]) -> list[Module]:
    """Every module of the packages under `root`, by name."""
    found = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module.of(name, path.read_text(encoding="utf-8")))
    return found


def imports(module: Module) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it; `from a import b` yields a.b."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def inside(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def row_of(name: str, table: dict[str, tuple[str, ...]]) -> str | None:
    """The longest key of a table of layers that a module's name lies in."""
    return max((key for key in table if inside(name, (key,))), key=len, default=None)


def forbidden_imports(module: Module, layers: dict[str, tuple[str, ...]]) -> list[str]:
    """What a module imports although its layer's row does not allow it; the standard library is always allowed."""
    row = row_of(module.name, layers)
    if row is None:
        return [f"{module.name} stands in no layer"]
    return [
        f"{module.name} imports {name}"
        for name in imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names and not inside(name, (row, *layers[row]))
    ]


def calls_in(tree: ast.AST, wanted: Callable[[ast.Call], str | None], scope: str = "") -> Iterator[tuple[str, str]]:
    """(qualified name of the enclosing function, what `wanted` calls it) for every call that `wanted` names."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inner = f"{scope}.{node.name}".lstrip(".") if named else scope
        if isinstance(node, ast.Call) and (call := wanted(node)):
            yield inner, call
        yield from calls_in(node, wanted, inner)


def graph_cut(call: ast.Call) -> str | None:
    """The entry of GRAPH_CUTS that a call is, if any."""
    if not isinstance(call.func, ast.Attribute):
        return None
    owner, name = call.func.value, call.func.attr
    if name == "tensor":
        return "torch.tensor" if isinstance(owner, ast.Name) and owner.id == "torch" else None
    return f".{name}" if f".{name}" in GRAPH_CUTS else None


def graph_cuts(module: Module) -> list[tuple[str, str, str]]:
    """(module, function, call) for every call that can cut the autograd graph."""
    return [(module.name, scope, call) for scope, call in calls_in(module.tree, graph_cut)]


def environment_reads(module: Module) -> list[str]:
    """Every place where a module touches the environment's variables."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
            found.append(f"{module.name} line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [alias.name for alias in node.names if alias.name in ("environ", "environb", "getenv", "putenv")]
            found.extend(f"{module.name} line {node.lineno}: from os import {name}" for name in names)
    return found


def work_at_import(module: Module) -> list[str]:
    """Bare calls that run when a module is imported, among them print; `if __name__ == "__main__"` is not import."""
    found: list[str] = []
    pending: list[ast.stmt] = list(module.tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.append(f"{module.name} line {node.lineno}: {ast.unparse(node)}")
        pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
    return found
