#!/usr/bin/env python3
"""What durability costs and how long it takes: four figures.

1. Writes acknowledged per second with sync = os, everysec and always.
2. Changes per second that reach PostgreSQL, against raw SQL of the same batches (replay.py): on profiles that
   are all different, and on ten hot ones.
3. What two connections to PostgreSQL at once could bring at most.
4. The time from kill -9 until the proxy serves again, with many changes that the database does not have.

To let changes pile up, another session holds the lock of the cursor that every delivery moves.

usage: benches/durability.py [--changes N] [--undelivered N] [--proxy BINARY] [--out FILE]
"""

import argparse, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

import compare, replay

class Rig:
    """One proxy with its own Redis and its own database, and a way to hold deliveries up."""

    def __init__(self, servers, binary, postgres, name, settings=""):
        self.servers, self.binary, self.name = servers, binary, name
        self.server, self.database, self.data = postgres.rsplit("/", 1)[0], name, os.path.join(servers.folder, name)
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

    def start(self, server=None):
        begun = time.monotonic()
        self.process = self.servers.start(
            [self.binary, "--config", self.config, "--listen", f"127.0.0.1:{self.port}", "--admin",
             f"127.0.0.1:{self.admin}", "--data-dir", self.data, "--upstream",
             f"redis://127.0.0.1:{self.redis_port}", "--database", f"{server or self.server}/{self.database}"], self.port)
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

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def settle(self, pause=0.02):
        while self.waiting() > 0:
            time.sleep(pause)

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


class Batches:
    """Changes that wait in a journal, and the database that lacks them; copies of both for each run."""

    def __init__(self, servers, binary, postgres, changes, keys):
        self.changes, self.port = changes, int(postgres.rsplit(":", 1)[1].split("/")[0])
        self.rig = rig = Rig(servers, binary, postgres, f"sink_{keys}")
        # The rows are there before, so that all sides update.
        rig.load(changes, keys)
        rig.settle()
        holder = rig.hold()
        rig.load(changes, keys)
        rig.kill()
        rig.let_go(holder)
        while rig.sql(f"select 1 from pg_stat_activity where datname = '{rig.name}'", "postgres"):
            time.sleep(0.05)
        rig.sql("vacuum analyze", rig.name)
        self.recording = self.record()

    def copy(self):
        self.rig.database = self.rig.name + "_run"
        self.rig.sql(f'create database "{self.rig.database}" template "{self.rig.name}"', "postgres")
        self.rig.sql("checkpoint", "postgres")

    def drop(self):
        self.rig.sql(f'drop database "{self.rig.database}" with (force)', "postgres")

    def start(self, server=None):
        self.rig.data = os.path.join(self.rig.servers.folder, self.rig.database)
        shutil.copytree(os.path.join(self.rig.servers.folder, self.rig.name), self.rig.data)
        self.rig.start(server)

    def stop(self):
        self.rig.kill()
        shutil.rmtree(self.rig.data)
        self.drop()

    def record(self):
        relay = replay.Relay(self.port)
        self.copy()
        self.start(f"postgres://postgres@127.0.0.1:{relay.port}")
        self.rig.settle()
        self.stop()
        return relay.close()

    def deliver(self):
        """Seconds, and processor time of the proxy and of PostgreSQL, per change."""
        self.copy()
        holder = self.rig.hold()
        self.start()
        waiting = f"select pid from pg_stat_activity where datname = '{self.rig.database}' and wait_event_type = 'Lock'"
        while not (found := self.rig.sql(waiting, "postgres")):
            time.sleep(0.05)
        before = compare.cpu_seconds(self.rig.process.pid), compare.cpu_seconds(int(found))
        begun = time.monotonic()
        self.rig.let_go(holder)
        # Each look costs processor time, which is what both sides are short of.
        self.rig.settle(0.1)
        seconds = time.monotonic() - begun
        after = compare.cpu_seconds(self.rig.process.pid), compare.cpu_seconds(int(found))
        self.stop()
        return [each / self.changes for each in (seconds, after[0] - before[0], after[1] - before[1])]

    def replay(self, recording):
        self.copy()
        client = replay.Client(self.port, self.rig.database)
        before = compare.cpu_seconds(client.process)
        seconds = client.replay(recording)
        after = compare.cpu_seconds(client.process)
        client.socket.close()
        self.drop()
        return [each / self.changes for each in (seconds, 0, after - before)]


def sink(servers, binary, postgres, changes, rounds):
    lines, rates = [], []
    for title, keys in (("all different", changes), ("ten hot ones", 10)):
        batches = Batches(servers, binary, postgres, changes, keys)
        history = batches.recording.without_profiles()
        figures = []
        for turn in range(rounds):
            runs = [batches.deliver, lambda: batches.replay(batches.recording), lambda: batches.replay(history)]
            done = {place: runs[place]() for place in (range(3) if turn % 2 == 0 else reversed(range(3)))}
            figures.append([done[place] for place in range(3)])
        (own, proxy, backend), (raw, _, raw_backend), (alone, _, _) = (
            [statistics.median(row[side][figure] for row in figures) for figure in range(3)] for side in range(3))
        ratio = statistics.median(row[1][0] / row[0][0] for row in figures)
        lines.append(f"| {title} | {1 / own:,.0f} ({proxy * 1e6:.1f}; {backend * 1e6:.1f}) | {1 / raw:,.0f} "
                     f"({raw_backend * 1e6:.1f}) | {ratio:.2f} | {1 / alone:,.0f} |")
        rates.append(1 / own)
        bytes, count = batches.recording.bytes(), len(batches.recording.transactions)
        print(f"{title}: {count} transactions, {bytes / changes:.0f} bytes per change", figures, file=sys.stderr)
    return [f"Changes per second into PostgreSQL, {changes:,} changes of three fields, medians of {rounds} rounds; in "
            "brackets the processor time per change, in microseconds, of the proxy and of PostgreSQL:", "",
            "| profiles | profile-proxy | raw SQL | ratio | history alone |", "|---|---|---|---|---|", *lines, "",
            "The raw SQL is what the proxy says to PostgreSQL for these very changes, recorded and said again to a copy of the "
            "database as it was before: the same statements, rows and transactions over one connection, laid out before the "
            "clock starts, each transaction sent at once. *History alone* leaves out what it says about the state of the "
            "profiles. The ratio is the median of each round's, so it is not that of the medians. "
            f"Ten hot profiles take {rates[1] / rates[0]:.1f} times as many changes a second as different ones: what "
            "arrives together of one profile is one row, in the state and in the history. Keys are drawn at random: of those "
            "that are all different, 37% are new to the database.", ""]


def parallel(servers, binary, postgres, changes, rounds):
    """The most that deliveries of two halves could gain: two databases at a time against one after the other."""
    halves = [Batches(servers, binary, postgres, changes // 2, changes // 2 + number) for number in range(2)]

    def say(at_once):
        for half in halves:
            half.copy()
        clients = [replay.Client(half.port, half.rig.database) for half in halves]
        says = [threading.Thread(target=client.replay, args=(half.recording,)) for client, half in zip(clients, halves)]
        begun = time.monotonic()
        for one in says:
            one.start()
            if not at_once:
                one.join()
        for one in says:
            one.join()
        seconds = time.monotonic() - begun
        for client, half in zip(clients, halves):
            client.socket.close()
            half.drop()
        return changes / seconds

    gains = []
    for turn in range(rounds):
        rates = {at_once: say(at_once) for at_once in ((False, True) if turn % 2 == 0 else (True, False))}
        gains.append(rates[True] / rates[False])
        print(f"one at a time {rates[False]:,.0f}/s, two at once {rates[True]:,.0f}/s", file=sys.stderr)
    return [f"Two connections at once would bring at most {statistics.median(gains):.2f} times as many changes of different "
            f"profiles on {os.cpu_count()} processors that have nothing else to do: recorded SQL of two databases, said at the "
            f"same time and one behind the other, {rounds} rounds.", ""]


def recovery(servers, binary, postgres, undelivered):
    rig = Rig(servers, binary, postgres, "recovery")
    rig.load(10_000, 10_000)
    rig.settle()
    holder = rig.hold()
    rig.load(undelivered, 10_000)
    waiting = rig.waiting()
    rig.kill()
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
    parser.add_argument("--rounds", type=int, default=5, help="of the deliveries against raw SQL")
    parser.add_argument("--only", choices=("sync", "sink", "parallel", "recovery"), help="one of the figures")
    parser.add_argument("--undelivered", type=int, default=1_000_000)
    parser.add_argument("--proxy", default=os.path.join(compare.HERE, "../target/release/profile-proxy"))
    parser.add_argument("--out", help="write the figures as Markdown")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="profile-proxy-durability-")
    servers, binary = compare.Servers(folder), os.path.abspath(options.proxy)
    try:
        postgres = compare.start_postgres(servers)
        lines = []
        if options.only in (None, "sync"):
            lines += sync_modes(servers, binary, postgres, options.changes)
        if options.only in (None, "sink"):
            lines += sink(servers, binary, postgres, options.changes, options.rounds)
        if options.only in (None, "parallel"):
            lines += parallel(servers, binary, postgres, options.changes, options.rounds)
        if options.only in (None, "recovery"):
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
