//! A serialiser that writes postcard's format and refuses values that could not be read back from
//! it.

use serde::ser::{self, Serialize, Serializer};

use super::error::SerializeError;

/// postcard's own serialiser, which writes to a flavor `F`.
type Postcard<F> = postcard::Serializer<F>;

/// Writes as postcard does. postcard leaves out a field that `skip_serializing_if` skips, and its
/// reader takes the next field's bytes for it. Such a field is an error here. What a type's
/// `Serialize` says when it refuses is kept.
pub(super) struct Strict<'a, F: postcard::ser_flavors::Flavor>(pub(super) &'a mut Postcard<F>);

impl<F: postcard::ser_flavors::Flavor> Strict<'_, F> {
    /// One of the parts that postcard writes one after another.
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerializeError> {
        value.serialize(Strict(&mut *self.0))
    }
}

macro_rules! forwarded {
    ($($name:ident($($argument:ident: $type:ty),*)),* $(,)?) => {
        $(#[inline]
        fn $name(self, $($argument: $type),*) -> Result<(), SerializeError> {
            Ok(self.0.$name($($argument),*)?)
        })*
    };
}

impl<'a, F: postcard::ser_flavors::Flavor> Serializer for Strict<'a, F> {
    type Ok = ();
    type Error = SerializeError;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    forwarded! {
        serialize_bool(value: bool),
        serialize_i8(value: i8),
        serialize_i16(value: i16),
        serialize_i32(value: i32),
        serialize_i64(value: i64),
        serialize_i128(value: i128),
        serialize_u8(value: u8),
        serialize_u16(value: u16),
        serialize_u32(value: u32),
        serialize_u64(value: u64),
        serialize_u128(value: u128),
        serialize_f32(value: f32),
        serialize_f64(value: f64),
        serialize_char(value: char),
        serialize_str(value: &str),
        serialize_bytes(value: &[u8]),
        serialize_none(),
        serialize_unit(),
        serialize_unit_struct(name: &'static str),
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str),
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), SerializeError> {
        // As postcard's format has it: the byte 1, then the value.
        self.0.serialize_u8(1)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), SerializeError> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), SerializeError> {
        self.0.serialize_unit_variant(name, index, variant)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, SerializeError> {
        self.0.serialize_seq(len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Self, SerializeError> {
        self.0.serialize_tuple(len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self, SerializeError> {
        self.0.serialize_tuple_struct(name, len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self, SerializeError> {
        self.0.serialize_tuple_variant(name, index, variant, len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self, SerializeError> {
        self.0.serialize_map(len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self, SerializeError> {
        self.0.serialize_struct(name, len)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self, SerializeError> {
        self.0.serialize_struct_variant(name, index, variant, len)?;
        Ok(self)
    }

    #[inline]
    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<(), SerializeError> {
        Ok(self.0.collect_str(value)?)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! parts {
    ($($trait:ident $part:ident),* $(,)?) => {
        $(impl<F: postcard::ser_flavors::Flavor> ser::$trait for Strict<'_, F> {
            type Ok = ();
            type Error = SerializeError;

            #[inline]
            fn $part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerializeError> {
                self.part(value)
            }

            #[inline]
            fn end(self) -> Result<(), SerializeError> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl<F: postcard::ser_flavors::Flavor> ser::$trait for Strict<'_, F> {
            type Ok = ();
            type Error = SerializeError;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), SerializeError> {
                self.part(value)
            }

            fn skip_field(&mut self, field: &'static str) -> Result<(), SerializeError> {
                Err(SerializeError::skipped(field))
            }

            #[inline]
            fn end(self) -> Result<(), SerializeError> {
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl<F: postcard::ser_flavors::Flavor> ser::SerializeMap for Strict<'_, F> {
    type Ok = ();
    type Error = SerializeError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), SerializeError> {
        self.part(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerializeError> {
        self.part(value)
    }

    #[inline]
    fn end(self) -> Result<(), SerializeError> {
        Ok(())
    }
}
