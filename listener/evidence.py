"""All that says whose payment a transfer is, put together: the strongest first, nothing twice."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from listener.calldata import calldata_evidence
from listener.decode import address_in
from listener.references import ReferenceContract, contract_evidence
from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    Address,
    AuthorizationLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.memo import Memo, Reference, memo_of_nonce
from oncepaid.domain.payments import Evidence, MemoSource, Signer

MAX_PIECES: Final = 16
"""Of one transfer. Who writes more names more than one job, and that is told by two."""
_USED: Final = bytes.fromhex(AUTHORIZATION_USED_TOPIC[2:])


def evidence_of(
    transaction: Transaction,
    transfers: Sequence[TransferLog],
    receipt: Receipt | None,
    used: Mapping[tuple[TxHash, int], AuthorizationLog],
    *,
    token: Address,
    contracts: Sequence[ReferenceContract],
) -> dict[int, tuple[Evidence, ...]]:
    """Return the evidence of each of `transfers`, by log index: authorization, contract, calldata.

    `transfers` are all to us in this transaction, in their order. `used` are authorizations by
    transaction and log index. `receipt` is None where the transaction calls the token itself.
    """
    contract: Mapping[int, Sequence[Evidence]] = {}
    if receipt is not None:
        contract = contract_evidence(
            transaction, transfers, receipt, token=token, contracts=contracts
        )
    calldata = calldata_evidence(transaction, transfers, receipt, token)
    return {
        log.log_index: strongest(
            [
                *_of_authorization(log, used),
                *contract.get(log.log_index, ()),
                *calldata[log.log_index],
            ]
        )
        for log in transfers
    }


def authorizations_in(
    receipt: Receipt, tx_hash: TxHash, token: Address
) -> dict[tuple[TxHash, int], AuthorizationLog]:
    """Return the `AuthorizationUsed` events of `token` in a receipt, by transaction and index."""
    found = {}
    for event in receipt.events:
        if event.address != token or len(event.topics) != 3 or event.topics[0] != _USED:
            continue
        authorizer = address_in(event.topics[1])
        if authorizer is not None:
            found[tx_hash, event.log_index] = AuthorizationLog(
                block=receipt.block,
                tx_hash=tx_hash,
                log_index=event.log_index,
                authorizer=authorizer,
                nonce=event.topics[2],
            )
    return found


def strongest(pieces: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Return what the payer signed before what others did, each memo and reference once.

    What is said alone comes before what is said in company; among equals the order stays.
    """
    if len(pieces) < 2:  # nearly always
        return tuple(pieces)
    ranked = sorted(pieces, key=lambda p: (p.signer is not Signer.PAYER, p.company != 1))
    best: dict[tuple[Memo | None, Reference | None], Evidence] = {}
    for piece in ranked:
        best.setdefault((piece.memo, piece.reference), piece)
    return tuple(best.values())[:MAX_PIECES]


def _of_authorization(
    log: TransferLog, used: Mapping[tuple[TxHash, int], AuthorizationLog]
) -> Iterator[Evidence]:
    """The token marks an authorization as used right before it moves the money: index - 1.

    A nonce that is no envelope names a job where a host has bound it, for this payer only.
    """
    found = used.get((log.tx_hash, log.log_index - 1))
    if found is None or found.authorizer != log.sender or found.block != log.block:
        return
    memo = memo_of_nonce(found.nonce)
    yield Evidence(
        memo=memo,
        source=MemoSource.AUTHORIZATION,
        signer=Signer.PAYER,
        by=log.sender,
        reference=None if memo else Reference(issuer=log.sender, value=found.nonce),
    )
