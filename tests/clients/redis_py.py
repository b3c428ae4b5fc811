"""The steps of the client matrix with redis-py, old and new: PORT PROTOCOL as arguments.

Prints one line for each step, with what the client returned; ends with a reason on stderr when the
client fails. After the line `restart` it waits for a line on stdin: the proxy was started anew.
"""

import json
import sys
import time

import redis

PORT, PROTOCOL = int(sys.argv[1]), int(sys.argv[2])
KEY = "user:MATRIX"
WATCHED = "user:WATCHED"
IS_OLD = redis.__version__.startswith("3.")


def connect(**options):
    options = {"username": "john", "password": "matrix-secret", **options}
    if not IS_OLD:
        options["protocol"] = PROTOCOL
    return redis.Redis(
        host="127.0.0.1", port=PORT, socket_timeout=10, decode_responses=True, **options
    )


def step(name, outcome):
    print(f"{name}: {outcome}", flush=True)


def refused(client):
    # By default redis-py tries a refused login again for seconds.
    if not IS_OLD:
        client.set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 0))
    try:
        client.ping()
    except (redis.AuthenticationError, redis.ResponseError):
        return "refused"
    return "let in"


def authenticate():
    wrong, without = connect(password="wrong"), connect(username=None, password=None)
    right = connect()
    step("authenticate", f"{refused(wrong)}, {refused(without)}, {str(right.ping()).lower()}")
    return right


def select(client):
    one = connect(db=1)
    one.set("matrix", "one")
    # One connection that changes its database and comes back, as an application of old does it.
    with client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("SELECT", 1)
        pipeline.get("matrix")
        pipeline.execute_command("SELECT", 0)
        pipeline.get("matrix")
        replies = pipeline.execute()
    assert replies[0] is True or replies[0] == "OK", replies
    step("select", f"{one.get('matrix')}, {replies[1]}, {replies[3] or 'nothing'}")


def pipeline(client):
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(100):
            pipeline.hincrby(KEY, "visits", 1)
        replies = pipeline.execute()
    step("pipeline", "1 to 100" if replies == list(range(1, 101)) else replies)


def transaction(client):
    with client.pipeline() as pipeline:
        pipeline.hset(KEY, "username", "ann")
        pipeline.hincrby(KEY, "visits", 5)
        pipeline.set("matrix:other", "x")
        created, visits, done = pipeline.execute()
    with client.pipeline() as pipeline:
        pipeline.hincrby(KEY, "visits", 1000)
        pipeline.hset(KEY, "login_count", -1)
        try:
            aborted = pipeline.execute()
        except redis.ResponseError:
            aborted = "aborted"
    step("transaction", f"{created}, {visits}, {str(done).lower()}, {aborted}, {client.hget(KEY, 'visits')}")


def watch(client):
    other = connect()
    try:
        with client.pipeline() as pipeline:
            pipeline.watch(WATCHED)
            other.hset(WATCHED, "username", "bob")
            pipeline.multi()
            pipeline.hset(WATCHED, "username", "ann")
            try:
                first = pipeline.execute()
            except redis.WatchError:
                first = "conflict"
        with client.pipeline() as pipeline:
            pipeline.watch(WATCHED)
            name = pipeline.hget(WATCHED, "username")
            pipeline.multi()
            pipeline.hset(WATCHED, "username", name + "by")
            pipeline.hget(WATCHED, "username")
            _, second = pipeline.execute()
    except redis.ResponseError:
        step("watch", "refused")
        return
    step("watch", f"{first}, {second}")


def publish(client):
    subscriber = client.pubsub(ignore_subscribe_messages=True)
    subscriber.subscribe("matrix-news")
    subscriber.psubscribe("matrix-p*")
    # The first answers are those to the subscriptions themselves.
    wait_for(lambda: client.pubsub_numsub("matrix-news")[0][1] == 1)
    wait_for(lambda: client.pubsub_numpat() == 1)
    receivers = client.publish("matrix-news", "hello") + client.publish("matrix-pattern", "there")
    texts = []
    wait_for(lambda: texts.extend(received(subscriber)) or len(texts) == 2)
    subscriber.close()
    step("publish", f"{receivers}, {', '.join(texts)}")


def received(subscriber):
    message = subscriber.get_message(timeout=0.1)
    return [message["data"]] if message else []


def profile(client):
    raw = connect_binary()
    raw.hset(KEY, "photo", b"\x00\xff\r\n")
    photo = raw.hget(KEY, "photo")
    client.hdel(KEY, "photo")
    client.hset(KEY, "department", "Ingénierie")
    fields = client.hgetall(KEY)
    assert client.hmget(KEY, "username", "nothing") == ["ann", None]
    step("profile", json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")))
    step("binary", photo.hex())
    step("hgetall", type(fields).__name__)


def connect_binary():
    client = connect()
    client.connection_pool.connection_kwargs["decode_responses"] = False
    return client


def refusal(client):
    try:
        client.hset(KEY, "login_count", -1)
    except redis.ResponseError as error:
        step("refusal", error)


def reconnect(client):
    print("restart", flush=True)
    sys.stdin.readline()

    def visits():
        try:
            return client.hget(KEY, "visits")
        except redis.ConnectionError:
            return None

    step("reconnect", wait_for(visits))


def wait_for(probe):
    start = time.monotonic()
    while time.monotonic() - start < 10:
        value = probe()
        if value:
            return value
        time.sleep(0.01)
    sys.exit("gave up waiting")


step("client", f"redis-py {redis.__version__}")
main = authenticate()
select(main)
pipeline(main)
transaction(main)
watch(main)
publish(main)
profile(main)
refusal(main)
reconnect(main)
