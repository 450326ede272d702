//! Applying an operation to the images of a batch that ask for it. In: uint8 images and one row of parameters each.
//! Out: the same images in the same order, some of them changed.

use tch::Tensor;

use super::numbers::{Packer, Slot};

/// The images of a batch by what is done to them, each group with its operation of type `O`; images without an operation
/// stay as they are.
///
/// Gathering and putting back move whole images, which costs far less than computing on images that did not ask.
#[derive(Debug)]
pub struct Groups<O> {
    /// The operation and the images it is for; `None`: all of them, in order.
    groups: Vec<(Option<O>, Option<Slot>)>,
    /// Where each image lies in the groups, put end to end; `None`: where it was.
    origin: Option<Slot>,
}

impl<O> Groups<O> {
    /// Puts together the rows that `group_of` gives the same group; `operation` makes a group's operation of its rows.
    pub fn new<P, G: PartialEq + Copy>(
        numbers: &mut Packer,
        params: &[P],
        group_of: impl Fn(&P) -> Option<G>,
        operation: impl Fn(&mut Packer, G, &[&P]) -> O,
    ) -> Self {
        let mut groups: Vec<(Option<G>, Vec<i64>)> = Vec::new();
        for (index, row) in (0..).zip(params) {
            let group = group_of(row);
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, members)) => members.push(index),
                None => groups.push((group, vec![index])),
            }
        }
        let mut origin = vec![0; params.len()];
        for (position, &index) in groups.iter().flat_map(|(_, members)| members).enumerate() {
            origin[index as usize] = position as i64;
        }
        let whole = groups.len() == 1;
        let groups = groups
            .into_iter()
            .map(|(group, members)| {
                let rows: Vec<&P> = members.iter().map(|&index| &params[index as usize]).collect();
                let operation = group.map(|group| operation(numbers, group, &rows));
                (operation, (!whole).then(|| numbers.integers(&members)))
            })
            .collect();
        Self { groups, origin: (!whole).then(|| numbers.integers(&origin)) }
    }

    /// Gives each group to `apply` at once; `numbers` holds what was packed.
    pub fn apply(&self, images: &Tensor, numbers: &Tensor, apply: impl Fn(&Tensor, &O) -> Tensor) -> Tensor {
        let select = |images: &Tensor, slot: Option<Slot>| match slot {
            Some(slot) => images.index_select(0, &slot.of(numbers)),
            None => images.shallow_clone(),
        };
        let result = |(operation, members): &(Option<O>, Option<Slot>)| {
            let subset = select(images, *members);
            operation.as_ref().map_or_else(|| subset.shallow_clone(), |operation| apply(&subset, operation))
        };
        match &self.groups[..] {
            [whole] => result(whole),
            groups => select(&Tensor::cat(&groups.iter().map(result).collect::<Vec<_>>(), 0), self.origin),
        }
    }
}
