//! serde's way through a located tree.

use std::collections::HashSet;

use serde::de::{Deserializer, Visitor};

use super::access::{List, Map, Tagged, Word};
use super::fault::Fault;
use crate::policy::tree::{Entry, Node, Place, PolicyPath, Step, Value};

/// What all cursors of one round share.
pub(super) struct Shared<'t> {
    /// The path of the root.
    pub(super) base: &'t PolicyPath,
    /// The identities of the nodes that are left out.
    pub(super) pruned: &'t HashSet<usize>,
}

/// A node of a tree that is not moved while it is decoded is known by its address.
pub(super) fn identity(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

/// A node with the way to it, kept on the stack.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'de, 't> {
    node: &'de Node,
    at: At<'de>,
    parent: Option<&'t Cursor<'de, 't>>,
    shared: &'t Shared<'t>,
}

/// The last step of the way.
#[derive(Clone, Copy)]
pub(super) enum At<'de> {
    Root,
    Key(&'de Entry),
    Index(usize),
}

impl<'de, 't> Cursor<'de, 't> {
    pub(super) fn root(node: &'de Node, shared: &'t Shared<'t>) -> Self {
        Self { node, at: At::Root, parent: None, shared }
    }

    pub(super) fn below<'s>(&'s self, node: &'de Node, at: At<'de>) -> Cursor<'de, 's> {
        Cursor { node, at, parent: Some(self), shared: self.shared }
    }

    pub(super) fn node(&self) -> &'de Node {
        self.node
    }

    /// The place of the key that holds this node.
    pub(super) fn key_place(&self) -> Option<Place> {
        match self.at {
            At::Key(entry) => Some(entry.key_place),
            At::Root | At::Index(_) => None,
        }
    }

    pub(super) fn path(&self) -> PolicyPath {
        let mut steps = Vec::new();
        let mut next = Some(self);
        while let Some(cursor) = next {
            match cursor.at {
                At::Root => {}
                At::Key(entry) => steps.push(Step::Key(entry.key.clone())),
                At::Index(index) => steps.push(Step::Index(index)),
            }
            next = cursor.parent;
        }
        let base = self.shared.base.steps().iter().cloned();
        PolicyPath::from_steps(base.chain(steps.into_iter().rev()).collect())
    }

    pub(super) fn is_kept(&self, node: &Node) -> bool {
        self.shared.pruned.is_empty() || !self.shared.pruned.contains(&identity(node))
    }

    /// The keys of this map whose values are left out.
    pub(super) fn pruned_keys(&self) -> impl Iterator<Item = &'de str> {
        let pruned = self.node.entries().iter().filter(|entry| !self.is_kept(&entry.value));
        pruned.map(|entry| entry.key.as_str())
    }

    /// Whether something directly below is left out.
    pub(super) fn has_pruned(&self) -> bool {
        self.pruned_keys().next().is_some() || self.node.items().iter().any(|item| !self.is_kept(item))
    }

    fn visit_map<V: Visitor<'de>>(self, entries: &'de [Entry], visitor: V) -> Result<V::Value, Fault> {
        let mut map = Map::new(self, entries);
        let value = visitor.visit_map(&mut map)?;
        // A visitor that takes one key and goes (an enum behind a word-or-map type) must not hide the others.
        match map.next_kept() {
            None => Ok(value),
            Some(extra) => Err(one_too_many().at_key(&self, extra)),
        }
    }

    fn visit_seq<V: Visitor<'de>>(self, items: &'de [Node], visitor: V) -> Result<V::Value, Fault> {
        let mut list = List::new(self, items);
        let value = visitor.visit_seq(&mut list)?;
        match list.next_kept() {
            None => Ok(value),
            Some((index, extra)) => {
                let fault = Fault::with_hint("one element too many", "remove it");
                Err(fault.at_value(&self.below(extra, At::Index(index))))
            }
        }
    }

    fn visit_number<V: Visitor<'de>>(self, text: &str, visitor: V) -> Result<V::Value, Fault> {
        match parse_number(text) {
            Some(Number::Unsigned(number)) => visitor.visit_u64(number),
            Some(Number::Signed(number)) => visitor.visit_i64(number),
            Some(Number::Float(number)) => visitor.visit_f64(number),
            None => Err(Fault::with_hint("this number cannot be used", "write a finite, smaller one")),
        }
    }

    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Number(text) => self.visit_number(text, visitor),
            _ => Err(Fault::expected(&visitor)),
        }
    }

    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            _ => Err(Fault::expected(&visitor)),
        }
    }

    fn null<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            _ => Err(Fault::expected(&visitor)),
        }
    }

    pub(super) fn list<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Sequence(items) => self.visit_seq(items, visitor),
            _ => Err(Fault::expected(&visitor)),
        }
    }

    pub(super) fn map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Mapping(entries) => self.visit_map(entries, visitor),
            _ => Err(Fault::expected(&visitor)),
        }
    }
}

fn one_too_many() -> Fault {
    Fault::with_hint("one key too many", "only one key may stand in this map")
}

enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

/// The value of a number as YAML's core schema writes it: `0o17` and `0xff`, decimal also with leading zeros. `None` for
/// what is not finite.
fn parse_number(text: &str) -> Option<Number> {
    let radix = |digits: &str, radix: u32| u64::from_str_radix(digits, radix).ok().map(Number::Unsigned);
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Ok(number) = text.parse::<u64>() {
        return Some(Number::Unsigned(number));
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(Number::Signed(number));
    }
    text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Number::Float)
}

macro_rules! forward {
    ($way:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.$way(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Cursor<'de, '_> {
    type Error = Fault;

    forward!(number: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_i8
        deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_f32 deserialize_f64);
    forward!(text: deserialize_str deserialize_string deserialize_char deserialize_identifier deserialize_bytes
        deserialize_byte_buf);
    forward!(null: deserialize_unit);
    forward!(list: deserialize_seq);
    forward!(map: deserialize_map);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(text) => self.visit_number(text, visitor),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => self.visit_seq(items, visitor),
            Value::Mapping(entries) => self.visit_map(entries, visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => Err(Fault::expected(&visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.null(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    /// A map only: serde's derived types would also take a list, by position.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(visitor)
    }

    /// `word` for a variant without settings, `{word: settings}` for one with.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::String(word) => visitor.visit_enum(Word { cursor: self, word }),
            Value::Mapping(entries) => {
                let mut kept = entries.iter().filter(|entry| self.is_kept(&entry.value));
                let entry = kept.next().ok_or_else(|| Fault::no_variant(variants))?;
                match kept.next() {
                    Some(extra) => Err(one_too_many().at_key(&self, extra)),
                    None => visitor.visit_enum(Tagged { cursor: self, entry }),
                }
            }
            _ => Err(Fault::expected(&visitor)),
        }
    }
}
