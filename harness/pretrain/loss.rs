//! NT-Xent, the loss of both methods (REFERENCE.md "Loss").

use tch::{Kind, Tensor};

/// NT-Xent of two views' features, each `[N, D]`, at `temperature`, one number on their
/// device; a scalar. The published sum of exponentials in
/// log-sum-exp form, which cannot overflow: cross-entropy over cosine similarities, each anchor's own column left out.
pub fn nt_xent(first: &Tensor, second: &Tensor, temperature: &Tensor) -> Tensor {
    let n = first.size()[0];
    let features = Tensor::cat(&[first, second], 0);
    let norm = features.norm_scalaropt_dim(2.0, [1], true).clamp_min(1e-12);
    let features = features / norm;
    let own = Tensor::eye(2 * n, (Kind::Bool, features.device()));
    let logits = (features.matmul(&features.tr()) / temperature).masked_fill(&own, f64::NEG_INFINITY);
    let positive = Tensor::arange(2 * n, (Kind::Int64, features.device())).roll([n], [0]);
    logits.cross_entropy_loss(&positive, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
}
