#!/usr/bin/env python3
"""Measures `workers = 1` against more, and reckons from the threads' costs what more processors would give.

Each endpoint is a profile-proxy with a redis-server of its own; all share one PostgreSQL server. Each round
runs redis-benchmark against all of them, forwards and backwards in turns, and a ratio compares figures
of one round. Processor time is taken thread by thread.

The reckoning takes each thread and Redis as a station with the cost per command that was measured, each
on a processor of its own, and lets the clients go round (mean value analysis of a closed network: exact
for the mean where costs vary as by chance). It leaves out what waking another processor costs, and that
larger batches are cheaper, so it compares; it does not promise.

usage: benches/workers.py [--rounds N] [--requests N] [--workers 1,2,3] [--only WORKLOAD,...] [--out FILE]
"""

import argparse, datetime, os, platform, shutil, statistics, sys, tempfile

import compare

MACHINES = [1, 2, 3, 4, 6, 8]


def threads(process):
    """Processor seconds of each thread, by its name."""
    found = {}
    for task in os.listdir(f"/proc/{process}/task"):
        try:
            with open(f"/proc/{process}/task/{task}/stat") as file:
                head, tail = file.read().rsplit(")", 1)
            with open(f"/proc/{process}/task/{task}/schedstat") as file:
                spent = int(file.read().split()[0]) / 1e9
        except FileNotFoundError:
            continue
        name = "dispatch" if int(task) == process else head.split("(", 1)[1]
        found[name] = found.get(name, 0) + spent
    return found


def measure(endpoint, clients, pipeline, count, command):
    before = threads(endpoint.process.pid)
    row = compare.measure(endpoint, clients, pipeline, count, command)
    spent = {name: (end - before.get(name, 0)) / count * 1e6 for name, end in threads(endpoint.process.pid).items()}
    row["dispatch_us"] = spent.get("dispatch", 0)
    row["io_us"] = sum(us for name, us in spent.items() if name.startswith("io-"))
    row["background_us"] = spent.get("background", 0)
    return row


def reckon(stations, population, think_us):
    """Commands per second and the mean wait in microseconds of a closed network."""
    queues, wait, rate = [0.0] * len(stations), 0.0, 0.0
    for clients in range(1, population + 1):
        waits = [cost * (1 + queue) for cost, queue in zip(stations, queues)]
        wait = sum(waits)
        rate = clients / (wait + think_us)
        queues = [rate * one for one in waits]
    return rate * 1e6, wait


def reckoned(rows, clients, pipeline, workers):
    """What `workers` give with a processor for each thread, one for Redis and enough for the clients."""
    if workers == 1:
        stations = [rows[1]["dispatch_us"]]
    else:
        row = rows[max(rows)]
        # Each command visits one of the I/O threads: the same load on each.
        stations = [row["dispatch_us"]] + [row["io_us"] / (workers - 1)] * (workers - 1)
    stations.append(rows[1]["redis_cpu_us"])
    return reckon([cost * pipeline for cost in stations], clients, 20.0 * pipeline)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100_000, help="per run; four times as many when pipelined")
    parser.add_argument("--workers", default="1,2,3")
    parser.add_argument("--only", default="hset,hgetall,get,hset_p16,hgetall_p16,get_p16")
    parser.add_argument("--proxy", default=os.path.join(compare.HERE, "../target/release/profile-proxy"))
    parser.add_argument("--out")
    options = parser.parse_args()
    counts, only = [int(count) for count in options.workers.split(",")], options.only.split(",")
    workloads = [*compare.WORKLOADS, ("get", "GET of another key", 50, 1, ["GET", "other:__rand_int__"])]
    workloads = sorted((row for row in workloads if row[0] in only), key=lambda row: only.index(row[0]))
    folder = tempfile.mkdtemp(prefix="profile-proxy-workers-")
    servers = compare.Servers(folder)
    lines = [f"Measured {datetime.date.today().isoformat()} on {os.cpu_count()} processors, {platform.system()} "
             f"{platform.machine()}, {options.rounds} rounds, 50 clients. Ratio to `workers = 1` in the same round.", "",
             "| workload | workers | commands/s | ratio | p50 ms | p99 ms | dispatch µs | I/O threads µs | Redis µs |",
             "|---|---|---|---|---|---|---|---|---|"]
    tables = {}
    try:
        endpoints = {count: compare.start_proxy(servers, os.path.abspath(options.proxy), compare.start_postgres(servers),
                                                f"workers-{count}", count) for count in counts}
        for endpoint in endpoints.values():
            compare.preload(endpoint)
        for name, title, clients, pipeline, command in workloads:
            figures = {count: [] for count in counts}
            for turn in range(options.rounds):
                for count in counts if turn % 2 == 0 else reversed(counts):
                    requests = options.requests * (4 if pipeline > 1 else 1)
                    figures[count].append(measure(endpoints[count], clients, pipeline, requests, command))
            rows = {}
            for count in counts:
                row = {key: statistics.median(one[key] for one in figures[count]) for key in figures[count][0]}
                row["ratio"] = statistics.median(
                    one["rps"] / first["rps"] for one, first in zip(figures[count], figures[counts[0]]))
                rows[count] = row
                lines.append(f"| {title} | {count} | {row['rps']:,.0f} | {row['ratio']:.2f} | {row['p50_ms']:.3f} | "
                             f"{row['p99_ms']:.3f} | {row['dispatch_us']:.2f} | {row['io_us']:.2f} | {row['redis_cpu_us']:.2f} |")
                print(lines[-1], flush=True)
            tables[title] = (rows, clients, pipeline)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if 1 in counts and max(counts) > 1:
        lines += ["", "Reckoned: a processor for each thread, for Redis and for the clients; thousands of commands "
                  "per second.", "", "| workload | the dispatch thread alone | " +
                  " | ".join(f"workers = {count}" for count in MACHINES) + " | Redis alone |",
                  "|---" * (len(MACHINES) + 3) + "|"]
        for title, (rows, clients, pipeline) in tables.items():
            cells = [f"{1000 / rows[max(rows)]['dispatch_us']:,.0f}"]
            cells += [f"{reckoned(rows, clients, pipeline, count)[0] * pipeline / 1000:,.0f}" for count in MACHINES]
            redis_us = rows[1]["redis_cpu_us"]
            cells += ["from memory" if title.startswith("HGETALL") or not redis_us else f"{1000 / redis_us:,.0f}"]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print("\n" + text)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
