//! Commands on the hot path allocate nothing once things are warm.
//!
//! The proxy runs inside this process, so that a counting allocator sees it; Redis is a real one.

// Test code may stop at the first surprise; the lint knows only `#[test]` functions by itself.
#![allow(clippy::unwrap_used)]

mod in_process;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PIPELINE: usize = 100;
const ROUNDS: usize = 200;

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
    let (_server, mut client) = in_process::start(folder.path());

    let each = |command: &dyn Fn(usize) -> Vec<u8>| (0..PIPELINE).map(command).collect::<Vec<_>>();
    let key = |n: usize| format!("user:{n}");
    let transaction = |n: usize| {
        let write = request(&["HSET", &key(n), "department", "Engineering"]);
        [request(&["MULTI"]), write, request(&["EXEC"])].concat()
    };
    // What the measured commands answer, and what they are.
    let made = each(&|n| request(&["HSET", &key(n), "department", "Sales"]));
    client.write_all(&made.concat()).unwrap();
    client.read_exact(&mut vec![0; 4 * PIPELINE]).unwrap();
    let profile = "*2\r\n$10\r\ndepartment\r\n$11\r\nEngineering\r\n";
    for (name, commands, reply, allocations_max) in [
        ("GET", each(&|n| request(&["GET", &format!("other:{n}")])), "$-1\r\n", 0.0),
        (
            "HSET",
            each(&|n| request(&["HSET", &key(n), "department", "Engineering"])),
            ":0\r\n",
            0.0,
        ),
        ("HGET", each(&|n| request(&["HGET", &key(n), "department"])), &profile[21..], 0.0),
        ("HGETALL", each(&|n| request(&["HGETALL", &key(n)])), profile, 0.0),
        ("HDEL", each(&|n| request(&["HDEL", &key(n), "email"])), ":0\r\n", 0.0),
        ("HINCRBY", each(&|n| request(&["HINCRBY", &key(n), "login_count", "0"])), ":0\r\n", 0.0),
        ("HSETNX", each(&|n| request(&["HSETNX", &key(n), "department", "x"])), ":0\r\n", 0.0),
        // What is queued is a client's own, and is let go with the transaction.
        ("MULTI", each(&transaction), "+OK\r\n+QUEUED\r\n*1\r\n:0\r\n", 4.0),
    ] {
        let cost = allocations_per_command(&mut client, &commands, reply.as_bytes());
        assert!(cost < allocations_max + 0.01, "{name}: {cost} allocations each");
    }
}
