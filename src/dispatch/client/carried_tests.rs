//! A client whose socket an I/O thread carries: what is on its way there still counts.

use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::Client;
use crate::outside::Stream;
use crate::socket::{Bells, Threads, place};

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn output_on_its_way_to_the_socket_counts_until_the_socket_has_it() {
    // Nobody rings, so the thread does nothing before the test does.
    let bells = Bells::new(1);
    let threads = Threads::start(&bells).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _peer = StdStream::connect(address).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let stream = Stream::Tcp(TcpStream::from_std(socket).unwrap());
        let (_incoming, outgoing) = place(stream, Some(&threads)).unwrap();
        let client = Client::new(1, peer, address, outgoing, &super::Clock::default());
        client.reply(|reply| reply.bulk(b"profile"));
        client.flush();
        let bytes = b"$7\r\nprofile\r\n".len();
        assert_eq!((client.backlog(), client.unsent()), ((0, bytes), bytes));
        bells.ring();
        timeout(BOUND, client.writable()).await.expect("a wake-up").unwrap();
        assert_eq!((client.backlog(), client.unsent()), ((0, 0), 0));
    });
    threads.end();
}
