"""What the pages say as JSON, described by OpenAPI 3.1: the schemas follow from the records."""

import dataclasses
import types
import typing
from typing import Any

import pydantic

import mlflow_breadcrumbs
from mlflow_breadcrumbs.server import (
    alias_page,
    asking,
    comparison_page,
    lineage_page,
    model_page,
    start,
    version_page,
)

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_NUMBER = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer"}}
_FORM = {
    "name": "form",
    "in": "path",
    "required": True,
    "schema": {"enum": list(version_page.FORMATS)},
}
_MOST = {
    "name": "most",
    "in": "query",
    "description": "Lines that are listed, the newest first.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 5000, "default": 50},
}
_AT = {
    "name": "at",
    "in": "query",
    "description": "What was live then? ISO 8601; UTC where it has no zone.",
    "schema": {"type": "string"},
}
_ONE, _OTHER = (
    {
        "name": name,
        "in": "query",
        "description": "NAME/VERSION or NAME@ALIAS, with or without models:/.",
        "schema": {"type": "string"},
    }
    for name in ("one", "other")
)

_VERSION = "/models/{name}/versions/{number}"
_PAGES: dict[str, tuple[str, type, list[dict[str, Any]]]] = {
    "/": ("The newest merged versions, and the registered models.", start.Overview, [_MOST]),
    "/models/{name}": (
        "A registered model: its versions, its aliases, what needs attention.",
        model_page.ModelPage,
        [_NAME, _MOST],
    ),
    "/models/{name}/aliases": (
        "The moves of a model's aliases, and where they were at a time.",
        alias_page.AliasPage,
        [_NAME, _AT],
    ),
    _VERSION: ("A version.", version_page.VersionPage, [_NAME, _NUMBER]),
    f"{_VERSION}/lineage": (
        "What a version was made from and what was made from it, to any depth.",
        lineage_page.LineagePage,
        [_NAME, _NUMBER],
    ),
    "/compare": (
        "Two versions side by side.",
        comparison_page.ComparisonPage,
        [_ONE, _OTHER],
    ),
}
"""By address: what it is, the record that it answers with, its parameters."""

_REQUESTS: dict[str, tuple[str, type[pydantic.BaseModel]]] = {
    "/promote": (
        "Give a version a guarded alias, if the server's policy lets it; as `promote --json`. A "
        "version that has it already is judged, and nothing is moved.",
        asking.PromotionAsked,
    ),
    "/rollback": (
        "Move a guarded alias back; as `rollback --json`. The same request again, with `expected`, "
        "goes back no further; without it, it does.",
        asking.RollbackAsked,
    ),
    "/approve": (
        "Approve a version's weights; as `approve --json`. Once more is the same approval.",
        asking.ApprovalAsked,
    ),
    "/override": (
        "Give a version a guarded alias past its policy, by an account that the configuration "
        "names; as `promote --override --json`. One that was done is not done again.",
        asking.OverrideAsked,
    ),
    "/recall": (
        "Take a version's weights, and all that descends from them, out of use; as "
        "`recall --json`. The versions that you may not read are left out of the answer. Once more "
        "is the same recall.",
        asking.RecallAsked,
    ),
}
"""By address: what it does and answers, the record that it takes."""


def document(server: str) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        server: The address that the paths are below.
    """
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}},
            "required": ["error"],
        }
    }
    paths = {
        path: _path(summary, _schema(record, schemas), parameters)
        for path, (summary, record, parameters) in _PAGES.items()
    }
    paths[f"{_VERSION}/exports/{{form}}"] = _path(
        "The lineage of a merged version, as the command `export` gives it.",
        {"type": "object"},
        [_NAME, _NUMBER, _FORM],
    )
    paths["/guard.json"] = _path(
        "Whether the server guards an alias, or any of a model's; then the requests are for it, "
        "and the policy is here as YAML. `recalls`: whether it takes recalls, of any model; "
        "`may_edit`: whether you may edit this one; `notices`: whether it writes direct moves of "
        "aliases into its ledger by itself. `requests`: the fields of each request. "
        "`configuration_digest` is in force since `since`; "
        "`restart_due`: the file says something else by now.",
        {"type": "object"},
        [_of_query("name"), _of_query("alias")],
    )
    paths["/recalls.json"] = _path(
        "The recalls that stand, by the digest of the weights. `complete`: the server takes all of "
        "them itself, so that no tag need be looked at.",
        {"type": "object"},
        [],
    )
    paths |= {path: _request(*said, schemas) for path, said in _REQUESTS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlflow_breadcrumbs",
            "version": mlflow_breadcrumbs.__version__,
            "description": "The pages as JSON: ask with Accept: application/json.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _of_query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string"}}


def _request(
    summary: str, kind: type[pydantic.BaseModel], schemas: dict[str, Any]
) -> dict[str, Any]:
    """A request that changes something: JSON, of the server's own pages or of no page at all."""
    schemas[kind.__name__] = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    body = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    found = _path(summary, {"type": "object"}, [])["get"]
    said = {
        "403": "You may not, or a page of another site asks.",
        "415": "It is not JSON.",
    }
    found["responses"] |= {status: {"description": text} for status, text in said.items()}
    found["requestBody"] = {"required": True, "content": {"application/json": body}}
    return {"post": found}


def _path(summary: str, schema: Any, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    fault = {"$ref": "#/components/schemas/Error"}
    said = {
        "400": "What was asked can't be read.",
        "404": "It is not there, or not visible to you.",
        "503": "The registry can't be read at the moment.",
    }
    answers = {
        status: {"description": text, "content": {"application/json": {"schema": fault}}}
        for status, text in said.items()
    }
    answers["200"] = {
        "description": summary,
        "content": {"application/json": {"schema": schema}},
    }
    return {"get": {"summary": summary, "parameters": parameters, "responses": answers}}


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a type; that of a record goes into `schemas` and is referred to."""
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in schemas:
            hints = typing.get_type_hints(kind)
            schemas[name] = {
                "type": "object",
                "properties": {key: _schema(hint, schemas) for key, hint in hints.items()},
                "required": list(hints),
                "additionalProperties": False,
            }
        return {"$ref": f"#/components/schemas/{name}"}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_schema(each, schemas) for each in arguments]}
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(arguments[0], schemas)}
    if typing.get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    return {}
