-- The tables of the proxy, as in PostgreSQL. Times are milliseconds since 1970, in UTC; fields,
-- changed and removed are JSON.

-- What every profile is now.
create table profiles (
    key text primary key not null,
    kind text not null,
    fields text not null,
    expires_at integer,
    updated_at integer not null,
    -- A row with this set is a tombstone: the profile is gone and must not come back by itself.
    deleted_at integer,
    source text not null,
    sequence integer not null
);

-- Every acknowledged change, once, by the journal that it came from and its place there.
create table history (
    source text not null,
    sequence integer not null,
    key text not null,
    kind text not null,
    at integer not null,
    actor text not null,
    command text not null,
    changed text not null,
    removed text not null,
    deleted integer not null,
    -- The change was a snapshot; changed and removed hold what differs from the state before it.
    cleared integer not null,
    -- The expiry that the change set, or that it took the expiry away; neither: left as it was.
    expires_at integer,
    persisted integer not null,
    primary key (source, sequence)
);

create index history_by_key on history (key, source, sequence);

-- How far each journal is delivered, and which of its deliveries may go on.
create table cursors (
    source text primary key not null,
    sequence integer not null,
    fence integer not null
);

-- Records that this database refuses, and all later records of the same keys.
create table dead_letters (
    source text not null,
    sequence integer not null,
    key text,
    error text not null,
    record blob not null,
    at integer not null,
    primary key (source, sequence)
);
