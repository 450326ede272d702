//! What pruning does to a finished encoder. In: the network with its head, a mask of its weights, the long-tailed list. Out: what
//! the mask keeps of each layer, and by how much it changes the representation of each image, summed up by class. The paper's
//! premise (section 3.1) is that the images of rare classes change most.

use tch::{Device, Kind, Tensor};

use super::{ProbeError, views};
use crate::native;
use crate::network::{BnMode, Branch, Mask, Network, Pass};
use crate::recipe::{Precision, ProbeRecipe};
use crate::record::mechanism::{Change, ClassChange, LayerKept, Representation};
use crate::split::Subset;

/// One in so many images counts among the most changed.
const MOST: usize = 10;

/// What is measured, and on what.
#[derive(Debug)]
pub struct Pruning<'a> {
    /// In float32, with its projection head.
    pub network: &'a Network,
    pub mask: &'a Mask,
    /// Whether the network was trained with a pruned branch. If not, its batch norm first takes the statistics of the pruned
    /// weights on the same images, since those of the dense weights do not fit them: the network's statistics change.
    pub trained_pruned: bool,
    /// The long-tailed list.
    pub list: &'a Subset,
    /// How images are shown: its test transform.
    pub recipe: &'a ProbeRecipe,
    /// Images of each class in the whole list.
    pub class_counts: &'a [u64],
}

/// What the mask keeps of each convolution, in the network's order.
pub fn layers(network: &Network, mask: &Mask) -> Result<Vec<LayerKept>, ProbeError> {
    let names = network.prunable_names();
    let counts: Vec<Tensor> =
        mask.parts().iter().map(|part| part.f_to_kind(Kind::Bool)?.f_sum(Kind::Int64)).collect::<Result<_, _>>()?;
    let counts = Vec::<i64>::try_from(Tensor::f_stack(&counts, 0)?.f_to_device(Device::Cpu)?)?;
    let layer = |((name, part), kept): ((String, &Tensor), i64)| LayerKept {
        layer: name,
        weights: part.numel() as u64,
        kept: kept as u64,
    };
    Ok(names.into_iter().zip(mask.parts()).zip(counts).map(layer).collect())
}

/// By how much the mask changes the representation of the images, by class: 1 - cosine of the dense and the pruned branch's
/// features, both by running statistics.
///
/// # Errors
/// An image cannot be read, or features are not finite.
pub fn changes(pruning: &Pruning) -> Result<Vec<Change>, ProbeError> {
    let _no_grad = tch::no_grad_guard();
    native::set_tf32(false)?;
    let Pruning { network, mask, list, .. } = pruning;
    let weights = network.working_weights(Precision::Fp32, Some(mask))?;
    let pass = |branch, weights, bn| Pass { branch, weights: Some(weights), bn, precision: Precision::Fp32 };
    let dense = features(pruning, &pass(Branch::Dense, &weights.dense, BnMode::Eval))?;
    if !pruning.trained_pruned {
        calibrate(pruning, &weights.pruned)?;
    }
    let pruned = features(pruning, &pass(Branch::Pruned, &weights.pruned, BnMode::Eval))?;
    let representations = [Representation::Backbone, Representation::Head];
    let change = |((representation, dense), pruned): ((Representation, Tensor), Tensor)| {
        let [dense, pruned] = [dense.f_to_kind(Kind::Double)?, pruned.f_to_kind(Kind::Double)?];
        let cosine = Tensor::f_cosine_similarity(&dense, &pruned, 1, 1e-12)?.f_to_device(Device::Cpu)?;
        let change: Vec<f64> = Vec::<f64>::try_from(cosine)?.into_iter().map(|cosine| 1.0 - cosine).collect();
        if change.iter().any(|change| !change.is_finite()) {
            return Err(ProbeError::Outputs { list: list.name.clone() });
        }
        Ok(Change { representation, classes: by_class(&change, &list.labels, pruning.class_counts) })
    };
    representations.into_iter().zip(dense).zip(pruned).map(change).collect()
}

/// The backbone's features and the head's outputs of all images.
fn features(pruning: &Pruning, pass: &Pass) -> Result<[Tensor; 2], ProbeError> {
    let (mut backbone, mut head) = (Vec::new(), Vec::new());
    each_chunk(pruning, |views| {
        let features = pruning.network.backbone(&views, pass);
        head.push(pruning.network.head(&features, pass));
        backbone.push(features);
        Ok(())
    })?;
    Ok([Tensor::f_cat(&backbone, 0)?, Tensor::f_cat(&head, 0)?])
}

/// Gives batch norm the mean of the chunks' statistics under the pruned `weights`, each chunk weighed by its images.
fn calibrate(pruning: &Pruning, weights: &[Tensor]) -> Result<(), ProbeError> {
    let mut seen = 0;
    each_chunk(pruning, |views| {
        let images = views.size()[0];
        // One image alone has no variance behind the head's layers.
        if images > 1 {
            seen += images;
            let bn = BnMode::Train { momentum: images as f64 / seen as f64, updates: 1 };
            let pass = Pass { branch: Branch::Pruned, weights: Some(weights), bn, precision: Precision::Fp32 };
            drop(pruning.network.forward(&views, &pass));
        }
        Ok(())
    })
}

fn each_chunk(pruning: &Pruning, mut take: impl FnMut(Tensor) -> Result<(), ProbeError>) -> Result<(), ProbeError> {
    let positions: Vec<i64> = (0..pruning.list.len() as i64).collect();
    let device = pruning.network.device();
    views::in_chunks(pruning.list, &positions, pruning.recipe, None, device, |views| {
        take(native::send(&views, device)?)
    })
}

/// Each class that has images: how many, their mean change, and how many are among the most changed tenth of all images.
fn by_class(change: &[f64], labels: &[i64], class_counts: &[u64]) -> Vec<ClassChange> {
    let mut order: Vec<usize> = (0..change.len()).collect();
    // Of equal changes the image that the list names first.
    order.sort_by(|&a, &b| change[b].total_cmp(&change[a]).then(a.cmp(&b)));
    order.truncate(change.len().div_ceil(MOST));
    let class = |(class, &count): (usize, &u64)| {
        let own = |image: &usize| labels[*image] == class as i64;
        let changes: Vec<f64> = (0..change.len()).filter(own).map(|image| change[image]).collect();
        let most_changed = order.iter().filter(|image| own(image)).count() as u64;
        let (images, mean) = (changes.len() as u64, changes.iter().sum::<f64>() / changes.len() as f64);
        (images > 0).then_some(ClassChange { class, count, images, mean, most_changed })
    };
    class_counts.iter().enumerate().filter_map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_share_the_most_changed_tenth() {
        // 20 images: two are most changed. Class 2 has none.
        let labels: Vec<i64> = (0..20).map(|image| [0, 0, 0, 1][image % 4]).collect();
        let mut change = vec![0.25; 20];
        (change[3], change[7]) = (0.75, 0.75);
        let classes = by_class(&change, &labels, &[15, 5, 1]);
        let class = |class, count, mean, most_changed| ClassChange { class, count, images: count, mean, most_changed };
        assert_eq!(classes, [class(0, 15, 0.25, 0), class(1, 5, 0.45, 2)]);
        // Of equal ones the first count.
        let classes = by_class(&[0.5; 11], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[10, 1]);
        assert_eq!(classes.iter().map(|class| class.most_changed).collect::<Vec<_>>(), [1, 1]);
    }
}
