"""What a broker with an authorizer allows. aiokafka's admin client has requests for it, and no methods."""

from __future__ import annotations

import asyncio

from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from xgr_stream.stream.connection import Connection

TOPIC, GROUP, TRANSACTIONAL_ID = 2, 3, 5
LITERAL, DESCRIBE, ALLOW = 3, 8, 3


async def allow_describe_alone(connection: Connection, kind: int, name: str) -> None:
    """Let everybody describe the topic, group or transactional id of this name. What no rule of a resource allows is
    then forbidden. A controller takes the rule and brokers follow: it is waited for until ours has it.
    """
    rule = (kind, name, LITERAL, "User:*", "*", DESCRIBE, ALLOW)
    admin = connection.admin()
    await admin.start()
    try:
        response = await admin._send_request(CreateAclsRequest(*rule))
        assert [result[0] for result in response.creation_responses] == [0], response
        async with asyncio.timeout(20):
            while not (await admin._send_request(DescribeAclsRequest(*rule))).resources:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
