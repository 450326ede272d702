//! The stack machine that runs a pickle. It builds plain nodes in one arena, so that objects which stand in several
//! places, or in themselves, cost what they cost once, and nothing here or in dropping it recurses.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Refusal;
use super::bounds::{Exceeded, HEADER_BYTES, OPCODES, check};
use super::dtype::Dtype;
use super::globals::{self, Global};
use super::opcode::{Op, Opcodes};
use crate::text::printable;

/// A node's place in the arena.
pub type Id = usize;

/// An object as the pickle builds it; what it holds are places in the arena.
#[derive(Debug)]
pub enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
    Text(&'a str),
    /// Text that NumPy packed: a value, never a name.
    Unpacked(String),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Dict),
    Global(Global),
    Device(String),
    NumpyDtype {
        code: &'a str,
        big_endian: bool,
    },
    /// NumPy's array; `None` until BUILD gives it a state.
    Array(Option<RawArray<'a>>),
    /// A place in [`Machine::storages`], and the first of its elements where the format before 1.6 wrote a part.
    Storage(usize, i128),
    Tensor(Box<RawTensor>),
    /// A tensor of a sort that is not read, or a part of one.
    Unreadable(&'static str),
}

/// An array as the pickle gives it; the sizes are checked once its name is known.
#[derive(Debug, Clone, Copy)]
pub struct RawArray<'a> {
    /// NumPy's code of the type: `u1`, `f8`, ...
    pub code: &'a str,
    pub big_endian: bool,
    /// A tuple.
    pub shape: Id,
    pub fortran_order: bool,
    /// Of the elements.
    pub bytes: Id,
}

#[derive(Debug, Default)]
pub struct Dict {
    pub entries: Vec<(Id, Id)>,
    /// An `OrderedDict` and its kin may have attributes, a plain dictionary may not.
    pub subclass: bool,
}

/// A tensor as the pickle gives it; the sizes are checked once its name is known.
#[derive(Debug, Clone, Copy)]
pub struct RawTensor {
    pub storage: usize,
    pub dtype: Dtype,
    /// Elements before the first.
    pub offset: i128,
    /// Tuples.
    pub shape: Id,
    pub stride: Id,
    /// Conjugated or negated when it is read, not in memory.
    pub lazy: bool,
}

/// A storage that the pickle names.
#[derive(Debug)]
pub struct RawStorage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    /// Elements, as the pickle says.
    pub count: i128,
}

/// What a pickle leaves behind.
#[derive(Debug)]
pub struct Machine<'a> {
    opcodes: Opcodes<'a>,
    pub nodes: Vec<Node<'a>>,
    pub storages: Vec<RawStorage<'a>>,
    keys: HashMap<&'a str, usize>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes that calls copied: a pickle fetches a large object again in two bytes.
    copied: u64,
    /// How many they may copy.
    copies: u64,
}

impl<'a> Machine<'a> {
    /// Runs the pickle at the start of `bytes`; gives what it left, its root, and its length. `base` is the offset of
    /// `bytes` in what errors count from.
    pub fn run(bytes: &'a [u8], base: usize) -> Result<(Self, Id, usize), Refusal> {
        let mut machine = Self {
            opcodes: Opcodes::new(bytes, base),
            nodes: Vec::new(),
            storages: Vec::new(),
            keys: HashMap::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
            copies: HEADER_BYTES.max(bytes.len() as u64),
        };
        for _ in 0..OPCODES {
            let (offset, op) = machine.opcodes.next()?;
            if matches!(op, Op::Stop) {
                let root = machine.pop(offset)?;
                let length = machine.opcodes.position();
                return Ok((machine, root, length));
            }
            machine.step(op, offset)?;
        }
        let (what, allowed) = ("opcodes of its pickle".to_owned(), u128::from(OPCODES));
        Err(Refusal::Bound(Exceeded { what, found: allowed + 1, allowed }))
    }

    fn step(&mut self, op: Op<'a>, offset: usize) -> Result<(), Refusal> {
        let node = match op {
            Op::Skip | Op::Stop => return Ok(()),
            Op::None => Node::None,
            Op::Bool(value) => Node::Bool(value),
            Op::Int(value) => Node::Int(value),
            Op::Float(value) => Node::Float(value),
            Op::Text(text) => Node::Text(text),
            Op::Bytes(bytes) => Node::Bytes(Cow::Borrowed(bytes)),
            Op::EmptyList => Node::List(Vec::new()),
            Op::EmptyDict => Node::Dict(Dict::default()),
            Op::EmptySet => Node::Set(Vec::new()),
            Op::Tuple(None) => Node::Tuple(self.pop_to_mark(offset)?),
            Op::Tuple(Some(count)) => Node::Tuple(self.pop_many(count, offset)?),
            Op::FrozenSet => Node::Set(self.pop_to_mark(offset)?),
            Op::Global(module, name) => Node::Global(global(module, name, offset)?),
            Op::StackGlobal => self.stack_global(offset)?,
            Op::Reduce => {
                let (arguments, callable) = (self.pop(offset)?, self.pop(offset)?);
                self.call(callable, arguments, offset)?
            }
            Op::PersistentId => {
                let id = self.pop(offset)?;
                self.persistent(id, offset)?
            }
            Op::Get(index) => return self.get(index, offset),
            Op::Put(index) => return self.put(index, offset),
            Op::Memoize => return self.put(self.memo.len() as u32, offset),
            Op::Mark => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            Op::Pop => return self.pop_or_mark(offset),
            Op::PopMark => return self.pop_to_mark(offset).map(drop),
            Op::Append | Op::Appends | Op::SetItem | Op::SetItems | Op::AddItems => return self.fill(&op, offset),
            Op::Build => return self.build(offset),
        };
        self.push(node);
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self, offset: usize) -> Result<Id, Refusal> {
        if self.stack.len() <= self.floor() {
            return Err(underflow(offset));
        }
        self.stack.pop().ok_or_else(|| underflow(offset))
    }

    fn pop_many(&mut self, count: usize, offset: usize) -> Result<Vec<Id>, Refusal> {
        let rest = self.stack.len().checked_sub(count).filter(|rest| *rest >= self.floor());
        Ok(self.stack.split_off(rest.ok_or_else(|| underflow(offset))?))
    }

    fn pop_to_mark(&mut self, offset: usize) -> Result<Vec<Id>, Refusal> {
        let mark = self.marks.pop().ok_or_else(|| malformed(offset, "needs a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    /// POP takes a mark where one is on top.
    fn pop_or_mark(&mut self, offset: usize) -> Result<(), Refusal> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop(offset).map(drop)
    }

    fn get(&mut self, index: u32, offset: usize) -> Result<(), Refusal> {
        match self.memo.get(&index) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(malformed(offset, &format!("fetches object {index}, which was not stored"))),
        }
    }

    fn put(&mut self, index: u32, offset: usize) -> Result<(), Refusal> {
        let top = self.pop(offset)?;
        self.stack.push(top);
        self.memo.insert(index, top);
        Ok(())
    }

    fn stack_global(&mut self, offset: usize) -> Result<Node<'a>, Refusal> {
        let (name, module) = (self.pop(offset)?, self.pop(offset)?);
        match (&self.nodes[module], &self.nodes[name]) {
            (&Node::Text(module), &Node::Text(name)) => Ok(Node::Global(global(module, name, offset)?)),
            _ => Err(Refusal::Opcode { opcode: "STACK_GLOBAL of a computed name".into(), offset }),
        }
    }

    /// APPEND(S), SETITEM(S), ADDITEMS: each fills containers of its own kind only.
    fn fill(&mut self, op: &Op<'a>, offset: usize) -> Result<(), Refusal> {
        let items = match op {
            Op::Append => self.pop_many(1, offset)?,
            Op::SetItem => self.pop_many(2, offset)?,
            _ => self.pop_to_mark(offset)?,
        };
        let target = self.pop(offset)?;
        self.stack.push(target);
        match (op, &mut self.nodes[target]) {
            (Op::Append | Op::Appends, Node::List(list)) => list.extend(items),
            (Op::AddItems, Node::Set(set)) => set.extend(items),
            (Op::SetItem | Op::SetItems, Node::Dict(dict)) if items.len().is_multiple_of(2) => {
                dict.entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            (Op::SetItem | Op::SetItems, Node::Dict(_)) => {
                return Err(malformed(offset, "gives a key without a value"));
            }
            (_, other) => return Err(malformed(offset, &format!("puts items into {}", other.describe()))),
        }
        Ok(())
    }

    /// BUILD: attributes of a dictionary, which are dropped, the byte order of a NumPy type, or a NumPy array.
    fn build(&mut self, offset: usize) -> Result<(), Refusal> {
        let (state, target) = (self.pop(offset)?, self.pop(offset)?);
        self.stack.push(target);
        let order = match &self.nodes[state] {
            Node::Tuple(parts) => parts.get(1).and_then(|&part| self.text(part)),
            _ => None,
        };
        let attributes = matches!(&self.nodes[state], Node::Dict(_));
        let array = match self.nodes[target] {
            Node::Array(None) => Some(self.array_of_state(state, offset)?),
            _ => None,
        };
        match (&mut self.nodes[target], order) {
            (Node::NumpyDtype { big_endian, .. }, Some(order @ ("<" | ">" | "|" | "="))) => *big_endian = order == ">",
            (Node::Array(empty), _) if array.is_some() => *empty = array,
            (Node::NumpyDtype { .. }, _) => return Err(malformed(offset, "gives a numpy.dtype an unknown state")),
            (Node::Dict(Dict { subclass: true, .. }), _) if attributes => {}
            (other, _) => {
                let what = other.describe();
                return Err(malformed(offset, &format!("sets the state of {what} (BUILD), which has none")));
            }
        }
        Ok(())
    }

    /// `(version, shape, dtype, is_fortran, bytes)`, the state of numpy.ndarray.
    fn array_of_state(&self, state: Id, offset: usize) -> Result<RawArray<'a>, Refusal> {
        let wrong = || malformed(offset, "gives a numpy.ndarray an unknown state");
        let Node::Tuple(parts) = &self.nodes[state] else {
            return Err(wrong());
        };
        let &[_, shape, dtype, fortran_order, bytes] = parts.as_slice() else {
            return Err(wrong());
        };
        match (&self.nodes[dtype], &self.nodes[fortran_order]) {
            (&Node::NumpyDtype { code, big_endian }, &Node::Bool(fortran_order)) => {
                Ok(RawArray { code, big_endian, shape, fortran_order, bytes })
            }
            _ => Err(wrong()),
        }
    }

    /// A storage: `("storage", class, key, location, count)`; before 1.6 a sixth field may name a part of it.
    fn persistent(&mut self, id: Id, offset: usize) -> Result<Node<'a>, Refusal> {
        let wrong = |found: &str| malformed(offset, &format!("holds a persistent id that {found}"));
        let Node::Tuple(fields) = &self.nodes[id] else {
            return Err(wrong("is no tuple"));
        };
        let &[kind, class, key, _, count, ref rest @ ..] = fields.as_slice() else {
            return Err(wrong(&format!("has {} fields, a storage's has 5 or 6", fields.len())));
        };
        if self.text(kind) != Some("storage") {
            return Err(wrong("is no storage's"));
        }
        let start = match *rest {
            [] => 0,
            [view] => self.view_start(view).ok_or_else(|| wrong("names a part of a storage in an unknown way"))?,
            _ => return Err(wrong(&format!("has {} fields, a storage's has 5 or 6", fields.len()))),
        };
        match (&self.nodes[class], &self.nodes[key], &self.nodes[count]) {
            (&Node::Global(Global::Storage(dtype)), &Node::Text(key), &Node::Int(count)) => {
                self.storage(RawStorage { key, dtype, count }, offset).map(|storage| Node::Storage(storage, start))
            }
            _ => Err(wrong("has fields of other types than a storage's")),
        }
    }

    /// The first element of `(key, start, count)`, or 0 for `None`.
    fn view_start(&self, view: Id) -> Option<i128> {
        match &self.nodes[view] {
            Node::None => Some(0),
            Node::Tuple(parts) => match (parts.len(), self.nodes.get(*parts.get(1)?)?) {
                (3, Node::Int(start)) => Some(*start),
                _ => None,
            },
            _ => None,
        }
    }

    /// The place of a storage; all who name one must agree on it.
    fn storage(&mut self, storage: RawStorage<'a>, offset: usize) -> Result<usize, Refusal> {
        if let Some(&known) = self.keys.get(storage.key) {
            let other = &self.storages[known];
            if (other.count, other.dtype.name) == (storage.count, storage.dtype.name) {
                return Ok(known);
            }
            let key = printable(storage.key);
            return Err(malformed(offset, &format!("describes storage '{key}' in another way than before")));
        }
        self.keys.insert(storage.key, self.storages.len());
        self.storages.push(storage);
        Ok(self.storages.len() - 1)
    }

    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.nodes[id] {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Counts bytes that a call is about to copy.
    pub fn copy(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.copied = self.copied.saturating_add(bytes as u64);
        Ok(check("bytes that calls in its pickle copy", self.copied, self.copies)?)
    }
}

impl Node<'_> {
    /// For messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Complex(..) => "a number",
            Self::Text(_) | Self::Unpacked(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dict(Dict { subclass: true, .. }) => "an OrderedDict or its like",
            Self::Dict(_) => "a dictionary",
            Self::Global(Global::Inert) => "a layout or a quantisation scheme",
            Self::Global(_) => "a class or function",
            Self::Device(_) => "a torch.device",
            Self::NumpyDtype { .. } => "a numpy.dtype",
            Self::Array(_) => "a numpy.ndarray",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) | Self::Unreadable(_) => "a tensor",
        }
    }
}

fn global(module: &str, name: &str, offset: usize) -> Result<Global, Refusal> {
    globals::find(module, name)
        .ok_or_else(|| Refusal::Global { global: printable(&format!("{module}.{name}")), offset })
}

fn underflow(offset: usize) -> Refusal {
    malformed(offset, "takes more than its stack holds (stack underflow)")
}

pub fn malformed(offset: usize, what: &str) -> Refusal {
    Refusal::Malformed(format!("byte {offset} of its pickle {what}"))
}
