-- The changes of one profile that arrive in one transaction are one row, a run: a row and its index
-- entries for every change cost more than all else together where few profiles change often.

-- However long it takes, and with nobody writing beside it: what another transaction committed behind
-- the copy below would go with the table. Readers go on.
set local statement_timeout = 0;
lock table history in exclusive mode;

-- What one run holds. Members that say nothing are left out; times are milliseconds since 1970.
create function history_changes(changes json) returns table (
    sequence bigint,
    at timestamptz,
    actor text,
    command text,
    changed jsonb,
    removed text[],
    deleted boolean,
    -- The change was a snapshot; changed and removed hold what differs from the state before it.
    cleared boolean,
    -- The expiry that the change set, or that it took the expiry away; neither: left as it was.
    expires_at timestamptz,
    persisted boolean
)
language sql stable parallel safe as $$
    -- The types are such that no function of somebody else's fits better than that of the system.
    select c.sequence,
        to_timestamp((c.at / 1000)::double precision)
            + (c.at % 1000::bigint)::double precision * interval '1 millisecond',
        coalesce(c.actor, ''),
        c.command,
        coalesce(c.changed, '{}'),
        coalesce(c.removed, '{}'),
        coalesce(c.deleted, false),
        coalesce(c.cleared, false),
        to_timestamp((c.expires_at / 1000)::double precision)
            + (c.expires_at % 1000::bigint)::double precision * interval '1 millisecond',
        coalesce(c.persisted, false)
    from json_to_recordset(changes) as c (sequence bigint, at bigint, actor text, command text,
        changed jsonb, removed text[], deleted boolean, cleared boolean, expires_at bigint,
        persisted boolean)
$$;

create table history_runs (
    source text not null,
    -- The last change of the run: its place in the journal and its time, which is the latest of all.
    sequence bigint not null,
    key text collate "C" not null,
    kind text not null,
    at timestamptz not null,
    changes json not null,
    primary key (source, sequence, at)
) partition by range (at);

create index history_runs_by_key on history_runs (key);

-- Partitions by month are made when they are needed; this one takes what fits none of them.
create table history_runs_default partition of history_runs default;

-- What is there moves, each change a run of its own.
do $$
declare
    part text;
    first timestamp;
begin
    for part in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'history'::regclass and c.relname ~ '^history_[0-9]{4}_[0-9]{2}$'
    loop
        first := to_date(substr(part, 9), 'YYYY_MM');
        execute format(
            'create table %I partition of history_runs for values from (%L) to (%L)',
            'history_runs' || substr(part, 8),
            first at time zone 'UTC',
            (first + interval '1 month') at time zone 'UTC');
    end loop;
end
$$;

insert into history_runs (source, sequence, key, kind, at, changes)
select source, sequence, key, kind, at, json_build_array(json_build_object(
    'sequence', sequence,
    'at', floor(extract(epoch from at) * 1000)::bigint,
    'actor', actor,
    'command', command,
    'changed', changed,
    'removed', removed,
    'deleted', deleted,
    'cleared', cleared,
    'expires_at', floor(extract(epoch from expires_at) * 1000)::bigint,
    'persisted', persisted))
from history;

alter table history rename to history_rows;

-- Every acknowledged change, once, by the journal that it came from and its place there. `run_at` is
-- the column by which the partitions are told apart; no change of a run is later.
create view history as
select r.source, c.sequence, r.key, r.kind, c.at, c.actor, c.command, c.changed, c.removed,
    c.deleted, c.cleared, c.expires_at, c.persisted, r.at as run_at
from history_runs r cross join lateral history_changes(r.changes) c;

-- Whoever could read the table may read the view.
do $$
declare
    reader text;
begin
    for reader in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(r.rolname) end
        from pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
        where c.oid = 'history_rows'::regclass and a.privilege_type = 'SELECT'
            and a.grantee <> c.relowner
    loop
        execute 'grant select on history to ' || reader;
        execute 'grant execute on function history_changes(json) to ' || reader;
    end loop;
end
$$;

-- Fails where somebody has built a view on the table: it is not ours to drop, and would stand still.
drop table history_rows;
