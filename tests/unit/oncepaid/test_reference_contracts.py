"""Which contracts are believed, by the settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from listener.ranges import Watch
from listener.references import ContractKind
from oncepaid.domain.errors import BadSetting
from oncepaid.setting_sources import load_settings
from oncepaid.values import watch_of

ADDRESS = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
TYPO = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914"
NAME = "ONCEPAID__MATCHING__REFERENCE_CONTRACTS"
KEY = "matching.reference_contracts"


def watch_for(environment: pytest.MonkeyPatch, contracts: list[dict[str, Any]]) -> Watch:
    environment.setenv(NAME, json.dumps(contracts))
    return watch_of(load_settings(None))


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_bases_own_are_believed_by_default() -> None:
    contracts = watch_of(load_settings(None)).contracts
    assert [(contract.kind, contract.address) for contract in contracts] == [
        (ContractKind.AUTH_CAPTURE_ESCROW, "0xf96815976523e00e65be8f34ca5e64b4f41eb19c"),
        (ContractKind.AUTH_CAPTURE_ESCROW, "0xbdea0d1bcc5966192b070fdf62ab4ef5b4420cff"),
    ]


def test_a_list_replaces_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_for(monkeypatch, []).contracts == ()
    [one] = watch_for(monkeypatch, [{"kind": "request_fee_proxy", "address": ADDRESS}]).contracts
    assert (one.kind, one.address) == (ContractKind.REQUEST_FEE_PROXY, ADDRESS.lower())


def test_they_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    table = f'{{ kind = "auth_capture_escrow", address = "{ADDRESS}" }}'
    file.write_text(f"[matching]\nreference_contracts = [{table}]\n")
    assert [one.address for one in watch_of(load_settings(file)).contracts] == [ADDRESS.lower()]


def test_every_kind_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a contract is one of our chain: the hash of a commerce payment depends on it."""
    monkeypatch.setenv("ONCEPAID__CHAIN__CHAIN_ID", "5")
    tables: list[dict[str, Any]] = [
        {"kind": kind, "address": f"0x{number:040x}"} for number, kind in enumerate(ContractKind)
    ]
    for table in tables:
        if table["kind"] == ContractKind.COMMERCE_TRANSFERS:
            table["operators"] = [ADDRESS]
    contracts = watch_for(monkeypatch, tables).contracts
    assert [contract.kind for contract in contracts] == list(ContractKind)
    assert {contract.chain_id for contract in contracts} == {5}
    assert sorted(len(contract.operators) for contract in contracts) == [0, 0, 1]


MISTAKES: list[tuple[str, list[dict[str, Any]], str]] = [
    (".0.kind", [{"kind": "escrow", "address": ADDRESS}], "'auth_capture_escrow'"),
    (".0.kind", [{"kind": "b20_memo", "address": ADDRESS}], "'auth_capture_escrow'"),
    (".0.address", [{"kind": "auth_capture_escrow", "address": TYPO}], "was mistyped"),
    (".0.address", [{"kind": "auth_capture_escrow"}], "is missing"),
    (".0", [{"kind": "commerce_transfers", "address": ADDRESS}], "needs operators"),
    (
        ".0",
        [{"kind": "request_fee_proxy", "address": ADDRESS, "operators": [ADDRESS]}],
        "for commerce_transfers only",
    ),
    (
        ".0.operators.0",
        [{"kind": "commerce_transfers", "address": ADDRESS, "operators": ["0x12"]}],
        "is not an address",
    ),
    ("", [{"kind": "request_fee_proxy", "address": ADDRESS}] * 2, "is listed twice"),
    ("", [{"kind": "request_fee_proxy", "address": ADDRESS}] * 101, "at most 100"),
]


@pytest.mark.parametrize(("key", "contracts", "words"), MISTAKES)
def test_a_mistake_is_told_with_its_key(
    monkeypatch: pytest.MonkeyPatch, key: str, contracts: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        watch_for(monkeypatch, contracts)
    assert caught.value.key == KEY + key
    assert words in caught.value.problem
