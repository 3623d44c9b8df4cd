"""What the fuzzer begins with: real transactions, logs and suffixes."""

import json
from pathlib import Path
from typing import Final

from eth_abi.abi import encode

from tests.fuzzing.receipts import ENVELOPE, packed
from tests.unit.listener.contract_logs import COMMERCE, FEES, INFO_TYPE, STORE, Logs, payment_info
from tests.unit.samples import STRANGER

FIXTURES: Final = Path(__file__).parent.parent / "fixtures"
SUFFIXES: Final = (
    "62617365617070" + "07" + "00" + "8021" * 8,
    "62617365617070" * 2 + "0e" + "00" + "8021" * 8,
    "a161616762617365617070" + "000b" + "02" + "8021" * 8,
    "a161776a6364705f666163696c31" + "000e" + "02" + "8021" * 8,
)
WORDS: Final = (
    *("833589fcd6edb6e08f4c7c32d4f71b54bda02913", "5c2e1132", "8021" * 8),
    "5c2e113200112233445566778899aabbccddeeff9eab6a62",
    *("a9059cbb", "23b872dd", "e3ee160e", "cf092995", "ef55bec6", "1fad948c", "765e827f"),
    *("b61d27f6", "34fcd5be", "e9ae5c53", "6a761202", "8d80ff0a", "82ad56cb", "252dba42"),
    *("ac9650d8", "cef6d209", "7bb37428", "8dd7712f", "468721a7", "18dfb3c7"),
)
"""What a wrapper, a token call and a memo are told by (hex): the fuzzer puts them in."""


def write_dictionary(file: Path) -> None:
    """Write the words as libFuzzer reads them."""
    escaped = ("".join(f"\\x{byte:02x}" for byte in bytes.fromhex(word)) for word in WORDS)
    file.write_text("".join(f'"{word}"\n' for word in escaped))


def write_corpus(target: str, folder: Path) -> int:
    """Write a file for each beginning of a target; returns how many."""
    beginnings = beginnings_of(target)
    for number, data in enumerate(beginnings):
        (folder / f"{number:05}").write_bytes(data)
    return len(beginnings)


def beginnings_of(target: str) -> list[bytes]:
    """Return the inputs that a target begins with."""
    make = {
        "calldata": _calls,
        "references": _receipts,
        "suffixes": _suffixes,
        "answers": _answers,
    }
    return make[target]()


def _transactions() -> list[dict[str, object]]:
    lines = (FIXTURES / "transactions.jsonl").read_text().splitlines()
    found = [json.loads(line)["tx"] for line in lines]
    return found + [json.loads(p.read_text())["tx"] for p in FIXTURES.glob("receipt-0x*.json")]


def _calls() -> list[bytes]:
    inputs = [bytes.fromhex(str(tx["input"])[2:]) for tx in _transactions()]
    envelope = bytes.fromhex(WORDS[3])
    return [
        bytes([to, 255]) + data + tail
        for data in inputs
        for to in range(8)
        for tail in (b"", envelope)
    ]


def _suffixes() -> list[bytes]:
    return [bytes.fromhex(suffix) for suffix in SUFFIXES] + [
        bytes.fromhex(str(tx["input"])[2:])[-300:] for tx in _transactions()
    ]


def _receipts() -> list[bytes]:
    """Each kind of event with its transfers, then all of them in one transaction."""
    info = payment_info(ENVELOPE.ljust(32, b"\0"))
    calldata = encode([INFO_TYPE, "uint256"], [tuple(info.values()), 5])
    kinds = (_request, _commerce, _escrow, _memo)
    made = []
    for emitted in (*((kind,) for kind in kinds), kinds):
        logs = Logs(first=0)
        for emit in emitted:
            emit(logs)
        made += [packed(before, logs.events) for before in (b"", ENVELOPE, calldata)]
    return made


def _request(logs: Logs) -> None:
    logs.transfer(5)
    logs.transfer(1, to=FEES)
    logs.request(ENVELOPE, 5, fee=1)
    logs.transfer(6)
    logs.plain_request(ENVELOPE.ljust(32, b"\0"), 6)


def _commerce(logs: Logs) -> None:
    logs.transfer(7, to=COMMERCE)
    logs.transfer(7, sender=COMMERCE)
    logs.transferred(bytes(range(16)), 7)
    logs.transfer(8, sender=STRANGER)
    logs.transferred(bytes(range(16)), 9, currency=STRANGER)


def _escrow(logs: Logs) -> None:
    info = payment_info(ENVELOPE.ljust(32, b"\0"))
    logs.captured(info, 12, fee=2)
    logs.transfer(10, sender=STORE)
    logs.authorized(info, 9)
    logs.transfer(9, to=STORE)
    logs.captured(info, 9)
    logs.transfer(9, sender=STORE)
    logs.charged(info, 10, fee_bps=500)
    logs.transfer(10, sender=STORE)


def _memo(logs: Logs) -> None:
    logs.transfer(11)
    logs.memo(ENVELOPE.ljust(32, b"\0"))
    logs.transfer(12)
    logs.memo(bytes(range(32)), caller=STRANGER)


def _answers() -> list[bytes]:
    answers: list[object] = list(_transactions())
    for path in FIXTURES.glob("receipt-0x*.json"):
        receipt = json.loads(path.read_text())["receipt"]
        answers += [receipt, *receipt["logs"]]
    return [json.dumps(answer).encode() for answer in answers]
