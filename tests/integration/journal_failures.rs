//! A journal that is damaged, away, or cut off.
use crate::harness::tests;
tests![];
