//! `cargo bench`: the races of `sdclr bench` under criterion, each beside its PyTorch peer where `ci/oracle --env` has
//! made one.

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sdclr::bench::{self, BenchOptions, Kind, Opponent};
use sdclr::recipe::{Depth, name_of};
use tch::Device;

fn races(criterion: &mut Criterion) {
    sdclr::native::prepare();
    let device = if tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu };
    for kind in [Kind::Train, Kind::Step, Kind::Augment, Kind::Mask, Kind::Probe] {
        let network = if kind == Kind::Probe { Depth::Resnet10 } else { Depth::Resnet18 };
        let (batch, size, images, overrides, rounds, iterations) = (64, 32, Some(256), Vec::new(), 1, 1);
        let (deterministic, eager, file, peer) = (false, false, None, Opponent::find(kind, Path::new(".")));
        let options = BenchOptions {
            kind,
            device,
            network,
            deterministic,
            eager,
            batch,
            size,
            images,
            file,
            file_width: 500,
            cores: None,
            overrides,
            rounds,
            iterations,
            peer,
        };
        let mut group = criterion.benchmark_group(name_of(&kind));
        group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(20));
        for mut racer in bench::racers(&options).expect("the contestants start") {
            let name = racer.name().to_owned();
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|iterations| {
                    let measured = racer.run(iterations as usize).expect("the race goes on");
                    Duration::from_secs_f64(measured.seconds)
                });
            });
        }
    }
}

criterion_group!(benches, races);
criterion_main!(benches);
