"""Both sides of docs/x402.md and a facilitator: all of the published package, on the dev chain."""

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from aiohttp import web
from aiohttp.test_utils import TestServer
from eth_account import Account
from x402 import (
    ERR_SETTLEMENT_PENDING,
    PaymentPayload,
    PaymentPayloadV1,
    PaymentRequired,
    PaymentRequiredV1,
    PaymentRequirements,
    PaymentRequirementsV1,
    SettleResponse,
    x402Client,
    x402FacilitatorSync,
)
from x402.http import PAYMENT_SIGNATURE_HEADER, encode_payment_signature_header
from x402.interfaces import FacilitatorExtension
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_client, register_exact_evm_facilitator
from x402.mechanisms.evm.signers import EthAccountSigner

from devchain.stack import Stack
from devchain.wallet import Wallet

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "x402.md"
NETWORK: Final = "eip155:8453"
_DOMAIN: Final = {"name": "USD Coin", "version": "2"}
_BLOCK = re.compile(r"^<!-- run: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of_document() -> dict[str, str]:
    """Return the document's programs by their names."""
    return dict(_BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")))


def program(name: str, folder: Path) -> ModuleType:
    """Load a program of the document as it stands."""
    path = folder / f"x402_{name}.py"
    path.write_text(code_of_document()[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a stock client has signed, in the form in which its host gets it."""

    payload: PaymentPayload | PaymentPayloadV1
    terms: PaymentRequirements | PaymentRequirementsV1

    @property
    def payer(self) -> str:
        return str(self.payload.payload["authorization"]["from"])

    @property
    def nonce(self) -> str:
        return str(self.payload.payload["authorization"]["nonce"])

    @property
    def headers(self) -> dict[str, str]:
        return {PAYMENT_SIGNATURE_HEADER: encode_payment_signature_header(self.payload)}

    def with_signature(self, other: "Signed") -> "Signed":
        """Return the same words, with what somebody else has signed of his own."""
        inner = {**self.payload.payload, "signature": other.payload.payload["signature"]}
        return replace(self, payload=self.payload.model_copy(update={"payload": inner}))


async def signed_by(payer: Wallet, stack: Stack, units: int) -> Signed:
    """Let a stock client answer a 402 of a host."""
    terms = PaymentRequirements(
        scheme="exact",
        network=NETWORK,
        asset=stack.usdc.address,
        amount=str(units),
        pay_to=stack.merchant,
        max_timeout_seconds=60,
        extra=dict(_DOMAIN),
    )
    payload = await _client_of(payer).create_payment_payload(PaymentRequired(accepts=[terms]))
    return Signed(payload=payload, terms=terms)


async def signed_in_version_1(payer: Wallet, stack: Stack, units: int) -> Signed:
    """The same by the protocol's first version, whose network is called by a name."""
    terms = PaymentRequirementsV1(
        scheme="exact",
        network="base",
        asset=stack.usdc.address,
        max_amount_required=str(units),
        pay_to=stack.merchant,
        max_timeout_seconds=60,
        resource="https://shop.example/orders/1",
        extra=dict(_DOMAIN),
    )
    required = PaymentRequiredV1(x402_version=1, accepts=[terms])
    payload = await _client_of(payer).create_payment_payload(required)
    return Signed(payload=payload, terms=terms)


def _client_of(payer: Wallet) -> x402Client:
    signer = EthAccountSigner(Account.from_key(payer.private_key))
    return register_exact_evm_client(x402Client(), signer)


@dataclass(kw_only=True)
class Facilitator:
    """The published facilitator behind its HTTP interface. `answers` are those of `/settle`.

    `gave_up` is set once it has answered twice that it cannot say whether a payment was made: a
    host's x402 server asks it once more by itself.
    """

    core: x402FacilitatorSync
    answers: list[SettleResponse] = field(default_factory=list)
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def supported(self, _: web.Request) -> web.Response:
        return _told(self.core.get_supported())

    async def verify(self, request: web.Request) -> web.Response:
        payload, terms = await _asked(request)
        return _told(await asyncio.to_thread(self.core.verify, payload, terms))

    async def settle(self, request: web.Request) -> web.Response:
        payload, terms = await _asked(request)
        answer = await asyncio.to_thread(self.core.settle, payload, terms)
        self.answers.append(answer)
        if [one.error_reason for one in self.answers].count(ERR_SETTLEMENT_PENDING) == 2:
            self.gave_up.set()
        return _told(answer)


async def settle(stack: Stack, signed: Signed, *, tail: bytes = b"") -> str:
    """Let a facilitator submit what was signed, its own `tail` behind it; returns the hash."""
    core = facilitator_of(stack, tail=tail).core
    answer = await asyncio.to_thread(core.settle, signed.payload, signed.terms)
    assert answer.success, answer
    return answer.transaction


@dataclass(frozen=True, kw_only=True)
class Tail(FacilitatorExtension):
    """Takes the place of the extension by which a facilitator puts bytes behind its call."""

    data: bytes
    key: str = "builder-code"

    def build_data_suffix(self, _payload: object, _requirements: object) -> str:
        return "0x" + self.data.hex()


def facilitator_of(stack: Stack, *, patience_s: float = 20, tail: bytes = b"") -> Facilitator:
    """Return a facilitator whose money for gas is the relayer's."""
    signer = FacilitatorWeb3Signer(
        private_key=stack.relayer.private_key.hex(),
        rpc_url=stack.anvil.http_url,
        confirmation_timeout_seconds=patience_s,
    )
    core = register_exact_evm_facilitator(x402FacilitatorSync(), signer, NETWORK)
    if tail:
        core.register_extension(Tail(data=tail))
    return Facilitator(core=core)


@asynccontextmanager
async def serving(facilitator: Facilitator) -> AsyncIterator[str]:
    """Serve a facilitator on loopback; yields its URL."""
    app = web.Application()
    app.router.add_get("/supported", facilitator.supported)
    app.router.add_post("/verify", facilitator.verify)
    app.router.add_post("/settle", facilitator.settle)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def _told(model: Any) -> web.Response:
    return web.json_response(text=model.model_dump_json(by_alias=True, exclude_none=True))


async def _asked(request: web.Request) -> tuple[PaymentPayload, PaymentRequirements]:
    body = await request.json()
    return (
        PaymentPayload.model_validate(body["paymentPayload"]),
        PaymentRequirements.model_validate(body["paymentRequirements"]),
    )
