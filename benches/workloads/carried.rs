//! Pipelines through the whole proxy in this process, in front of a real Redis: from the client's socket
//! over dispatch, lane and journal and back. The client is part of what is counted.

use std::{
    io::{Read, Write},
    thread::sleep,
    time::Duration,
};

use crate::{
    in_process,
    workloads::{COMMANDS, Maker, Workload, key, pipeline},
};

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

/// Sends the same pipeline each time, and waits for all of its replies.
fn carry(command: impl Fn(usize) -> Vec<Vec<u8>>) -> Workload {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, mut client) = in_process::start(folder.path());
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
