//! Batch norm with what follows it, as one operation of ours, against libtorch's operations in float64 on the same numbers,
//! on the device that SDCLR_TEST_DEVICE names: a GPU launches what the CPU runs as loops (harness/native/norm.cu).

mod golden;

use proptest::prelude::*;
use sdclr::native;
use sdclr::native::norm::{self, After};
use tch::{Device, Kind, Tensor};

const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// What goes in; all of it bfloat16 or float32 numbers, kept as float64.
struct Case {
    x: Tensor,
    residual: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Follows {
    Nothing,
    Relu,
    AddRelu,
}
use Follows::{AddRelu, Nothing, Relu};

/// What comes out, as float64 on the CPU: activations as [M, C].
struct Out {
    y: Tensor,
    dx: Tensor,
    dresidual: Option<Tensor>,
    dweight: Tensor,
    dbias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

/// Activations are rounded to bfloat16, the rest to float32.
fn representable(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_kind(kind).to_kind(Kind::Double)
}

fn activations(name: &str, shape: [i64; 4]) -> Tensor {
    representable(&(golden::uniform(name, &shape) * 2.0), Kind::BFloat16)
}

impl Case {
    fn new(shape: [i64; 4]) -> Self {
        Self::of(activations(&format!("norm.x{shape:?}"), shape))
    }

    fn of(x: Tensor) -> Self {
        let shape: [i64; 4] = x.size().try_into().unwrap();
        let vector = |name: &str| golden::uniform(&format!("norm.{name}"), &shape[1..2]);
        Self {
            residual: activations("norm.residual", shape),
            grad: activations("norm.grad", shape),
            weight: representable(&(vector("weight") + 0.5), Kind::Float),
            bias: representable(&vector("bias"), Kind::Float),
            running_mean: representable(&vector("running_mean"), Kind::Float),
            running_var: representable(&(vector("running_var") * 0.5 + 1.0), Kind::Float),
            x,
        }
    }

    /// Takes the gradient away where float64 finds ReLU's input so near to zero that rounding decides.
    fn away_from_the_corner(&mut self, follows: Follows) {
        let shape = self.x.size()[1];
        let columns = |tensor: &Tensor| tensor.view([1, shape, 1, 1]);
        let (mean, var) =
            (self.x.mean_dim(&[0_i64, 2, 3][..], true, None), self.x.var_dim(&[0_i64, 2, 3][..], false, true));
        let z = (&self.x - mean) / (var + EPSILON).sqrt() * columns(&self.weight) + columns(&self.bias);
        let z = if follows == AddRelu { z + &self.residual } else { z };
        self.grad = &self.grad * z.abs().gt(1e-3).to_kind(Kind::Double);
    }

    /// `compute` gets x, weight, bias, running mean and variance, and the residual, the activations in `kind`.
    fn run(&self, kind: Kind, follows: Follows, compute: impl Fn(&Tensor, [&Tensor; 4], &Tensor) -> Tensor) -> Out {
        let parts = if kind == Kind::BFloat16 { Kind::Float } else { kind };
        let activations = |tensor: &Tensor| channels_last(&tensor.to_kind(kind)).set_requires_grad(true);
        let [x, residual] = [&self.x, &self.residual].map(activations);
        let [weight, bias] = [&self.weight, &self.bias].map(|tensor| tensor.to_kind(parts).set_requires_grad(true));
        // Copied, as they move and need not change their kind.
        let [mean, var] = [&self.running_mean, &self.running_var].map(|tensor| tensor.copy().to_kind(parts));
        let y = compute(&x, [&weight, &bias, &mean, &var], &residual);
        assert_eq!((y.kind(), y.size()), (kind, x.size()));
        let grad = channels_last(&self.grad.to_kind(kind));
        let inputs = if follows == AddRelu { vec![&x, &weight, &bias, &residual] } else { vec![&x, &weight, &bias] };
        let gradients = native::gradients(&y, &grad, &inputs).unwrap();
        let rows = |tensor: Tensor| double(&tensor.permute([0, 2, 3, 1]).reshape([-1, self.x.size()[1]]));
        Out {
            y: rows(y.detach()),
            dx: rows(gradients[0].shallow_clone()),
            dresidual: gradients.get(3).map(|gradient| rows(gradient.shallow_clone())),
            dweight: double(&gradients[1]),
            dbias: double(&gradients[2]),
            running_mean: double(&mean),
            running_var: double(&var),
        }
    }

    /// libtorch's operations.
    fn libtorch(&self, kind: Kind, follows: Follows) -> Out {
        self.run(kind, follows, |x, [weight, bias, mean, var], residual| {
            let [weight, bias, mean, var] = [weight, bias, mean, var].map(Some);
            let y = x.batch_norm(weight, bias, mean, var, true, MOMENTUM, EPSILON, false);
            match follows {
                Nothing => y,
                Relu => y.relu(),
                AddRelu => (y + residual).relu(),
            }
        })
    }

    fn ours(&self, follows: Follows) -> Out {
        norm::load(golden::device()).unwrap();
        self.run(Kind::BFloat16, follows, |x, [weight, bias, running_mean, running_var], residual| {
            assert!(norm::takes(x));
            let (epsilon, momentum) = (EPSILON, MOMENTUM);
            let parts = norm::BatchNorm { weight, bias, running_mean, running_var, epsilon, momentum };
            let after = match follows {
                Nothing => After::Nothing,
                Relu => After::Relu,
                AddRelu => After::AddRelu(residual),
            };
            norm::batch_norm(x, &parts, after)
        })
    }

    /// Ours is as near to float64 as one rounding to bfloat16 and sums in float32 allow, and nearer than libtorch's bfloat16.
    fn check(&mut self, what: &str, follows: Follows) {
        if follows != Nothing {
            self.away_from_the_corner(follows);
        }
        let what = |part: &str| format!("{part} of {what} {:?}, then {follows:?}", self.x.size());
        let (ours, theirs) = (self.ours(follows), self.libtorch(Kind::BFloat16, follows));
        let exact = self.libtorch(Kind::Double, follows);
        let slack = Slack::new(self, &exact, follows);

        assert_rounded(&what("output"), &ours.y, &exact.y, &slack.y);
        assert_rounded(&what("dx"), &ours.dx, &exact.dx, &slack.dx);
        let near = |part: &str, [ours, theirs, exact, slack]: [&Tensor; 4]| {
            let [ours, theirs] = [ours, theirs].map(|found| (found - exact).norm().double_value(&[]));
            let limit = 1.02 * theirs + slack.norm().double_value(&[]);
            assert!(ours <= limit, "{}: {ours:e} off, libtorch's bfloat16 {theirs:e}", what(part));
        };
        near("output", [&ours.y, &theirs.y, &exact.y, &slack.y]);
        near("dx", [&ours.dx, &theirs.dx, &exact.dx, &slack.dx]);
        assert_within(&what("dweight"), &ours.dweight, &exact.dweight, &slack.dweight);
        assert_within(&what("dbias"), &ours.dbias, &exact.dbias, &slack.dbias);
        assert_within(&what("running mean"), &ours.running_mean, &exact.running_mean, &slack.running_mean);
        assert_within(&what("running variance"), &ours.running_var, &exact.running_var, &slack.running_var);
        match (&ours.dresidual, &exact.dresidual) {
            // dy or nothing: no rounding at all.
            (Some(ours), Some(exact)) => assert_eq!(ours, exact, "{}", what("dresidual")),
            (ours, exact) => assert!(ours.is_none() && exact.is_none(), "{}", what("dresidual")),
        }
    }
}

fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.detach().permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn double(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu)
}

/// What float32 may be off by: some of its roundings of every term. Those of the mean, and of how far it is from the
/// channel's first number, weigh as much as these are larger than the deviation, and add up over joins of partial sums.
struct Slack {
    y: Tensor,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl Slack {
    fn new(case: &Case, exact: &Out, follows: Follows) -> Self {
        const FLOAT32: f64 = 1.2e-7;
        let rows = |tensor: &Tensor| double(&tensor.permute([0, 2, 3, 1]).reshape([-1, case.x.size()[1]]));
        let [weight, bias] = [&case.weight, &case.bias].map(double);
        let (x, dy) = (rows(&case.x), rows(&case.grad));
        let dz = if follows == Nothing { dy } else { dy * exact.y.gt(0.0).to_kind(Kind::Double) };
        let (mean, var) = (x.mean_dim(&[0_i64][..], false, None), x.var_dim(&[0_i64][..], false, false));
        let invstd = (&var + EPSILON).rsqrt();
        // Of a normalised number.
        let off = ((mean.abs() + (x.get(0) - &mean).abs()) * &invstd * 4.0 + 8.0) * FLOAT32;
        let normed = ((&x - &mean) * &invstd).abs() + 1.0;
        let added = if follows == AddRelu { rows(&case.residual).abs() } else { x.zeros_like() };
        let scale = (&weight * &invstd).abs();
        let average = |tensor: Tensor| tensor.mean_dim(&[0_i64][..], false, None);
        let level = average(dz.abs()) + &normed * average((&dz * &normed).abs());
        Self {
            y: &off * weight.abs() * &normed + (bias.abs() + added) * FLOAT32,
            dx: &off * scale * (dz.abs() + level) * 4.0,
            dweight: &off * (&dz * &normed).abs().sum_dim_intlist(&[0_i64][..], false, None) * 4.0,
            dbias: dz.abs().sum_dim_intlist(&[0_i64][..], false, None) * 4.0 * FLOAT32,
            running_mean: (double(&case.running_mean).abs() + mean.abs() + var.sqrt()) * 4.0 * FLOAT32,
            running_var: &exact.running_var * &off * 2.0,
        }
    }
}

/// Half of bfloat16's last place, at `value`.
fn half_a_place(value: &Tensor) -> Tensor {
    (value.abs().log2().floor() - 8.0).exp2()
}

fn assert_rounded(what: &str, found: &Tensor, expected: &Tensor, slack: &Tensor) {
    let bound = half_a_place(&(expected.abs() + slack)) + slack;
    assert_within(what, found, expected, &bound);
}

fn assert_within(what: &str, found: &Tensor, expected: &Tensor, bound: &Tensor) {
    let apart = (found - expected).abs();
    // A NaN is not below.
    let beyond = apart.le_tensor(bound).logical_not();
    let count = beyond.to_kind(Kind::Int64).sum(None).int64_value(&[]);
    if count > 0 {
        let first = beyond.flatten(0, -1).nonzero().int64_value(&[0, 0]);
        let at = |tensor: &Tensor| tensor.flatten(0, -1).double_value(&[first]);
        let (found, expected, bound) = (at(found), at(expected), at(&bound.expand_as(&apart).contiguous()));
        panic!(
            "{what}: {count} of {} beyond, number {first} is {found:e}, expected {expected:e} within {bound:e}",
            apart.numel()
        );
    }
}

const ALL: [Follows; 3] = [Nothing, Relu, AddRelu];

#[test]
fn one_operation_is_as_near_to_float64_as_its_roundings_allow() {
    let shapes = [
        [1, 8, 1, 2],
        [2, 8, 1, 1],
        [3, 16, 5, 7],
        [2, 24, 3, 3],
        [4, 64, 8, 8],
        [1, 320, 2, 3],
        [2, 512, 3, 1],
        // More than 256 channels to a block's width and not a multiple of that; one row to a part, and a short last one.
        [3, 264, 4, 3],
        [37, 2048, 1, 5],
        // Threads with more rows than they load at once, and an uneven rest.
        [61, 64, 30, 31],
        [9, 512, 32, 31],
    ];
    for shape in shapes {
        for follows in ALL {
            Case::new(shape).check("uniform numbers", follows);
        }
    }
}

#[test]
fn a_mean_far_above_the_deviation_is_no_trouble() {
    let shape = [4, 16, 9, 11];
    let noise = golden::uniform("norm.noise", &shape);
    // Nearly everywhere the same number, as bfloat16 has none between.
    let spread = representable(&(&noise * 4.0 + 1000.0), Kind::BFloat16);
    let rare = noise.gt(0.99).to_kind(Kind::Double) * 8.0 + 1024.0;
    // The first row, around which sums are taken, far from all others.
    let outlier = noise.copy();
    outlier.narrow(0, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1).copy_(&Tensor::from(32768.0));
    for (what, x) in
        [("a large mean", spread), ("a tiny variance", rare), ("an outlier", representable(&outlier, Kind::BFloat16))]
    {
        for follows in ALL {
            Case::of(x.shallow_clone()).check(what, follows);
        }
    }
}

#[test]
fn constant_channels_become_the_bias() {
    let shape = [3, 8, 5, 5];
    for value in [0.0, 3.0, 1e20] {
        let case = Case::of(
            golden::uniform("norm.x", &shape).zeros_like()
                + representable(&Tensor::from(value), Kind::BFloat16).double_value(&[]),
        );
        for follows in [Nothing, Relu] {
            let y = case.ours(follows).y;
            let bias = double(&case.bias).to_kind(Kind::BFloat16).to_kind(Kind::Double);
            let expected = if follows == Relu { bias.relu() } else { bias };
            assert_eq!(y, expected.expand_as(&y), "{value} {follows:?}");
        }
        if value == 0.0 {
            ALL.iter().for_each(|&follows| Case::of(case.x.shallow_clone()).check("zeros", follows));
        }
    }
}

#[test]
fn what_is_not_finite_spoils_its_channel_alone() {
    for (bad, channel) in [(f64::NAN, 0), (f64::NAN, 5), (f64::INFINITY, 5), (f64::NEG_INFINITY, 15)] {
        for follows in ALL {
            let clean = Case::new([2, 16, 3, 5]);
            let x = clean.x.copy();
            // In the channel's first row or another.
            let _ = x.get(i64::from(channel > 0)).get(channel).get(0).get(0).fill_(bad);
            let case = Case { x, ..Case::new([2, 16, 3, 5]) };
            let (spoiled, clean) = (case.ours(follows), clean.ours(follows));
            for (what, spoiled, clean) in [
                ("output", &spoiled.y, &clean.y),
                ("dx", &spoiled.dx, &clean.dx),
                ("running mean", &spoiled.running_mean.unsqueeze(0), &clean.running_mean.unsqueeze(0)),
                ("running variance", &spoiled.running_var.unsqueeze(0), &clean.running_var.unsqueeze(0)),
            ] {
                let mine = spoiled.narrow(1, channel, 1);
                let spread = what != "running mean" || bad.is_nan();
                let finite = mine.isfinite().any().int64_value(&[]) != 0;
                assert!(!finite, "{what} of {bad}, {follows:?}: {mine:?}");
                assert!(!spread || mine.isnan().all().int64_value(&[]) != 0, "{what} of {bad}, {follows:?}");
                let others = |tensor: &Tensor| {
                    Tensor::cat(&[tensor.narrow(1, 0, channel), tensor.narrow(1, channel + 1, 15 - channel)], 1)
                };
                assert_eq!(others(spoiled), others(clean), "{what} of {bad}, {follows:?}");
            }
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    for follows in ALL {
        let mut case = Case::new([61, 64, 15, 31]);
        case.away_from_the_corner(follows);
        let [a, b] = [case.ours(follows), case.ours(follows)];
        assert_eq!((a.y, a.dx, a.dweight, a.dbias), (b.y, b.dx, b.dweight, b.dbias), "{follows:?}");
        assert_eq!((a.running_mean, a.running_var), (b.running_mean, b.running_var), "{follows:?}");
    }
}

#[test]
fn what_the_kernels_do_not_take_is_left_to_libtorch() {
    let takes = |x: &Tensor, kind: Kind| norm::takes(&x.to_kind(kind));
    let x = channels_last(&golden::uniform("norm.x", &[2, 16, 3, 3]));
    assert!(takes(&x, Kind::BFloat16));
    assert!(!takes(&x, Kind::Float) && !takes(&x, Kind::Half), "another type");
    assert!(!takes(&x.contiguous(), Kind::BFloat16), "channels that are not innermost");
    assert!(!takes(&channels_last(&x.narrow(1, 0, 12)), Kind::BFloat16), "12 channels");
    assert!(!takes(&x.narrow(0, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1), Kind::BFloat16), "one number a channel");
    assert!(!takes(&x.narrow(0, 0, 0), Kind::BFloat16), "none");
    assert!(!takes(&x.reshape([-1, 16]), Kind::BFloat16), "a matrix");
    let bytes = Tensor::zeros([16 * 9 + 1], (Kind::BFloat16, golden::device()));
    let crooked = bytes.narrow(0, 1, 16 * 9).view([1, 3, 3, 16]).permute([0, 3, 1, 2]);
    assert!(!norm::takes(&crooked), "numbers that do not begin at 16 bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_shape_is_near_float64(n in 1..5_i64, eighths in 1..40_i64, h in 1..8_i64, w in 1..8_i64, follows in 0..3_usize) {
        prop_assume!(n * h * w > 1);
        Case::new([n, 8 * eighths, h, w]).check("uniform numbers", ALL[follows]);
    }
}

#[test]
fn nvrtc_compiles_the_kernels_without_a_word() {
    golden::compile_for_gpus("norm.cu", &["--std=c++17"]);
}
