//! The parts of the hot path by the clock: `cargo bench --bench parts`.

mod workloads;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn parts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sixteen commands");
    group.throughput(Throughput::Elements(workloads::COMMANDS as u64));
    for (name, workload) in workloads::PARTS {
        let mut run = workload();
        group.bench_function(name, |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
