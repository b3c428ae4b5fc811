-- The tables of the proxy, in the schema that the connection's search_path names.

-- What every profile is now. Keys sort by their bytes, as the proxy sorts them.
create table profiles (
    key text collate "C" primary key,
    kind text not null,
    fields jsonb not null,
    expires_at timestamptz,
    updated_at timestamptz not null,
    -- A row with this set is a tombstone: the profile is gone and must not come back by itself.
    deleted_at timestamptz,
    source text not null,
    sequence bigint not null
) with (fillfactor = 80);

-- Every acknowledged change, once, by the journal that it came from and its place there.
create table history (
    source text not null,
    sequence bigint not null,
    key text collate "C" not null,
    kind text not null,
    at timestamptz not null,
    actor text not null,
    command text not null,
    changed jsonb not null,
    removed text[] not null,
    deleted boolean not null,
    -- The change was a snapshot; changed and removed hold what differs from the state before it.
    cleared boolean not null,
    -- The expiry that the change set, or that it took the expiry away; neither: left as it was.
    expires_at timestamptz,
    persisted boolean not null,
    primary key (source, sequence, at)
) partition by range (at);

create index history_by_key on history (key, source, sequence);

-- Partitions by month are made when they are needed; this one takes what fits none of them.
create table history_default partition of history default;

-- How far each journal is delivered, and which of its deliveries may go on.
create table cursors (
    source text primary key,
    sequence bigint not null,
    fence bigint not null
);

-- Records that this database refuses, and all later records of the same keys.
create table dead_letters (
    source text not null,
    sequence bigint not null,
    key text,
    error text not null,
    record bytea not null,
    at timestamptz not null,
    primary key (source, sequence)
);

-- The casts of the typed views. None of them ever fails: what does not fit is null.

create function to_plain_text(fields jsonb, name text) returns text
language sql immutable parallel safe as $$
    select case jsonb_typeof(fields -> name) when 'object' then null else fields ->> name end
$$;

create function to_integer(value text) returns bigint
language sql immutable parallel safe as $$
    select case when value ~ '^[+-]?[0-9]{1,19}$' then
        case when value::numeric between -9223372036854775808 and 9223372036854775807
        then value::bigint end
    end
$$;

create function to_float(value text) returns double precision
language sql immutable parallel safe as $$
    select case
        when length(value) <= 255
            and value ~ '^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,3})?$'
        then case
            when abs(value::numeric) < 2.5e-324 then 0
            when abs(value::numeric) <= 1.7976931348623157e308 then value::double precision
        end
    end
$$;

create function to_boolean(value text) returns boolean
language sql immutable parallel safe as $$
    select case lower(value)
        when 'true' then true when '1' then true
        when 'false' then false when '0' then false
    end
$$;

create function to_time(value text) returns timestamptz
language sql immutable parallel safe as $$
    select case when value ~ '^[+-]?[0-9]{1,12}([.][0-9]{1,9})?$' then
        case when value::numeric between -62135596800 and 253402300799
        then to_timestamp(value::double precision) end
    end
$$;
