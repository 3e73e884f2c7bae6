//! Rate-limits the log lines that unregistered callers cause: each once a minute, so that nobody can fill the
//! disk with them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
/// How long the same line is suppressed.
const QUIET: Duration = Duration::from_secs(60);
/// Different lines within that time; what exceeds them is only counted in the metrics.
const MOST: usize = 256;

/// Remembers which lines were written within the last minute.
#[derive(Debug, Default)]
pub(super) struct Sparing(Mutex<Option<HashMap<String, Line>>>);

#[derive(Debug)]
struct Line {
    written: Instant,
    left_out: u64,
}

impl Sparing {
    /// Nothing was written yet.
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether this line is to be written now, and then how often it was left out since it was written last.
    pub(super) fn ask(&self, line: &str, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock();
        let lines = lines.get_or_insert_default();
        let quiet = |line: &Line| now.duration_since(line.written) < QUIET;
        if let Some(known) = lines.get_mut(line) {
            if quiet(known) {
                known.left_out += 1;
                return None;
            }
            let left_out = known.left_out;
            *known = Line { written: now, left_out: 0 };
            return Some(left_out);
        }
        if lines.len() >= MOST {
            lines.retain(|_, line| quiet(line));
        }
        if lines.len() >= MOST {
            return None;
        }
        lines.insert(line.to_owned(), Line { written: now, left_out: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_written_once_a_minute_and_says_what_was_left_out() {
        let (sparing, now) = (Sparing::new(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(sparing.ask("a", now), Some(0));
        assert_eq!(sparing.ask("a", after(1)), None);
        assert_eq!(sparing.ask("a", after(59)), None);
        assert_eq!(sparing.ask("b", after(59)), Some(0));
        assert_eq!(sparing.ask("a", after(60)), Some(2));
        assert_eq!(sparing.ask("a", after(61)), None);
        assert_eq!(sparing.ask("a", after(120)), Some(1));
    }

    #[test]
    fn the_number_of_different_lines_is_limited() {
        let (sparing, now) = (Sparing::new(), Instant::now());
        let written = |at| (0..10_000).filter(|i| sparing.ask(&format!("{i}"), at).is_some()).count();
        assert_eq!(written(now), MOST);
        assert_eq!(written(now + QUIET), MOST, "and not none a minute later");
    }
}
