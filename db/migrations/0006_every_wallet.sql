-- Payments of every kind of wallet: references that a host binds to its jobs, amounts that stay
-- reserved whatever a host does, and what came in above a price.
-- Code of before runs on beside the migration, and not beside a listener of this version: its
-- matcher stops at evidence that it cannot read. Stop all of it before the first daemon of this
-- version starts.

ALTER TABLE payments DROP CONSTRAINT payments_memo_source_check;
ALTER TABLE payments ADD CONSTRAINT payments_memo_source_check CHECK (memo_source IN (
    'authorization', 'contract', 'calldata', 'wrapper', 'scan', 'operator'));
ALTER TABLE payments DROP CONSTRAINT payments_reason_check;
ALTER TABLE payments ADD CONSTRAINT payments_reason_check CHECK (reason IN (
    'no_memo', 'unknown_memo', 'wrong_recipient', 'late', 'underpaid', 'duplicate',
    'ambiguous_amount', 'memo_conflict', 'third_party_memo', 'shared_memo', 'dust', 'own_address',
    'job_not_payable'));

-- What came in above the price; 0 where the sum is exactly the job's unique amount.
ALTER TABLE jobs ADD COLUMN overpaid_units numeric(78, 0) NOT NULL DEFAULT 0
    CONSTRAINT jobs_overpaid_is_not_negative CHECK (overpaid_units >= 0);

-- A transaction that is mined again looks for what its payments were.
CREATE INDEX payments_orphaned_idx ON payments (chain_id, tx_hash) WHERE status = 'orphaned';

-- A name by which the payment of a job will be known: an EIP-3009 nonce of its payer (the issuer),
-- or the id under which a contract (the issuer) keeps it. A host's plain INSERT.
CREATE TABLE job_bindings (
    issuer     text NOT NULL CHECK (issuer ~ '^0x[0-9a-f]{40}$'),
    reference  bytea NOT NULL CHECK (octet_length(reference) BETWEEN 1 AND 64),
    job_id     bigint NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    is_new     boolean NOT NULL DEFAULT true,
    PRIMARY KEY (issuer, reference)
);
CREATE INDEX job_bindings_job_idx ON job_bindings (job_id);

CREATE FUNCTION oncepaid_lower_issuer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.issuer := lower(NEW.issuer);
    IF TG_OP = 'UPDATE' THEN
        NEW.is_new := NEW.is_new OR (NEW.issuer, NEW.reference, NEW.job_id)
                                    IS DISTINCT FROM (OLD.issuer, OLD.reference, OLD.job_id);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER oncepaid_lower_issuer BEFORE INSERT OR UPDATE ON job_bindings
    FOR EACH ROW EXECUTE FUNCTION oncepaid_lower_issuer();

-- The sweep looks once for payments that came before a binding, and for an hour at payments whose
-- binding may be in a transaction that goes on.
CREATE INDEX job_bindings_new_idx ON job_bindings (created_at) WHERE is_new;
-- Finds the payments that carry a reference; of seen ones the matcher will know anyway.
CREATE INDEX payments_unmatched_evidence_idx ON payments USING gin (evidence jsonb_path_ops)
    WHERE status = 'unmatched';
CREATE INDEX payments_unbound_idx ON payments (seen_at)
    WHERE status = 'unmatched' AND evidence <> '[]'
      AND reason IN ('no_memo', 'ambiguous_amount', 'unknown_memo', 'third_party_memo',
                     'memo_conflict');

-- Payments that were decided without a binding that is there by now. Not those that a job waits for
-- or was paid by already; and what somebody else attached gives way only to what the payer signed,
-- where that names one job. No trigger on the binding does it: a host's transaction would hold
-- payments locked that the listener wants.
-- No payment stays here once it is decided with the binding: the sweep would not end.
CREATE VIEW oncepaid_bound_late AS
SELECT p.id AS payment_id, p.chain_id, p.seen_at, p.evidence, b.issuer, b.reference
  FROM payments p
 CROSS JOIN jsonb_path_query(p.evidence, '$[*] ? (exists (@.reference))') AS piece
  JOIN job_bindings b ON b.issuer = piece #>> '{reference,issuer}'
                     AND b.reference = decode(piece #>> '{reference,value}', 'hex')
 WHERE p.status = 'unmatched' AND p.evidence <> '[]'
   AND p.reason IN ('no_memo', 'ambiguous_amount', 'unknown_memo', 'third_party_memo',
                    'memo_conflict')
   AND (p.reason IN ('no_memo', 'ambiguous_amount')
        OR (piece ->> 'signer' = 'payer'
            AND NOT p.evidence @? '$[*] ? (@.signer == "payer" && exists (@.memo))'
            AND NOT EXISTS (
                SELECT FROM jsonb_path_query(p.evidence,
                           '$[*] ? (@.signer == "payer" && exists (@.reference))') AS other
                  JOIN job_bindings o ON o.issuer = other #>> '{reference,issuer}'
                       AND o.reference = decode(other #>> '{reference,value}', 'hex')
                 WHERE o.job_id <> b.job_id)));

-- How long an amount rests after its job's expiry: grace and quarantine. The daemon writes it.
ALTER TABLE payment_terms ADD COLUMN amount_rest interval NOT NULL DEFAULT interval '25 hours';

-- A host may move an expiry, and a payer may go by the one that he was told: the amount is
-- reserved by the latest. Null: it was never moved.
ALTER TABLE jobs ADD COLUMN latest_expiry timestamptz;
-- The block that was final when the amount became this job's. A payment in an older block is not
-- meant for it, however late it is read; it may carry the same amount for one of before.
ALTER TABLE jobs ADD COLUMN amount_after_block bigint NOT NULL DEFAULT -1;
-- The smallest amount above a payment's that a job of its recipient waits for.
CREATE INDEX jobs_awaited_amount_idx ON jobs (lower(coalesce(pay_to, '')), unique_amount_units)
    WHERE amount_is_held AND status = 'pending';
-- The jobs that cost exactly what somebody paid, or what is drawn.
CREATE INDEX jobs_awaited_price_idx ON jobs ((price_usdc::numeric), lower(coalesce(pay_to, '')))
    WHERE amount_is_held AND status = 'pending';

-- Amounts that stay reserved though their job was deleted, or given another amount or recipient.
-- `job_id` is the one job that may take it again, null where there is none; an empty `pay_to` is
-- any of our recipients.
CREATE TABLE retired_amounts (
    unique_amount_units bigint NOT NULL,
    pay_to              text NOT NULL,
    expires_at          timestamptz NOT NULL,
    job_id              bigint,
    PRIMARY KEY (unique_amount_units, pay_to)
);

CREATE FUNCTION oncepaid_retire_amount(
    units bigint, payee text, expiry timestamptz, job bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO retired_amounts AS r (unique_amount_units, pay_to, expires_at, job_id)
    VALUES (units, lower(coalesce(payee, '')), expiry, job)
    ON CONFLICT (unique_amount_units, pay_to)
       DO UPDATE SET expires_at = greatest(r.expires_at, excluded.expires_at),
                     job_id = CASE WHEN r.job_id = excluded.job_id THEN r.job_id END
$$;

-- By what the payer of another job, of before, may still pay this amount to this recipient. The
-- matcher asks, too: a host may have named an amount before its first job gave it up.
CREATE FUNCTION oncepaid_resting(units bigint, payee text, job bigint) RETURNS SETOF retired_amounts
LANGUAGE sql STABLE AS $$
    SELECT * FROM retired_amounts r
     WHERE r.unique_amount_units = units AND r.job_id IS DISTINCT FROM job
       AND ('' IN (r.pay_to, coalesce(payee, '')) OR r.pay_to = lower(payee))
$$;

CREATE FUNCTION oncepaid_final_block() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(min(finalized_number), -1) FROM chain_cursor
$$;

-- Fires only for jobs whose amount is held. No clause of the trigger names a column of the host's:
-- PostgreSQL would not let him change its type.
CREATE FUNCTION oncepaid_keep_amount() RETURNS trigger LANGUAGE plpgsql SET timezone TO 'UTC' AS $$
DECLARE
    until timestamptz := greatest(OLD.latest_expiry, coalesce(OLD.expires_at, 'infinity'));
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM oncepaid_retire_amount(OLD.unique_amount_units, OLD.pay_to, until, NULL);
        RETURN NULL;
    END IF;
    IF NEW.expires_at IS DISTINCT FROM OLD.expires_at THEN
        NEW.latest_expiry := greatest(until, coalesce(NEW.expires_at, 'infinity'));
    END IF;
    IF (NEW.unique_amount_units, lower(coalesce(NEW.pay_to, '')))
       IS DISTINCT FROM (OLD.unique_amount_units, lower(coalesce(OLD.pay_to, ''))) THEN
        PERFORM oncepaid_retire_amount(OLD.unique_amount_units, OLD.pay_to, until, OLD.id);
        NEW.amount_after_block := oncepaid_final_block();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER oncepaid_keep_amount BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN (OLD.amount_is_held) EXECUTE FUNCTION oncepaid_keep_amount();
CREATE TRIGGER oncepaid_keep_deleted_amount AFTER DELETE ON jobs
    FOR EACH ROW WHEN (OLD.amount_is_held) EXECUTE FUNCTION oncepaid_keep_amount();

-- An amount that a host names himself. Afterwards, because the unique index may have waited for the
-- transaction that deleted the amount's job.
CREATE FUNCTION oncepaid_refuse_resting_amount() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.unique_amount_units, NEW.pay_to) IS DISTINCT FROM (OLD.unique_amount_units, OLD.pay_to)
       AND EXISTS (SELECT FROM oncepaid_resting(NEW.unique_amount_units, NEW.pay_to, NEW.id)) THEN
        RAISE EXCEPTION 'the unique amount % is still reserved for who may pay it for another job',
            NEW.unique_amount_units
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'jobs_held_amount_key';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER oncepaid_refuse_resting_amount AFTER INSERT OR UPDATE ON jobs
    FOR EACH ROW WHEN (NEW.amount_is_held) EXECUTE FUNCTION oncepaid_refuse_resting_amount();

-- Tells why there is none. All jobs of amounts up to 9,999 millionths above the price count.
CREATE FUNCTION oncepaid_refuse_amount(price_units bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    reserved bigint;
    free_at  timestamptz;
BEGIN
    SELECT count(DISTINCT h.units),
           min(least(h.expiry, '9999-01-01 UTC')) + (SELECT amount_rest FROM payment_terms)
      INTO reserved, free_at
      FROM (SELECT unique_amount_units AS units,
                   greatest(latest_expiry, coalesce(expires_at, 'infinity')) AS expiry
              FROM jobs WHERE amount_is_held
             UNION ALL SELECT unique_amount_units, expires_at FROM retired_amounts) h
     WHERE h.units BETWEEN price_units + 1 AND price_units + 9999;
    RAISE EXCEPTION 'no unique amount is free for a price of % USDC',
            (price_units * 0.000001)::numeric(20, 6)
        USING ERRCODE = 'OP001',
            DETAIL = format('%s of 9999 amounts are reserved, until %s UTC at the earliest.',
                            reserved, to_char(free_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')),
            HINT = 'Wait until then, ask another price, name a unique_amount_units yourself, or '
                   'set matching.amount_fallback to false: who pays with a memo needs no amount.';
END $$;

-- The prices in a range of units: who pays one without its millionths must not hit an amount. Both
-- of what is offered and of what is waited for, which may have had another price when it was.
CREATE FUNCTION oncepaid_prices(low bigint, high bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    SELECT ceil(price_usdc::numeric * 1000000)::bigint FROM skills
     WHERE price_usdc::numeric > (low - 1) * 0.000001 AND price_usdc::numeric <= high * 0.000001
    UNION ALL
    SELECT ceil(price_usdc::numeric * 1000000)::bigint FROM jobs
     WHERE amount_is_held AND status = 'pending'
       AND price_usdc::numeric > (low - 1) * 0.000001 AND price_usdc::numeric <= high * 0.000001
$$;

-- Draws a random free amount of price + 1 … 9,999 millionths; raises OP001 where there is none.
-- Concurrent transactions cannot see each other's draws, so each draw also takes a lock on its
-- bucket of amounts until the transaction ends (see 0002). An amount is looked at before its bucket
-- is locked, so that who finds it taken does not keep others from the rest, and once more after.
-- Where few are left (by chance, at one in a hundred) they are listed. The last ones may be behind
-- locks of transactions that go on: then it waits for one of them, as a unique index would.
CREATE OR REPLACE FUNCTION oncepaid_draw_amount(price_units bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    drawn bigint;
    free  bigint[];
BEGIN
    FOR try IN 1..150 LOOP
        drawn := price_units + 1 + floor(random() * 9999)::bigint;
        CONTINUE WHEN EXISTS (
            SELECT FROM jobs WHERE unique_amount_units = drawn AND amount_is_held);
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(1330398288, (drawn / 100 % 1024)::int);
        CONTINUE WHEN EXISTS (
            SELECT FROM jobs WHERE unique_amount_units = drawn AND amount_is_held)
            OR EXISTS (SELECT FROM retired_amounts WHERE unique_amount_units = drawn)
            OR EXISTS (SELECT FROM oncepaid_prices(drawn, drawn));
        RETURN drawn;
    END LOOP;
    -- Each wait ends with one more of the price's 101 buckets in our hands.
    FOR wait IN 1..102 LOOP
        free := ARRAY(
            SELECT units FROM generate_series(price_units + 1, price_units + 9999) units
             WHERE units NOT IN (
                   SELECT unique_amount_units FROM jobs WHERE amount_is_held
                      AND unique_amount_units BETWEEN price_units + 1 AND price_units + 9999)
               AND units NOT IN (
                   SELECT unique_amount_units FROM retired_amounts
                    WHERE unique_amount_units BETWEEN price_units + 1 AND price_units + 9999)
               AND units NOT IN (SELECT oncepaid_prices(price_units + 1, price_units + 9999))
             ORDER BY random());
        FOREACH drawn IN ARRAY free LOOP
            CONTINUE WHEN NOT pg_try_advisory_xact_lock(1330398288, (drawn / 100 % 1024)::int);
            CONTINUE WHEN EXISTS (
                SELECT FROM jobs WHERE unique_amount_units = drawn AND amount_is_held)
                OR EXISTS (SELECT FROM retired_amounts WHERE unique_amount_units = drawn);
            RETURN drawn;
        END LOOP;
        EXIT WHEN free = '{}';
        PERFORM pg_advisory_xact_lock(1330398288, (free[1] / 100 % 1024)::int);
    END LOOP;
    PERFORM oncepaid_refuse_amount(price_units);
    RETURN NULL;
END $$;

-- As in 0002, and notes which block was final.
CREATE OR REPLACE FUNCTION oncepaid_fill_job_terms() RETURNS trigger
LANGUAGE plpgsql SET timezone TO 'UTC' AS $$
DECLARE
    terms payment_terms%ROWTYPE;
BEGIN
    SELECT * INTO terms FROM payment_terms;
    IF NEW.price_usdc IS NULL THEN
        SELECT price_usdc INTO NEW.price_usdc FROM skills WHERE id = NEW.skill_id;
    END IF;
    NEW.pay_to := lower(NEW.pay_to);
    IF NEW.expires_at IS NULL THEN
        NEW.expires_at := now() + terms.job_lifetime;
    END IF;
    IF NEW.status = 'pending' AND NEW.unique_amount_units IS NULL AND terms.amount_fallback
       AND NEW.price_usdc BETWEEN 0 AND 1000000000 THEN
        NEW.unique_amount_units := oncepaid_draw_amount(ceil(NEW.price_usdc * 1000000)::bigint);
    END IF;
    IF NEW.status = 'pending' AND NEW.unique_amount_units IS NOT NULL THEN
        NEW.amount_is_held := true;
        NEW.amount_after_block := oncepaid_final_block();
    END IF;
    RETURN NEW;
END $$;

-- A host's own role needs no rights on our tables: what its INSERT or UPDATE sets off runs with
-- ours.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['oncepaid_fill_job_terms', 'oncepaid_keep_amount',
                                'oncepaid_refuse_resting_amount'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SECURITY DEFINER SET search_path = %I, pg_temp',
                       name, current_schema());
    END LOOP;
END $$;
