"""From ``module:app`` on the command line to the object."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


class TargetProblem(Exception):
    """The text of the target is wrong, or there is no such thing in the module."""


def add_directory(directory: str) -> None:
    """Puts the application's directory first on the import path."""
    path = os.path.abspath(directory)
    if path in sys.path:
        sys.path.remove(path)
    sys.path.insert(0, path)


def load(target: str, *, factory: bool = False, defaults: tuple[str, ...] = ("application", "app")) -> Callable[..., Any]:
    """Imports ``module``, ``module:attribute.path`` or ``module:factory("literal", key=1)``.

    Without an attribute the ``defaults`` are tried in order. With ``factory`` the object is called without arguments and its
    result is the application. What the import raises goes through untouched: the traceback is the application's own.
    """
    module_name, _, expression = target.partition(":")
    if not module_name:
        raise TargetProblem(f"{target!r} does not name a module (write module:app)")
    arguments: tuple[list[Any], dict[str, Any]] | None = None
    path: list[str] = []
    if expression:
        path, arguments = _parse(target, expression)
    module = importlib.import_module(module_name)
    if not path:
        path = [next((name for name in defaults if hasattr(module, name)), defaults[0])]
    found: Any = module
    for name in path:
        try:
            found = getattr(found, name)
        except AttributeError:
            raise TargetProblem(f"{module_name} has no attribute {'.'.join(path)!r}") from None
    if arguments is not None:
        found = found(*arguments[0], **arguments[1])
    elif factory:
        found = found()
    if not callable(found):
        raise TargetProblem(f"{target} is a {type(found).__name__}, not an application (nothing can call it)")
    result: Callable[..., Any] = found
    return result


def _parse(target: str, expression: str) -> tuple[list[str], tuple[list[Any], dict[str, Any]] | None]:
    problem = TargetProblem(f"{target!r}: after the colon write a name, a dotted path, or a call with literal arguments")
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise problem from None
    arguments: tuple[list[Any], dict[str, Any]] | None = None
    if isinstance(node, ast.Call):
        try:
            positional = [ast.literal_eval(value) for value in node.args]
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        except ValueError:
            raise problem from None
        if len(named) != len(node.keywords):
            raise problem
        arguments = (positional, named)
        node = node.func
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise problem
    path.insert(0, node.id)
    return path, arguments
