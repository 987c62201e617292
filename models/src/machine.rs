//! Processes as ordinary functions over words that they share, run one access at a time.
//!
//! A [`Protocol`] writes each process as straight code, close to the code that it models. [`Memory`] cuts it into steps: one load,
//! store or exchange of a shared word, or one system call, a step. Between two steps anything else may happen: a step of another
//! process, or the death of this one. What a process has seen since its last section began is its log; to go on it is run again
//! from there with the log's answers, up to its next step. So a state is the shared words, and for each process where its section
//! began and its log: what a process keeps in registers and on its stack. It is gone when the process dies; the words stay.
//!
//! [`Machine`] makes a [`stateright::Model`] of that.

use std::fmt::Debug;
use std::hash::Hash;
use std::ops::{Deref, DerefMut};

use stateright::{Model, Property};

/// A protocol between processes, some of which may die.
pub trait Protocol: Sync + Send + 'static {
    /// The words in shared memory, and what the model notes about them to judge.
    type Words: Clone + Debug + Eq + Hash + Send + Sync;
    /// Where a process stands between two sections, and what it keeps from one to the next.
    type Local: Clone + Debug + Eq + Hash + Send + Sync;

    /// The words at first, and each process.
    fn start(&self) -> (Words<Self::Words>, Vec<Self::Local>);

    /// What this process is called in a counterexample.
    fn name(&self, process: usize) -> String;

    /// Runs a section of a process. `None` when it has nothing more to do.
    fn run(&self, local: &Self::Local, memory: &mut Memory<'_, Self>) -> Step<Option<Self::Local>>;

    /// Whether the death of this process is of interest.
    fn may_die(&self, _process: usize) -> bool {
        true
    }

    /// What is wrong with the words at this moment, whatever comes next.
    fn wrong(&self, _words: &Words<Self::Words>) -> Option<&'static str> {
        None
    }

    /// Whether the processes that run may go on as they do for ever, each looking again and again for what need not come.
    fn may_stay(&self, _words: &Words<Self::Words>, _running: &[(usize, &Self::Local)]) -> bool {
        false
    }

    /// What is wrong when no living process can go on; `stuck` are those that have not finished, and
    /// the sections they are in.
    fn wrong_at_the_end(
        &self,
        words: &Words<Self::Words>,
        stuck: &[(usize, &Self::Local)],
    ) -> Option<&'static str>;
}

/// Shared words, which processes live, and the first thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Words<W> {
    /// A bit for each process.
    living: u16,
    deaths: u8,
    fault: Option<&'static str>,
    words: W,
}

impl<W> Words<W> {
    /// Words of `processes` processes, all alive.
    pub fn new(processes: usize, words: W) -> Self {
        Words { living: (1 << processes) - 1, deaths: 0, fault: None, words }
    }

    /// Whether the process with this number lives. Numbers in shared words are one more, for 0 means nobody.
    pub fn is_alive(&self, id: u8) -> bool {
        id != 0 && self.living & 1 << (id - 1) != 0
    }

    /// How many processes have died.
    pub fn deaths(&self) -> u8 {
        self.deaths
    }

    /// Notes that something has gone wrong, unless `right`.
    pub fn must(&mut self, right: bool, otherwise: &'static str) {
        if !right && self.fault.is_none() {
            self.fault = Some(otherwise);
        }
    }
}

impl<W> Deref for Words<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.words
    }
}

impl<W> DerefMut for Words<W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.words
    }
}

/// Why a section does not go on.
#[derive(Debug)]
pub enum Stop {
    /// The next step is another transition.
    Pause,
    /// The next step waits for something.
    Blocked,
}

/// What an access gives, or the reason to stop here.
pub type Step<T> = Result<T, Stop>;

/// All words and processes at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<W, L> {
    /// The shared words.
    pub words: Words<W>,
    processes: Vec<Process<L>>,
    deaths_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Process<L> {
    Running { section: L, log: Vec<u32> },
    Finished,
    Dead,
}

/// The shared memory as one process sees it during one transition.
pub struct Memory<'a, P: Protocol + ?Sized> {
    me: usize,
    before: &'a State<P::Words, P::Local>,
    after: Option<State<P::Words, P::Local>>,
    /// Answers given in this section, of those in the log.
    answered: usize,
    option: u8,
    stepped: bool,
    label: &'static str,
}

impl<P: Protocol + ?Sized> Memory<'_, P> {
    /// This process's number as it stands in shared words.
    pub fn me(&self) -> u8 {
        self.me as u8 + 1
    }

    fn now(&self) -> &State<P::Words, P::Local> {
        self.after.as_ref().unwrap_or(self.before)
    }

    fn log(&self) -> &[u32] {
        match &self.now().processes[self.me] {
            Process::Running { log, .. } => log,
            Process::Finished | Process::Dead => &[],
        }
    }

    fn answer_from_log(&mut self) -> Option<u32> {
        let answer = *self.log().get(self.answered)?;
        self.answered += 1;
        Some(answer)
    }

    fn change(&mut self) -> &mut State<P::Words, P::Local> {
        self.after.get_or_insert_with(|| self.before.clone())
    }

    fn note(&mut self, answer: u32) -> u32 {
        let me = self.me;
        if let Process::Running { log, .. } = &mut self.change().processes[me] {
            log.push(answer);
        }
        self.answered += 1;
        answer
    }

    /// One access, or one system call: a step.
    pub fn step<R: Answer>(
        &mut self,
        label: &'static str,
        access: impl FnOnce(&mut Words<P::Words>) -> R,
    ) -> Step<R> {
        self.options(&[label], |_| 1, |words, _| access(words))
    }

    /// As [`Memory::step`], but it waits until it `may` happen.
    pub fn step_when<R: Answer>(
        &mut self,
        label: &'static str,
        may: impl FnOnce(&Words<P::Words>) -> bool,
        access: impl FnOnce(&mut Words<P::Words>) -> R,
    ) -> Step<R> {
        self.options(&[label], |words| may(words).into(), |words, _| access(words))
    }

    /// A step that may end in several ways: each bit of `possible` is one.
    pub fn options<R: Answer>(
        &mut self,
        labels: &[&'static str],
        possible: impl FnOnce(&Words<P::Words>) -> u8,
        access: impl FnOnce(&mut Words<P::Words>, u8) -> R,
    ) -> Step<R> {
        if let Some(answer) = self.answer_from_log() {
            return Ok(R::from_bits(answer));
        }
        if self.stepped {
            return Err(Stop::Pause);
        }
        if possible(&self.now().words) & 1 << self.option == 0 {
            return Err(Stop::Blocked);
        }
        self.stepped = true;
        self.label = labels[usize::from(self.option)];
        let option = self.option;
        let result = access(&mut self.change().words, option);
        Ok(R::from_bits(self.note(result.to_bits())))
    }

    /// A load of a word that nobody else can change now, for this process holds the lock that guards it. No step: whether
    /// another process's step or this one's death comes before or after it makes no difference.
    pub fn guarded<R: Answer>(&mut self, load: impl FnOnce(&P::Words) -> R) -> R {
        if let Some(answer) = self.answer_from_log() {
            return R::from_bits(answer);
        }
        let result = load(&self.now().words).to_bits();
        R::from_bits(self.note(result))
    }
}

/// What fits a place in a log.
pub trait Answer {
    /// The bits that mean this.
    fn to_bits(&self) -> u32;
    /// What the bits mean.
    fn from_bits(bits: u32) -> Self;
}

impl Answer for u8 {
    fn to_bits(&self) -> u32 {
        (*self).into()
    }

    fn from_bits(bits: u32) -> Self {
        bits as u8
    }
}

impl Answer for (u8, u8) {
    fn to_bits(&self) -> u32 {
        u32::from(self.0) << 8 | u32::from(self.1)
    }

    fn from_bits(bits: u32) -> Self {
        ((bits >> 8) as u8, bits as u8)
    }
}

impl Answer for bool {
    fn to_bits(&self) -> u32 {
        u32::from(*self)
    }

    fn from_bits(bits: u32) -> Self {
        bits != 0
    }
}

impl Answer for () {
    fn to_bits(&self) -> u32 {
        0
    }

    fn from_bits(_: u32) -> Self {}
}

/// A [`Protocol`] of which so many processes may die, as something that a model checker explores.
pub struct Machine<P> {
    /// The protocol.
    pub protocol: P,
    /// The most processes that die in one run.
    pub deaths: u8,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A process takes a step, which ends in the way of this number.
    Step(u8, u8),
    /// A process dies.
    Death(u8),
}

/// The most ways in which one step may end.
const OPTIONS: u8 = 3;

type StateOf<P> = State<<P as Protocol>::Words, <P as Protocol>::Local>;

impl<P: Protocol> Machine<P> {
    /// The state after a process's next step, and what the step was.
    fn advance(&self, before: &StateOf<P>, me: usize, option: u8) -> Option<(StateOf<P>, &'static str)> {
        let Process::Running { section, .. } = &before.processes[me] else { return None };
        if before.words.fault.is_some() {
            return None;
        }
        let mut section = section.clone();
        let mut memory =
            Memory { me, before, after: None, answered: 0, option, stepped: false, label: "goes on" };
        // A section without a step runs on into the next; more than a few of these in a row is a mistake in a model.
        for _ in 0..8 {
            let next = match self.protocol.run(&section, &mut memory) {
                Ok(Some(next)) => {
                    section = next.clone();
                    Process::Running { section: next, log: Vec::new() }
                }
                Ok(None) => Process::Finished,
                Err(Stop::Pause) => return memory.after.map(|after| (after, memory.label)),
                Err(Stop::Blocked) => return None,
            };
            let ended = next == Process::Finished;
            memory.change().processes[me] = next;
            memory.answered = 0;
            if memory.stepped || ended {
                return memory.after.map(|after| (after, memory.label));
            }
        }
        panic!("a section of {} that takes no step", self.protocol.name(me));
    }

    fn is_enabled(&self, state: &StateOf<P>, me: usize) -> bool {
        (0..OPTIONS).any(|option| self.advance(state, me, option).is_some())
    }

    /// Whether any living process can take a step.
    pub fn goes_on(&self, state: &StateOf<P>) -> bool {
        (0..state.processes.len()).any(|me| self.is_enabled(state, me))
    }

    fn running<'a>(&self, state: &'a StateOf<P>) -> Vec<(usize, &'a P::Local)> {
        (state.processes.iter().enumerate())
            .filter_map(|(me, process)| match process {
                Process::Running { section, .. } => Some((me, section)),
                Process::Finished | Process::Dead => None,
            })
            .collect()
    }

    /// Whether nothing more has to happen.
    pub fn may_stay(&self, state: &StateOf<P>) -> bool {
        self.protocol.may_stay(&state.words, &self.running(state))
    }

    /// What is wrong with a state in which nobody goes on.
    pub fn wrong_at_the_end(&self, state: &StateOf<P>) -> Option<&'static str> {
        self.protocol.wrong_at_the_end(&state.words, &self.running(state))
    }

    /// What is wrong with a state.
    pub fn wrong(&self, state: &StateOf<P>) -> Option<&'static str> {
        state.words.fault.or_else(|| self.protocol.wrong(&state.words))
    }

    /// A step in plain words.
    pub fn describe(&self, before: &StateOf<P>, action: Action) -> String {
        match action {
            Action::Death(who) => format!("{} dies", self.protocol.name(who.into())),
            Action::Step(who, option) => {
                let what = self.advance(before, who.into(), option).map_or("?", |(_, label)| label);
                format!("{} {what}", self.protocol.name(who.into()))
            }
        }
    }
}

/// The property that nothing is wrong at any moment.
pub const SAFE: &str = "nothing is wrong at any moment";
/// The property that nothing is wrong when nobody goes on.
pub const ENDS_WELL: &str = "nobody who can go on is left waiting, and all is accounted for";

impl<P: Protocol> Model for Machine<P> {
    type State = StateOf<P>;
    type Action = Action;

    fn init_states(&self) -> Vec<Self::State> {
        let (words, locals) = self.protocol.start();
        let running = |section| Process::Running { section, log: Vec::new() };
        vec![State { words, processes: locals.into_iter().map(running).collect(), deaths_left: self.deaths }]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Action>) {
        for (me, process) in state.processes.iter().enumerate() {
            if matches!(process, Process::Running { .. }) {
                actions.extend((0..OPTIONS).map(|option| Action::Step(me as u8, option)));
                if state.deaths_left > 0 && self.protocol.may_die(me) {
                    actions.push(Action::Death(me as u8));
                }
            }
        }
    }

    fn next_state(&self, state: &Self::State, action: Action) -> Option<Self::State> {
        match action {
            Action::Step(me, option) => self.advance(state, me.into(), option).map(|(after, _)| after),
            Action::Death(me) => {
                let mut after = state.clone();
                after.processes[usize::from(me)] = Process::Dead;
                after.words.living &= !(1 << me);
                after.words.deaths += 1;
                after.deaths_left -= 1;
                Some(after)
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE, |machine: &Self, state: &Self::State| machine.wrong(state).is_none()),
            Property::always(ENDS_WELL, |machine: &Self, state: &Self::State| {
                machine.wrong(state).is_some()
                    || machine.goes_on(state)
                    || machine.wrong_at_the_end(state).is_none()
            }),
        ]
    }
}
