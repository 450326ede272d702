//! The encoder that stays as it was drawn: the baseline that every trained one has to beat.

use super::{Marker, MethodInfo};

pub(super) const INFO: MethodInfo =
    MethodInfo { name: "random", label: "random encoder", order: 0, marker: Marker::Triangle, build: None };
