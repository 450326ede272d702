//! The one list of globals that a pickle may name: what tensors, dictionaries, training state and NumPy's scalars are
//! made of. Nothing else is let through, and nothing on the list is run: [`super::call`] says what each stands for.

use super::dtype::{self, Dtype};

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub enum Global {
    /// A dictionary that may have attributes (BUILD): `OrderedDict` made of pairs.
    OrderedDict,
    /// `Counter`, made of a dictionary.
    Counter,
    /// `defaultdict`, made of a class that is forgotten.
    DefaultDict,
    /// A class that a `defaultdict` may name.
    Factory,
    Set,
    FrozenSet,
    Complex,
    /// `bytes` or `bytearray`, of nothing or of bytes.
    Bytes,
    /// `_codecs.encode`, the way of protocol 2 to write bytes.
    Encode,
    Size,
    Device,
    Storage(Dtype),
    Dtype(Dtype),
    /// `_rebuild_tensor` and its versions 2 and 3.
    Tensor,
    TensorV3,
    /// `_rebuild_parameter`, with or without attributes.
    Parameter,
    /// `_rebuild_from_type_v2`: a tensor with attributes, which are dropped.
    FromType,
    /// `torch.Tensor` and its two subclasses that differ from it in no value.
    TensorClass,
    Scalar,
    NumpyDtype,
    /// `numpy.ndarray`, named by what makes one.
    ArrayClass,
    /// `_reconstruct`: an array without a state.
    EmptyArray,
    /// `_frombuffer`
    ArrayOfBuffer,
    /// Part of what is not read; stands for nothing by itself.
    Inert,
    /// Makes a tensor of this sort, which is not read.
    Unreadable(&'static str),
    /// `_rebuild_qtensor`, a tensor whose sort its storage tells.
    Quantised,
}

pub fn find(module: &str, name: &str) -> Option<Global> {
    use Global::*;
    Some(match (module, name) {
        ("collections", "OrderedDict") => OrderedDict,
        ("collections", "Counter") => Counter,
        ("collections", "defaultdict") => DefaultDict,
        ("builtins" | "__builtin__", "dict" | "list" | "int" | "float" | "bool" | "str") => Factory,
        ("builtins" | "__builtin__", "set") => Set,
        ("builtins" | "__builtin__", "frozenset") => FrozenSet,
        ("builtins" | "__builtin__", "complex") => Complex,
        ("builtins" | "__builtin__", "bytes" | "bytearray") => Bytes,
        ("_codecs", "encode") => Encode,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Scalar,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => EmptyArray,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => ArrayOfBuffer,
        ("numpy", "dtype") => NumpyDtype,
        ("numpy", "ndarray") => ArrayClass,
        ("torch", "Size") => Size,
        ("torch", "device") => Device,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => TensorClass,
        ("torch", _) => return torch_type(name),
        ("torch.storage", "UntypedStorage") => Storage(dtype::untyped()),
        ("torch._tensor", "_rebuild_from_type_v2") => FromType,
        ("torch.serialization", "_get_layout") => Inert,
        ("torch._utils", _) => return rebuild(name),
        _ => return None,
    })
}

fn rebuild(name: &str) -> Option<Global> {
    Some(match name {
        "_rebuild_tensor" | "_rebuild_tensor_v2" => Global::Tensor,
        "_rebuild_tensor_v3" => Global::TensorV3,
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => Global::Parameter,
        "_rebuild_qtensor" => Global::Quantised,
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => Global::Unreadable("sparse"),
        "_rebuild_meta_tensor_no_storage" => Global::Unreadable("meta (it has no values)"),
        "_rebuild_nested_tensor" => Global::Unreadable("nested"),
        "_rebuild_wrapper_subclass" => Global::Unreadable("wrapper of another tensor"),
        _ => return None,
    })
}

/// Classes of storages, types of elements, and quantisation schemes.
fn torch_type(name: &str) -> Option<Global> {
    if let Some(dtype) = dtype::by_storage(name) {
        return Some(Global::Storage(dtype));
    }
    if let Some(dtype) = dtype::by_name(name) {
        return Some(Global::Dtype(dtype));
    }
    match name {
        "per_tensor_affine" | "per_channel_affine" | "per_channel_affine_float_qparams" => Some(Global::Inert),
        "UntypedStorage" => Some(Global::Storage(dtype::untyped())),
        _ => None,
    }
}
