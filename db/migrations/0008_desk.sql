-- What an operator decides about money that pays no job. Safe beside code of before: it reads none
-- of this.

-- Money that went back. A payment is sent back once, and one transfer serves one payment. What was
-- refunded stays here also where the payment's own block leaves the chain later.
CREATE TABLE payment_refunds (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id    bigint NOT NULL UNIQUE REFERENCES payments (id),
    chain_id      bigint NOT NULL,
    tx_hash       text NOT NULL CHECK (oncepaid_is_hex(tx_hash, 66)),
    log_index     bigint NOT NULL CHECK (log_index >= 0),
    recipient     text NOT NULL CHECK (oncepaid_is_hex(recipient, 42)),
    amount_units  numeric(78, 0) NOT NULL CHECK (amount_units > 0),
    -- An operator, or `oncepaid` where the transfer carried the payment's refund envelope.
    recognised_by text NOT NULL,
    -- What was odd about it, in sentences.
    warnings      jsonb NOT NULL DEFAULT '[]',
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (chain_id, tx_hash, log_index)
);

-- Up to here our recipients' own transfers were looked at; null: from the start of what is read.
ALTER TABLE chain_cursor ADD COLUMN refunds_number bigint;
-- No transfer of before carries a refund envelope.
UPDATE chain_cursor SET refunds_number = block_number;

-- What operators did to a payment, or for a job.
CREATE INDEX audit_log_payment_idx ON audit_log ((details ->> 'payment_id'));
CREATE INDEX audit_log_job_idx ON audit_log ((details ->> 'job_id'));
