#!/usr/bin/env python3
"""Runs the same load against Redis alone, other proxies and profile-proxy, and writes down the ratios.

Every endpoint has a redis-server of its own, so that nobody pays for what others have written. Each
round runs redis-benchmark against all endpoints, one behind the other, forwards and backwards in
turns; a ratio compares figures of one round, since machines are faster at some times than at others.
The next endpoint waits until profile-proxy's database has everything: its deliveries are its own cost.
Processor time is that of the process behind the port, and of its redis-server.

usage: benches/compare.py [--rounds N] [--requests N] [--only WORKLOAD,...] [--proxy BUILD]... [--out PREFIX]

Needs redis-server, redis-benchmark and PostgreSQL; takes nutcracker and haproxy along where they are
installed. With both it writes PREFIX.json, PREFIX.md and PREFIX.svg: a table never loses a column.
"""

import argparse, csv, datetime, glob, hashlib, io, json, os, platform, pwd, shutil, signal, socket
import statistics, subprocess, sys, tempfile, time, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
USER, PASSWORD = "app", "benchmark"
KEYS = 10_000
FIELDS = ["employee_id", "EMP001", "username", "john_doe", "department", "Engineering", "role", "Developer",
          "questions_asked", "5", "login_count", "12", "last_login", "1703123456", "created_at", "1703000000",
          "status", "active", "email", "john@example.com"]
PROFILE = "user:__rand_int__"
# name, title, clients, pipeline, command
WORKLOADS = [
    ("hset", "HSET", 50, 1, ["HSET", PROFILE, "department", "Engineering"]),
    ("hincrby", "HINCRBY", 50, 1, ["HINCRBY", PROFILE, "login_count", "1"]),
    ("hgetall", "HGETALL of 10 fields", 50, 1, ["HGETALL", PROFILE]),
    ("hset_p16", "HSET, pipeline 16", 50, 16, ["HSET", PROFILE, "department", "Engineering"]),
    ("hgetall_p16", "HGETALL, pipeline 16", 50, 16, ["HGETALL", PROFILE]),
    ("get_p16", "GET of another key, pipeline 16", 50, 16, ["GET", "other:__rand_int__"]),
    ("hget_c1", "HGET, one client", 1, 1, ["HGET", PROFILE, "username"]),
]


class Endpoint:
    """A port that speaks the Redis protocol, the process behind it, and its redis-server."""

    def __init__(self, name, port, process, redis, login=(), settled=None):
        self.name, self.port, self.process, self.redis = name, port, process, redis
        self.login, self.settle = list(login), settled or (lambda: None)


class Servers:
    """Everything that is started; ends it again."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []

    def start(self, arguments, port, **options):
        log = open(os.path.join(self.folder, f"{os.path.basename(arguments[0])}-{port}.log"), "wb")
        process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=self.folder, **options)
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), 1).close() or process
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{arguments[0]} does not listen on port {port}; see {log.name}")
                time.sleep(0.05)

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT if "postgres" in process.args[0] else signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_redis(servers):
    port = free_port()
    return port, servers.start(["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"], port)


def start_postgres(servers):
    """PostgreSQL refuses to run as root, so it runs as the user of Debian's package there."""
    initdb = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if not initdb:
        sys.exit("PostgreSQL is missing: install the package postgresql, or run make test-needs")
    port = free_port()
    data = os.path.join(servers.folder, f"postgres-{port}")
    os.mkdir(data, 0o700)
    options = {}
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(data, account.pw_uid, account.pw_gid)
        os.chmod(servers.folder, 0o755)
        options = {"user": account.pw_uid, "group": account.pw_gid}
    subprocess.run([initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"],
                   check=True, stdout=subprocess.DEVNULL, cwd=data, **options)
    postgres = os.path.join(os.path.dirname(initdb), "postgres")
    listen = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", data]
    servers.start([postgres, "-D", data, *listen], port, **options)
    time.sleep(1)
    return f"postgres://postgres@127.0.0.1:{port}/postgres"


def metric(admin, name):
    """A figure of the proxy; nothing while it starts, when the port does not have it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as page:
        lines = (line.decode().split() for line in page)
        return next((float(line[1]) for line in lines if line[0] == name), None)


def start_proxy(servers, binary, database, name="profile-proxy", workers=1):
    redis_port, redis = start_redis(servers)
    port, admin = free_port(), free_port()
    config = os.path.join(servers.folder, f"{name}.toml")
    with open(os.path.join(HERE, "../config/profile-proxy.toml")) as shipped, open(config, "w") as file:
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        text = shipped.read().replace("\nworkers = 1 ", f"\nworkers = {workers} ")
        file.write(text + f'\n[[user]]\nname = "{USER}"\npassword_hash = "sha256:{digest}"\n')
    process = servers.start(
        [binary, "--config", config, "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--data-dir",
         os.path.join(servers.folder, f"{name}-data"), "--upstream", f"redis://127.0.0.1:{redis_port}", "--database", database],
        port)

    def settle():
        deadline = time.monotonic() + 120
        while metric(admin, "profile_proxy_sink_waiting_records") > 0:
            if time.monotonic() > deadline:
                sys.exit("the database does not catch up; its log is in the folder of the run")
            time.sleep(0.05)

    return Endpoint(name, port, process, redis, ["--user", USER, "-a", PASSWORD], settle)


def start_nutcracker(servers):
    redis_port, redis = start_redis(servers)
    port, config = free_port(), os.path.join(servers.folder, "nutcracker.yml")
    with open(config, "w") as file:
        file.write(f"main:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n"
                   f"  servers:\n   - 127.0.0.1:{redis_port}:1\n")
    process = servers.start([shutil.which("nutcracker"), "-c", config, "-s", str(free_port())], port)
    return Endpoint("twemproxy", port, process, redis)


def start_haproxy(servers):
    redis_port, redis = start_redis(servers)
    port, config = free_port(), os.path.join(servers.folder, "haproxy.cfg")
    with open(config, "w") as file:
        file.write("global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n"
                   f"  timeout server 60s\nlisten main\n  bind 127.0.0.1:{port}\n"
                   f"  server redis 127.0.0.1:{redis_port}\n")
    process = servers.start([shutil.which("haproxy"), "-db", "-f", config], port)
    return Endpoint("haproxy (tcp)", port, process, redis)


def preload(endpoint):
    """Ten fields for each profile, through the endpoint itself."""
    def encoded(arguments):
        parts = (f"${len(argument)}\r\n{argument}\r\n" for argument in arguments)
        return (f"*{len(arguments)}\r\n" + "".join(parts)).encode()

    with socket.create_connection(("127.0.0.1", endpoint.port), 10) as client:
        client.settimeout(30)
        if endpoint.login:
            client.sendall(encoded(["AUTH", USER, PASSWORD]))
            if not client.recv(100).startswith(b"+OK"):
                sys.exit(f"{endpoint.name} does not take the password")
        for start in range(0, KEYS, 500):
            keys = (f"user:{number:012d}" for number in range(start, start + 500))
            client.sendall(b"".join(encoded(["HSET", key, *FIELDS]) for key in keys))
            replies = 0
            while replies < 500:
                replies += client.recv(65536).count(b"\r\n")
    endpoint.settle()


def cpu_seconds(process):
    """Processor time of a process, by its number."""
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(endpoint, clients, pipeline, requests, command):
    before = cpu_seconds(endpoint.process.pid), cpu_seconds(endpoint.redis.pid)
    run = subprocess.run(
        ["redis-benchmark", "-p", str(endpoint.port), "-n", str(requests), "-c", str(clients), "-P", str(pipeline),
         "-r", str(KEYS), "--csv", *endpoint.login, *command], capture_output=True, text=True, timeout=300)
    own, redis = (after - start for after, start in
                  zip((cpu_seconds(endpoint.process.pid), cpu_seconds(endpoint.redis.pid)), before))
    rows = list(csv.reader(io.StringIO(run.stdout)))
    if len(rows) < 2:
        sys.exit(f"redis-benchmark failed at {endpoint.name}: {run.stdout[-300:]} {run.stderr[-300:]}")
    row = dict(zip(rows[0], rows[-1]))
    endpoint.settle()
    return {"rps": float(row["rps"]), "p50_ms": float(row["p50_latency_ms"]), "p99_ms": float(row["p99_latency_ms"]),
            "cpu_us": own / requests * 1e6, "redis_cpu_us": redis / requests * 1e6}


def compare(endpoints, rounds, requests, only):
    results = []
    for name, title, clients, pipeline, command in WORKLOADS:
        if only and name not in only:
            continue
        count = requests // 8 if clients == 1 else requests * (4 if pipeline > 1 else 1)
        figures = {endpoint.name: [] for endpoint in endpoints}
        for turn in range(rounds):
            for endpoint in endpoints if turn % 2 == 0 else reversed(endpoints):
                if sys.stderr.isatty():
                    print(f"{title}: round {turn + 1} of {rounds}, {endpoint.name:20s}", end="\r", file=sys.stderr)
                figures[endpoint.name].append(measure(endpoint, clients, pipeline, count, command))
        bare = figures[endpoints[0].name]
        for endpoint in endpoints:
            rows = figures[endpoint.name]
            entry = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            entry["ratio"] = statistics.median(row["rps"] / one["rps"] for row, one in zip(rows, bare))
            results.append({"workload": name, "title": title, "endpoint": endpoint.name, **entry})
            print(f"{title:32s} {endpoint.name:14s} {entry['rps']:10.0f}/s  x{entry['ratio']:.2f}  "
                  f"p50 {entry['p50_ms']:.3f} ms  p99 {entry['p99_ms']:.3f} ms  "
                  f"cpu {entry['cpu_us']:5.2f} us, its Redis {entry['redis_cpu_us']:5.2f} us")
    return results


def idle_memory(endpoint, connections):
    """What one idle connection adds to the memory of the process, in bytes."""
    def resident():
        with open(f"/proc/{endpoint.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    before, held = resident(), []
    for _ in range(connections):
        held.append(socket.create_connection(("127.0.0.1", endpoint.port), 10))
    time.sleep(1)
    after = resident()
    for client in held:
        client.close()
    return (after - before) / connections, after


def names(results):
    return list(dict.fromkeys(row["endpoint"] for row in results))


def cell(results, workload, endpoint):
    return next(row for row in results if row["workload"] == workload and row["endpoint"] == endpoint)


def markdown(data):
    endpoints = names(data["results"])
    lines = [f"Measured {data['date']} on {data['machine']}, {data['rounds']} rounds. Ratio to Redis alone in the same "
             "round; in brackets the processor time per command, in microseconds, of the process behind the port and of "
             "its Redis.", "", "| workload | " + " | ".join(endpoints) + " |", "|---" * (len(endpoints) + 1) + "|"]
    for workload in dict.fromkeys(row["workload"] for row in data["results"]):
        rows = [cell(data["results"], workload, endpoint) for endpoint in endpoints]
        cells = [f"{rows[0]['rps']:,.0f}/s ({rows[0]['cpu_us']:.2f})"]
        cells += [f"{row['ratio']:.2f} ({row['cpu_us']:.2f}; {row['redis_cpu_us']:.2f})" for row in rows[1:]]
        lines.append(f"| {rows[0]['title']} | " + " | ".join(cells) + " |")
    if "idle_bytes" in data:
        lines += ["", f"An idle connection takes {data['idle_bytes'] / 1000:.1f} kB; with {data['idle_connections']:,} "
                  f"of them profile-proxy has {data['idle_resident'] / 1e6:.0f} MB."]
    return "\n".join(lines) + "\n"


def chart(data):
    """Bars of the ratios, grouped by workload."""
    colours = ["#3b6ea5", "#b0b7bf", "#d3a94c", "#7f9f7f"]
    endpoints = names(data["results"])[1:]
    endpoints.sort(key=lambda name: name != "profile-proxy")
    workloads = list(dict.fromkeys(row["workload"] for row in data["results"]))
    bar, left, width = 14, 210, 420
    group = bar * len(endpoints) + 14
    height = 56 + group * len(workloads)
    top = max(1.0, *(row["ratio"] for row in data["results"]))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<text x="10" y="18" font-size="14">Commands per second, Redis alone = 1 ({data["date"]})</text>']
    for number, name in enumerate(endpoints):
        x = left + number * 130
        out.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{colours[number % 4]}"/>'
                   f'<text x="{x + 14}" y="37">{name}</text>')
    for row, workload in enumerate(workloads):
        y = 50 + row * group
        out.append(f'<text x="{left - 8}" y="{y + group / 2}" text-anchor="end">'
                   f'{cell(data["results"], workload, endpoints[0])["title"]}</text>')
        for number, name in enumerate(endpoints):
            ratio = cell(data["results"], workload, name)["ratio"]
            length = ratio / top * width
            out.append(f'<rect x="{left}" y="{y + number * bar}" width="{length:.1f}" height="{bar - 2}" '
                       f'fill="{colours[number % 4]}"/>'
                       f'<text x="{left + length + 4:.1f}" y="{y + number * bar + 10}">{ratio:.2f}</text>')
    one = left + width / top
    out.append(f'<line x1="{one:.1f}" y1="46" x2="{one:.1f}" y2="{height - 6}" stroke="#888" stroke-dasharray="4 3"/>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100_000, help="per run; four times as many when pipelined")
    parser.add_argument("--only", help="names of workloads: " + ", ".join(row[0] for row in WORKLOADS))
    parser.add_argument("--proxy", action="append", help="a build of profile-proxy; several are compared with each other")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections to weigh; 0: none")
    parser.add_argument("--out", help="write PREFIX.json, PREFIX.md and PREFIX.svg")
    options = parser.parse_args()
    builds = [os.path.abspath(build) for build in options.proxy or [os.path.join(HERE, "../target/release/profile-proxy")]]
    for missing in (build for build in builds if not os.path.exists(build)):
        sys.exit(f"there is no {missing}: cargo build --release")
    folder = tempfile.mkdtemp(prefix="profile-proxy-bench-")
    servers = Servers(folder)
    try:
        port, redis = start_redis(servers)
        endpoints = [Endpoint("redis", port, redis, redis)]
        for build in builds:
            name = os.path.basename(build) if len(builds) > 1 else "profile-proxy"
            endpoints.append(start_proxy(servers, build, start_postgres(servers), name))
        peers = {"nutcracker": start_nutcracker, "haproxy": start_haproxy}
        missing = [program for program in peers if not shutil.which(program)]
        endpoints += [start(servers) for program, start in peers.items() if program not in missing]
        if missing:
            print(f"{' and '.join(missing)}: not installed and left out, so no file is written", file=sys.stderr)
        for endpoint in endpoints:
            preload(endpoint)
        only = set(options.only.split(",")) if options.only else None
        data = {"date": datetime.date.today().isoformat(), "rounds": options.rounds, "requests": options.requests,
                "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}",
                "results": compare(endpoints, options.rounds, options.requests, only)}
        if options.idle:
            data["idle_connections"] = options.idle
            data["idle_bytes"], data["idle_resident"] = idle_memory(endpoints[1], options.idle)
        print("\n" + markdown(data))
        if options.out and not missing:
            for ending, text in (("json", json.dumps(data, indent=1) + "\n"), ("md", markdown(data)),
                                 ("svg", chart(data))):
                with open(f"{options.out}.{ending}", "w") as file:
                    file.write(text)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
