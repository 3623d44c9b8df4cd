-- Who reads the chain, where it may be rolled back to, and what happens to money that left it.
-- Safe beside code of before: it moves the cursor without leaving checkpoints, and nothing breaks.

-- A leader holds a session's advisory lock that is named by its epoch, which ends with its process,
-- and a lease, which ends also where the process only hangs. Each take-over raises the epoch.
CREATE TABLE chain_leader (
    chain_id    bigint PRIMARY KEY,
    epoch       bigint NOT NULL DEFAULT 0,
    holder      text,
    lease_until timestamptz NOT NULL DEFAULT '-infinity'
);

-- Every write of a listener is guarded by the epoch in the cursor's row.
ALTER TABLE chain_cursor ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
-- Payments of blocks above it are ours to know; null for a cursor that older code has set.
ALTER TABLE chain_cursor ADD COLUMN start_number bigint;
-- Up to here every range was asked a second time; null: not yet.
ALTER TABLE chain_cursor ADD COLUMN checked_number bigint;
-- The highest block that was `finalized` when we asked; -1: none was yet.
ALTER TABLE chain_cursor ADD COLUMN finalized_number bigint NOT NULL DEFAULT -1;
-- A chain that contradicts what was final. Nothing is credited while it stands.
ALTER TABLE chain_cursor ADD COLUMN conflict text;
ALTER TABLE chain_cursor ADD COLUMN conflict_at timestamptz;
UPDATE chain_cursor c
   SET checked_number = block_number,
       start_number = coalesce((SELECT min(p.block_number) - 1 FROM payments p
                                 WHERE p.chain_id = c.chain_id), block_number);

-- Ends of ranges that were stored: where a chain that forked is compared with what we know. Those
-- below the last final one are pruned.
CREATE TABLE chain_checkpoints (
    chain_id     bigint NOT NULL,
    block_number bigint NOT NULL,
    block_hash   text NOT NULL CHECK (oncepaid_is_hex(block_hash, 66)),
    block_time   timestamptz NOT NULL,
    stored_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain_id, block_number)
);
INSERT INTO chain_checkpoints (chain_id, block_number, block_hash, block_time)
SELECT chain_id, block_number, block_hash, block_time FROM chain_cursor;

-- An orphaned payment remembers what it was. One that had been credited is `reversed` once its job
-- knows; until then nothing is generated for that job.
ALTER TABLE payments ADD COLUMN orphaned_from text;
ALTER TABLE payments ADD COLUMN orphaned_at timestamptz;
ALTER TABLE payments ADD COLUMN reversed_at timestamptz;
CREATE INDEX payments_block_idx ON payments (chain_id, block_number) WHERE status <> 'orphaned';
CREATE INDEX payments_to_reverse_idx ON payments (job_id)
    WHERE status = 'orphaned' AND orphaned_from = 'credited' AND reversed_at IS NULL;

-- Work was begun or done for money that then left the chain.
ALTER TABLE jobs ADD COLUMN is_unbacked boolean NOT NULL DEFAULT false;
CREATE INDEX jobs_unbacked_idx ON jobs (id) WHERE is_unbacked;

-- Money that counted and is gone, with the state that its job was in. Made good where the job was
-- paid after all, or was not done after all.
CREATE TABLE losses (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id   bigint NOT NULL REFERENCES payments (id),
    job_id       bigint NOT NULL REFERENCES jobs (id),
    amount_units numeric(78, 0) NOT NULL CHECK (amount_units > 0),
    job_status   text NOT NULL,
    lost_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    made_good_at timestamptz
);
CREATE INDEX losses_open_idx ON losses (job_id) WHERE made_good_at IS NULL;
