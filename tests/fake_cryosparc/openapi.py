"""The openapi.json of cryoSPARC v5, made again from the `api.pyi` that cryosparc-tools ships.

The client knows no URL: it asks for openapi.json and makes `api.<namespace>.<function>` of every operation's
`summary`. Its stub was generated from the real document by a strict rule, which can be turned round:

    positional-only            path parameter
    positional-or-keyword      request body; its name is the schema's title
    keyword-only               query parameter
    Stream, Dataset            application/octet-stream, application/x-cryosparc-dataset
    return annotation          response schema

so that this serves whatever client is installed; without operations where that is 4.7, which has no stub. URLs and
verbs are our own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cryosparc

GET_VERBS = ("find", "get", "load", "download", "ls", "me", "health", "read", "is", "list", "check")
STREAMS = {"Stream": "application/octet-stream", "Dataset": "application/x-cryosparc-dataset"}
SIMPLE = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
JSON = "application/json"
Schema = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """Where an operation is found and the status of its answer."""

    op: str
    method: str
    pattern: re.Pattern[str]
    status: int


@lru_cache
def build(version: str, stream_status: int, file_status: int = 200) -> tuple[Schema, tuple[Route, ...]]:
    """Return openapi.json and its routes; the client streams a dataset only if its status is 201."""
    stub = Path(cryosparc.__file__).with_name("api.pyi")
    tree = ast.parse(stub.read_text() if stub.exists() else "")
    paths: Schema = {}
    routes = []
    for op, function in _operations(tree):
        names = [argument.arg for argument in function.args.posonlyargs if argument.arg != "self"]
        path = "/" + "/".join([*op.split("."), *(f"{{{name}}}" for name in names)])
        body = [argument for argument in function.args.args if argument.arg != "self"]
        method = "get" if function.name.startswith(GET_VERBS) and not body else "post"
        responses, status = _responses(function.returns, stream_status, file_status)
        described: Schema = {"summary": op, "parameters": _parameters(op, function), "responses": responses}
        if op == "login":
            described["requestBody"] = {"content": {"application/x-www-form-urlencoded": {"schema": {}}}}
        elif body:
            described["requestBody"] = _body(body[0], required=not function.args.defaults)
        paths[path] = {method: described}
        pattern = re.compile("/" + "/".join([re.escape(op).replace(r"\.", "/"), *["([^/]+)"] * len(names)]))
        routes.append(Route(op, method.upper(), pattern, status))
    info = {"title": "cryoSPARC for tests", "version": version}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": {}}}, tuple(routes)


def _operations(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name == "APINamespace":
            continue
        if node.name != "APIClient" and not node.name.endswith("API"):
            continue
        namespace = "" if node.name == "APIClient" else node.name.removesuffix("API").lower() + "."
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("__"):
                yield namespace + function.name, function


def _parameters(op: str, function: ast.FunctionDef) -> list[Schema]:
    arguments = function.args
    names = [argument.arg for argument in arguments.posonlyargs if argument.arg != "self"]
    found = [{"name": name, "in": "path", "required": True} for name in names]
    if op != "login":
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            found.append({"name": argument.arg, "in": "query", "required": default is None})
    return found


def _body(argument: ast.arg, required: bool) -> Schema:
    schema, stream = _schema(argument.annotation)
    titled = {**schema, "title": argument.arg.replace("_", " ").title()}
    return {"required": required, "content": {STREAMS.get(stream, JSON): {"schema": titled}}}


def _responses(returns: ast.expr | None, stream_status: int, file_status: int) -> tuple[Schema, int]:
    schema, stream = _schema(returns)
    responses: Schema
    if stream:
        status = stream_status if stream == "Dataset" else file_status
        responses = {str(status): {"content": {STREAMS[stream]: {"schema": schema}}}}
    elif isinstance(returns, ast.Constant) and returns.value is None:
        status, responses = 204, {"204": {}}
    else:
        status, responses = 200, {"200": {"content": {JSON: {"schema": schema}}}}
    error: Schema = {"content": {JSON: {"schema": {}}}}
    return responses | dict.fromkeys(("400", "401", "404", "409", "422", "500"), error), status


def _schema(node: ast.expr | None) -> tuple[Schema, str]:
    """Return the schema of an annotation, and the stream class or ""."""
    if isinstance(node, ast.Name):
        if node.id in STREAMS:
            return {"title": node.id, "type": "string", "format": "binary"}, node.id
        if node.id in SIMPLE:
            return {"type": SIMPLE[node.id]}, ""
        return ({} if node.id == "Any" else {"$ref": f"#/components/schemas/{node.id}"}), ""
    if isinstance(node, ast.Attribute):  # datetime.datetime
        return {"type": "string"}, ""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _generic(node.value.id, inner), ""
    return {}, ""


def _generic(name: str, inner: list[ast.expr]) -> Schema:
    match name:
        case "List":
            return {"type": "array", "items": _schema(inner[0])[0]}
        case "Tuple":
            return {"type": "array", "prefixItems": [_schema(one)[0] for one in inner]}
        case "Dict":
            return {"type": "object", "additionalProperties": _schema(inner[1])[0]}
        case "Optional":
            return {"anyOf": [_schema(inner[0])[0], {"type": "null"}]}
        case "Union":
            return {"anyOf": [_schema(one)[0] for one in inner]}
        case "Literal":
            return {"type": "string"}
    return {}
