//! Pipelines through the whole proxy in this process, in front of a real Redis: from the client's socket
//! over dispatch, lane and journal and back. The client is part of what is counted.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use profile_proxy::{
    app,
    config::{self, Overrides},
};

use crate::workloads::{COMMANDS, Maker, Workload, key, pipeline};

/// By when everything is started, on a machine that counts each instruction.
const START: Duration = Duration::from_secs(60);
/// What the proxy does by itself after its start is over by then.
const CALM: Duration = Duration::from_secs(3);

/// Each by its name.
pub(crate) const CARRIED: [(&str, Maker); 3] = [
    ("carry_get", || carry(|number| vec![b"GET".to_vec(), number.to_string().into_bytes()])),
    ("carry_hset", || carry(hset)),
    ("carry_hgetall", || carry(|number| vec![b"HGETALL".to_vec(), key(number)])),
];

fn hset(number: usize) -> Vec<Vec<u8>> {
    vec![b"HSET".to_vec(), key(number), b"department".to_vec(), b"Engineering".to_vec()]
}

/// A server that ends with the workload.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn connect(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < START, "{port}: {error}"),
        }
        sleep(Duration::from_millis(100));
    }
}

/// Starts a proxy with the shipped configuration on a thread of its own; deliveries are put off.
fn start_proxy(folder: &std::path::Path, redis: u16) -> u16 {
    let (port, admin) = (free_port(), free_port());
    let shipped = include_str!("../../config/profile-proxy.toml");
    let late = shipped.replace("linger = \"10ms\"", "linger = \"1h\"");
    let file = folder.join("profile-proxy.toml");
    fs::write(&file, late).expect("a file in the folder");
    let overrides = Overrides {
        config: Some(file),
        listen: Some(format!("127.0.0.1:{port}")),
        admin: Some(format!("127.0.0.1:{admin}")),
        upstream: Some(format!("redis://127.0.0.1:{redis}")),
        database: Some(format!("sqlite://{}", folder.join("profiles.db").display())),
        data_dir: Some(folder.join("data").display().to_string()),
    };
    let config = config::load(&overrides, |_| None).expect("no faults");
    std::thread::spawn(move || app::run(&config).expect("it starts"));
    port
}

/// Sends the same pipeline each time, and waits for all of its replies.
fn carry(command: impl Fn(usize) -> Vec<Vec<u8>>) -> Workload {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let redis = free_port();
    let mut server = Command::new("redis-server");
    server.args(["--port", &redis.to_string(), "--save", ""]).current_dir(folder.path());
    let server = Ended(server.stdout(Stdio::null()).spawn().expect("redis-server is installed"));
    drop(connect(redis));
    let mut client = connect(start_proxy(folder.path(), redis));
    client.set_read_timeout(Some(START)).expect("a socket");
    sleep(CALM);
    let (made, bytes) = (pipeline(hset), pipeline(command));
    client.write_all(&made).expect("the proxy is there");
    client.read_exact(&mut vec![0; COMMANDS * b":1\r\n".len()]).expect("every profile is new");
    // By the third time what is to be in memory is there, and every answer is as long as it will be.
    let mut length = 0;
    for _ in 0..5 {
        client.write_all(&bytes).expect("the proxy is there");
        sleep(Duration::from_millis(500));
        let mut answer = [0; 16 << 10];
        length = client.read(&mut answer).expect("an answer");
    }
    let mut answer = vec![0; length];
    Box::new(move || {
        // Both live as long as the workload.
        let _ = (&folder, &server);
        client.write_all(&bytes).expect("the proxy is there");
        client.read_exact(&mut answer).expect("as many bytes as before");
    })
}
