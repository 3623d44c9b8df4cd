"""What `job create` prints for a person: each way to pay in words, and codes for a phone's camera.

The code that comes first holds the bare address, though its amount must be typed. A wallet that
does not understand the other one, an EIP-681 request, may send to the first address in it: that is
the token's contract (shapeshift/web#2059), and the money is lost. A wrong amount is not lost: it is
at the recipient's address, and an operator sees it.
"""

import io
import sys
from collections.abc import Mapping
from typing import Any, Final

import segno
import typer
from eth_utils.address import to_checksum_address
from rich.console import Console

QUIET_MODULES: Final = 2
_NETWORKS: Final = {8453: "Base", 84532: "Base Sepolia"}
"""By chain id, as wallets and exchanges call them."""


def print_bill(told: Mapping[str, Any], *, with_codes: bool | None) -> None:
    """Print the fields of `job create`; None for codes where the output is a terminal."""
    codes = sys.stdout.isatty() if with_codes is None else with_codes
    typer.echo(_head(told))
    if told["unique_amount_usdc"] is not None:
        _print_by_amount(told, codes=codes)
    typer.echo(_by_memo(told))


def code_of(text: str) -> str:
    """Return a QR code of half blocks, two rows of it in a line, light on dark."""
    out = io.StringIO()
    segno.make_qr(text).terminal(out, border=QUIET_MODULES, compact=True)
    return out.getvalue().rstrip("\n")


def _print_by_amount(told: Mapping[str, Any], *, codes: bool) -> None:
    recipient = to_checksum_address(told["recipient"])
    network = _NETWORKS.get(told["chain_id"], f"chain {told['chain_id']}")
    typer.echo(
        f"From any wallet or exchange: send exactly {told['unique_amount_usdc']} USDC"
        f" on {network} to\n"
        f"  {recipient}\n"
        "  To the last digit: by this amount the job is found."
    )
    if codes:
        _print_code(recipient)
        typer.echo("  The code holds the address only: type the amount yourself.")
    typer.echo(
        "\nFrom a wallet that reads payment requests (EIP-681), the same amount:\n"
        f"  {told['eip681_uri']}"
    )
    if codes:
        _print_code(told["eip681_uri"])
    typer.echo(
        f"  Where the wallet then names {to_checksum_address(told['token'])} as the recipient,\n"
        "  stop: that is the token's contract, and what is sent there is lost.\n"
    )


def _head(told: Mapping[str, Any]) -> str:
    expiry = told["expires_at"]
    until = "" if expiry is None else f" until {expiry:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"Job {told['job_uuid']} (number {told['id']}) waits for its payment{until}.\n"
        f"Service {told['service_key']}, {told['amount_usdc']} USDC.\n"
    )


def _by_memo(told: Mapping[str, Any]) -> str:
    return (
        f"With the memo, {told['amount_usdc']} USDC or more, from a web page or a script:\n"
        f"  a transaction to {to_checksum_address(told['token'])} with the data\n"
        f"    {told['calldata']}\n"
        "  or a gasless transferWithAuthorization with the nonce\n"
        f"    {told['authorization_nonce']}\n"
        "  or the data suffix, for a wallet or library that appends it\n"
        f"    {told['data_suffix']}\n"
        "  The requests for a wallet are in --json, and in the row"
        f" job_id = {told['id']} of job_payment_terms."
    )


def _print_code(text: str) -> None:
    console = Console()
    code = code_of(text)
    if console.is_terminal and console.width < len(code.partition("\n")[0]):
        return
    # In its own colours: on a light terminal the code would be inverted.
    console.print(code, style="bright_white on black", highlight=False, soft_wrap=True)
