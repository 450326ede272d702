//! Applying an operation to the images of a batch that ask for it. In: uint8 images and one row of parameters each.
//! Out: the same images in the same order, some of them changed.

use tch::Tensor;

/// Gathers the images whose row falls into the same group and gives each group to `apply` at once (images, group,
/// rows); images without a group stay as they are.
///
/// Gathering and putting back move whole images, which costs far less than computing on images that did not ask.
pub fn by_group<P, G: PartialEq + Copy>(
    images: &Tensor,
    params: &[P],
    group_of: impl Fn(&P) -> Option<G>,
    apply: impl Fn(&Tensor, G, &[&P]) -> Tensor,
) -> Tensor {
    let mut groups: Vec<(Option<G>, Vec<i64>)> = Vec::new();
    for (index, row) in (0..).zip(params) {
        let group = group_of(row);
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, members)) => members.push(index),
            None => groups.push((group, vec![index])),
        }
    }
    let results: Vec<Tensor> = groups
        .iter()
        .map(|(group, members)| {
            let subset = select(images, members);
            let rows: Vec<&P> = members.iter().map(|&index| &params[index as usize]).collect();
            group.map_or_else(|| subset.shallow_clone(), |group| apply(&subset, group, &rows))
        })
        .collect();
    let mut origin = vec![0; params.len()];
    for (position, &index) in groups.iter().flat_map(|(_, members)| members).enumerate() {
        origin[index as usize] = position as i64;
    }
    select(&Tensor::cat(&results, 0), &origin)
}

/// The images at `indices`, which are all different.
fn select(images: &Tensor, indices: &[i64]) -> Tensor {
    if indices.len() as i64 == images.size()[0] && indices.is_sorted() {
        return images.shallow_clone();
    }
    images.index_select(0, &Tensor::from_slice(indices).to_device(images.device()))
}
