-- What the chain says, and what was decided about it.

CREATE TABLE chain_cursor (
    chain_id     bigint PRIMARY KEY,
    block_number bigint NOT NULL CHECK (block_number >= 0),
    block_hash   text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    block_time   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now()
);

-- Lower-case hex of a fixed length, as far as it can be told cheaply: a regular expression here
-- took half of the time of storing a payment. The digits are checked where logs are decoded.
CREATE FUNCTION oncepaid_is_hex(value text, length int) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(value) = length AND starts_with(value, '0x')
       AND value COLLATE "C" = lower(value COLLATE "C")
$$;

CREATE TABLE payments (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id        bigint NOT NULL,
    tx_hash         text NOT NULL CHECK (oncepaid_is_hex(tx_hash, 66)),
    log_index       bigint NOT NULL CHECK (log_index >= 0),
    block_number    bigint NOT NULL,
    block_hash      text NOT NULL CHECK (oncepaid_is_hex(block_hash, 66)),
    block_time      timestamptz NOT NULL,
    sender          text NOT NULL CHECK (oncepaid_is_hex(sender, 42)),
    recipient       text NOT NULL CHECK (oncepaid_is_hex(recipient, 42)),
    amount_units    numeric(78, 0) NOT NULL CHECK (amount_units > 0),
    -- The memo that counts, and every memo found: [{"memo": hex, "source": …, "signer": …}].
    memo            bytea CHECK (octet_length(memo) = 16),
    memo_source     text CHECK (memo_source IN ('calldata', 'authorization')),
    evidence        jsonb NOT NULL DEFAULT '[]',
    transfers_in_tx integer NOT NULL DEFAULT 1,
    job_id          bigint REFERENCES jobs (id),
    status          text NOT NULL DEFAULT 'seen' CHECK (status IN ('seen', 'matched', 'credited',
                        'unmatched', 'orphaned', 'refunded', 'ignored')),
    reason          text CHECK (reason IN ('no_memo', 'unknown_memo', 'wrong_recipient', 'late',
                        'underpaid', 'duplicate', 'ambiguous_amount', 'memo_conflict',
                        'third_party_memo', 'own_address', 'job_not_payable')),
    seen_at         timestamptz NOT NULL DEFAULT now(),
    matched_at      timestamptz,
    credited_at     timestamptz,
    CONSTRAINT payments_memo_has_source CHECK ((memo IS NULL) = (memo_source IS NULL)),
    CONSTRAINT payments_unmatched_has_reason CHECK (status <> 'unmatched' OR reason IS NOT NULL),
    CONSTRAINT payments_seen_is_undecided CHECK (status <> 'seen' OR (job_id IS NULL AND reason IS NULL)),
    CONSTRAINT payments_matched_has_job
        CHECK (status NOT IN ('matched', 'credited') OR (job_id IS NOT NULL AND reason IS NULL)),
    CONSTRAINT payments_matched_has_time
        CHECK (status NOT IN ('matched', 'credited') OR matched_at IS NOT NULL),
    CONSTRAINT payments_credited_has_time CHECK (status <> 'credited' OR credited_at IS NOT NULL)
);

-- Identity is the log. The same log twice is the same row …
CREATE UNIQUE INDEX payments_log_key ON payments (chain_id, block_hash, log_index);
-- … and a transaction mined again after a reorg counts only once its old row is orphaned.
CREATE UNIQUE INDEX payments_live_log_key ON payments (chain_id, tx_hash, log_index)
    WHERE status <> 'orphaned';
CREATE INDEX payments_seen_idx ON payments (id) WHERE status = 'seen';
CREATE INDEX payments_matched_idx ON payments (job_id) WHERE status = 'matched';
CREATE INDEX payments_job_idx ON payments (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX payments_unmatched_idx ON payments (reason) WHERE status = 'unmatched';
