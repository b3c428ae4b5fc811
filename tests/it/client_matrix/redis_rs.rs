//! The steps of the client matrix with redis-rs: a connection manager for commands, which connects
//! anew by itself, and a connection of its own for what is published.

use std::collections::BTreeMap;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, RedisResult, Value, cmd, pipe};

use super::{
    KEY, NAME, PASSWORD, REFUSAL, STEP_BOUND, WATCHED, assert_outcomes, counted, outcomes,
    refusal_to_log_in, restart, servers,
};
use crate::support::proxy::Proxy;

#[test]
fn redis_rs_in_resp2() {
    assert_redis_rs(2, "array");
}

#[test]
fn redis_rs_in_resp3() {
    assert_redis_rs(3, "map");
}

#[track_caller]
fn assert_redis_rs(protocol: u8, hgetall: &str) {
    let mut setup = servers();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let lines = runtime.block_on(steps(&mut setup.proxy, protocol)).expect("no step fails");
    assert_outcomes(&setup, &lines, "redis-rs 1", &outcomes(hgetall));
}

fn client(proxy: &Proxy, protocol: u8, login: &str, database: u8) -> Client {
    let at = if login.is_empty() { "" } else { "@" };
    let address = proxy.address();
    let url = format!("redis://{login}{at}{address}/{database}?protocol={protocol}");
    Client::open(url).expect("an address")
}

async fn connect(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(STEP_BOUND))
        .set_number_of_retries(0);
    ConnectionManager::new_with_config(client.clone(), config).await
}

async fn steps(proxy: &mut Proxy, protocol: u8) -> RedisResult<Vec<String>> {
    let login = format!("{NAME}:{PASSWORD}");
    let client_in = |login: &str, database| client(proxy, protocol, login, database);
    let (main, one) = (client_in(&login, 0), client_in(&login, 1));
    let (wrong, without) = (client_in("john:wrong", 0), client_in("", 0));
    let mut connection = connect(&main).await?;
    let pong: String = connection.ping().await?;
    let (wrong, without) = (refused(&wrong).await, refused(&without).await);
    let mut lines = vec!["client: redis-rs 1.".to_owned()];
    lines.push(format!("authenticate: {wrong}, {without}, {}", pong == "PONG"));
    lines.push(select(&mut connection, &mut connect(&one).await?).await?);
    lines.push(pipeline(&mut connection).await?);
    lines.push(transaction(&mut connection).await?);
    lines.push(watch(&mut connection, &mut connect(&main).await?).await);
    lines.push(publish(&mut connection, &main).await?);
    lines.extend(profile(&mut connection).await?);
    lines.push(refusal(&mut connection).await);
    restart(proxy);
    lines.push(reconnect(&mut connection).await);
    Ok(lines)
}

async fn refused(client: &Client) -> String {
    let error = match connect(client).await {
        Ok(mut connection) => connection.ping::<String>().await.err(),
        Err(error) => Some(error),
    };
    refusal_to_log_in(error.map(|error| error.to_string()))
}

async fn select(main: &mut ConnectionManager, one: &mut ConnectionManager) -> RedisResult<String> {
    one.set::<_, _, ()>("matrix", "one").await?;
    let (there, here): (Option<String>, Option<String>) = pipe()
        .cmd("SELECT")
        .arg(1)
        .ignore()
        .get("matrix")
        .cmd("SELECT")
        .arg(0)
        .ignore()
        .get("matrix")
        .query_async(main)
        .await?;
    let own: String = one.get("matrix").await?;
    let shown = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
    Ok(format!("select: {own}, {}, {}", shown(there), shown(here)))
}

async fn pipeline(connection: &mut ConnectionManager) -> RedisResult<String> {
    let mut pipeline = pipe();
    for _ in 0..100 {
        pipeline.hincr(KEY, "visits", 1);
    }
    let replies: Vec<i64> = pipeline.query_async(connection).await?;
    Ok(format!("pipeline: {}", counted(&replies)))
}

async fn transaction(connection: &mut ConnectionManager) -> RedisResult<String> {
    let (created, visits, done): (i64, i64, String) = pipe()
        .atomic()
        .hset(KEY, "username", "ann")
        .hincr(KEY, "visits", 5)
        .set("matrix:other", "x")
        .query_async(connection)
        .await?;
    let mut refused = pipe();
    refused.atomic().hincr(KEY, "visits", 1000).hset(KEY, "login_count", -1);
    let aborted = match refused.query_async::<Value>(connection).await {
        Ok(replies) => format!("{replies:?}"),
        Err(_) => "aborted".to_owned(),
    };
    let after: String = connection.hget(KEY, "visits").await?;
    Ok(format!("transaction: {created}, {visits}, {}, {aborted}, {after}", done == "OK"))
}

async fn watch(main: &mut ConnectionManager, other: &mut ConnectionManager) -> String {
    match try_watch(main, other).await {
        Ok(outcome) => format!("watch: {outcome}"),
        Err(_) => "watch: refused".to_owned(),
    }
}

async fn try_watch(
    main: &mut ConnectionManager,
    other: &mut ConnectionManager,
) -> RedisResult<String> {
    cmd("WATCH").arg(WATCHED).exec_async(main).await?;
    other.hset::<_, _, _, ()>(WATCHED, "username", "bob").await?;
    let mut write = pipe();
    write.atomic().hset(WATCHED, "username", "ann");
    let first: Option<Vec<i64>> = write.query_async(main).await?;
    cmd("WATCH").arg(WATCHED).exec_async(main).await?;
    let name: String = main.hget(WATCHED, "username").await?;
    let mut write = pipe();
    write.atomic().hset(WATCHED, "username", format!("{name}by")).hget(WATCHED, "username");
    let (_, second): (i64, String) = write.query_async(main).await?;
    let first = first.map_or("conflict".to_owned(), |replies| format!("{replies:?}"));
    Ok(format!("{first}, {second}"))
}

async fn publish(connection: &mut ConnectionManager, client: &Client) -> RedisResult<String> {
    let mut subscriber = client.get_connection()?;
    let mut subscriber = subscriber.as_pubsub();
    subscriber.set_read_timeout(Some(STEP_BOUND))?;
    subscriber.subscribe("matrix-news")?;
    subscriber.psubscribe("matrix-p*")?;
    let first: i64 = connection.publish("matrix-news", "hello").await?;
    let second: i64 = connection.publish("matrix-pattern", "there").await?;
    let texts: [String; 2] =
        [subscriber.get_message()?.get_payload()?, subscriber.get_message()?.get_payload()?];
    Ok(format!("publish: {}, {}", first + second, texts.join(", ")))
}

async fn profile(connection: &mut ConnectionManager) -> RedisResult<[String; 3]> {
    connection.hset::<_, _, _, ()>(KEY, "photo", &b"\x00\xff\r\n"[..]).await?;
    let photo: Vec<u8> = connection.hget(KEY, "photo").await?;
    connection.hdel::<_, _, ()>(KEY, "photo").await?;
    connection.hset::<_, _, _, ()>(KEY, "department", "Ingénierie").await?;
    let fields: BTreeMap<String, String> = connection.hgetall(KEY).await?;
    let fields = serde_json::to_string(&fields).expect("text");
    let raw: Value = connection.hgetall(KEY).await?;
    let hgetall = match raw {
        Value::Array(_) => "array",
        Value::Map(_) => "map",
        _ => "something else",
    };
    let photo: String = photo.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([format!("profile: {fields}"), format!("binary: {photo}"), format!("hgetall: {hgetall}")])
}

/// redis-rs takes the error apart: the first word is its code, the rest its detail.
async fn refusal(connection: &mut ConnectionManager) -> String {
    let refused: RedisResult<i64> = connection.hset(KEY, "login_count", -1).await;
    let Err(error) = refused else { return "refusal: none".to_owned() };
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    assert!(REFUSAL.starts_with(code));
    format!("refusal: {code} {detail}")
}

async fn reconnect(connection: &mut ConnectionManager) -> String {
    let start = std::time::Instant::now();
    loop {
        match connection.hget::<_, _, String>(KEY, "visits").await {
            Ok(visits) => return format!("reconnect: {visits}"),
            Err(error) if start.elapsed() > STEP_BOUND => return format!("reconnect: {error}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
