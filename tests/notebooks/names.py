"""Whether code that is shown but not run here still names what exists: imports, attributes, arguments."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

TRAINER = "transformers.trainer"
"""Its constructor ends the search for arguments: ours hand theirs on to one another above it."""


def complaints(code: str, known: dict[str, Any] | None = None) -> list[str]:
    """What the code names of mmft, of rewards, or as an argument of anything imported, and is not there.

    Args:
        code: Python source.
        known: names that earlier code brought; those of this code are added.
    """
    tree = ast.parse(code)
    known = {} if known is None else known
    found = [complaint for node in ast.walk(tree) for complaint in _imported(node, known)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = known.get(node.value.id)
            if isinstance(owner, ModuleType) and not hasattr(owner, node.attr):
                found.append(f"{owner.__name__} has no {node.attr}")
        if isinstance(node, ast.Call):
            found += _wrong_arguments(node, known)
    return found


def _import_module_of(package: ModuleType, name: str) -> None:
    """Imports what is a module of its own, as PIL.Image is: nothing has it as an attribute before."""
    whole = f"{package.__name__}.{name}"
    if hasattr(package, "__path__") and importlib.util.find_spec(whole) is not None:
        importlib.import_module(whole)


def _imported(node: ast.AST, known: dict[str, Any]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            known[alias.asname or alias.name.split(".")[0]] = importlib.import_module(alias.name)
    elif isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            _import_module_of(module, alias.name)
            if hasattr(module, alias.name):
                known[alias.asname or alias.name] = getattr(module, alias.name)
            else:
                yield f"{node.module} has no {alias.name}"


def _wrong_arguments(call: ast.Call, known: dict[str, Any]) -> list[str]:
    function = _called(call.func, known)
    if function is None:
        return []
    takes = parameters(function)
    if takes is None:
        return []
    return [
        f"{function.__name__} takes no {keyword.arg}"
        for keyword in call.keywords
        if keyword.arg is not None and keyword.arg not in takes
    ]


def _called(node: ast.expr, known: dict[str, Any]) -> Any:
    """What is called, where it was imported; None for methods of objects, which only running would show."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _called(node.value, known)
        if isinstance(owner, ModuleType) or inspect.isclass(owner):
            return getattr(owner, node.attr, None)
    return None


def parameters(function: Any) -> set[str] | None:
    """Names of the arguments that a function or a class takes; None where it takes any."""
    if not inspect.isclass(function):
        given = inspect.signature(function).parameters.values()
        return None if any(each.kind is each.VAR_KEYWORD for each in given) else {p.name for p in given}
    names: set[str] = set()
    for base in function.__mro__:
        if base.__module__ == TRAINER:
            break
        if "__init__" not in vars(base):
            continue
        given = inspect.signature(base.__init__).parameters.values()
        names |= {each.name for each in given}
        if not any(each.kind is each.VAR_KEYWORD for each in given):
            break  # what is not named here is refused
    else:
        return None
    return names


def literal_calls(code: str, known: dict[str, Any], ending: str) -> list[Any]:
    """Objects made by calls with literal arguments, as the code writes them, of imported classes whose name
    ends so."""
    made = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith(ending):
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            made.append(known[node.func.id](*map(ast.literal_eval, node.args), **arguments))
    return made
