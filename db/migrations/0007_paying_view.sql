-- What a payer is told of a job, for host applications: the view job_payment_terms. Its columns are
-- what `oncepaid job create --json` prints; docs/paying.md says what each is for.

-- Which chain, which token, and who is paid by a job that names nobody. The daemon and `oncepaid
-- migrate` write them; until they have, the view tells no way to pay.
ALTER TABLE payment_terms ADD COLUMN chain_id bigint;
ALTER TABLE payment_terms ADD COLUMN token text;
ALTER TABLE payment_terms ADD COLUMN token_name text;
ALTER TABLE payment_terms ADD COLUMN recipient text;

-- Keccak-256 as Ethereum has it (not NIST's SHA3-256, which pads otherwise): keccak.team,
-- "Keccak specifications summary". Lanes are little-endian; a[x + 5 * y] is lane (x, y).
CREATE FUNCTION oncepaid_keccak256(message bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    rate CONSTANT int := 136;
    -- Of the 24 rounds; bit 63 makes some of them negative.
    iota CONSTANT bigint[] := '[0:23]={1, 32898, -9223372036854742902, -9223372034707259392, 32907,
        2147483649, -9223372034707259263, -9223372036854743031, 138, 136, 2147516425, 2147483658,
        2147516555, -9223372036854775669, -9223372036854742903, -9223372036854743037,
        -9223372036854743038, -9223372036854775680, 32778, -9223372034707292150,
        -9223372034707259263, -9223372036854742912, 2147483649, -9223372034707259384}';
    -- How far the lanes are rotated and where they go, along the one cycle that pi makes of them.
    rho CONSTANT int[] := '[0:23]={1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 2, 14,
        27, 41, 56, 8, 25, 43, 62, 18, 39, 61, 20, 44}';
    pi CONSTANT int[] := '[0:23]={10, 7, 11, 17, 18, 3, 5, 16, 8, 21, 24, 4,
        15, 23, 19, 13, 12, 2, 20, 14, 22, 9, 6, 1}';
    padded bytea := message || decode(repeat('00', rate - length(message) % rate), 'hex');
    digest bytea := decode(repeat('00', 32), 'hex');
    a bigint[] := array_fill(0::bigint, '{25}', '{0}');
    c bigint[] := array_fill(0::bigint, '{5}');
    lane bigint;
    displaced bigint;
BEGIN
    padded := set_byte(padded, length(message), 1);
    padded := set_byte(padded, length(padded) - 1, get_byte(padded, length(padded) - 1) | 128);
    FOR start IN 0 .. length(padded) - 1 BY rate LOOP
        FOR i IN 0 .. rate - 1 LOOP
            a[i / 8] := a[i / 8] # (get_byte(padded, start + i)::bigint << (8 * (i % 8)));
        END LOOP;
        FOR round IN 0 .. 23 LOOP
            FOR x IN 0 .. 4 LOOP
                c[x + 1] := a[x] # a[x + 5] # a[x + 10] # a[x + 15] # a[x + 20];
            END LOOP;
            FOR x IN 0 .. 4 LOOP
                lane := c[(x + 1) % 5 + 1];
                lane := c[(x + 4) % 5 + 1] # ((lane << 1) | ((lane >> 63) & 1));
                FOR y IN 0 .. 20 BY 5 LOOP
                    a[x + y] := a[x + y] # lane;
                END LOOP;
            END LOOP;
            lane := a[1];
            FOR i IN 0 .. 23 LOOP
                displaced := a[pi[i]];
                -- The sign moves in from the left of a bigint: it is masked.
                a[pi[i]] := (lane << rho[i]) | ((lane >> (64 - rho[i])) & ~((-1)::bigint << rho[i]));
                lane := displaced;
            END LOOP;
            FOR y IN 0 .. 20 BY 5 LOOP
                c := a[y : y + 4];
                FOR x IN 0 .. 4 LOOP
                    a[y + x] := c[x + 1] # (~c[(x + 1) % 5 + 1] & c[(x + 2) % 5 + 1]);
                END LOOP;
            END LOOP;
            a[0] := a[0] # iota[round];
        END LOOP;
    END LOOP;
    FOR i IN 0 .. 31 LOOP
        digest := set_byte(digest, i, ((a[i / 8] >> (8 * (i % 8))) & 255)::int);
    END LOOP;
    RETURN digest;
END $$;

-- The same as oncepaid.domain.memo.envelope_of.
CREATE FUNCTION oncepaid_memo_envelope(memo bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT '\x5c2e1132'::bytea || memo || substr(oncepaid_keccak256('\x5c2e1132'::bytea || memo), 1, 4)
$$;

-- The same as oncepaid.domain.money.units_of_price: up to the next unit, null for what is no price.
CREATE FUNCTION oncepaid_units_of_price(price numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN price >= 0 AND price < 1000000000000000 THEN ceil(price * 1000000) END
$$;

CREATE FUNCTION oncepaid_usdc(units numeric) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (units * 0.000001)::numeric(78, 6)::text
$$;

-- 64 hex digits of an amount, which may be wider than a bigint.
CREATE FUNCTION oncepaid_uint256_hex(units numeric) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT lpad(to_hex(div(units, 4294967296)::bigint), 56, '0')
        || lpad(to_hex(mod(units, 4294967296)::bigint), 8, '0')
$$;

-- A hub's times may be without a time zone: then they are in UTC, as our own sessions are.
CREATE FUNCTION oncepaid_in_utc(at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT at $$;
CREATE FUNCTION oncepaid_in_utc(at timestamp) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT at AT TIME ZONE 'UTC' $$;

-- When an authorization ends, in Unix seconds: with its job, or never.
CREATE FUNCTION oncepaid_valid_before(expires_at timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN expires_at < 'infinity'
                THEN floor(extract(epoch FROM greatest(expires_at, 'epoch')))::text
                -- 2^256 - 1
                ELSE '115792089237316195423570985008687907853269984665640564039457584007913129639935'
           END
$$;

-- The request of ERC-5792. The call's own data has the memo already; a wallet that can also appends
-- it to what it wraps around the call, and for one that cannot it is no reason to refuse.
CREATE FUNCTION oncepaid_send_calls(chain text, token text, calldata text, envelope text)
RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_build_object(
        'version', '2.0.0', 'chainId', chain, 'atomicRequired', false,
        'calls', jsonb_build_array(
            jsonb_build_object('to', token, 'data', calldata, 'value', '0x0')),
        'capabilities', jsonb_build_object(
            'dataSuffix', jsonb_build_object('value', envelope, 'optional', true)))
$$;

-- A payload for eth_signTypedData_v4, EIP-3009: the payer puts his own address into `from`.
CREATE FUNCTION oncepaid_authorization(
    chain_id bigint, token text, token_name text, recipient text, units numeric, nonce text,
    valid_before text) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '{"primaryType": "TransferWithAuthorization", "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"}, {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"}],
            "TransferWithAuthorization": [
                {"name": "from", "type": "address"}, {"name": "to", "type": "address"},
                {"name": "value", "type": "uint256"}, {"name": "validAfter", "type": "uint256"},
                {"name": "validBefore", "type": "uint256"}, {"name": "nonce", "type": "bytes32"}]
        }}'::jsonb || jsonb_build_object(
            'domain', jsonb_build_object('name', token_name, 'version', '2', 'chainId', chain_id,
                                         'verifyingContract', token),
            'message', jsonb_build_object('from', NULL, 'to', recipient, 'value', units::text,
                                          'validAfter', '0', 'validBefore', valid_before,
                                          'nonce', nonce))
$$;

-- The columns of jobs that a host may go on changing the types of: PostgreSQL refuses that for a
-- column that a view names, and a function's text is no such name. It is planned as if it stood in
-- the view. A job whose pay_to is no address, or which has no price, can be paid by nobody.
CREATE FUNCTION oncepaid_job_facts(job jobs, first_recipient text) RETURNS TABLE (
    status text, recipient text, memo bytea, units numeric, unique_units bigint,
    expires_at timestamptz) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT job.status::text,
           CASE WHEN job.pay_to IS NULL THEN first_recipient
                WHEN lower(job.pay_to) ~ '^0x[0-9a-f]{40}$' THEN lower(job.pay_to) END,
           job.memo, oncepaid_units_of_price(job.price_usdc::numeric),
           -- An amount that is held no more may be another job's by now.
           CASE WHEN job.amount_is_held THEN job.unique_amount_units END,
           oncepaid_in_utc(job.expires_at)
$$;

CREATE VIEW job_payment_terms AS
SELECT j.id AS job_id, j.job_uuid, f.status, t.chain_id, t.token, f.recipient,
       f.units AS amount_units, oncepaid_usdc(f.units) AS amount_usdc,
       '0x' || encode(f.memo, 'hex') AS memo, m.envelope AS memo_envelope,
       m.envelope AS data_suffix, c.calldata, c.nonce AS authorization_nonce,
       f.unique_units AS unique_amount_units, oncepaid_usdc(f.unique_units) AS unique_amount_usdc,
       CASE WHEN c.is_told THEN
           'ethereum:' || t.token || '@' || t.chain_id || '/transfer?address=' || f.recipient
           || '&uint256=' || f.unique_units
       END AS eip681_uri,
       CASE WHEN c.is_told THEN jsonb_build_object(
           'chainId', c.chain, 'to', t.token, 'data', c.calldata, 'value', '0x0')
       END AS eth_send_transaction,
       CASE WHEN c.is_told THEN oncepaid_send_calls(c.chain, t.token, c.calldata, m.envelope)
       END AS wallet_send_calls,
       CASE WHEN c.is_told THEN oncepaid_authorization(
           t.chain_id, t.token, t.token_name, f.recipient, f.units, c.nonce,
           oncepaid_valid_before(f.expires_at))
       END AS typed_data,
       f.expires_at
  FROM jobs j
 CROSS JOIN payment_terms t
 CROSS JOIN LATERAL oncepaid_job_facts(j, t.recipient) f
 -- OFFSET 0 keeps the hash to one a row, and to rows that are asked for a column with it.
 CROSS JOIN LATERAL (
    SELECT '0x' || encode(oncepaid_memo_envelope(f.memo), 'hex') AS envelope OFFSET 0) m
 CROSS JOIN LATERAL (
    SELECT t.token IS NOT NULL AND f.recipient IS NOT NULL AND f.units IS NOT NULL AS is_told,
           '0x' || to_hex(t.chain_id) AS chain,
           m.envelope || repeat('00', 8) AS nonce,
           '0xa9059cbb' || lpad(substr(f.recipient, 3), 64, '0') || oncepaid_uint256_hex(f.units)
               || substr(m.envelope, 3) AS calldata) c;
