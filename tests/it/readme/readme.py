"""The README's commands through unmodified redis-py. Arguments: port, RESP version."""
import sys

import redis

KEY = "user:EMP001"
FIELDS = {
    "employee_id": "EMP001",
    "username": "john_doe",
    "password": "secret123",
    "department": "Engineering",
    "role": "Developer",
    "questions_asked": "5",
    "login_count": "12",
    "last_login": "1703123456",
    "created_at": "1703000000",
    "status": "active",
}


def expect(what, got, expected):
    if got != expected or type(got) is not type(expected):
        sys.exit(f"{what}: got {got!r}, expected {expected!r}")


port, protocol = int(sys.argv[1]), int(sys.argv[2])
client = redis.Redis(host="127.0.0.1", port=port, protocol=protocol, decode_responses=True)

expect("hset", client.hset(KEY, mapping=FIELDS), 10)
expect("hgetall", client.hgetall(KEY), FIELDS)
expect("order of hgetall", list(client.hgetall(KEY)), list(FIELDS))
fields = ["username", "department", "nothing"]
expect("hmget", client.hmget(KEY, fields), ["john_doe", "Engineering", None])
expect("hincrby", client.hincrby(KEY, "questions_asked", 1), 6)
expect("hset again", client.hset(KEY, "last_login", "1703200000"), 0)
expect("hexists", client.hexists(KEY, "status"), True)
expect("hexists of nothing", client.hexists(KEY, "nothing"), False)
expect("hkeys", client.hkeys(KEY), list(FIELDS))
FIELDS.update(questions_asked="6", last_login="1703200000")
expect("hvals", client.hvals(KEY), list(FIELDS.values()))
expect("hlen", client.hlen(KEY), 10)
expect("hdel", client.hdel(KEY, "status"), 1)
expect("keys", client.keys("user:*"), [KEY])

# redis-py wraps a pipeline in MULTI by default; without, it is what the proxy must serve.
with client.pipeline(transaction=False) as pipeline:
    pipeline.hget(KEY, "questions_asked").hlen(KEY).exists(KEY)
    expect("pipeline", pipeline.execute(), ["6", 9, 1])
try:
    client.hset(KEY, "status", "asleep")
    sys.exit("a wrong status was accepted")
except redis.ResponseError as error:
    expect("refusal", str(error).startswith("SCHEMA field 'status': "), True)
expect("after the refusal", client.hexists(KEY, "status"), False)
