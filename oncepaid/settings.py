"""Settings: frozen data with bounds, checked with a sentence that an operator can act on.

Data only: nothing is opened or built here, and no message shows a value that could be a secret.
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from eth_utils.address import is_checksum_address
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    SettingsConfigDict,
)

from oncepaid.domain.chain import Address, parse_address
from oncepaid.domain.finality import Requirement, Tier, parse_requirement
from oncepaid.domain.money import Units, parse_usdc

ENV_PREFIX: Final = "ONCEPAID__"
BASE_CHAIN_ID: Final = 8453
BASE_USDC: Final = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
"""Circle, "USDC contract addresses", Base mainnet."""
BASE_ESCROWS: Final = (
    "0xf96815976523E00e65Be8f34cA5e64b4f41EB19c",
    "0xBdEA0D1bcC5966192B070Fdf62aB4EF5b4420cff",
)
"""AuthCaptureEscrow 1.1 and 1.0, README of base/commerce-payments."""
MAX_PRICE_UNITS: Final = 10**15
ANY_RECIPIENT: Final = "*"


def _split(value: object) -> object:
    """An environment variable carries a list as JSON or as comma-separated text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as exc:
            raise ValueError("must be a JSON list or comma-separated") from exc
    if isinstance(value, str):
        return [part for part in (piece.strip() for piece in value.split(",")) if part]
    return value


def _known_address(text: str) -> Address:
    address = parse_address(text)
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise ValueError(f"{text} has a wrong EIP-55 checksum: a digit was mistyped")
    return address


def _url_of(schemes: tuple[str, ...]) -> AfterValidator:
    def check(url: str) -> str:
        if not _is_url(url, schemes):
            # The address itself may hold a key and stays out of the message.
            raise ValueError(f"each must be a URL that starts with {' or '.join(schemes)}://")
        return url

    return AfterValidator(check)


def _is_url(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _price(value: object) -> object:
    if isinstance(value, int | float | str | Decimal) and not isinstance(value, bool):
        if parse_usdc(str(value)) > MAX_PRICE_UNITS:
            raise ValueError("is more than 1,000,000,000 USDC")
        return Decimal(str(value))
    return value


HttpUrls = Annotated[
    tuple[Annotated[str, _url_of(("http", "https"))], ...], NoDecode, BeforeValidator(_split)
]
WsUrls = Annotated[
    tuple[Annotated[str, _url_of(("ws", "wss"))], ...], NoDecode, BeforeValidator(_split)
]
TokenAddress = Annotated[str, AfterValidator(_known_address)]
Price = Annotated[Decimal, BeforeValidator(_price)]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400)]
Thinking = Literal["model_default", "adaptive", "between_tools", "disabled"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChainSettings(_Section):
    chain_id: int = Field(BASE_CHAIN_ID, ge=1)
    token: TokenAddress = Field(BASE_USDC, validate_default=True)
    recipients: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ()
    ws_urls: WsUrls = ()
    http_urls: HttpUrls = ()
    start_block: Literal["latest"] | Annotated[int, Field(ge=0)] = "latest"
    poll_interval_s: float = Field(5.0, ge=0.05, le=3600)
    max_range_blocks: int = Field(5000, ge=1, le=1_000_000)
    finality_tags: bool = True
    safe_age_s: Seconds = 180
    finalized_age_s: Seconds = 1_800

    @field_validator("recipients")
    @classmethod
    def _check_recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if ANY_RECIPIENT in value:
            if len(value) > 1:
                raise ValueError('"*" observes every recipient and stands alone')
            return value
        return tuple(dict.fromkeys(_known_address(text) for text in value))

    @field_validator("start_block", mode="before")
    @classmethod
    def _number_from_environment(cls, value: object) -> object:
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if value != "latest" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError('must be "latest" or a block number')
        return value

    @property
    def watched(self) -> frozenset[Address] | None:
        """Our addresses; None where every recipient is observed."""
        if self.recipients == (ANY_RECIPIENT,):
            return None
        return frozenset(Address(text) for text in self.recipients)


class TierSettings(_Section):
    up_to: Price | None = None
    require: str

    @field_validator("require")
    @classmethod
    def _check_require(cls, value: str) -> str:
        parse_requirement(value)
        return value

    @property
    def tier(self) -> Tier:
        limit: Units | None = None if self.up_to is None else parse_usdc(self.up_to)
        require: Requirement = parse_requirement(self.require)
        return Tier(up_to=limit, require=require)


class ConfirmationSettings(_Section):
    second_endpoint_from: Price = Decimal("100.00")
    tiers: tuple[TierSettings, ...] = (
        TierSettings(up_to=Decimal("1.00"), require="included"),
        TierSettings(up_to=Decimal("50.00"), require="safe"),
        TierSettings(require="finalized"),
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        limits = [tier.up_to for tier in self.tiers]
        known = [limit for limit in limits if limit is not None]
        if known != sorted(set(known)) or None in limits[:-1]:
            raise ValueError("tiers must rise in up_to; only the last one may leave it out")
        return self


class ReferenceContractSettings(_Section):
    kind: Literal["request_fee_proxy", "commerce_transfers", "auth_capture_escrow"]
    address: TokenAddress
    operators: Annotated[tuple[TokenAddress, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _check_operators(self) -> Self:
        if self.kind == "commerce_transfers" and not self.operators:
            raise ValueError("commerce_transfers needs operators: those whose intents are yours")
        if self.kind != "commerce_transfers" and self.operators:
            raise ValueError(f"operators are for commerce_transfers only, not for {self.kind}")
        return self


class MatchingSettings(_Section):
    job_lifetime_s: float = Field(86_400, ge=60, le=10 * 365 * 86_400)
    late_grace_s: Seconds = 3_600
    quarantine_s: Seconds = 86_400
    amount_fallback: bool = True
    reference_contracts: Annotated[tuple[ReferenceContractSettings, ...], Field(max_length=100)] = (
        tuple(
            ReferenceContractSettings(kind="auth_capture_escrow", address=address)
            for address in BASE_ESCROWS
        )
    )

    @field_validator("reference_contracts")
    @classmethod
    def _each_once(
        cls, value: tuple[ReferenceContractSettings, ...]
    ) -> tuple[ReferenceContractSettings, ...]:
        addresses = [contract.address for contract in value]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"{address} is listed twice")
        return value


class ModelPrice(_Section):
    input_usd_per_mtok: Decimal = Field(ge=0, le=10_000)
    output_usd_per_mtok: Decimal = Field(ge=0, le=10_000)


class ClaudeSettings(_Section):
    api_key: Annotated[SecretStr, Field(min_length=1)] | None = None
    base_url: Annotated[str, _url_of(("http", "https"))] | None = None
    model: str = Field("claude-sonnet-5-5", min_length=1)
    max_tokens: int = Field(2000, ge=1, le=21_333)
    timeout_s: float = Field(30.0, gt=0, le=600)
    concurrency: int = Field(8, ge=1, le=1000)
    max_attempts: int = Field(3, ge=1, le=100)
    max_cost_usd_per_job: Decimal = Field(Decimal("1.00"), gt=0)
    max_cost_usd_per_day: Decimal = Field(Decimal("100.00"), gt=0)
    thinking: Thinking = "between_tools"
    effort: Effort = "low"
    prices: dict[str, ModelPrice] = {
        "claude-sonnet-5-5": ModelPrice(
            input_usd_per_mtok=Decimal(2), output_usd_per_mtok=Decimal(10)
        )
    }


class ServiceSettings(_Section):
    name: str | None = None
    price_usdc: Price | None = None
    system_prompt: str | None = None
    system_prompt_file: Path | None = None
    output_schema_file: Path | None = None
    max_tokens: int | None = Field(None, ge=1, le=21_333)
    model: str | None = None
    timeout_s: float | None = Field(None, gt=0, le=600)
    thinking: Thinking | None = None
    effort: Effort | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give system_prompt or system_prompt_file, not both")
        return self


class DatabaseSettings(_Section):
    url: SecretStr = SecretStr("embedded:./oncepaid-data")
    pool_size: int = Field(10, ge=3, le=100)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url.startswith("embedded:") and url != "embedded:":
            return value
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be postgresql://… or embedded:DIR")
        try:
            _ = urlsplit(url).port
        except ValueError:
            # The text itself may hold a password and stays out of the message.
            problem = "is not a readable URL: special characters in it must be percent-encoded"
            raise ValueError(problem) from None
        return value


class HttpSettings(_Section):
    listen: str = "127.0.0.1:9464"

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError("must be HOST:PORT, as in 127.0.0.1:9464")
        return value

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class WebhookSettings(_Section):
    endpoints: Annotated[
        tuple[Annotated[str, _url_of(("http", "https"))], ...], NoDecode, BeforeValidator(_split)
    ] = ()
    secret: SecretStr | None = None

    @field_validator("endpoints")
    @classmethod
    def _not_yet(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            raise ValueError("this version sends no webhooks yet; leave it empty")
        return value


class LogSettings(_Section):
    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """All settings. Stages never see this object; they receive values."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    chain: ChainSettings = ChainSettings()
    confirmation: ConfirmationSettings = ConfirmationSettings()
    matching: MatchingSettings = MatchingSettings()
    claude: ClaudeSettings = ClaudeSettings()
    services: dict[str, ServiceSettings] = {}
    database: DatabaseSettings = DatabaseSettings()
    http: HttpSettings = HttpSettings()
    webhooks: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    @field_validator("services")
    @classmethod
    def _check_service_keys(cls, value: dict[str, ServiceSettings]) -> dict[str, ServiceSettings]:
        for key in value:
            if not key.isascii() or not key.isalnum() or key != key.lower():
                raise ValueError(f"{key!r}: a service key has lower-case letters and digits only")
        return value
