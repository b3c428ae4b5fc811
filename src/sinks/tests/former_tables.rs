//! Tables that an earlier build has made, with what is in them, in the hands of this one.

use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

use super::model::Write;
use super::runs::END_OF_MONTH_MS;
use super::support::{Log, Target, user_kind};
use crate::sinks::postgres::MIGRATIONS;

const SESSION: &str = "set search_path to profile_proxy";
const FILL: &str = "\
    insert into history \
    select 's', n, 'user:' || n % 3, 'user', '2026-11-30 23:59:59.999+00', 'app', 'hset', \
        '{\"a\": \"1\"}', case when n % 2 = 0 then '{x,\"y z\"}'::text[] else '{}' end, n = 3, \
        n = 4, case when n % 2 = 0 then '9999-12-31 23:59:59.999+00'::timestamptz end, n = 5 \
    from generate_series(1, 6) n; \
    insert into history \
    values ('s', 7, '*', '*', '2031-01-01', '', 'flushall', '{}', '{}', true, false, null, false)";

/// A database with the tables as they were before the history was kept in runs.
async fn rows() -> (Target, PgConnection) {
    let target = Target::postgres().await;
    let mut connection = PgConnection::connect(&target.url).await.unwrap();
    sqlx::raw_sql("create schema profile_proxy").execute(&mut connection).await.unwrap();
    sqlx::raw_sql(SESSION).execute(&mut connection).await.unwrap();
    let former = MIGRATIONS.iter().filter(|migration| migration.version < 5).cloned().collect();
    let former = Migrator { migrations: former, ..Migrator::DEFAULT };
    former.run_direct(None, &mut connection, false).await.unwrap();
    let part = "create table history_2026_11 partition of history \
        for values from ('2026-11-01 00:00+00') to ('2026-12-01 00:00+00')";
    sqlx::raw_sql(part).execute(&mut connection).await.unwrap();
    (target, connection)
}

#[tokio::test]
async fn a_history_of_rows_becomes_one_of_runs() {
    let (target, mut connection) = rows().await;
    sqlx::raw_sql(FILL).execute(&mut connection).await.unwrap();
    let grants = "create role reader; grant usage on schema profile_proxy to reader; \
        grant select on history to reader; \
        revoke execute on all functions in schema profile_proxy from public; \
        alter default privileges revoke execute on functions from public";
    sqlx::raw_sql(grants).execute(&mut connection).await.unwrap();
    let before = target.history().await;

    target.database(&user_kind()).prepare().await.unwrap();
    assert_eq!((target.history().await, before.len()), (before, 7));
    assert_eq!(target.count("history_runs_2026_11").await, 6);
    assert_eq!(target.count("history_runs_default").await, 1);
    sqlx::raw_sql("set role reader; select * from history").execute(&mut connection).await.unwrap();
    sqlx::raw_sql("reset role; drop owned by reader; drop role reader")
        .execute(&mut connection)
        .await
        .unwrap();
    // What comes next finds the part of its month.
    let mut log = Log::new();
    log.append(&[Write::set("user:1", END_OF_MONTH_MS, "a", "b").record()]);
    log.deliver(&target, 10).await;
    assert_eq!(target.count("history_runs_2026_11").await, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_commits_while_the_history_moves_moves_with_it() {
    let (target, mut connection) = rows().await;
    let open = format!("begin; {FILL}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(open)).execute(&mut connection).await.unwrap();
    let database = target.database(&user_kind());
    let moving = tokio::spawn(async move { database.prepare().await });
    target.wait_for_a_waiter().await;
    sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
    moving.await.unwrap().unwrap();
    assert_eq!(target.count("history").await, 7);
}

#[tokio::test]
async fn a_view_that_people_built_on_the_table_is_named_as_what_is_in_the_way() {
    let (target, mut connection) = rows().await;
    let view = "create view mine as select key, count(*) from history group by key";
    sqlx::raw_sql(view).execute(&mut connection).await.unwrap();
    let database = target.database(&user_kind());
    let error = database.prepare().await.unwrap_err().to_string();
    assert!(error.contains("drop it, start again"), "{error}");
    assert_eq!(target.count("mine").await, 0, "it is there as it was");
    target.run("drop view mine").await;
    database.prepare().await.unwrap();
    assert_eq!(target.count("history").await, 0);
}
