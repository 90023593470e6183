"""What a broker with an authorizer allows. aiokafka's admin client has no request for it."""

from __future__ import annotations

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from xgr_stream.stream.connection import Connection

TOPIC, GROUP = 2, 3
LITERAL, DESCRIBE, ALLOW = 3, 8, 3
TEXT = String("utf-8")


class CreateAclsResponse(Response):
    API_KEY, API_VERSION = 30, 1
    SCHEMA = Schema(("throttle_time_ms", Int32), ("results", Array(("error_code", Int16), ("error_message", TEXT))))


class CreateAclsStruct(RequestStruct):
    API_KEY, API_VERSION, RESPONSE_TYPE = 30, 1, CreateAclsResponse
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", TEXT),
                ("pattern_type", Int8),
                ("principal", TEXT),
                ("host", TEXT),
                ("operation", Int8),
                ("permission", Int8),
            ),
        )
    )


class CreateAcls(Request[CreateAclsStruct]):
    API_KEY = 30

    def __init__(self, *creations: tuple[int, str, int, str, str, int, int]) -> None:
        self._creations = list(creations)

    def build(self, request_struct_class: type[CreateAclsStruct]) -> CreateAclsStruct:
        return request_struct_class(self._creations)


async def allow_describe_alone(connection: Connection, kind: int, name: str) -> None:
    """Let everybody describe the topic or group of this name. What no rule of a resource allows is then forbidden."""
    admin = connection.admin()
    await admin.start()
    try:
        rule = (kind, name, LITERAL, "User:*", "*", DESCRIBE, ALLOW)
        response = await admin._send_request(CreateAcls(rule))
        assert [result[0] for result in response.results] == [0], response
    finally:
        await admin.close()
