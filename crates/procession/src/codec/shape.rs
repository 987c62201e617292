//! The shape of a type, as its `Deserialize` asks for it.
//!
//! postcard writes values without saying what they are. So two programs that share a queue must
//! agree on its type. A type that lets the format decide what comes (`deserialize_any`) cannot be
//! read back. Both are detected without a message: the type is deserialised from a made-up value,
//! and its requests are recorded. The crate serde-reflection explores types in the same way to
//! describe their formats.
//!
//! A type's `Deserialize` may refuse the made-up value: a handle does, and so may a type that
//! checks its values. What it would have asked for after that is then not part of the shape.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use crate::elf::Fingerprint;
use procession_core::shm::transfer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use super::error::SerializeError;

/// What is known of a type before any value of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The same for types whose values have the same bytes and whose fields and variants have the
    /// same names. Never 0.
    pub(crate) hash: u64,
    /// What the type asks for that postcard cannot answer.
    pub(crate) unsupported: Option<&'static str>,
}

impl Shape {
    /// The shape of `T`. Found out once a thread.
    pub(crate) fn of<T: DeserializeOwned>() -> Shape {
        thread_local! {
            static KNOWN: RefCell<HashMap<usize, Shape>> = RefCell::default();
        }
        // Two types may have one such function only if it is the same code, which finds the same
        // shape.
        let key = trace::<T> as fn() -> Shape as usize;
        // A thread that ends has no table any more.
        let known = KNOWN.try_with(|known| known.borrow().get(&key).copied());
        if let Ok(Some(shape)) = known {
            return shape;
        }
        let shape = trace::<T>();
        let _ = KNOWN.try_with(|known| known.borrow_mut().insert(key, shape));
        shape
    }

    /// Refuses values of a type that could not be read back.
    #[inline]
    pub(crate) fn check<T: ?Sized>(self) -> Result<(), SerializeError> {
        self.unsupported.map_or(Ok(()), |reason| Err(SerializeError::unsupported::<T>(reason)))
    }
}

/// Deserialises `T` from made-up values, until each variant of each of its enums was one of them.
fn trace<T: DeserializeOwned>() -> Shape {
    let mut trace = Trace {
        hash: Fingerprint::new(),
        unsupported: None,
        enums: HashMap::new(),
        asked: 0,
        explored: false,
    };
    loop {
        trace.asked = 0;
        // What it makes of the value, and whether it likes it, does not matter. A panic over it is
        // the type's refusal.
        let pass =
            std::panic::AssertUnwindSafe(|| drop(T::deserialize(Tracer { trace: &mut trace, depth: 0 })));
        let panicked = std::panic::catch_unwind(pass).is_err();
        let left = trace.enums.values().any(|seen| seen.next < seen.count);
        if panicked || !left || trace.asked == 0 || !std::mem::take(&mut trace.explored) {
            break;
        }
    }
    // Handles refuse made-up bytes, which is no failure of a message.
    transfer::failure();
    Shape { hash: trace.hash.0.max(1), unsupported: trace.unsupported }
}

/// How deep and how large a made-up value may become. Types that contain themselves would have no
/// end.
const MOST_DEPTH: usize = 32;
const MOST_ASKED: usize = 2000;

struct Trace {
    hash: Fingerprint,
    unsupported: Option<&'static str>,
    /// By the name of the type that is deserialised. The names of an enum's own variants would not
    /// do: those of a generic enum are the same whatever its parameters are.
    enums: HashMap<&'static str, SeenEnum>,
    /// How often this pass was asked for something.
    asked: usize,
    /// Whether this pass has reached a variant that no earlier pass had reached.
    explored: bool,
}

struct SeenEnum {
    count: usize,
    /// The first variant that no pass has reached.
    next: usize,
    /// The variant with the smallest complete made-up value, and its size.
    smallest: Option<(usize, usize)>,
}

/// A `Deserializer` that makes up what it is asked for.
struct Tracer<'a> {
    trace: &'a mut Trace,
    depth: usize,
}

impl Tracer<'_> {
    fn asked(&mut self, what: &str) {
        self.trace.asked += 1;
        self.trace.hash.add(what.as_bytes());
        self.trace.hash.add(b";");
    }

    fn deeper(&mut self) -> Tracer<'_> {
        Tracer { trace: self.trace, depth: self.depth + 1 }
    }

    /// Whether what may be left out is to be left out.
    fn is_enough(&self) -> bool {
        self.depth >= MOST_DEPTH || self.trace.asked >= MOST_ASKED
    }

    fn unsupported<T>(self, what: &'static str) -> Result<T, Refused> {
        self.trace.unsupported.get_or_insert(what);
        Err(Refused)
    }
}

/// The type does not take the made-up value, or there is none.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Refused
    }
}

macro_rules! made_up {
    ($($ask:ident $visit:ident $value:expr),* $(,)?) => {
        $(fn $ask<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
            // What comes after "deserialize_".
            self.asked(&stringify!($ask)[12..]);
            visitor.$visit($value)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Tracer<'_> {
    type Error = Refused;

    // 1, for some types refuse 0.
    made_up! {
        deserialize_bool visit_bool false,
        deserialize_i8 visit_i8 1,
        deserialize_i16 visit_i16 1,
        deserialize_i32 visit_i32 1,
        deserialize_i64 visit_i64 1,
        deserialize_i128 visit_i128 1,
        deserialize_u8 visit_u8 1,
        deserialize_u16 visit_u16 1,
        deserialize_u32 visit_u32 1,
        deserialize_u64 visit_u64 1,
        deserialize_u128 visit_u128 1,
        deserialize_f32 visit_f32 1.0,
        deserialize_f64 visit_f64 1.0,
        deserialize_char visit_char 'a',
        deserialize_str visit_str "",
        deserialize_bytes visit_bytes &[],
    }

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.asked("unit");
        visitor.visit_unit()
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.unsupported(
            "its type is deserialised by what the bytes say they are, which these do not say (serde's `tag`, `untagged` \
             and `flatten`, and types for any JSON, are so)",
        )
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.unsupported("its type asks for the name of a field, and fields have no names here")
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.unsupported("its type skips over values of unknown types, whose length is not known here")
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.asked("option");
        if self.is_enough() { visitor.visit_none() } else { visitor.visit_some(self.deeper()) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self.deeper())
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.asked("seq");
        let left = if self.is_enough() { 0 } else { 1 };
        visitor.visit_seq(Elements { tracer: self.deeper(), left })
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.asked("map");
        let left = if self.is_enough() { 0 } else { 1 };
        visitor.visit_map(Elements { tracer: self.deeper(), left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        self.asked("tuple");
        self.trace.hash.add(&len.to_le_bytes());
        visitor.visit_seq(Elements { tracer: self.deeper(), left: len })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.asked("struct");
        fields.iter().for_each(|field| self.asked(field));
        visitor.visit_seq(Elements { tracer: self.deeper(), left: fields.len() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let key = type_name::<V::Value>();
        if !self.trace.enums.contains_key(key) {
            variants.iter().for_each(|variant| self.asked(variant));
            self.trace.enums.insert(key, SeenEnum { count: variants.len(), next: 0, smallest: None });
        }
        self.asked("enum");
        let enough = self.is_enough();
        let seen = self.trace.enums.get_mut(key).ok_or(Refused)?;
        let variant = match seen.smallest {
            Some((variant, _)) if enough || seen.next == seen.count => variant,
            _ if seen.next < seen.count => {
                seen.next += 1;
                self.trace.explored = true;
                seen.next - 1
            }
            // It contains itself whatever the variant, as far as is known by now.
            _ => return Err(Refused),
        };
        self.trace.hash.add(&variant.to_le_bytes());
        let before = self.trace.asked;
        let value = visitor.visit_enum(Variant { tracer: self.deeper(), index: variant })?;
        let size = self.trace.asked - before;
        if let Some(seen) = self.trace.enums.get_mut(key)
            && seen.smallest.is_none_or(|(_, smallest)| size < smallest)
        {
            seen.smallest = Some((variant, size));
        }
        Ok(value)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a sequence, the entries of a map or the fields of a struct.
struct Elements<'a> {
    tracer: Tracer<'a>,
    left: usize,
}

impl Elements<'_> {
    fn next<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        if self.left == 0 {
            return Ok(None);
        }
        // An array of many elements is refused in the end: it cannot be left out.
        if self.tracer.trace.asked >= 8 * MOST_ASKED || self.tracer.depth >= 2 * MOST_DEPTH {
            return Err(Refused);
        }
        self.left -= 1;
        seed.deserialize(self.tracer.deeper()).map(Some)
    }
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        self.next(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> de::MapAccess<'de> for Elements<'_> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        self.next(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        seed.deserialize(self.tracer.deeper())
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

struct Variant<'a> {
    tracer: Tracer<'a>,
    index: usize,
}

impl<'de, 'a> de::EnumAccess<'de> for Variant<'a> {
    type Error = Refused;
    type Variant = Tracer<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Tracer<'a>), Refused> {
        let index = u32::try_from(self.index).map_err(|_| Refused)?;
        let index: de::value::U32Deserializer<Refused> = index.into_deserializer();
        Ok((seed.deserialize(index)?, self.tracer))
    }
}

impl<'de> de::VariantAccess<'de> for Tracer<'_> {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        de::Deserializer::deserialize_tuple(self, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        de::Deserializer::deserialize_struct(self, "", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::net::IpAddr;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    fn is_supported<T: DeserializeOwned>() -> bool {
        Shape::of::<T>().unsupported.is_none()
    }

    #[derive(Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        #[allow(dead_code, reason = "only its shape is looked at")]
        Add { n: u32 },
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    enum Untagged {
        Text(String),
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    enum Deep<T> {
        Nothing,
        One(Box<Deep<T>>),
        Two(Box<Deep<T>>, Box<Deep<T>>),
        Last { value: Option<Vec<T>> },
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    struct Tree {
        left: Option<Box<Tree>>,
        right: Option<Box<Tree>>,
        more: Vec<Tree>,
        by_name: HashMap<String, Tree>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    struct Point {
        x: u32,
        y: u32,
    }

    #[test]
    fn what_asks_what_comes_is_found_wherever_it_is() {
        assert!(!is_supported::<Tagged>());
        assert!(!is_supported::<Untagged>());
        assert!(!is_supported::<Vec<(u8, Option<Tagged>)>>());
        assert!(!is_supported::<BTreeMap<String, [Untagged; 2]>>());
        assert!(!is_supported::<Deep<Tagged>>());
        assert!(!is_supported::<(Deep<u8>, Deep<Untagged>)>());
    }

    #[test]
    fn ordinary_types_are_supported() {
        assert!(is_supported::<()>());
        assert!(is_supported::<(bool, i8, u128, f64, char, String, Duration)>());
        assert!(is_supported::<(NonZeroU32, IpAddr, Result<u8, String>, [u8; 32])>());
        assert!(is_supported::<Deep<Deep<String>>>());
        assert!(is_supported::<Tree>());
        assert!(is_supported::<crate::Queue<Tree>>());
    }

    #[test]
    fn a_shape_is_told_from_others_and_is_always_the_same() {
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        struct Turned {
            y: u32,
            x: u32,
        }
        #[derive(Deserialize)]
        struct Number(#[allow(dead_code, reason = "only its shape is looked at")] u32);
        let shapes = [
            Shape::of::<u32>(),
            Shape::of::<i32>(),
            Shape::of::<u64>(),
            Shape::of::<f32>(),
            Shape::of::<String>(),
            Shape::of::<(u8, u8)>(),
            Shape::of::<(u8, u8, u8)>(),
            Shape::of::<(u32, String)>(),
            Shape::of::<(bool, String)>(),
            Shape::of::<Option<u8>>(),
            Shape::of::<Vec<u8>>(),
            Shape::of::<Point>(),
            Shape::of::<Turned>(),
            Shape::of::<Tree>(),
            Shape::of::<Deep<u8>>(),
            Shape::of::<Deep<u16>>(),
        ];
        for (index, shape) in shapes.iter().enumerate() {
            assert!(!shapes[..index].iter().any(|other| other.hash == shape.hash), "{index}");
        }
        assert_eq!(Shape::of::<Number>(), Shape::of::<u32>());
        assert_eq!(std::thread::spawn(Shape::of::<Deep<u16>>).join().unwrap(), shapes[15]);
    }

    #[test]
    fn a_type_that_panics_over_made_up_values_is_not_refused() {
        #[derive(Debug)]
        struct Picky;
        impl<'de> Deserialize<'de> for Picky {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                if text.is_empty() {
                    std::panic::resume_unwind(Box::new("an empty text"));
                }
                Ok(Picky)
            }
        }
        assert!(is_supported::<(u8, Picky)>());
        assert_ne!(Shape::of::<(u8, Picky)>().hash, Shape::of::<(u16, Picky)>().hash);
    }
}
