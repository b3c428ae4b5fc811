//! Catches what became slower without a clock: counts the instructions of fixed workloads under
//! callgrind and compares them with `benches/instructions.txt`.
//!
//! `cargo bench --bench instructions` compares, `-- --write` writes the file anew. A workload runs
//! so often and then more often; the difference leaves out what the start costs.

#[path = "workloads/carried.rs"]
mod carried;
#[path = "../tests/in_process/mod.rs"]
mod in_process;
mod workloads;

use carried::CARRIED;
use workloads::Maker;

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const HEAD: &str = "# Instructions per command of each workload in benches/workloads, by callgrind.\n\
    # make instructions compares; cargo bench --bench instructions -- --write writes this file.\n";
const FEW: u64 = 50;
const MANY: u64 = 550;
/// More than another build of the same code differs.
const TOLERANCE: f64 = 0.10;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to people")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, times] = arguments.as_slice()
        && flag == "--run"
    {
        return run(name, times.parse().expect("a number"));
    }
    let counted: BTreeMap<&str, f64> = all().map(|(name, _)| (name, per_command(name))).collect();
    if arguments.iter().any(|argument| argument == "--write") {
        let mut text = HEAD.to_owned();
        for (name, count) in &counted {
            writeln!(text, "{name} {count:.1}").expect("a string");
        }
        fs::write(FILE, text).expect("the file can be written");
        return println!("wrote {FILE}");
    }
    let text = fs::read_to_string(FILE).expect("benches/instructions.txt");
    let known: BTreeMap<&str, f64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, count)| (name, count.parse().expect("a number")))
        .collect();
    let mut fine = known.keys().eq(counted.keys());
    for (name, count) in &counted {
        let before = known.get(name).copied().unwrap_or(0.0);
        let change = count / before - 1.0;
        println!("{name:20} {count:8.0} instructions per command, {:+.1} %", change * 100.0);
        fine &= change < TOLERANCE;
    }
    if !fine {
        eprintln!("more instructions than before, or another list of workloads: see {FILE}");
        std::process::exit(1);
    }
}

/// The parts, and the whole.
fn all() -> impl Iterator<Item = (&'static str, Maker)> {
    workloads::PARTS.into_iter().chain(CARRIED)
}

fn run(name: &str, times: u64) {
    let (_, workload) = all().find(|(known, _)| *known == name).expect("a workload");
    let mut once = workload();
    (0..times).for_each(|_| once());
}

fn per_command(name: &str) -> f64 {
    let difference = total(name, MANY) - total(name, FEW);
    difference as f64 / (MANY - FEW) as f64 / workloads::COMMANDS as f64
}

/// Everything that a run of the workload in a process of its own executes.
fn total(name: &str, times: u64) -> i64 {
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.path().display())])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--run", name, &times.to_string()])
        .output()
        .expect("valgrind is installed (Debian package valgrind; make test-needs installs it)");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let line = said.lines().find_map(|line| line.split_once("Collected : "));
    line.and_then(|(_, count)| count.trim().parse().ok()).expect("callgrind says what it counted")
}
