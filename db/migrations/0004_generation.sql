-- Claude calls, what a host application is told, and what operators changed.

CREATE TABLE generation_attempts (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id        bigint NOT NULL REFERENCES jobs (id),
    attempt_no    integer NOT NULL CHECK (attempt_no > 0),
    model         text,
    started_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    outcome       text,
    message       text,
    stop_reason   text,
    request_id    text,
    input_tokens  integer,
    output_tokens integer,
    cost_usd      numeric(12, 6),
    -- The answer as it came, kept until the finisher has written it to the job.
    output_data   jsonb,
    retry_after_s double precision,
    CONSTRAINT generation_attempts_no_key UNIQUE (job_id, attempt_no),
    CONSTRAINT generation_attempts_finished_has_outcome
        CHECK ((finished_at IS NULL) = (outcome IS NULL)),
    CONSTRAINT generation_attempts_success_has_output
        CHECK (outcome <> 'succeeded' OR output_data IS NOT NULL)
);
CREATE INDEX generation_attempts_started_idx ON generation_attempts (started_at);

CREATE TABLE webhook_deliveries (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event           text NOT NULL,
    job_id          bigint REFERENCES jobs (id),
    payment_id      bigint REFERENCES payments (id),
    payload         jsonb NOT NULL,
    status          text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'sent', 'dead')),
    attempts        integer NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    next_attempt_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_log (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    who     text NOT NULL,
    action  text NOT NULL,
    details jsonb NOT NULL
);
