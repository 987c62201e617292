//! Conditions that a program does not choose: limits, privileges, hardened systems, and long lives.

mod hardened;
mod killed_trees;
mod leaks;
mod programs;
mod scarcity;
