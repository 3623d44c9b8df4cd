"""All that says whose payment a transfer is, put together: the strongest first, nothing twice."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from listener.calldata import calldata_evidence, is_authorized_call, payers_word
from listener.ranking import strongest
from listener.references import ReferenceContract, contract_evidence
from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    Address,
    AuthorizationLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
    address_in,
)
from oncepaid.domain.memo import Reference, memo_of_nonce
from oncepaid.domain.payments import Evidence, MemoSource, Signer

_USED: Final = bytes.fromhex(AUTHORIZATION_USED_TOPIC[2:])


def evidence_of(
    transaction: Transaction,
    transfers: Sequence[TransferLog],
    receipt: Receipt | None,
    used: Mapping[tuple[TxHash, int], AuthorizationLog],
    *,
    token: Address,
    contracts: Sequence[ReferenceContract],
    by_recipient: bool = False,
) -> dict[int, tuple[Evidence, ...]]:
    """Return the evidence of each of `transfers`, by log index: authorization, contract, calldata.

    `transfers` are all to us in this transaction, in their order. `used` are authorizations by
    transaction and log index. `receipt` is None where the transaction calls the token itself, or
    where it could not be read. `by_recipient` is as in `calldata_evidence`.
    """
    contract: Mapping[int, Sequence[Evidence]] = {}
    if receipt is not None:
        contract = contract_evidence(
            transaction, transfers, receipt, token=token, contracts=contracts
        )
    calldata = calldata_evidence(transaction, transfers, receipt, token, by_recipient=by_recipient)
    if is_authorized_call(transaction, token):
        # The payer's word is his nonce: without it, nobody else's is heard.
        calldata = {
            log.log_index: pieces if is_marked(log, used) else payers_word(pieces)
            for log, pieces in ((log, calldata[log.log_index]) for log in transfers)
        }
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


def is_marked(log: TransferLog, used: Mapping[tuple[TxHash, int], AuthorizationLog]) -> bool:
    """Say whether the authorization by which a transfer was made is among these."""
    return _mark_of(log, used) is not None


def _mark_of(
    log: TransferLog, used: Mapping[tuple[TxHash, int], AuthorizationLog]
) -> AuthorizationLog | None:
    """The token marks an authorization as used right before it moves the money: index - 1."""
    found = used.get((log.tx_hash, log.log_index - 1))
    is_its_own = found and (found.authorizer, found.block) == (log.sender, log.block)
    return found if is_its_own else None


def _of_authorization(
    log: TransferLog, used: Mapping[tuple[TxHash, int], AuthorizationLog]
) -> Iterator[Evidence]:
    """A nonce that is no envelope names a job where a host has bound it, for this payer only."""
    found = _mark_of(log, used)
    if found is None:
        return
    memo = memo_of_nonce(found.nonce)
    yield Evidence(
        memo=memo,
        source=MemoSource.AUTHORIZATION,
        signer=Signer.PAYER,
        by=log.sender,
        reference=None if memo else Reference(issuer=log.sender, value=found.nonce),
    )
