//! The proxy inside this process, in front of a real Redis, for what has to be counted there. Delivering
//! to the database is work of another thread and per batch, so it is put off.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use profile_proxy::{
    app,
    config::{self, Overrides},
};

/// By when everything is started and answers, on a machine that counts each instruction.
const BOUND: Duration = Duration::from_secs(60);

/// A process that ends with this.
pub(crate) struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a Redis, and a proxy with the shipped configuration; returns a client of it.
pub(crate) fn start(folder: &Path) -> (Ended, TcpStream) {
    let redis = free_port();
    let mut server = Command::new("redis-server");
    server.args(["--port", &redis.to_string(), "--save", ""]).current_dir(folder);
    let server = Ended(server.stdout(Stdio::null()).spawn().expect("redis-server is installed"));
    drop(connect(redis));
    (server, connect(start_proxy(folder, redis)))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn connect(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(BOUND)).expect("a socket");
                return stream;
            }
            Err(error) => assert!(start.elapsed() < BOUND, "{port}: {error}"),
        }
        sleep(Duration::from_millis(20));
    }
}

fn start_proxy(folder: &Path, redis: u16) -> u16 {
    let (port, admin) = (free_port(), free_port());
    let shipped = include_str!("../../config/profile-proxy.toml");
    let late = shipped.replace("linger = \"10ms\"", "linger = \"1h\"");
    let late = late.replace("batch_records_max = 16000", "batch_records_max = 100000000");
    assert_eq!(late.matches("1h\"").count() + late.matches("= 100000000").count(), 2);
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
    spawn(move || app::run(&config).expect("it starts"));
    port
}
