"""GET /anthropic/v1/models: the names of the model in Anthropic's form, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baleen.errors import InvalidRequest
from router.gateway.core import Core
from router.gateway.models import ServedModel

Json = dict[str, Any]

MOST_LISTED = 1000
_LISTED = 20


async def models(core: Core, request: Request) -> Response:
    """Names of the model: after `after_id` or before `before_id`, `limit` of them."""
    await core.prepare()
    found, more = _page(core.names.models, request.query_params)
    return JSONResponse(
        {
            "data": [_shown(core, model.name) for model in found],
            "has_more": more,
            "first_id": found[0].name if found else None,
            "last_id": found[-1].name if found else None,
        }
    )


async def model(core: Core, request: Request) -> Response:
    """One name of the model."""
    await core.prepare()
    return JSONResponse(_shown(core, core.names.listed(request.path_params["name"]).name))


def _page(listed: list[ServedModel], query: Mapping[str, str]) -> tuple[list[ServedModel], bool]:
    """The names that are asked for, and whether there are more in that direction."""
    limit = _limit(query.get("limit", str(_LISTED)))
    if "before_id" in query:
        before = listed[: _place(listed, query["before_id"], "before_id")]
        return before[-limit:], len(before) > limit
    after = listed[_place(listed, query["after_id"], "after_id") + 1 :] if "after_id" in query else listed
    return after[:limit], len(after) > limit


def _limit(text: str) -> int:
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
    if not 1 <= limit <= MOST_LISTED:
        raise InvalidRequest(f"limit is {text[:40]!r}, must be from 1 to {MOST_LISTED}", field="limit")
    return limit


def _place(listed: list[ServedModel], name: str, field: str) -> int:
    place = next((place for place, model in enumerate(listed) if model.name.lower() == name.lower()), None)
    if place is None:
        raise InvalidRequest(f"{field} is {name[:40]!r}, which is no name of the model", field=field)
    return place


def _shown(core: Core, name: str) -> Json:
    created = datetime.fromtimestamp(core.created, UTC).isoformat(timespec="seconds")
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": created.replace("+00:00", "Z"),
        "lifecycle": "active",
        "line": None,
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": core.max_context,
        "max_tokens": min(core.limits.max_output, core.max_context),
    }
