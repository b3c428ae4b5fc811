"""What a delivery says to PostgreSQL: a relay that records it, and a client that says it again.

The recording is the raw SQL of the same batches: the very statements with the very rows, in the same transactions, laid
out before the clock starts. Whoever says it again neither reads nor encodes anything, sends a whole transaction at once,
and waits for nothing but the answer to its COMMIT.
"""

import socket, struct, sys, threading, time


class Relay:
    """Stands before PostgreSQL; keeps what each connection has sent."""

    def __init__(self, port):
        self.target, self.sent = port, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            kept = []
            self.sent.append(kept)
            for source, sink, keep in ((client, server, kept.append), (server, client, None)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.pump, args=(source, sink, keep), daemon=True).start()

    @staticmethod
    def pump(source, sink, keep):
        try:
            while data := source.recv(1 << 16):
                if keep:
                    keep(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        """Ends the recording and gives that of the connection that has delivered."""
        self.listener.close()
        told = (b"".join(kept) for kept in self.sent)
        return Recording(max(told, key=len))


def messages(data):
    """The messages of a client, without those of its login."""
    at = 0
    # A request for TLS and the start have no letter in front.
    while at < len(data) and data[at] == 0:
        at += struct.unpack_from("!i", data, at)[0]
    while at < len(data):
        end = at + 1 + struct.unpack_from("!i", data, at + 1)[0]
        yield data[at:at + 1], data[at:end]
        at = end


def exchanges(data):
    """What is said up to each answer of the server: the text of the statement, and the bytes."""
    texts, said, text = {}, [], b""
    for letter, message in messages(data):
        said.append(message)
        if letter == b"Q":
            text = message[5:-1].lower()
        elif letter == b"P":
            name, text = message[5:].split(b"\0", 2)[:2]
            texts[name] = text
        elif letter == b"B":
            text = texts[message[5:].split(b"\0", 2)[1]]
        # The rows of a copy come behind its text and belong to the same answer.
        if letter in (b"S", b"c") or letter == b"Q" and not text.startswith(b"copy"):
            yield text, b"".join(said)
            said = []


class Recording:
    """What comes before the first transaction, and the transactions."""

    def __init__(self, data):
        self.first, self.transactions, open_now = [], [], None
        for text, said in exchanges(data):
            if text.startswith(b"begin; set local"):
                open_now = []
            (self.first if open_now is None else open_now).append((text, said))
            if open_now and text.startswith(b"commit"):
                self.transactions.append(open_now)
                open_now = None

    def bytes(self):
        return sum(len(said) for parts in self.transactions for _, said in parts)

    def without_profiles(self):
        """The same, but for what it does to the state of the profiles: the cursor and the history are left."""
        other = Recording(b"")
        other.first = self.first
        other.transactions = [[(text, said) for text, said in parts if b" profiles" not in text]
                              for parts in self.transactions]
        return other


class Client:
    """A bare connection that says what was recorded."""

    def __init__(self, port, database):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = struct.pack("!i", 196608) + b"user\0postgres\0database\0" + database.encode() + b"\0\0"
        self.buffer, self.process = b"", 0
        self.say(struct.pack("!i", len(start) + 4) + start, 1)

    def say(self, data, answers):
        """Sends and waits until the server was ready so many times."""
        self.socket.sendall(data)
        while answers:
            while len(self.buffer) < 5 or len(self.buffer) < self.length():
                more = self.socket.recv(1 << 16)
                if not more:
                    sys.exit("PostgreSQL has ended the connection")
                self.buffer += more
            letter, message = self.buffer[:1], self.buffer[5:self.length()]
            self.buffer = self.buffer[self.length():]
            if letter == b"E":
                sys.exit(f"PostgreSQL refuses what was recorded: {message}")
            if letter == b"K":
                self.process = struct.unpack_from("!i", message)[0]
            answers -= letter == b"Z"

    def length(self):
        return 1 + struct.unpack_from("!i", self.buffer, 1)[0]

    def replay(self, recording):
        """Says everything; returns the seconds that the transactions have taken."""
        for _, said in recording.first:
            self.say(said, 1)
        laid_out = [(b"".join(said for _, said in parts), len(parts)) for parts in recording.transactions]
        begun = time.monotonic()
        for said, answers in laid_out:
            self.say(said, answers)
        return time.monotonic() - begun
