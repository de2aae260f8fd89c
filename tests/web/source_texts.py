"""The error texts that stand in the source: every `raise` of an error that a caller can see, found by its syntax."""

import ast
from collections.abc import Iterator

from stack import ROOT

from gateway.web.apidoc import error_classes

CODES = {error.__name__: error.code for error in error_classes()}
# `invalid(detail, …)` of the envelope makes an InvalidInput.
CODES["invalid"] = "invalid_input"


def source_texts() -> list[str]:
    """`code: text` of each, with … for what is filled in; sorted, each once."""
    files = sorted((ROOT / "gateway").rglob("*.py"))
    return sorted({said for file in files for said in _said(ast.parse(file.read_text("utf-8")))})


def _said(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (name := _name(call.func)) in CODES and call.args:
            yield f"{CODES[name]}: {_text(call.args[0])}"


def _name(called: ast.expr) -> str:
    return called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")


def _text(expression: ast.expr) -> str:
    match expression:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.Call(func=ast.Attribute(value=inner, attr="strip")):
            return _text(inner)
    return "…"
