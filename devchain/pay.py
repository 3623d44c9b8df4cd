"""Pays a job on the dev chain, in each of the ways that oncepaid understands.

python -m devchain.pay JOB --config .demo/oncepaid.toml [--way memo|authorization|amount]
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import aiohttp
import typer
from eth_utils.address import to_checksum_address

from db.reports import Reports, Row
from devchain.rpc import Rpc, RpcError
from devchain.usdc import Usdc
from devchain.wallet import Wallet
from oncepaid.cli import database_of, fail, load, run_async
from oncepaid.domain.memo import NONCE_BYTES, Memo, envelope_of
from oncepaid.domain.money import format_usdc, units_of_price
from oncepaid.settings import Settings


class Way(StrEnum):
    """How a payment says which job it is for."""

    MEMO = "memo"
    """Behind the calldata of `transfer`."""
    AUTHORIZATION = "authorization"
    """As the nonce of a signed `transferWithAuthorization`; a relayer submits it."""
    AMOUNT = "amount"
    """By nothing but its amount."""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a payer must know of a job; amounts are 10^-6 USDC."""

    recipient: str
    price_units: int
    envelope: bytes
    unique_units: int | None

    def units(self, way: Way) -> int:
        """Return what to send; raises ValueError where the job has no unique amount."""
        if way is not Way.AMOUNT:
            return self.price_units
        if self.unique_units is None:
            raise ValueError("the job has no unique amount")
        return self.unique_units


def bill_of(job: Row, recipient: str) -> Bill:
    """Read a job's row; `recipient` is for a job that names none. Raises ValueError: no price."""
    price = units_of_price(job["price_usdc"])
    if price is None:
        raise ValueError("the job has no price")
    return Bill(
        recipient=to_checksum_address(job["pay_to"] or recipient),
        price_units=price,
        envelope=envelope_of(Memo(job["memo"])),
        unique_units=job["unique_amount_units"],
    )


async def send_payment(bill: Bill, way: Way, *, payer: Wallet, relayer: Wallet) -> str:
    """Pay a bill and return the transaction's hash, unmined; `relayer` serves one way only."""
    units = bill.units(way)
    match way:
        case Way.MEMO:
            return await payer.transfer(bill.recipient, units, bill.envelope)
        case Way.AUTHORIZATION:
            nonce = bill.envelope.ljust(NONCE_BYTES, b"\0")
            signed = payer.sign_authorization(bill.recipient, units, nonce)
            return await relayer.submit_authorization(signed)
        case Way.AMOUNT:
            return await payer.transfer(bill.recipient, units)


async def _pay(settings: Settings, name: str, way: Way) -> None:
    async with database_of(settings) as database:
        job = await Reports(database).job(name)
    if job is None:
        fail(f"there is no job {name}")
    try:
        bill = bill_of(job, settings.chain.recipients[0])
        async with Rpc(settings.chain.http_urls[0]) as rpc:
            payer, relayer = await _wallets(rpc, settings)
            tx_hash = await send_payment(bill, way, payer=payer, relayer=relayer)
            await rpc.receipt(tx_hash)
    except (ValueError, RpcError) as exc:
        fail(str(exc))
    except (aiohttp.ClientError, IndexError):
        fail("no dev chain answers there: is `oncepaid demo --keep` still running?")
    typer.echo(f"paid {format_usdc(bill.units(way))} USDC for job {name}, tx {tx_hash}")


async def _wallets(rpc: Rpc, settings: Settings) -> tuple[Wallet, Wallet]:
    """Return a payer and a relayer: the last accounts of a dev chain are its payers."""
    if not str(await rpc.call("web3_clientVersion")).startswith("anvil"):
        _not_a_dev_chain()
    accounts = [to_checksum_address(account) for account in await rpc.call("eth_accounts")]
    token = to_checksum_address(settings.chain.token)
    usdc = Usdc(rpc=rpc, address=token, owner=accounts[0], proxy_admin=accounts[1])
    last = len(accounts) - 1
    payer, relayer = (
        Wallet(usdc=usdc, address=accounts[index], index=index, chain_id=settings.chain.chain_id)
        for index in (last, last - 1)
    )
    return payer, relayer


def _not_a_dev_chain() -> NoReturn:
    fail("chain.http_urls leads to a node that is not anvil: this command only plays")


def main(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Number or UUID.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings of the demo.")],
    way: Annotated[Way, typer.Option(help="How to say which job it is for.")] = Way.MEMO,
) -> None:
    """Pay a job of a running demo."""
    run_async(_pay(load(config), job, way))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
