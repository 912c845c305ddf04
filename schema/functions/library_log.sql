-- The log of one application of the eventsourcing library, in a schema of its own: the tables that append_batch.sql
-- asks for, with states as `bytea`, since theirs may be compressed or sealed, and versions that may start anywhere.
--
-- Run again by every process that starts, so each statement says nothing the second time.
CREATE TABLE IF NOT EXISTS face (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    application text NOT NULL,     -- whose log this is: two applications in one schema would mix their positions
    functions text NOT NULL        -- digest of the functions below, so that a newer release replaces them
);

CREATE TABLE IF NOT EXISTS events (
    "position" bigint CONSTRAINT events_pkey PRIMARY KEY CHECK ("position" >= 1),
    stream_id @originator_id@ NOT NULL,
    version bigint NOT NULL,
    topic text NOT NULL,
    data bytea NOT NULL,
    metadata json,
    recorded_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS events_stream_id_version ON events (stream_id, version);

CREATE TABLE IF NOT EXISTS receipts (
    command_id uuid CONSTRAINT receipts_pkey PRIMARY KEY,
    "position" bigint NOT NULL,
    result json,
    recorded_at timestamptz NOT NULL
);

-- Rows are added, never updated, so that an old snapshot held open by somebody else does not make the lookup of the
-- newest walk a chain. Only the newest of each application counts.
CREATE TABLE IF NOT EXISTS tracking (
    application_name text NOT NULL,
    notification_id bigint NOT NULL,
    CONSTRAINT tracking_pkey PRIMARY KEY (application_name, notification_id)
);

CREATE TABLE IF NOT EXISTS log_head (
    one boolean CONSTRAINT log_head_pkey PRIMARY KEY DEFAULT true CHECK (one),
    epoch uuid NOT NULL
);
INSERT INTO log_head (epoch) VALUES (gen_random_uuid()) ON CONFLICT DO NOTHING;
