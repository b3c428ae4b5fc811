//! Random runs against a model: whatever is done and however it ends, what was durable is there,
//! and what is there is what was written.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// A batch of payloads with these lengths.
    Commit(Vec<usize>),
    DiscardBatch(usize),
    Sync,
    /// Everything up to this percentage of what was written is no longer wanted.
    Discard(u64),
    Close,
    Kill,
    PowerFailure(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0..60usize, 1 => 200..400usize];
    prop_oneof![
        10 => prop::collection::vec(length, 0..6).prop_map(Step::Commit),
        1 => (1..4usize).prop_map(Step::DiscardBatch),
        2 => Just(Step::Sync),
        2 => (0..=100u64).prop_map(Step::Discard),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        2 => any::<u8>().prop_map(Step::PowerFailure),
    ]
}

fn mode() -> impl Strategy<Value = SyncMode> {
    prop_oneof![Just(SyncMode::Always), Just(SyncMode::EverySec), Just(SyncMode::Os)]
}

struct Run {
    config: Config,
    disk: FaultyDisk,
    directory: tempfile::TempDir,
    opened: Opened,
    /// What was written, from sequence 1 on.
    written: Vec<Vec<u8>>,
    /// The oldest record that may not be gone.
    wanted: u64,
}

impl Run {
    fn start(config: Config) -> Run {
        let (disk, directory) = (FaultyDisk::default(), tempfile::tempdir().unwrap());
        let opened = recovery::open(Arc::new(disk.clone()), directory.path(), &config).unwrap();
        Run { config, disk, directory, opened, written: Vec::new(), wanted: 1 }
    }

    fn restart(&mut self, directory: tempfile::TempDir, disk: FaultyDisk, last_min: u64) {
        self.disk = disk;
        let disk = Arc::new(self.disk.clone());
        self.opened = recovery::open(disk, directory.path(), &self.config).unwrap();
        self.directory = directory;
        let last = self.opened.recovery.last.0;
        assert!(last >= last_min, "{last} of at least {last_min} records are left");
        assert!(last <= self.written.len() as u64);
        self.written.truncate(last as usize);
        self.wanted = self.wanted.min(last + 1);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Commit(lengths) => {
                for length in lengths {
                    let sequence = self.written.len() + 1;
                    let payload: Vec<_> = (0..length).map(|at| (at * sequence) as u8).collect();
                    let half = length / 2;
                    let parts = [&payload[..half], &payload[half..]];
                    assert_eq!(self.opened.writer.record(&parts), Sequence(sequence as u64));
                    self.written.push(payload);
                }
                let last = self.opened.writer.commit().unwrap();
                assert_eq!(last, Sequence(self.written.len() as u64));
            }
            Step::DiscardBatch(records) => {
                for _ in 0..records {
                    self.opened.writer.record(&[b"dropped"]);
                }
                self.opened.writer.discard_batch();
            }
            Step::Sync => sync::pass(self.opened.journal.state()).unwrap(),
            Step::Discard(percent) => {
                self.wanted = self.wanted.max(self.written.len() as u64 * percent / 100 + 1);
                self.opened.journal.discard_before(Sequence(self.wanted)).unwrap();
            }
            Step::Close => {
                self.opened.writer.shut();
                self.take(Step::Kill);
            }
            Step::Kill => {
                let directory = copy(self.directory.path());
                let disk = self.disk.moved(self.directory.path(), directory.path());
                self.restart(directory, disk, self.written.len() as u64);
            }
            Step::PowerFailure(survivors) => {
                // The image may be newer than this figure, never older.
                let durable = self.opened.journal.durable().0;
                let image = tempfile::tempdir().unwrap();
                self.disk.power_failure(self.directory.path(), image.path(), |path| {
                    let base = segment::base_of(path.file_name().unwrap()).unwrap();
                    survivors >> (base.0 % 8) & 1 == 1
                });
                let disk = FaultyDisk::holding(image.path());
                self.restart(image, disk, durable);
            }
        }
    }

    fn check(&self) {
        let journal = &self.opened.journal;
        assert_eq!(journal.appended(), Sequence(self.written.len() as u64));
        assert!(journal.durable() <= journal.appended());
        assert!(journal.first() <= Sequence(self.wanted));
        let read = read_from(journal, self.wanted);
        let wanted = self.written.iter().skip(self.wanted as usize - 1);
        assert!(read.iter().map(|(_, payload)| payload).eq(wanted));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_durable_is_there_after_any_end(
        mode in mode(),
        segment_bytes_max in 100..600u64,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut run = Run::start(small(mode, segment_bytes_max));
        for step in steps {
            run.take(step);
            run.check();
        }
    }
}
