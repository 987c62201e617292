//! What is known of a queue beyond its words: to judge what processes do, and when those who wait have something to find.

use crate::blocks::{Account, Block, BlockState, Fate, Queue};
use crate::machine::Words;

impl Words<Queue> {
    pub(super) fn somebody_died_with_a_delivery(&self) -> bool {
        let dead = |block: &Block| match block.state {
            BlockState::Held(owner) | BlockState::HeldCopy(owner) => !self.is_alive(owner),
            _ => false,
        };
        self.held != self.returned && self.blocks[..self.descriptors.into()].iter().any(dead)
    }

    pub(super) fn has_message(&self) -> bool {
        self.tail != self.head || self.returned != 0
    }

    pub(super) fn is_orphaned(&self, lock: usize) -> bool {
        self.locks[lock] != 0 && !self.is_alive(self.locks[lock])
    }

    /// Published, not done, and not taken for good by somebody who died.
    pub(super) fn is_open(&self, fate: &Fate) -> bool {
        fate.published && !fate.done && (fate.taken == 0 || self.is_alive(fate.taken))
    }

    pub(super) fn must_be_lost(&mut self) {
        let held = self.blocks.iter().any(|block| {
            matches!(block.state, BlockState::Held(_) | BlockState::HeldCopy(_) | BlockState::Returned)
        });
        let taken_by_the_living = |fate: &Fate| fate.taken != 0 && self.is_open(fate);
        let right = !held && !self.fates.iter().any(taken_by_the_living);
        self.must(right, "a task is taken for lost that somebody has");
    }

    pub(super) fn forget(&mut self, message: u8) {
        if message != 0 {
            self.fate(message).done = true;
        }
        self.note();
    }

    /// A message that a dead process took for good, and that is in an account.
    pub(super) fn lost_in_accounts(&self) -> u8 {
        let owed = |block: &Block| matches!(block.state, BlockState::Owed(_));
        let in_block = |message: u8| self.blocks.iter().any(|block| owed(block) && block.words.0 == message);
        let lost = |message: &u8| {
            let fate = self.fates[usize::from(*message) - 1];
            fate.published
                && !fate.done
                && fate.taken != 0
                && !self.is_alive(fate.taken)
                && !in_block(*message)
        };
        (1..=self.fates.len() as u8).find(lost).unwrap_or(0)
    }

    pub(super) fn sum(&self) -> i8 {
        let balance = |account: &Account| account.taken.0.wrapping_sub(account.done) as i8;
        (self.tail - self.head + self.held) as i8 + self.accounts.iter().map(balance).sum::<i8>()
    }
}
