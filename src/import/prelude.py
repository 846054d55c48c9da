"""What every script of `paddock import` begins with, before its own text.

The request is JSON in the first argument; the answer is one line of JSON on standard output, and what the configuration
prints goes to standard error.
"""
import json
import os
import sys

answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def tell(**facts):
    json.dump(facts, answer)
    answer.write("\n")
    answer.flush()
    os._exit(0)


request = json.loads(sys.argv[1])


def plain(value, depth=0):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if depth < 4 and isinstance(value, (list, tuple, set, frozenset)):
        return [plain(member, depth + 1) for member in list(value)[:200]]
    if depth < 4 and isinstance(value, dict):
        return {str(name): plain(member, depth + 1) for name, member in list(value.items())[:200]}
    if callable(value):
        return getattr(value, "__qualname__", None) or repr(value)[:400]
    return repr(value)[:400]


def installed(name):
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
