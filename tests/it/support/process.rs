//! A child process that cannot outlive the test, and the choice of free ports.
//!
//! Each child has a guard: a shell that waits on a pipe of ours and ends the child when the pipe
//! closes, so that a test that is killed leaves no server behind. Signals are sent by the shell's
//! own `kill`, because the crate forbids unsafe code and with it a direct system call.

use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a server is started anew because another process took its port first.
pub(crate) const START_ATTEMPTS_MAX: usize = 8;

/// A running child; ends with its stop signal, then with SIGKILL, when the value is dropped.
pub(crate) struct Process {
    child: Child,
    guard: Option<Child>,
    stop_signal: &'static str,
}

impl Process {
    /// Starts `command` with its guard; `stop_signal` is the signal name that ends it in order.
    ///
    /// # Errors
    /// The child or its guard could not be started.
    pub(crate) fn spawn(command: &mut Command, stop_signal: &'static str) -> io::Result<Process> {
        let child = command.stdin(Stdio::null()).spawn()?;
        let guard = Command::new("sh")
            .args(["-c", "trap '' INT HUP TERM; read _; kill -s \"$0\" \"$1\" 2>/dev/null"])
            .args([stop_signal, &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Process { child, guard: Some(guard), stop_signal })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pipes of the child, for the caller to take.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal by its name without `SIG`, for example `STOP`; does nothing to an ended child.
    pub(crate) fn signal(&mut self, name: &str) {
        if self.exit_status().is_some() {
            return;
        }
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.id().to_string()])
            .status()
            .expect("sh runs");
        assert!(sent.success(), "SIG{name} could not be sent to process {}", self.id());
        // On a busy machine a process runs on for a moment behind the signal that stops it.
        let bound = Instant::now() + Duration::from_secs(10);
        while name == "STOP" && !self.is_stopped() && Instant::now() < bound {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells whether no thread of the process runs; `t` is one that strace holds.
    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id()));
        threads.into_iter().flatten().flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['T', 't', 'Z', 'X']))
        })
    }

    /// The exit status, when the child has ended.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child can be waited for")
    }

    /// Waits for the end, at most `bound`.
    pub(crate) fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                self.release_guard();
                return Some(status);
            }
            if start.elapsed() >= bound {
                return None;
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL, then waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        // Order: the guard goes first, or it could later send its signal to a reused process id.
        self.release_guard();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn release_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stop_signal != "KILL" && self.exit_status().is_none() {
            self.signal("CONT");
            self.signal(self.stop_signal);
            if self.wait(Duration::from_secs(5)).is_some() {
                return;
            }
        }
        self.kill();
    }
}

/// A loopback port that nothing listens on now.
///
/// Ports come from below the range that the kernel gives to outgoing connections, so that a server
/// can come back on its port after a kill. Another process may still be quicker: callers try again.
pub(crate) fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.subsec_nanos());
    let start = std::process::id().wrapping_mul(7919).wrapping_add(now / 1000);
    for _ in 0..COUNT {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let offset = start.wrapping_add(call.wrapping_mul(131)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free loopback port between {FIRST} and {}", FIRST + COUNT);
}
