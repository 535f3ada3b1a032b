"""Faust's aiokafka transport, with the consumer and producer that move whole batches.

Set on an app before it starts, through Faust's own setter (`wiring.install` does it):

    app.transport = BatchTransport(app.conf.broker_consumer, app, options)
"""

from __future__ import annotations

from typing import ClassVar

import faust
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from stream.kafka.batches import BatchOptions
from stream.kafka.consumer import BatchConsumer
from stream.kafka.producer import BatchProducer

__all__ = ["BatchConsumer", "BatchProducer", "BatchTransport"]


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """Creates `BatchConsumer` and `BatchProducer`; `options` tells the consumer what to batch."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer
    Producer: ClassVar[type[BatchProducer]] = BatchProducer

    def __init__(self, urls: list[URL], app: faust.App, options: BatchOptions) -> None:
        super().__init__(urls, app)
        self.options = options
