-- What a plain INSERT into jobs leaves out: the price, the expiry and a unique amount.

-- Draws a random free amount of price + 1 … 9,999 millionths, or NULL when the slots are crowded.
-- Concurrent transactions cannot see each other's draws, so each draw also takes a lock on its
-- bucket of amounts until the transaction ends. There are 1,024 buckets, because a bulk INSERT of
-- many prices must not fill the server's lock table, and 100 in a row for the amounts of one price.
CREATE FUNCTION oncepaid_draw_amount(price_units bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    drawn bigint;
BEGIN
    FOR try IN 1..48 LOOP
        drawn := price_units + 1 + floor(random() * 9999)::bigint;
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(1330398288, (drawn / 100 % 1024)::int);
        CONTINUE WHEN EXISTS (
            SELECT FROM jobs WHERE unique_amount_units = drawn AND amount_is_held);
        RETURN drawn;
    END LOOP;
    RETURN NULL;
END $$;

-- In UTC, as our own sessions are: a hub's `expires_at` may be without a time zone.
CREATE FUNCTION oncepaid_fill_job_terms() RETURNS trigger LANGUAGE plpgsql SET timezone TO 'UTC' AS $$
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
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER oncepaid_fill_job_terms BEFORE INSERT ON jobs
    FOR EACH ROW EXECUTE FUNCTION oncepaid_fill_job_terms();
