"""From settings to services: reads the prompt and schema files, fills in what is shipped."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import structlog

from db.catalogue import CatalogueStore, Destination, Offer
from db.pool import Database
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import BadSetting
from oncepaid.domain.jobs import service_key_of
from oncepaid.paying import token_name
from oncepaid.settings import ServiceSettings, Settings
from processors.services import (
    SHIPPED,
    Service,
    Shipped,
    parse_schema,
    shipped_prompt,
    shipped_schema,
)

log = structlog.get_logger()

MAX_FILE_BYTES: Final = 1024 * 1024
DEFAULT_PRICE_USDC: Final = Decimal("0.50")


def build_services(settings: Settings) -> dict[str, Service]:
    """Return the configured services by key; the shipped ones where none are configured.

    A shipped service needs no prompt of its own. Raises `BadSetting` naming the key.
    """
    configured = settings.services or {
        key: ServiceSettings(price_usdc=DEFAULT_PRICE_USDC) for key in SHIPPED
    }
    return {key: _build(key, service, settings) for key, service in configured.items()}


def with_names(services: dict[str, Service]) -> dict[str, Service]:
    """Return the services also by the key of their name, which a hub's skill may have.

    A hub's skill `Creative Concept` gets the key `creativeconcept`; our service is `concept`.
    """
    by_name = {service_key_of(service.name): service for service in services.values()}
    return {**by_name, **services}


async def publish_offers(
    database: Database, settings: Settings, services: dict[str, Service]
) -> None:
    """Tell the database the terms of new jobs and the skills on offer."""
    refused = await CatalogueStore(database).publish(
        job_lifetime=timedelta(seconds=settings.matching.job_lifetime_s),
        amount_fallback=settings.matching.amount_fallback,
        destination=_destination_of(settings),
        offers=[
            Offer(
                service_key=service.key,
                name=service.name,
                description=None,
                price_usdc=service.price_usdc,
            )
            for service in services.values()
        ],
    )
    for key in refused:
        log.warning("catalogue.skill_refused", service_key=key)


def _destination_of(settings: Settings) -> Destination:
    chain = settings.chain
    named = chain.watched and chain.recipients
    return Destination(
        chain_id=chain.chain_id,
        token=Address(chain.token),
        token_name=token_name(chain.chain_id),
        recipient=Address(named[0]) if named else None,
    )


def _build(key: str, service: ServiceSettings, settings: Settings) -> Service:
    claude = settings.claude
    own_prompt = service.system_prompt is not None or service.system_prompt_file is not None
    shipped = SHIPPED.get(key) if not own_prompt else None
    fallback = shipped or Shipped(name=SHIPPED[key].name if key in SHIPPED else key)
    return Service(
        key=key,
        name=service.name or fallback.name,
        price_usdc=service.price_usdc,
        system_prompt=_prompt(key, service),
        output_schema=_schema(key, service),
        model=service.model or claude.model,
        max_tokens=service.max_tokens or fallback.max_tokens or claude.max_tokens,
        timeout_s=service.timeout_s or fallback.timeout_s or claude.timeout_s,
        thinking=service.thinking or fallback.thinking or claude.thinking,
        effort=service.effort or fallback.effort or claude.effort,
    )


def _prompt(key: str, service: ServiceSettings) -> str:
    if service.system_prompt_file is not None:
        text = _read(f"services.{key}.system_prompt_file", service.system_prompt_file)
    elif service.system_prompt is not None:
        text = service.system_prompt
    elif key in SHIPPED:
        text = shipped_prompt(key)
    else:
        raise BadSetting(f"services.{key}.system_prompt", "is missing")
    if not text.strip():
        raise BadSetting(f"services.{key}.system_prompt", "is empty")
    return text


def _schema(key: str, service: ServiceSettings) -> dict[str, Any] | None:
    if service.output_schema_file is not None:
        name = f"services.{key}.output_schema_file"
        try:
            return parse_schema(_read(name, service.output_schema_file))
        except ValueError as exc:
            raise BadSetting(name, str(exc)) from exc
    # The shipped schema belongs to the shipped prompt; another prompt promises something else.
    own_prompt = service.system_prompt is not None or service.system_prompt_file is not None
    return shipped_schema(key) if key in SHIPPED and not own_prompt else None


def _read(key: str, path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSetting(key, f"cannot read {path}: {exc}") from exc
    if len(text) > MAX_FILE_BYTES:
        raise BadSetting(key, f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return text
