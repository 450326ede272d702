//! What a call (REDUCE) of an allowed global gives: plain data, worked out here.

use std::borrow::Cow;

use super::Refusal;
use super::dtype::{self, Number};
use super::globals::Global;
use super::machine::{Dict, Id, Machine, Node, RawArray, RawTensor, malformed};

impl<'a> Machine<'a> {
    /// The object that `callable` of the tuple `arguments` stands for. `offset` is that of the opcode, for errors.
    pub fn call(&mut self, callable: Id, arguments: Id, offset: usize) -> Result<Node<'a>, Refusal> {
        let &Node::Global(global) = &self.nodes[callable] else {
            let found = self.nodes[callable].describe();
            return Err(malformed(offset, &format!("calls {found}")));
        };
        let Node::Tuple(arguments) = &self.nodes[arguments] else {
            return Err(malformed(offset, "calls with arguments that are no tuple"));
        };
        // No allowed call has more.
        let arguments: Vec<Id> = arguments.iter().take(16).copied().collect();
        let made = match global {
            Global::OrderedDict => self.ordered_dict(&arguments)?,
            Global::Counter => self.counter(&arguments)?,
            Global::DefaultDict => self.default_dict(&arguments),
            Global::Set | Global::FrozenSet => self.set(&arguments)?,
            Global::Complex => self.complex(&arguments),
            Global::Bytes => self.bytes(&arguments)?,
            Global::Encode => self.encode(&arguments)?,
            Global::Size => self.size(&arguments)?,
            Global::Device => self.device(&arguments)?,
            Global::Tensor | Global::TensorV3 => self.tensor(global, &arguments),
            Global::Parameter => self.parameter(&arguments),
            Global::FromType => return self.with_attributes(&arguments, offset),
            Global::NumpyDtype => self.numpy_dtype(&arguments),
            Global::Scalar => self.scalar(&arguments)?,
            Global::EmptyArray => self.empty_array(&arguments),
            Global::ArrayOfBuffer => self.array_of_buffer(&arguments),
            Global::Quantised => self.quantised(&arguments),
            Global::Unreadable(sort) => Some(Node::Unreadable(sort)),
            Global::Inert => Some(Node::Global(Global::Inert)),
            Global::Factory | Global::Storage(_) | Global::Dtype(_) | Global::TensorClass | Global::ArrayClass => None,
        };
        made.ok_or_else(|| malformed(offset, &format!("calls {global:?} with arguments that are not its own")))
    }

    fn ordered_dict(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let mut entries = Vec::new();
        if let [pairs] = *arguments {
            let Node::List(pairs) = &self.nodes[pairs] else {
                return Ok(None);
            };
            let size = pairs.len() * size_of::<(Id, Id)>();
            for &pair in pairs {
                match &self.nodes[pair] {
                    Node::Tuple(pair) | Node::List(pair) if pair.len() == 2 => entries.push((pair[0], pair[1])),
                    _ => return Ok(None),
                }
            }
            self.copy(size)?;
        }
        Ok((arguments.len() <= 1).then_some(Node::Dict(Dict { entries, subclass: true })))
    }

    fn counter(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let entries = match *arguments {
            [] => Vec::new(),
            [counts] => match &self.nodes[counts] {
                Node::Dict(dict) => dict.entries.clone(),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.copy(entries.len() * size_of::<(Id, Id)>())?;
        Ok(Some(Node::Dict(Dict { entries, subclass: true })))
    }

    fn default_dict(&self, arguments: &[Id]) -> Option<Node<'a>> {
        match arguments.iter().map(|&argument| &self.nodes[argument]).collect::<Vec<_>>()[..] {
            [] | [Node::None | Node::Global(Global::Factory | Global::Set | Global::OrderedDict | Global::Counter)] => {
                Some(Node::Dict(Dict { entries: Vec::new(), subclass: true }))
            }
            _ => None,
        }
    }

    fn set(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let items = match *arguments {
            [] => Vec::new(),
            [items] => match &self.nodes[items] {
                Node::List(items) | Node::Tuple(items) => items.clone(),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.copy(items.len() * size_of::<Id>())?;
        Ok(Some(Node::Set(items)))
    }

    fn complex(&self, arguments: &[Id]) -> Option<Node<'a>> {
        match *arguments {
            [real, imaginary] => match (&self.nodes[real], &self.nodes[imaginary]) {
                (&Node::Float(real), &Node::Float(imaginary)) => Some(Node::Complex(real, imaginary)),
                _ => None,
            },
            _ => None,
        }
    }

    fn bytes(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let bytes = match *arguments {
            [] => Cow::Borrowed(&[][..]),
            [bytes] => match &self.nodes[bytes] {
                Node::Bytes(bytes) => bytes.clone(),
                _ => return Ok(None),
            },
            // bytearray(text, "latin-1"), in protocol 2
            [_, _] => return self.encode(arguments),
            _ => return Ok(None),
        };
        self.copy(bytes.len())?;
        Ok(Some(Node::Bytes(bytes)))
    }

    /// Text whose characters are the bytes.
    fn encode(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let &[text, encoding] = arguments else {
            return Ok(None);
        };
        let (Some(text), Some("latin1" | "latin-1")) = (self.text(text), self.text(encoding)) else {
            return Ok(None);
        };
        self.copy(text.len())?;
        let bytes: Option<Vec<u8>> = text.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect();
        Ok(bytes.map(|bytes| Node::Bytes(Cow::Owned(bytes))))
    }

    fn size(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let extents = match *arguments {
            [] => Vec::new(),
            [extents] => match &self.nodes[extents] {
                Node::Tuple(extents) | Node::List(extents) => extents.clone(),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.copy(extents.len() * size_of::<Id>())?;
        Ok(Some(Node::Tuple(extents)))
    }

    fn device(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let Some(kind) = arguments.first().and_then(|&kind| self.text(kind)) else {
            return Ok(None);
        };
        self.copy(kind.len())?;
        Ok(match *arguments {
            [_] => Some(Node::Device(kind.to_owned())),
            [_, index] => match &self.nodes[index] {
                Node::Int(index) => Some(Node::Device(format!("{kind}:{index}"))),
                _ => None,
            },
            _ => None,
        })
    }

    /// `(storage, offset, shape, stride, requires_grad, hooks, metadata)`, of which the first version has four; the
    /// third has the element type before the metadata.
    fn tensor(&self, version: Global, arguments: &[Id]) -> Option<Node<'a>> {
        let (&[storage, offset, shape, stride], rest) = arguments.split_first_chunk::<4>()?;
        let (&Node::Storage(storage, start), &Node::Int(offset)) = (&self.nodes[storage], &self.nodes[offset]) else {
            return None;
        };
        if !matches!((&self.nodes[shape], &self.nodes[stride]), (Node::Tuple(_), Node::Tuple(_))) {
            return None;
        }
        let (dtype, metadata) = match version {
            Global::TensorV3 => match (rest.len(), &self.nodes[*rest.get(2)?]) {
                (3 | 4, &Node::Global(Global::Dtype(dtype))) => (dtype, rest.get(3)),
                _ => return None,
            },
            _ if rest.len() <= 3 => (self.storages[storage].dtype, rest.get(2)),
            _ => return None,
        };
        let lazy = match metadata.map(|&metadata| &self.nodes[metadata]) {
            None | Some(Node::None) => false,
            Some(Node::Dict(dict)) => !dict.entries.is_empty(),
            Some(_) => return None,
        };
        let offset = start.checked_add(offset)?;
        Some(Node::Tensor(Box::new(RawTensor { storage, dtype, offset, shape, stride, lazy })))
    }

    /// `(tensor, requires_grad, hooks)` and perhaps attributes.
    fn parameter(&self, arguments: &[Id]) -> Option<Node<'a>> {
        match (arguments.len(), &self.nodes[*arguments.first()?]) {
            (3 | 4, Node::Tensor(tensor)) => Some(Node::Tensor(tensor.clone())),
            (3 | 4, Node::Unreadable(sort)) => Some(Node::Unreadable(sort)),
            _ => None,
        }
    }

    /// `(function, class, arguments, attributes)`: what the function gives. It may not be this one again, so that
    /// nothing recurses.
    fn with_attributes(&mut self, arguments: &[Id], offset: usize) -> Result<Node<'a>, Refusal> {
        let wrong = || malformed(offset, "calls _rebuild_from_type_v2 with arguments that are not its own");
        let &[function, class, inner, _] = arguments else {
            return Err(wrong());
        };
        match (&self.nodes[function], &self.nodes[class]) {
            (
                Node::Global(Global::Tensor | Global::TensorV3 | Global::Parameter | Global::Quantised),
                Node::Global(Global::TensorClass),
            ) => self.call(function, inner, offset),
            (Node::Global(Global::Unreadable(sort)), _) => Ok(Node::Unreadable(sort)),
            _ => Err(wrong()),
        }
    }

    /// `(code, align, copy)`
    fn numpy_dtype(&self, arguments: &[Id]) -> Option<Node<'a>> {
        let code = arguments.first().and_then(|&code| self.text(code))?;
        Some(Node::NumpyDtype { code, big_endian: false })
    }

    fn scalar(&mut self, arguments: &[Id]) -> Result<Option<Node<'a>>, Refusal> {
        let &[dtype, bytes] = arguments else {
            return Ok(None);
        };
        let (&Node::NumpyDtype { code, big_endian }, Node::Bytes(bytes)) = (&self.nodes[dtype], &self.nodes[bytes])
        else {
            return Ok(None);
        };
        if matches!(code, "f12" | "f16" | "c24" | "c32") {
            return Err(Refusal::NotRead(format!(
                "a number of NumPy's type '{code}' (long double) stands in its pickle"
            )));
        }
        if let Some(size) = code.strip_prefix('U') {
            let text = dtype::numpy_text(size, big_endian, bytes);
            self.copy(text.as_ref().map_or(0, String::len))?;
            return Ok(text.map(Node::Unpacked));
        }
        Ok(dtype::numpy_number(code, big_endian, bytes).map(|number| match number {
            Number::Bool(value) => Node::Bool(value),
            Number::Int(value) => Node::Int(value),
            Number::Float(value) => Node::Float(value),
            Number::Complex(real, imaginary) => Node::Complex(real, imaginary),
        }))
    }

    /// `(numpy.ndarray, (0,), b'b')`, which BUILD fills.
    fn empty_array(&self, arguments: &[Id]) -> Option<Node<'a>> {
        match (arguments.len(), &self.nodes[*arguments.first()?]) {
            (3, Node::Global(Global::ArrayClass)) => Some(Node::Array(None)),
            _ => None,
        }
    }

    /// `(buffer, dtype, shape, order)`, the way of protocol 5; the buffer stands in the pickle as bytes.
    fn array_of_buffer(&self, arguments: &[Id]) -> Option<Node<'a>> {
        let &[bytes, dtype, shape, order] = arguments else {
            return None;
        };
        let fortran_order = match self.text(order)? {
            "C" => false,
            "F" => true,
            _ => return None,
        };
        match self.nodes[dtype] {
            Node::NumpyDtype { code, big_endian } => {
                Some(Node::Array(Some(RawArray { code, big_endian, shape, fortran_order, bytes })))
            }
            _ => None,
        }
    }

    fn quantised(&self, arguments: &[Id]) -> Option<Node<'a>> {
        match &self.nodes[*arguments.first()?] {
            &Node::Storage(storage, _) => Some(Node::Unreadable(self.storages[storage].dtype.name)),
            _ => None,
        }
    }
}
