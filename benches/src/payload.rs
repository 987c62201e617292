//! The messages. Each carries a number, so that a consumer can prove that it got all of them.

use std::borrow::BorrowMut;

use serde::{Deserialize, Serialize};

/// A message with a number in it.
pub trait Payload {
    /// What a producer keeps to send from.
    type Owned: BorrowMut<Self>;

    /// A message of `size` bytes, where the size can be chosen.
    fn blank(size: usize) -> Self::Owned;
    /// Writes the number.
    fn set_number(&mut self, number: u64);
    /// Reads the number.
    fn number(&self) -> u64;
}

impl Payload for [u8] {
    type Owned = Vec<u8>;

    fn blank(size: usize) -> Vec<u8> {
        assert!(size >= 8, "a message holds at least its number");
        vec![0x5a; size]
    }

    fn set_number(&mut self, number: u64) {
        self[..8].copy_from_slice(&number.to_ne_bytes());
    }

    fn number(&self) -> u64 {
        self.first_chunk().map_or(u64::MAX, |bytes| u64::from_ne_bytes(*bytes))
    }
}

/// The typed message: a struct of five fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The message's number.
    pub id: u64,
    /// A short text.
    pub symbol: String,
    /// A float.
    pub price: f64,
    /// A small number.
    pub quantity: u32,
    /// A flag.
    pub buy: bool,
}

impl Payload for Order {
    type Owned = Order;

    fn blank(_size: usize) -> Order {
        Order { id: 0, symbol: "PROCESSION".into(), price: 101.25, quantity: 1200, buy: true }
    }

    fn set_number(&mut self, number: u64) {
        self.id = number;
    }

    fn number(&self) -> u64 {
        self.id
    }
}
