#!/usr/bin/env python3
"""What durability costs and how long it takes: three figures.

1. Writes acknowledged per second with sync = os, everysec and always.
2. Changes per second that reach PostgreSQL, against raw SQL that makes such rows inside the server, in
   batches of the same size, in the same tables; on profiles that are all different, and on ten hot ones.
3. The time from kill -9 until the proxy serves again, with many changes that the database does not have.

To let changes pile up, another session holds the lock of the cursor that every delivery moves.

usage: benches/durability.py [--changes N] [--undelivered N] [--proxy BINARY] [--out FILE]
"""

import argparse, os, shutil, signal, socket, subprocess, sys, tempfile, time

import compare

BATCH = 2000  # changes in a transaction: half of batch_records_max, as each has an intent
FIELDS = '{"department": "Engineering", "role": "Developer", "login_count": "12"}'
RAW_SQL = """
set search_path to raw;
do $$ begin for batch in 0..{batches} - 1 loop
    insert into history (source, sequence, key, kind, at, actor, command, changed, removed, deleted, cleared,
            expires_at, persisted)
        select 'raw', batch * {size} + n, 'user:' || lpad(((batch * {size} + n) % {keys})::text, 12, '0'), 'user', now(),
            '', 'hset', '{fields}', '{{}}', false, false, now() + interval '1 year', false
        from generate_series(1, {size}) n;
    insert into profiles as p (key, kind, fields, expires_at, updated_at, source, sequence)
        select distinct on (1) 'user:' || lpad(((batch * {size} + n) % {keys})::text, 12, '0') collate "C", 'user',
            '{fields}'::jsonb, now() + interval '1 year', now(), 'raw', n
        from generate_series(1, {size}) n order by 1
        on conflict (key) do update set fields = p.fields || excluded.fields, expires_at = excluded.expires_at,
            updated_at = excluded.updated_at, sequence = excluded.sequence;
    commit;
end loop; end $$;
"""


class Rig:
    """One proxy with its own Redis and its own database, and a way to hold deliveries up."""

    def __init__(self, servers, binary, postgres, name, settings=""):
        self.servers, self.binary, self.name = servers, binary, name
        self.server, self.database = postgres.rsplit("/", 1)[0], name
        self.sql(f'create database "{name}"', "postgres")
        self.redis_port, _ = compare.start_redis(servers)
        self.port, self.admin = compare.free_port(), compare.free_port()
        self.config = os.path.join(servers.folder, f"{name}.toml")
        with open(os.path.join(compare.HERE, "../config/profile-proxy.toml")) as shipped, open(self.config, "w") as file:
            text = shipped.read()
            for line in filter(None, settings.splitlines()):
                key = line.split(" = ")[0]
                text = "\n".join(line if old.startswith(key + " = ") else old for old in text.splitlines())
            file.write(text)
        self.start()
        while compare.metric(self.admin, "profile_proxy_sink_up") != 1:
            time.sleep(0.02)

    def start(self):
        begun = time.monotonic()
        self.process = self.servers.start(
            [self.binary, "--config", self.config, "--listen", f"127.0.0.1:{self.port}", "--admin",
             f"127.0.0.1:{self.admin}", "--data-dir", os.path.join(self.servers.folder, self.name), "--upstream",
             f"redis://127.0.0.1:{self.redis_port}", "--database", f"{self.server}/{self.database}"], self.port)
        return begun

    def sql(self, text, database=None):
        run = subprocess.run(["psql", "-qAt", "-v", "ON_ERROR_STOP=1", f"{self.server}/{database or self.database}"],
                             input=text, capture_output=True, text=True,
                             env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"})
        if run.returncode:
            sys.exit(f"psql: {run.stderr}")
        return run.stdout

    def hold(self):
        """Locks the cursor; ending the returned process lets go of it."""
        holder = subprocess.Popen(["psql", "-qAt", f"{self.server}/{self.database}"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        holder.stdin.write("begin; select 'held' from profile_proxy.cursors for update;\n")
        holder.stdin.flush()
        holder.stdout.readline()
        return holder

    @staticmethod
    def let_go(holder):
        holder.stdin.close()
        holder.wait(10)

    def load(self, changes, keys, pipeline=64):
        return subprocess.run(
            ["redis-benchmark", "-p", str(self.port), "-n", str(changes), "-c", "50", "-P", str(pipeline), "-r", str(keys),
             "--csv", "HSET", "user:__rand_int__", "department", "Engineering", "role", "Developer", "login_count", "12"],
            check=True, capture_output=True, text=True).stdout

    def waiting(self):
        waiting = compare.metric(self.admin, "profile_proxy_sink_waiting_records")
        return 1 if waiting is None else waiting

    def settle(self):
        while self.waiting() > 0:
            time.sleep(0.02)

    def ask(self, command):
        """Asks until there is an answer that is not an error."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as client:
                    client.settimeout(20)
                    client.sendall(command)
                    if client.recv(1000)[:1] not in (b"-", b""):
                        return
            except OSError:
                pass
            time.sleep(0.002)
        sys.exit("the proxy does not serve")


def sync_modes(servers, binary, postgres, changes):
    lines = []
    for sync in ("os", "everysec", "always"):
        rig = Rig(servers, binary, postgres, f"sync_{sync}", f'sync = "{sync}"')
        rates = []
        for pipeline in (1, 16):
            rows = rig.load(changes if pipeline > 1 else changes // 2, 10_000, pipeline).strip().splitlines()
            rates.append(float(rows[-1].split(",")[1].strip('"')))
            rig.settle()
        lines.append(f"| `{sync}` | {rates[0]:,.0f} | {rates[1]:,.0f} |")
        rig.process.terminate()
        rig.process.wait(20)
    return ["Writes acknowledged per second, 50 clients, PostgreSQL taking every change:", "",
            "| sync | no pipelining | pipeline 16 |", "|---|---|---|", *lines, ""]


def sink(servers, binary, postgres, changes):
    rig = Rig(servers, binary, postgres, "sink")
    lines = []
    for title, keys in (("all different", changes), ("ten hot ones", 10)):
        rig.sql("drop schema if exists raw cascade; create schema raw; set search_path to raw;"
                "create table profiles (like profile_proxy.profiles including all);"
                "create table history (like profile_proxy.history including all);")
        # The rows are there before, so that both sides update.
        rig.load(changes, keys)
        rig.settle()
        rig.sql("set search_path to raw; insert into profiles select * from profile_proxy.profiles; checkpoint; analyze;")
        holder = rig.hold()
        rig.load(changes, keys)
        begun = time.monotonic()
        rig.let_go(holder)
        rig.settle()
        own = changes / (time.monotonic() - begun)
        rig.sql("checkpoint;")
        begun = time.monotonic()
        rig.sql(RAW_SQL.format(batches=changes // BATCH, size=BATCH, keys=keys, fields=FIELDS))
        raw = changes / (time.monotonic() - begun)
        lines.append(f"| {title} | {own:,.0f} | {raw:,.0f} | {own / raw:.2f} |")
    rig.process.terminate()
    rig.process.wait(20)
    return [f"Changes per second into PostgreSQL, {changes:,} changes of three fields:", "",
            "| profiles | profile-proxy | raw SQL | ratio |", "|---|---|---|---|", *lines, "",
            "The raw SQL makes its rows inside the server: nobody has to read, encode or send them, so it is an upper bound.", ""]


def recovery(servers, binary, postgres, undelivered):
    rig = Rig(servers, binary, postgres, "recovery")
    rig.load(10_000, 10_000)
    rig.settle()
    holder = rig.hold()
    rig.load(undelivered, 10_000)
    waiting = rig.waiting()
    rig.process.send_signal(signal.SIGKILL)
    rig.process.wait()
    begun = rig.start()
    rig.ask(b"PING\r\n")
    ping = time.monotonic() - begun
    rig.ask(b"HSET user:000000000001 department Sales\r\n")
    write = time.monotonic() - begun
    rig.let_go(holder)
    rig.settle()
    behind = time.monotonic() - begun
    return [f"After kill -9 with {waiting:,.0f} journal records ({undelivered:,} changes) undelivered: the first answer after "
            f"{ping:.2f} s, the first profile write after {write:.2f} s, everything in the database after {behind:.0f} s."]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--undelivered", type=int, default=1_000_000)
    parser.add_argument("--proxy", default=os.path.join(compare.HERE, "../target/release/profile-proxy"))
    parser.add_argument("--out", help="write the figures as Markdown")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="profile-proxy-durability-")
    servers, binary = compare.Servers(folder), os.path.abspath(options.proxy)
    try:
        postgres = compare.start_postgres(servers)
        lines = sync_modes(servers, binary, postgres, options.changes)
        lines += sink(servers, binary, postgres, options.changes)
        lines += recovery(servers, binary, postgres, options.undelivered)
        text = "\n".join(lines) + "\n"
        print(text)
        if options.out:
            with open(options.out, "w") as file:
                file.write(text)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
