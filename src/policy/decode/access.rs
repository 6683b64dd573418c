//! What stands below a node, as serde asks for it: the entries of a map, the elements of a list, the variant of an enum.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::fault::Fault;
use super::walk::{At, Cursor};
use crate::policy::tree::{Entry, Node, Value};

/// The entries of a map that are not left out.
pub(super) struct Map<'de, 't> {
    cursor: Cursor<'de, 't>,
    rest: &'de [Entry],
    current: Option<&'de Entry>,
}

impl<'de, 't> Map<'de, 't> {
    pub(super) fn new(cursor: Cursor<'de, 't>, entries: &'de [Entry]) -> Self {
        Self { cursor, rest: entries, current: None }
    }

    pub(super) fn next_kept(&mut self) -> Option<&'de Entry> {
        while let Some((entry, rest)) = self.rest.split_first() {
            self.rest = rest;
            if self.cursor.is_kept(&entry.value) {
                return Some(entry);
            }
        }
        None
    }
}

impl<'de> MapAccess<'de> for Map<'de, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.next_kept();
        let Some(entry) = self.current else { return Ok(None) };
        seed.deserialize(Key(&entry.key)).map(Some).map_err(|fault| fault.at_key(&self.cursor, entry))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let entry = self.current.ok_or_else(|| Fault::with_hint("a value without key", "report this"))?;
        let child = self.cursor.below(&entry.value, At::Key(entry));
        seed.deserialize(child).map_err(|fault| fault.at_value(&child))
    }
}

/// The elements of a list that are not left out, under their own numbers.
pub(super) struct List<'de, 't> {
    cursor: Cursor<'de, 't>,
    items: &'de [Node],
    next: usize,
}

impl<'de, 't> List<'de, 't> {
    pub(super) fn new(cursor: Cursor<'de, 't>, items: &'de [Node]) -> Self {
        Self { cursor, items, next: 0 }
    }

    pub(super) fn next_kept(&mut self) -> Option<(usize, &'de Node)> {
        while let Some(item) = self.items.get(self.next) {
            let index = self.next;
            self.next += 1;
            if self.cursor.is_kept(item) {
                return Some((index, item));
            }
        }
        None
    }
}

impl<'de> SeqAccess<'de> for List<'de, '_> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((index, item)) = self.next_kept() else { return Ok(None) };
        let child = self.cursor.below(item, At::Index(index));
        seed.deserialize(child).map(Some).map_err(|fault| fault.at_value(&child))
    }
}

/// A key of a map: a word, whatever type it is wanted as.
struct Key<'de>(&'de str);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(BorrowedStrDeserializer::new(self.0))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// An enum written as a bare word.
pub(super) struct Word<'de, 't> {
    pub(super) cursor: Cursor<'de, 't>,
    pub(super) word: &'de str,
}

impl<'de> EnumAccess<'de> for Word<'de, '_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let variant = seed.deserialize(Key(self.word)).map_err(|fault| fault.at_value(&self.cursor))?;
        Ok((variant, self))
    }
}

impl Word<'_, '_> {
    /// The word is the name of a variant when this is asked, so it may be shown.
    fn needs_settings<T>(self) -> Result<T, Fault> {
        let word = self.word;
        Err(Fault::with_hint("settings are missing", format!("write `{word}: ...`")).at_value(&self.cursor))
    }
}

impl<'de> VariantAccess<'de> for Word<'de, '_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Fault> {
        self.needs_settings()
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        self.needs_settings()
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        self.needs_settings()
    }
}

/// An enum written as a map with one key.
pub(super) struct Tagged<'de, 't> {
    pub(super) cursor: Cursor<'de, 't>,
    pub(super) entry: &'de Entry,
}

impl<'de> Tagged<'de, '_> {
    fn content(&self) -> Cursor<'de, '_> {
        self.cursor.below(&self.entry.value, At::Key(self.entry))
    }
}

impl<'de> EnumAccess<'de> for Tagged<'de, '_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let tag = seed.deserialize(Key(&self.entry.key));
        let variant = tag.map_err(|fault| fault.at_key(&self.cursor, self.entry))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Tagged<'de, '_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        let content = self.content();
        match &content.node().value {
            Value::Null => Ok(()),
            Value::Mapping(entries) if entries.is_empty() => Ok(()),
            _ => {
                let hint = format!("write `{}` alone", self.entry.key);
                Err(Fault::with_hint("no settings may stand here", hint).at_value(&content))
            }
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let content = self.content();
        seed.deserialize(content).map_err(|fault| fault.at_value(&content))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        let content = self.content();
        content.list(visitor).map_err(|fault| fault.at_value(&content))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let content = self.content();
        content.map(visitor).map_err(|fault| fault.at_value(&content))
    }
}
