"""Which model endpoints serve, asked once and not waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import orjson

from airflow_arcadia.batch.transport.http_client import AnswerTimeout, BadAnswer, Client, ConnectionLost

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0


async def served_model(clients: Iterable[Client]) -> str | None:
    """The only model that the first endpoint to answer serves; None when none answers, or with several."""
    for client in clients:
        try:
            response = await asyncio.wait_for(client.get("/v1/models"), _TIMEOUT_S)
            listed = orjson.loads(response.body)["data"]
            models = [str(model["id"]) for model in listed if not model.get("parent")]
        except (ConnectionLost, AnswerTimeout, BadAnswer, asyncio.TimeoutError) as error:
            log.info("An endpoint does not list its models: %s", error)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            log.info("An endpoint answered HTTP %s instead of its models", response.status)
        else:
            return models[0] if len(models) == 1 else None
        finally:
            await client.close()
    return None
