//! Fixed pieces of work on the path of a command, for the clock and for counting instructions.
//!
//! Each call of a workload does the same work again on warm parts: sixteen commands, as one
//! pipeline of redis-benchmark has them. The parts talk to no network; `carried.rs` has the whole.

use profile_proxy::{
    auth::Auth,
    command,
    config::{self, Config, Overrides},
    engine::Engine,
    journal::{self, SyncMode},
    profile::ChangeBuilder,
    resp::{Framer, Limits, Protocol, ReplyWriter, Scanner, push_command},
    schema::Schema,
};
use std::hint::black_box;

/// Commands in one call of a workload.
pub(crate) const COMMANDS: usize = 16;
const NOW_MS: u64 = 1_790_000_000_000;

/// One piece of work; each call does it once.
pub(crate) type Workload = Box<dyn FnMut()>;

/// Makes the parts of a workload and warms them.
pub(crate) type Maker = fn() -> Workload;

/// Every part by its name; each is made when it is asked for.
pub(crate) const PARTS: [(&str, Maker); 6] = [
    ("scan_requests", scan_requests),
    ("frame_replies", frame_replies),
    ("check_schema", check_schema),
    ("check_access", check_access),
    ("append_to_journal", append_to_journal),
    ("read_from_engine", read_from_engine),
];

fn shipped() -> Config {
    let overrides =
        Overrides { config: Some("config/profile-proxy.toml".into()), ..Overrides::default() };
    config::load(&overrides, |_| None).expect("the shipped configuration has no faults")
}

pub(crate) fn key(number: usize) -> Vec<u8> {
    format!("user:{number:012}").into_bytes()
}

pub(crate) fn pipeline(command: impl Fn(usize) -> Vec<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..COMMANDS {
        push_command(&mut bytes, &command(number), |_, _| ());
    }
    bytes
}

/// HSETs are found in what a client has sent, looked up in the table, and their key is matched.
fn scan_requests() -> Workload {
    let schema = Schema::compile(&shipped().profile).expect("shipped");
    let bytes = pipeline(|number| {
        vec![b"HSET".to_vec(), key(number), b"department".to_vec(), b"Engineering".to_vec()]
    });
    let mut scanner = Scanner::new(Limits::default());
    Box::new(move || {
        let mut at = 0;
        while let Ok(Some(length)) = scanner.scan(&bytes[at..]) {
            let request = scanner.request(&bytes[at..at + length]);
            let spec = command::find(request.argument(0)).expect("listed");
            assert!(
                black_box(schema.kind_of(request.argument(1))).is_some()
                    && spec.takes(request.len())
            );
            at += length;
        }
        assert!(at == bytes.len());
    })
}

/// Replies of HGETALL are told apart.
fn frame_replies() -> Workload {
    let mut bytes = Vec::new();
    for _ in 0..COMMANDS {
        let mut reply = ReplyWriter::new(&mut bytes, Protocol::Resp2);
        reply.map(10);
        (0..20).for_each(|_| reply.bulk(b"Engineering"));
    }
    let mut framer = Framer::default();
    Box::new(move || {
        let mut at = 0;
        while let Ok(Some(length)) = framer.frame(&bytes[at..]) {
            at += length;
        }
        assert!(black_box(at) == bytes.len());
    })
}

/// Values of three types are held against the rules of their fields.
fn check_schema() -> Workload {
    let schema = Schema::compile(&shipped().profile).expect("shipped");
    Box::new(move || {
        let kind = schema.kind_of(b"user:EMP001").expect("a profile");
        for _ in 0..COMMANDS {
            black_box(kind.check_set(black_box(b"department"), b"Engineering")).expect("allowed");
            black_box(kind.check_set(black_box(b"status"), b"active")).expect("allowed");
            black_box(kind.check_increment(black_box(b"login_count"), 1)).expect("allowed");
        }
    })
}

/// Whether anybody has to log in, which is what there is to check per command.
fn check_access() -> Workload {
    let auth = Auth::compile(&shipped().user).expect("shipped");
    Box::new(move || {
        for _ in 0..COMMANDS {
            assert!(!black_box(&auth).required());
        }
    })
}

/// Changes of one field go to the journal as one batch, which is one write to a file.
fn append_to_journal() -> Workload {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = journal::Config { sync: SyncMode::Os, ..journal::Config::default() };
    let mut writer = journal::open(folder.path(), &config).expect("an empty folder").writer;
    let mut change = Vec::new();
    Box::new(move || {
        // The folder lives as long as the workload.
        black_box(&folder);
        for number in 0..COMMANDS as u64 {
            change.clear();
            ChangeBuilder::begin(&mut change, number, NOW_MS, "user", "hset", "", b"user:EMP001")
                .fields()
                .set(b"department", b"Engineering");
            writer.record(&[&change]);
        }
        writer.commit().expect("room");
    })
}

/// HGETALL on profiles of ten fields, answered by the store inside the process.
fn read_from_engine() -> Workload {
    let mut engine = Engine::new();
    let names: Vec<String> = (0..10).map(|number| format!("field_{number}")).collect();
    for number in 0..10_000 {
        let fields = names.iter().map(|name| (name.as_bytes(), &b"Engineering"[..]));
        engine.load(&key(number), fields, None);
    }
    let bytes = pipeline(|number| vec![b"HGETALL".to_vec(), key(number * 617)]);
    let mut scanner = Scanner::new(Limits::default());
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        let mut at = 0;
        while let Ok(Some(length)) = scanner.scan(&bytes[at..]) {
            let request = scanner.request(&bytes[at..at + length]);
            engine.execute(NOW_MS, &request, &mut ReplyWriter::new(&mut out, Protocol::Resp2));
            at += length;
        }
        assert!(black_box(&out).len() > COMMANDS * 200);
    })
}
