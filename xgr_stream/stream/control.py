"""How an operator changes a running worker's models: a POST to its web port, from the worker's own machine."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from xgr_stream.errors import ConfigError, XgrError
from xgr_stream.stream.models import Models
from xgr_stream.stream.runtime import Runtime

FIELDS = {
    "load": {"model", "role", "fraction", "catalog", "catalog_topic", "cache_bytes"},
    "adjust": {"role", "fraction"},
    "promote": set[str](),
    "drop": set[str](),
}
"""What each action takes, as `Models` has it."""
JSON_TYPE = "application/json"


class ModelsPage:
    """`/models`: what is loaded, as JSON; and, for whoever is on this machine, what changes it."""

    def __init__(self, runtime: Callable[[], Runtime | None]) -> None:
        self._runtime = runtime

    async def get(self, _: web.Request) -> web.Response:
        runtime = self._runtime()
        if runtime is None:
            return _answer(503, {"error": "the worker has not started"})
        return _answer(200, _status(runtime.models))

    async def post(self, request: web.Request) -> web.Response:
        """The answer comes when it is done: 200 and what is loaded then, or 400 and why nothing changed."""
        runtime = self._runtime()
        if runtime is None:
            return _answer(503, {"error": "the worker has not started"})
        if not _is_local(request.remote):
            return _answer(403, {"error": "models are changed from the worker's own machine alone"})
        # A page of another site, whose name its owner has made an address of this machine, may post anything.
        if not _names_this_machine(request.host):
            return _answer(403, {"error": f"models are changed at localhost or its address, not {request.host!r:.80}"})
        # A page in a browser on this machine may post anything but this without being asked first.
        if request.content_type != JSON_TYPE:
            return _answer(415, {"error": f"content-type must be {JSON_TYPE}, not {request.content_type}"})
        try:
            await change(runtime.models, await request.read())
        except XgrError as error:
            return _answer(400, {"error": str(error), **_status(runtime.models)})
        return _answer(200, _status(runtime.models))


async def change(models: Models, body: bytes) -> None:
    """Do what `body` asks for. Raises `ConfigError`."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body must be JSON: {error}") from error
    action = message.pop("action", None) if isinstance(message, dict) else None
    if not isinstance(action, str) or action not in FIELDS:
        raise ConfigError(f"the body must be a map whose action is one of {', '.join(FIELDS)}, not {action!r:.80}")
    unknown = sorted(set(message) - FIELDS[action])
    if unknown:
        raise ConfigError(f"{action} takes {', '.join(sorted(FIELDS[action])) or 'nothing else'}, not {unknown}")
    fields = {name: value for name, value in message.items() if value is not None}
    if action == "load":
        if not isinstance(fields.get("model"), str):
            raise ConfigError(f"model must be the path of a checkpoint, not {fields.get('model')!r:.80}")
        await models.load(fields.pop("model"), **fields)
    elif action == "adjust":
        await models.adjust(**fields)
    elif action == "promote":
        await models.promote()
    else:
        await models.drop()


def _status(models: Models) -> dict[str, Any]:
    return {"models": models.status(), "model_error": models.error}


def _answer(status: int, content: dict[str, Any]) -> web.Response:
    return web.json_response(content, status=status)


def _names_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_local(address: str | None) -> bool:
    if address is None:
        return False
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)  # a server that listens on both families names IPv4 callers so
    return bool((mapped or found).is_loopback)
