#!/usr/bin/env python3
"""A mixed load for a long time: is the memory flat, does no descriptor leak, how long do clients wait?

Clients read and write profiles and other keys, use pipelines and transactions, subscribe, and connect
anew now and then, at a bounded rate. Memory and descriptors of the proxy are looked at all the while;
the figure that counts is their growth from the end of the first third on. Ends with an error where the
memory has grown by more than a tenth and 5 MB, where more descriptors are open, or where a reply was one.

usage: benches/soak.py [--seconds N] [--clients N] [--rate N] [--workers N,...] [--proxy BINARY] [--out FILE]
"""

import argparse, datetime, os, random, shutil, socket, sys, tempfile, threading, time

import compare

PROFILES = 20_000


def encoded(*arguments):
    parts = (f"${len(str(argument))}\r\n{argument}\r\n" for argument in arguments)
    return (f"*{len(arguments)}\r\n" + "".join(parts)).encode()


class Client:
    """One client: it does something, waits for all replies, and notes how long that took."""

    def __init__(self, port, number):
        self.port, self.random, self.millis, self.errors = port, random.Random(number), [], 0
        self.connect()

    def connect(self):
        self.socket = socket.create_connection(("127.0.0.1", self.port), 10)
        self.socket.settimeout(30)
        self.reader = self.socket.makefile("rb")
        self.exchange(encoded("AUTH", compare.USER, compare.PASSWORD), 1)

    def reply(self):
        line = self.reader.readline()
        if not line:
            sys.exit("the proxy has closed a connection")
        if line[:1] == b"-":
            self.errors += 1
        if line[:1] == b"$" and int(line[1:]) >= 0:
            self.reader.read(int(line[1:]) + 2)
        if line[:1] == b"*":
            for _ in range(max(0, int(line[1:]))):
                self.reply()

    def exchange(self, commands, replies):
        self.socket.sendall(commands)
        for _ in range(replies):
            self.reply()

    def once(self):
        key, other = f"user:{self.random.randrange(PROFILES)}", f"other:{self.random.randrange(PROFILES)}"
        hset = encoded("HSET", key, "department", f"d{self.random.randrange(1000)}", "status", "active")
        count, read = encoded("HINCRBY", key, "login_count", 1), encoded("HGETALL", key)
        dice = self.random.random()
        if dice < 0.005:
            self.reader.close()
            self.socket.close()
            self.connect()
            return
        begun = time.perf_counter()
        if dice < 0.3:
            self.exchange(read, 1)
        elif dice < 0.55:
            self.exchange(hset, 1)
        elif dice < 0.7:
            self.exchange(count, 1)
        elif dice < 0.8:
            self.exchange(encoded("SET", other, "x" * self.random.randrange(200)) + encoded("GET", other), 2)
        elif dice < 0.9:
            self.exchange((hset + count + read) * 8, 24)
        elif dice < 0.96:
            self.exchange(encoded("MULTI") + hset + count + encoded("EXEC"), 4)
        elif dice < 0.98:
            self.exchange(encoded("DEL", key) + read, 2)
        elif dice < 0.99:
            self.exchange(encoded("WATCH", key) + encoded("MULTI") + count + encoded("EXEC"), 4)
        else:
            self.exchange(encoded("SUBSCRIBE", "news") + encoded("UNSUBSCRIBE", "news"), 2)
        self.millis.append((time.perf_counter() - begun) * 1000)

    def run(self, pause, until):
        while time.monotonic() < until:
            self.once()
            time.sleep(pause * 2 * self.random.random())


def look(process):
    """Resident memory in MB and open descriptors."""
    with open(f"/proc/{process.pid}/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return resident, len(os.listdir(f"/proc/{process.pid}/fd"))


def soak(options, workers):
    """One soak. Returns what to say of it, and whether anything grew or went wrong."""
    folder = tempfile.mkdtemp(prefix="profile-proxy-soak-")
    servers = compare.Servers(folder)
    try:
        database, binary = compare.start_postgres(servers), os.path.abspath(options.proxy)
        proxy = compare.start_proxy(servers, binary, database, workers=workers)
        clients = [Client(proxy.port, number) for number in range(options.clients)]
        until, pause = time.monotonic() + options.seconds, options.clients / options.rate
        threads = [threading.Thread(target=client.run, args=(pause, until), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        looks = []
        while time.monotonic() < until:
            time.sleep(min(10, max(0.1, until - time.monotonic())))
            looks.append(look(proxy.process))
            print(f"{len(looks) * 10:5d} s  {looks[-1][0]:7.1f} MB  {looks[-1][1]:4d} descriptors", flush=True)
        for thread in threads:
            thread.join(60)
        proxy.settle()
        millis = sorted(figure for client in clients for figure in client.millis)
        part = [millis[min(len(millis) - 1, int(len(millis) * share))] for share in (0.5, 0.99, 0.999)]
        (megabytes, descriptors), end = looks[len(looks) // 3], looks[-1]
        errors = sum(client.errors for client in clients)
        text = (f"`workers = {workers}`, {datetime.date.today().isoformat()}: {options.seconds} s, {options.clients} clients, "
                f"{len(millis):,} exchanges, {errors} error replies. Memory of the proxy {megabytes:.0f} MB after the first "
                f"third, {end[0]:.0f} MB at the end; descriptors {descriptors} and {end[1]}. An exchange took "
                f"{part[0]:.2f} ms (p50), {part[1]:.2f} ms (p99), {part[2]:.1f} ms (p99.9).\n")
        # A client that connects anew at the moment of a look has two descriptors, or none.
        few = options.clients // 4
        return text, end[0] > max(megabytes * 1.1, megabytes + 5) or end[1] > descriptors + few or errors > 0
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="exchanges per second of all clients")
    parser.add_argument("--workers", default="1,3", help="as in the configuration; one soak for each")
    parser.add_argument("--proxy", default=os.path.join(compare.HERE, "../target/release/profile-proxy"))
    parser.add_argument("--out", help="write the figures as Markdown")
    options = parser.parse_args()
    texts, failed = [], False
    for workers in options.workers.split(","):
        text, fault = soak(options, int(workers))
        print(text)
        texts.append(text)
        failed |= fault
    if options.out:
        with open(options.out, "w") as file:
            file.write("# Soaks\n\n" + "\n".join(texts) + "\n`make soak` repeats them.\n")
    if failed:
        sys.exit("the memory or the descriptors of the proxy grew, or there were errors; see above")


if __name__ == "__main__":
    main()
