//! The steps of the client matrix with fred, which connects and subscribes anew by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fred::prelude::*;
use fred::types::config::ReconnectPolicy;
use fred::types::{Message, RespVersion};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;

use super::{
    KEY, NAME, PASSWORD, RESUBSCRIBED, STEP_BOUND, WATCHED, assert_outcomes, counted, outcomes,
    refusal_to_log_in, restart, servers,
};
use crate::support::proxy::Proxy;

#[test]
fn fred_in_resp2() {
    assert_fred(RespVersion::RESP2, "array");
}

#[test]
fn fred_in_resp3() {
    assert_fred(RespVersion::RESP3, "map");
}

#[track_caller]
fn assert_fred(version: RespVersion, hgetall: &str) {
    let mut setup = servers();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let lines = runtime.block_on(steps(&mut setup.proxy, version)).expect("no step fails");
    assert_outcomes(&setup, &lines, "fred 10", &(outcomes(hgetall) + RESUBSCRIBED));
}

/// How to make clients of one protocol, with one login, in one database.
fn builder(proxy: &Proxy, version: &RespVersion, login: &str, database: u8) -> Builder {
    let at = if login.is_empty() { "" } else { "@" };
    let url = format!("redis://{login}{at}{}/{database}", proxy.address());
    let mut config = Config::from_url(&url).expect("an address");
    config.version = version.clone();
    let mut builder = Builder::from_config(config);
    builder.set_policy(ReconnectPolicy::new_constant(0, 20));
    builder
}

async fn connect(builder: &Builder) -> Result<Client, Error> {
    let client = builder.build()?;
    client.init().await?;
    Ok(client)
}

async fn steps(proxy: &mut Proxy, version: RespVersion) -> Result<Vec<String>, Error> {
    let login = format!("{NAME}:{PASSWORD}");
    let builder_in = |login: &str, database| builder(proxy, &version, login, database);
    let (main, one) = (builder_in(&login, 0), builder_in(&login, 1));
    let (wrong, without) = (builder_in("john:wrong", 0), builder_in("", 0));
    let client = connect(&main).await?;
    let pong: String = client.ping(None).await?;
    let (wrong, without) = (refused(&wrong).await, refused(&without).await);
    let mut lines = vec!["client: fred 10.".to_owned()];
    lines.push(format!("authenticate: {wrong}, {without}, {}", pong == "PONG"));
    lines.push(select(&client, &connect(&one).await?).await?);
    lines.push(pipeline(&client).await?);
    lines.push(transaction(&client).await?);
    lines.push(watch(&client, &connect(&main).await?).await);
    let subscriber = main.build_subscriber_client()?;
    subscriber.init().await?;
    subscriber.manage_subscriptions();
    let mut messages = subscriber.message_rx();
    subscriber.subscribe("matrix-news").await?;
    subscriber.psubscribe("matrix-p*").await?;
    lines.push(publish(&client, &mut messages).await?);
    lines.extend(profile(&client).await?);
    let refused: Result<i64, Error> = client.hset(KEY, ("login_count", -1)).await;
    let refused = refused.err().map_or("none".to_owned(), |error| error.details().to_owned());
    lines.push(format!("refusal: {refused}"));
    restart(proxy);
    lines.push(reconnect(&client).await);
    lines.push(resubscribe(&client, &mut messages).await);
    Ok(lines)
}

async fn refused(builder: &Builder) -> String {
    let error = match timeout(STEP_BOUND, connect(builder)).await.expect("an answer") {
        Ok(client) => client.get::<Value, _>("matrix").await.err(),
        Err(error) => Some(error),
    };
    refusal_to_log_in(error.map(|error| error.details().to_owned()))
}

async fn publish(client: &Client, messages: &mut Receiver<Message>) -> Result<String, Error> {
    // fred goes on once a subscription is written; it does not wait for the answer.
    let start = Instant::now();
    while client.pubsub_numpat::<i64>().await? == 0 {
        assert!(start.elapsed() < STEP_BOUND, "nobody subscribes");
    }
    let first: i64 = client.publish("matrix-news", "hello").await?;
    let second: i64 = client.publish("matrix-pattern", "there").await?;
    let hello = received(messages, "hello").await;
    let there = received(messages, "there").await;
    Ok(format!("publish: {}, {hello}, {there}", first + second))
}

async fn resubscribe(client: &Client, messages: &mut Receiver<Message>) -> String {
    let start = Instant::now();
    loop {
        let receivers: Result<i64, Error> = client.publish("matrix-news", "again").await;
        if matches!(receivers, Ok(1)) {
            return format!("resubscribe: {}", received(messages, "again").await);
        }
        assert!(start.elapsed() < STEP_BOUND, "nobody subscribes anew: {receivers:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn received(messages: &mut Receiver<Message>, expected: &str) -> String {
    let message = timeout(STEP_BOUND, messages.recv()).await;
    let message = message.unwrap_or_else(|_| panic!("the message {expected:?} never came"));
    message.expect("a client that keeps up").value.convert().expect("text")
}

async fn select(main: &Client, one: &Client) -> Result<String, Error> {
    one.set::<(), _, _>("matrix", "one", None, None, false).await?;
    main.select(1).await?;
    let there: Option<String> = main.get("matrix").await?;
    main.select(0).await?;
    let here: Option<String> = main.get("matrix").await?;
    let own: String = one.get("matrix").await?;
    let shown = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
    Ok(format!("select: {own}, {}, {}", shown(there), shown(here)))
}

async fn pipeline(client: &Client) -> Result<String, Error> {
    let pipeline = client.pipeline();
    for _ in 0..100 {
        pipeline.hincrby::<(), _, _>(KEY, "visits", 1).await?;
    }
    let replies: Vec<i64> = pipeline.all().await?;
    Ok(format!("pipeline: {}", counted(&replies)))
}

async fn transaction(client: &Client) -> Result<String, Error> {
    let block = client.multi();
    block.hset::<(), _, _>(KEY, ("username", "ann")).await?;
    block.hincrby::<(), _, _>(KEY, "visits", 5).await?;
    block.set::<(), _, _>("matrix:other", "x", None, None, false).await?;
    let (created, visits, done): (i64, i64, String) = block.exec(true).await?;
    let block = client.multi();
    block.hincrby::<(), _, _>(KEY, "visits", 1000).await?;
    block.hset::<(), _, _>(KEY, ("login_count", -1)).await?;
    let aborted = match block.exec::<Value>(true).await {
        Ok(replies) => format!("{replies:?}"),
        Err(_) => "aborted".to_owned(),
    };
    let after: String = client.hget(KEY, "visits").await?;
    Ok(format!("transaction: {created}, {visits}, {}, {aborted}, {after}", done == "OK"))
}

async fn watch(main: &Client, other: &Client) -> String {
    match try_watch(main, other).await {
        Ok(outcome) => format!("watch: {outcome}"),
        Err(_) => "watch: refused".to_owned(),
    }
}

async fn try_watch(main: &Client, other: &Client) -> Result<String, Error> {
    main.watch(WATCHED).await?;
    other.hset::<(), _, _>(WATCHED, ("username", "bob")).await?;
    let block = main.multi();
    block.hset::<(), _, _>(WATCHED, ("username", "ann")).await?;
    let first: Value = block.exec(true).await?;
    main.watch(WATCHED).await?;
    let name: String = main.hget(WATCHED, "username").await?;
    let block = main.multi();
    block.hset::<(), _, _>(WATCHED, ("username", format!("{name}by"))).await?;
    block.hget::<(), _, _>(WATCHED, "username").await?;
    let (_, second): (i64, String) = block.exec(true).await?;
    let first = if first.is_null() { "conflict".to_owned() } else { format!("{first:?}") };
    Ok(format!("{first}, {second}"))
}

async fn profile(client: &Client) -> Result<[String; 3], Error> {
    client.hset::<(), _, _>(KEY, ("photo", &b"\x00\xff\r\n"[..])).await?;
    let photo: Vec<u8> = client.hget::<Value, _, _>(KEY, "photo").await?.convert()?;
    client.hdel::<(), _, _>(KEY, "photo").await?;
    client.hset::<(), _, _>(KEY, ("department", "Ingénierie")).await?;
    let fields: BTreeMap<String, String> = client.hgetall(KEY).await?;
    let fields = serde_json::to_string(&fields).expect("text");
    let command = fred::types::CustomCommand::new_static("HGETALL", None::<u16>, false);
    let raw: Value = client.custom(command, vec![KEY]).await?;
    let hgetall = match raw {
        Value::Array(_) => "array",
        Value::Map(_) => "map",
        _ => "something else",
    };
    let photo: String = photo.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([format!("profile: {fields}"), format!("binary: {photo}"), format!("hgetall: {hgetall}")])
}

async fn reconnect(client: &Client) -> String {
    let start = Instant::now();
    loop {
        match client.hget::<Option<String>, _, _>(KEY, "visits").await {
            Ok(Some(visits)) => return format!("reconnect: {visits}"),
            other if start.elapsed() > STEP_BOUND => return format!("reconnect: {other:?}"),
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
