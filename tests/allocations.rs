//! Commands on the hot path allocate nothing once things are warm.
//!
//! The proxy runs inside this process, so that a counting allocator sees it; Redis is a real one.
//! Delivering to the database does allocate, on another thread and per batch, so it is put off.

// Test code may stop at the first surprise; the lint knows only `#[test]` functions by itself.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use profile_proxy::config::{self, Overrides};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PIPELINE: usize = 100;
const ROUNDS: usize = 200;

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn connect(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                return stream;
            }
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{port}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start_proxy(folder: &std::path::Path, redis: u16) -> u16 {
    let (port, admin) = (free_port(), free_port());
    let shipped = include_str!("../config/profile-proxy.toml");
    let late = shipped.replace("linger = \"10ms\"", "linger = \"1h\"");
    let late = late.replace("batch_records_max = 16000", "batch_records_max = 100000000");
    assert_eq!(late.matches("1h\"").count() + late.matches("= 100000000").count(), 2);
    let file = folder.join("profile-proxy.toml");
    std::fs::write(&file, late).unwrap();
    let overrides = Overrides {
        config: Some(file),
        listen: Some(format!("127.0.0.1:{port}")),
        admin: Some(format!("127.0.0.1:{admin}")),
        upstream: Some(format!("redis://127.0.0.1:{redis}")),
        database: Some(format!("sqlite://{}", folder.join("profiles.db").display())),
        data_dir: Some(folder.join("data").display().to_string()),
    };
    let config = config::load(&overrides, |_| None).unwrap();
    std::thread::spawn(move || profile_proxy::app::run(&config).unwrap());
    port
}

fn request(arguments: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n{argument}\r\n", argument.len()).as_bytes());
    }
    bytes
}

/// Sends a pipeline again and again; returns how many allocations each of its commands cost.
fn allocations_per_command(client: &mut TcpStream, commands: &[Vec<u8>], reply: &[u8]) -> f64 {
    let pipeline = commands.concat();
    let expected = reply.repeat(commands.len());
    let mut answer = vec![0; expected.len()];
    let mut round = || {
        client.write_all(&pipeline).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert!(answer == expected, "{}", String::from_utf8_lossy(&answer[..80]));
    };
    (0..20).for_each(|_| round());
    let region = Region::new(ALLOCATOR);
    (0..ROUNDS).for_each(|_| round());
    let change = region.change();
    (change.allocations + change.reallocations) as f64 / (ROUNDS * commands.len()) as f64
}

#[test]
fn forwarded_and_accepted_commands_in_a_pipeline_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let redis = free_port();
    let mut server = Command::new("redis-server");
    server.args(["--port", &redis.to_string(), "--save", ""]).current_dir(folder.path());
    let _server = Ended(server.stdout(Stdio::null()).spawn().expect("redis-server is installed"));
    drop(connect(redis));
    let mut client = connect(start_proxy(folder.path(), redis));

    let each = |command: &dyn Fn(usize) -> Vec<u8>| (0..PIPELINE).map(command).collect::<Vec<_>>();
    let key = |n: usize| format!("user:{n}");
    // What the measured commands answer, and what they are.
    let made = each(&|n| request(&["HSET", &key(n), "department", "Sales"]));
    client.write_all(&made.concat()).unwrap();
    client.read_exact(&mut vec![0; 4 * PIPELINE]).unwrap();
    for (name, commands, reply) in [
        ("GET", each(&|n| request(&["GET", &format!("other:{n}")])), "$-1\r\n"),
        ("HSET", each(&|n| request(&["HSET", &key(n), "department", "Engineering"])), ":0\r\n"),
        ("HGET", each(&|n| request(&["HGET", &key(n), "department"])), "$11\r\nEngineering\r\n"),
        ("HSETNX", each(&|n| request(&["HSETNX", &key(n), "department", "x"])), ":0\r\n"),
    ] {
        let cost = allocations_per_command(&mut client, &commands, reply.as_bytes());
        assert!(cost < 0.01, "{name}: {cost} allocations per command");
    }
}
