"""Kafka's request for the next epoch after a certain one, which aiokafka lacks.

Classes are named as aiokafka names its own.
"""

from __future__ import annotations

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactString, Int16, Int32, Int64, Schema, TaggedFields


class InitProducerIdResponse_v3(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 22
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class InitProducerIdRequest_v3(RequestStruct):  # type: ignore[misc]  # noqa: N801
    FLEXIBLE_VERSION = True
    API_KEY = 22
    API_VERSION = 3
    RESPONSE_TYPE = InitProducerIdResponse_v3
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("transaction_timeout_ms", Int32),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class NextEpochRequest(Request[InitProducerIdRequest_v3]):  # type: ignore[misc]
    """The epoch after this one, if nobody has taken another since. (KIP-360)"""

    API_KEY = 22

    def __init__(
        self, transactional_id: str, transaction_timeout_ms: int, producer_id: int, epoch: int
    ) -> None:
        self._fields = transactional_id, transaction_timeout_ms, producer_id, epoch

    def build(
        self, request_struct_class: type[InitProducerIdRequest_v3]
    ) -> InitProducerIdRequest_v3:
        return request_struct_class(*self._fields, {})
