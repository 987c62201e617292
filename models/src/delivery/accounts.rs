//! Unfinished tasks: what was taken for good and not declared done, and by whom.

use super::{Mutant, Tasks};
use crate::blocks::{Account, BlockState, GET, MEMORY, Mem, Queue, free_locked, lock, mend, unlock};
use crate::machine::{Step, Words};

impl Tasks {
    pub(super) fn my_account(&self, m: &mut Mem<'_>) -> Step<u8> {
        let me = m.me();
        let find = |w: &Queue, owner: u8| w.accounts.iter().position(|account| account.owner == owner);
        let found = m.guarded(|w| find(w, me).or_else(|| find(w, 0)).map_or(0, |index| index as u8 + 1));
        let index = match found.checked_sub(1) {
            Some(index) => index,
            None => m.step("looks for a dead process's account", |w| {
                let dead = (0..w.accounts.len()).find(|index| !w.is_alive(w.accounts[*index].owner));
                w.must(dead.is_some(), "there are not enough accounts");
                dead.unwrap_or(0) as u8
            })?,
        };
        let at = usize::from(index);
        if m.guarded(|w| w.accounts[at].owner) != me {
            m.step("notes the debt of the account's dead owner", |w| {
                w.accounts[at].lost = w.accounts[at].taken.0.wrapping_sub(w.accounts[at].done);
            })?;
            m.step("takes the account", |w| w.accounts[at].owner = me)?;
        }
        Ok(index)
    }

    /// A signed number: an account may be ahead.
    pub(super) fn unfinished(&self, m: &mut Mem<'_>) -> Step<i8> {
        loop {
            let head = m.step("looks at the head", |w| w.head)?;
            let tail = m.step("looks at the tail", |w| w.tail)?;
            let mut sum = (tail - head) as i8 + m.step("looks at the sum of held ones", |w| w.held)? as i8;
            for account in 0..m.guarded(|w| w.accounts.len() as u8) {
                let at = usize::from(account);
                sum += m.step("looks at an account's taken ones", |w| w.accounts[at].taken.0)? as i8;
                sum -= m.step("looks at an account's done ones", |w| w.accounts[at].done)? as i8;
            }
            if sum > 0 || self.is(Mutant::TailNotLookedAtAgain) {
                return Ok(sum);
            }
            if m.step("looks whether the tail is where it was", |w| w.tail)? == tail {
                return Ok(sum);
            }
        }
    }

    pub(super) fn task_done(&self, m: &mut Mem<'_>, message: u8) -> Step<()> {
        let me = m.me();
        mend(self, m)?;
        lock(self, m, MEMORY)?;
        if self.unfinished(m)? <= 0 {
            m.step("is told that nothing is unfinished", |w| {
                w.must(false, "a task could not be declared done")
            })?;
            return unlock(m, MEMORY);
        }
        let done = move |w: &mut Words<Queue>| {
            w.fate(message).done = true;
            w.note();
        };
        let mine = m.guarded(|w| {
            let owed = |block: &u8| w.blocks[usize::from(*block)].state == BlockState::Owed(me);
            if w.owed == 0 { 0 } else { (0..w.descriptors).find(owed).map_or(0, |block| block + 1) }
        });
        if let Some(block) = mine.checked_sub(1) {
            self.settle(m, block, true, done)?;
        } else {
            let index = m.guarded(|w| {
                let balance = |account: &Account| account.taken.0.wrapping_sub(account.done) as i8;
                let mine = w.accounts.iter().position(|account| account.owner == me);
                let owing = |index: &usize| balance(&w.accounts[*index]) > 0;
                let any = mine.filter(owing).or_else(|| (0..w.accounts.len()).find(owing));
                any.or(mine).unwrap_or(0) as u8
            });
            m.step("counts one as done", |w| {
                w.accounts[usize::from(index)].done += 1;
                done(w);
            })?;
        }
        unlock(m, MEMORY)
    }

    pub(super) fn settle(
        &self,
        m: &mut Mem<'_>,
        block: u8,
        owed: bool,
        note: impl FnOnce(&mut Words<Queue>),
    ) -> Step<()> {
        if owed {
            m.step("counts one less as owed", |w| w.owed = w.owed.saturating_sub(1))?;
        }
        free_locked(m, block, note)?;
        m.step("counts one less as held", |w| w.held = w.held.saturating_sub(1))
    }

    pub(super) fn give_back(&self, m: &mut Mem<'_>, block: u8) -> Step<()> {
        lock(self, m, MEMORY)?;
        let early = self.is(Mutant::ReturnedBeforeCounted);
        let mark = |m: &mut Mem<'_>| {
            m.step("marks the delivery as returned", |w| w.block(block).state = BlockState::Returned)
        };
        if early {
            mark(m)?;
        }
        m.step("counts one more as returned", |w| w.returned += 1)?;
        if !early {
            mark(m)?;
        }
        unlock(m, MEMORY)
    }

    pub(super) fn owe(&self, m: &mut Mem<'_>, block: u8, message: u8) -> Step<()> {
        let me = m.me();
        lock(self, m, MEMORY)?;
        m.step("marks the delivery as owed", |w| {
            w.block(block).state = BlockState::Owed(me);
            w.fate(message).taken = me;
        })?;
        m.step("counts one more as owed", |w| w.owed += 1)?;
        unlock(m, MEMORY)
    }

    /// Whether all that is unfinished was taken for good by the dead, and is now forgotten.
    pub(super) fn collect_losses(&self, m: &mut Mem<'_>) -> Step<bool> {
        lock(self, m, GET)?;
        lock(self, m, MEMORY)?;
        let unfinished = self.unfinished(m)?;
        let mut blocks = Vec::new();
        for block in 0..m.guarded(|w| w.descriptors) {
            if let BlockState::Owed(owner) = m.guarded(|w| w.blocks[usize::from(block)].state)
                && m.step("looks whether a debtor lives", |w| !w.is_alive(owner))?
            {
                blocks.push(block);
            }
        }
        let mut debts = Vec::new();
        let mut living = m.guarded(|w| w.held) as usize != blocks.len();
        for index in 0..m.guarded(|w| w.accounts.len() as u8) {
            let at = usize::from(index);
            let owner = m.guarded(|w| w.accounts[at].owner);
            if owner == 0 {
                continue;
            }
            let balance = m.guarded(|w| w.accounts[at].taken.0.wrapping_sub(w.accounts[at].done)) as i8;
            let lost = m.guarded(|w| w.accounts[at].lost) as i8;
            let alive = m.step("looks whether a debtor lives", |w| w.is_alive(owner))?;
            let debt = if alive { balance.max(0).min(lost) } else { balance.max(0) };
            living |= debt < balance.max(0);
            if debt > 0 {
                debts.push((at, debt));
            }
        }
        let head = m.guarded(|w| w.head);
        let nothing = blocks.is_empty() && debts.is_empty() || unfinished <= 0 || living;
        if nothing || m.step("looks at the tail", |w| w.tail)? != head {
            unlock(m, MEMORY)?;
            unlock(m, GET)?;
            return Ok(false);
        }
        let mut left = unfinished;
        m.step("finds that only the dead owe tasks", |w| w.must_be_lost())?;
        for block in blocks {
            let message = m.guarded(|w| w.blocks[usize::from(block)].words.0);
            self.settle(m, block, true, |w| w.forget(message))?;
            left -= 1;
        }
        for (at, debt) in debts {
            let forgotten = debt.min(left.max(0));
            left -= forgotten;
            m.step("forgets a debt", |w| {
                w.accounts[at].done += forgotten as u8;
                for _ in 0..forgotten {
                    let lost = w.lost_in_accounts();
                    w.forget(lost);
                }
            })?;
            m.step("forgets whose it was", |w| w.accounts[at].lost = 0)?;
        }
        unlock(m, MEMORY)?;
        unlock(m, GET)?;
        Ok(true)
    }
}
