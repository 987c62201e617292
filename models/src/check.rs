//! Explores a model, and says what it found in plain words.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::machine::{Action, ENDS_WELL, Machine, Protocol, SAFE};

/// What came of a search through all states of a model.
#[derive(Debug)]
pub struct Outcome {
    /// States that differ.
    pub states: usize,
    /// The longest of the shortest ways to a state, in steps.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// The way to a state that must not be, if there is one.
    pub counterexample: Option<Counterexample>,
}

/// A way to a state that must not be.
#[derive(Debug)]
pub struct Counterexample {
    /// What is wrong with the state.
    pub what: String,
    /// Each step on the way there.
    pub steps: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after:", self.what)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:4}. {step}", number + 1)?;
        }
        Ok(())
    }
}

/// Looks at all states; stops at the first that must not be.
pub fn check<P: Protocol>(machine: Machine<P>, threads: usize) -> Outcome {
    let start = Instant::now();
    let checker =
        machine.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let machine = checker.model();
    let counterexample = [SAFE, ENDS_WELL].into_iter().find_map(|property| {
        let path = checker.discovery(property)?.into_vec();
        let steps =
            path.iter().filter_map(|(state, action)| Some(machine.describe(state, (*action)?))).collect();
        let last = path.last().map(|(state, _)| state)?;
        let wrong = if property == SAFE { machine.wrong(last) } else { machine.wrong_at_the_end(last) };
        Some(Counterexample { what: wrong.unwrap_or(property).to_owned(), steps })
    });
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: start.elapsed(),
        counterexample,
    }
}

/// As [`check`], and whether from every state one can be reached in which nothing more has to happen. For a protocol with loops (who sleeps looks again,
/// and again), where [`check`] alone would not see that some never end.
pub fn check_that_all_ends<P: Protocol>(machine: &Machine<P>) -> Outcome {
    let start = Instant::now();
    let mut graph = Graph::default();
    for state in machine.init_states() {
        graph.visit(fingerprint(&state), None);
        graph.pending.push((0, state));
    }
    let mut ends = Vec::new();
    let mut actions = Vec::new();
    while !graph.pending.is_empty() {
        for (number, state) in std::mem::take(&mut graph.pending) {
            actions.clear();
            machine.actions(&state, &mut actions);
            let mut goes_on = false;
            for action in &actions {
                let Some(next) = machine.next_state(&state, *action) else { continue };
                goes_on |= matches!(action, Action::Step(..));
                let (next_number, is_new) = graph.visit(fingerprint(&next), Some((number, *action)));
                graph.edges.push((next_number, number));
                if is_new {
                    graph.pending.push((next_number, next));
                }
            }
            let wrong = machine.wrong(&state);
            let wrong = wrong.or_else(|| if goes_on { None } else { machine.wrong_at_the_end(&state) });
            if let Some(what) = wrong {
                let steps = graph.way_to(machine, number);
                let counterexample = Some(Counterexample { what: what.to_owned(), steps });
                return graph.outcome(start, counterexample);
            }
            if !goes_on || machine.may_stay(&state) {
                ends.push(number);
            }
        }
        graph.depth += 1;
    }
    let counterexample = graph.without_way_to(&ends).map(|state| Counterexample {
        what: "somebody who has to go on never does".to_owned(),
        steps: graph.way_to(machine, state),
    });
    graph.outcome(start, counterexample)
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// States by number, and how they follow each other.
struct Graph<S> {
    numbers: HashMap<u64, u32>,
    /// How each state was reached first.
    reached: Vec<Option<(u32, Action)>>,
    /// From each state to each before it.
    edges: Vec<(u32, u32)>,
    pending: Vec<(u32, S)>,
    depth: usize,
}

impl<S> Default for Graph<S> {
    fn default() -> Self {
        Graph {
            numbers: HashMap::new(),
            reached: Vec::new(),
            edges: Vec::new(),
            pending: Vec::new(),
            depth: 0,
        }
    }
}

impl<S> Graph<S> {
    fn visit(&mut self, fingerprint: u64, from: Option<(u32, Action)>) -> (u32, bool) {
        let new = self.reached.len() as u32;
        let number = *self.numbers.entry(fingerprint).or_insert(new);
        if number == new {
            self.reached.push(from);
        }
        (number, number == new)
    }

    fn outcome(&self, start: Instant, counterexample: Option<Counterexample>) -> Outcome {
        Outcome { states: self.numbers.len(), depth: self.depth, time: start.elapsed(), counterexample }
    }

    /// A state from which none of `ends` can be reached.
    fn without_way_to(&mut self, ends: &[u32]) -> Option<u32> {
        self.edges.sort_unstable();
        let mut has_way = vec![false; self.reached.len()];
        let mut pending = ends.to_vec();
        while let Some(state) = pending.pop() {
            if std::mem::replace(&mut has_way[state as usize], true) {
                continue;
            }
            let first = self.edges.partition_point(|edge| edge.0 < state);
            pending.extend(self.edges[first..].iter().take_while(|edge| edge.0 == state).map(|edge| edge.1));
        }
        has_way.iter().position(|has_way| !has_way).map(|state| state as u32)
    }

    fn way_to<P: Protocol<Words: Clone>>(&self, machine: &Machine<P>, state: u32) -> Vec<String> {
        let mut actions = Vec::new();
        let mut at = state;
        while let Some((before, action)) = self.reached[at as usize] {
            actions.push(action);
            at = before;
        }
        let Some(mut state) = machine.init_states().pop() else { return Vec::new() };
        let mut steps = Vec::new();
        for action in actions.into_iter().rev() {
            steps.push(machine.describe(&state, action));
            match machine.next_state(&state, action) {
                Some(next) => state = next,
                None => break,
            }
        }
        steps
    }
}
