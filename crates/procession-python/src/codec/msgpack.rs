//! Plain data as MessagePack: what other languages read and write.
//!
//! Tuples arrive as lists, as the format has one kind of array.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use rmp::Marker;
use rmp::decode::{RmpRead, read_marker};
use rmp::encode as write;

use super::format::malformed;

/// Values within values within values …: a list that contains itself has no end.
const DEPTH: u32 = 256;

/// Appends the object's encoding.
///
/// # Errors
/// `TypeError` for an object that the format has nothing for, `OverflowError` for an int beyond 64 bits, `ValueError` for values that are
/// nested too deeply or are longer than 4 GiB.
pub(super) fn encode(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    value(object, out, 0)
}

fn value(object: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> PyResult<()> {
    if depth > DEPTH {
        return Err(PyValueError::new_err(
            "the object's values are nested too deeply, or contain themselves",
        ));
    }
    if let Ok(text) = object.cast::<PyString>() {
        let text = text.to_cow()?;
        length(text.len())?;
        written(write::write_str(out, &text))
    } else if let Ok(boolean) = object.cast::<PyBool>() {
        written(write::write_bool(out, boolean.is_true()))
    } else if object.is_instance_of::<PyInt>() {
        int(object, out)
    } else if let Ok(float) = object.cast::<PyFloat>() {
        written(write::write_f64(out, float.value()))
    } else if object.is_none() {
        written(write::write_nil(out))
    } else if let Ok(dict) = object.cast::<PyDict>() {
        written(write::write_map_len(out, length(dict.len())?))?;
        dict.iter().try_for_each(|(key, item)| {
            value(&key, out, depth + 1)?;
            value(&item, out, depth + 1)
        })
    } else if let Ok(list) = object.cast::<PyList>() {
        written(write::write_array_len(out, length(list.len())?))?;
        list.iter().try_for_each(|item| value(&item, out, depth + 1))
    } else if let Ok(tuple) = object.cast::<PyTuple>() {
        written(write::write_array_len(out, length(tuple.len())?))?;
        tuple.iter_borrowed().try_for_each(|item| value(&item, out, depth + 1))
    } else if let Ok(bytes) = object.cast::<PyBytes>() {
        length(bytes.as_bytes().len())?;
        written(write::write_bin(out, bytes.as_bytes()))
    } else if let Ok(bytes) = object.cast::<PyByteArray>() {
        let bytes = bytes.to_vec();
        length(bytes.len())?;
        written(write::write_bin(out, &bytes))
    } else {
        let class = object.get_type();
        Err(PyTypeError::new_err(format!("{class} cannot be sent as MessagePack: it is for plain data")))
    }
}

fn int(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    if let Ok(number) = object.extract::<i64>() {
        return written(write::write_sint(out, number));
    }
    match object.extract::<u64>() {
        Ok(number) => written(write::write_uint(out, number)),
        Err(_) => Err(PyOverflowError::new_err("MessagePack has no integers of more than 64 bits")),
    }
}

fn length(len: usize) -> PyResult<u32> {
    u32::try_from(len).map_err(|_| PyValueError::new_err("MessagePack has nothing of more than 4 GiB"))
}

/// Writing to a vector fails at nothing.
fn written<R, E: std::fmt::Debug>(result: Result<R, E>) -> PyResult<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(PyValueError::new_err(format!("{error:?}"))),
    }
}

/// Reads a message, all of it.
///
/// # Errors
/// `UnpicklingError` for bytes that are no MessagePack, or that have an extension type.
pub(super) fn decode<'py>(py: Python<'py>, mut message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let object = read(py, &mut message, 0)?;
    if message.is_empty() { Ok(object) } else { Err(malformed(py, "something follows the MessagePack")) }
}

fn read<'py>(py: Python<'py>, from: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    if depth > DEPTH {
        return Err(malformed(py, "its values are nested too deeply"));
    }
    let truncated = || malformed(py, "its MessagePack is truncated");
    macro_rules! data {
        ($read:ident) => {
            from.$read().map_err(|_| truncated())?
        };
    }
    Ok(match read_marker(from).map_err(|_| truncated())? {
        Marker::Null => py.None().into_bound(py),
        Marker::True => PyBool::new(py, true).to_owned().into_any(),
        Marker::False => PyBool::new(py, false).to_owned().into_any(),
        Marker::FixPos(number) => number.into_pyobject(py)?.into_any(),
        Marker::FixNeg(number) => number.into_pyobject(py)?.into_any(),
        Marker::U8 => data!(read_data_u8).into_pyobject(py)?.into_any(),
        Marker::U16 => data!(read_data_u16).into_pyobject(py)?.into_any(),
        Marker::U32 => data!(read_data_u32).into_pyobject(py)?.into_any(),
        Marker::U64 => data!(read_data_u64).into_pyobject(py)?.into_any(),
        Marker::I8 => data!(read_data_i8).into_pyobject(py)?.into_any(),
        Marker::I16 => data!(read_data_i16).into_pyobject(py)?.into_any(),
        Marker::I32 => data!(read_data_i32).into_pyobject(py)?.into_any(),
        Marker::I64 => data!(read_data_i64).into_pyobject(py)?.into_any(),
        Marker::F32 => PyFloat::new(py, data!(read_data_f32).into()).into_any(),
        Marker::F64 => PyFloat::new(py, data!(read_data_f64)).into_any(),
        Marker::FixStr(len) => text(py, len.into(), from)?,
        Marker::Str8 => text(py, data!(read_data_u8).into(), from)?,
        Marker::Str16 => text(py, data!(read_data_u16).into(), from)?,
        Marker::Str32 => text(py, data!(read_data_u32), from)?,
        Marker::Bin8 => bytes(py, data!(read_data_u8).into(), from)?,
        Marker::Bin16 => bytes(py, data!(read_data_u16).into(), from)?,
        Marker::Bin32 => bytes(py, data!(read_data_u32), from)?,
        Marker::FixArray(count) => array(py, count.into(), from, depth)?,
        Marker::Array16 => array(py, data!(read_data_u16).into(), from, depth)?,
        Marker::Array32 => array(py, data!(read_data_u32), from, depth)?,
        Marker::FixMap(count) => map(py, count.into(), from, depth)?,
        Marker::Map16 => map(py, data!(read_data_u16).into(), from, depth)?,
        Marker::Map32 => map(py, data!(read_data_u32), from, depth)?,
        Marker::Reserved
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32
        | Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16 => return Err(malformed(py, "its MessagePack has an extension type")),
    })
}

fn take<'a>(py: Python<'_>, from: &mut &'a [u8], len: u32) -> PyResult<&'a [u8]> {
    match from.split_at_checked(len as usize) {
        Some((bytes, rest)) => {
            *from = rest;
            Ok(bytes)
        }
        None => Err(malformed(py, "its MessagePack is truncated")),
    }
}

fn text<'py>(py: Python<'py>, len: u32, from: &mut &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match std::str::from_utf8(take(py, from, len)?) {
        Ok(text) => Ok(PyString::new(py, text).into_any()),
        Err(_) => Err(malformed(py, "a text is not UTF-8")),
    }
}

fn bytes<'py>(py: Python<'py>, len: u32, from: &mut &[u8]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyBytes::new(py, take(py, from, len)?).into_any())
}

fn array<'py>(py: Python<'py>, count: u32, from: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let list = PyList::empty(py);
    for _ in 0..count {
        list.append(read(py, from, depth + 1)?)?;
    }
    Ok(list.into_any())
}

fn map<'py>(py: Python<'py>, count: u32, from: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let dict = PyDict::new(py);
    for _ in 0..count {
        let key = read(py, from, depth + 1)?;
        dict.set_item(key, read(py, from, depth + 1)?)?;
    }
    Ok(dict.into_any())
}
