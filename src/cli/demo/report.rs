//! What the demo prints: numbered steps, each with its result and why it matters.

use std::{
    fmt::{self, Display},
    io::{self, ErrorKind, IsTerminal, Stdout, Write},
};

/// Where the results begin, counted in characters from the title.
const RESULT_COLUMN: usize = 52;

/// Something that a step compared.
pub(super) struct Check {
    what: &'static str,
    expected: String,
    got: String,
    holds: bool,
}

/// Compares two values by what they look like.
pub(super) fn check(what: &'static str, expected: impl Display, got: impl Display) -> Check {
    let (expected, got) = (expected.to_string(), got.to_string());
    let holds = expected == got;
    Check { what, expected, got, holds }
}

impl Check {
    /// The same, with more to say about what was got in case it is not the expected.
    pub(super) fn or_say(mut self, got: impl Display) -> Self {
        self.got = got.to_string();
        self
    }
}

#[derive(Clone, Copy)]
enum Style {
    Good,
    Bad,
    Bold,
    Dim,
}

/// The printer, and how many steps failed.
pub(super) struct Report<W> {
    out: W,
    colour: bool,
    steps: usize,
    failed: usize,
}

impl Report<Stdout> {
    /// To standard output; in colour if that is a terminal that wants it (<https://no-color.org>).
    pub(super) fn to_stdout() -> Self {
        let out = io::stdout();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = out.is_terminal() && !refused && !dumb;
        Self::new(out, colour)
    }
}

impl<W: Write> Report<W> {
    pub(super) fn new(out: W, colour: bool) -> Self {
        Self { out, colour, steps: 0, failed: 0 }
    }

    /// Whether every step so far succeeded.
    pub(super) fn all_held(&self) -> bool {
        self.failed == 0
    }

    pub(super) fn line(&mut self, line: impl Display) -> io::Result<()> {
        match writeln!(self.out, "{line}") {
            // A closed pipe (`| head`) is no reason to stop: the exit code also has the result.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// The title of a group of steps.
    pub(super) fn part(&mut self, title: &str) -> io::Result<()> {
        let title = self.styled(Style::Bold, title).to_string();
        self.line(format_args!("\n{title}"))
    }

    /// A step that is done: what was done, what came out, why it matters, and what has been compared.
    pub(super) fn step(
        &mut self,
        title: &str,
        result: impl Display,
        why: &str,
        checks: impl IntoIterator<Item = Check>,
    ) -> io::Result<()> {
        let wrong: Vec<Check> = checks.into_iter().filter(|check| !check.holds).collect();
        self.steps += 1;
        let number = self.steps;
        let leader = "·".repeat(RESULT_COLUMN.saturating_sub(title.chars().count() + 2).max(1));
        let leader = self.styled(Style::Dim, &leader).to_string();
        if wrong.is_empty() {
            let (mark, result) = (self.styled(Style::Good, "✓"), self.styled(Style::Good, &result));
            self.line(format!("{number:>3} {mark} {title} {leader} {result}"))?;
            let why = self.styled(Style::Dim, why).to_string();
            return self.line(format_args!("      {why}"));
        }
        self.failed += 1;
        let (mark, result) = (self.styled(Style::Bad, "✗"), self.styled(Style::Bad, "failed"));
        self.line(format!("{number:>3} {mark} {title} {leader} {result}"))?;
        for Check { what, expected, got, .. } in wrong {
            self.line(format_args!("      {what}: expected {expected}, got {got}"))?;
        }
        Ok(())
    }

    /// The demo cannot continue.
    pub(super) fn stopped(&mut self, why: impl Display) -> io::Result<()> {
        self.steps += 1;
        self.failed += 1;
        let (number, mark) = (self.steps, self.styled(Style::Bad, "✗").to_string());
        self.line(format!("{number:>3} {mark} The demo cannot continue: {why}"))
    }

    /// The end: how many steps succeeded.
    pub(super) fn summary(&mut self) -> io::Result<()> {
        let (steps, failed) = (self.steps, self.failed);
        let summary = match failed {
            0 => self.styled(Style::Good, format!("✓ All {steps} steps succeeded.")).to_string(),
            _ => self.styled(Style::Bad, format!("✗ {failed} of {steps} steps failed.")).to_string(),
        };
        self.line(format_args!("\n{summary}"))
    }

    /// Something that is less important.
    pub(super) fn aside(&mut self, text: impl Display) -> io::Result<()> {
        let text = self.styled(Style::Dim, text).to_string();
        self.line(text)
    }

    fn styled<T: Display>(&self, style: Style, text: T) -> impl Display + use<T, W> {
        let colour = self.colour;
        fmt::from_fn(move |f| {
            let code = match style {
                Style::Good => "32",
                Style::Bad => "31;1",
                Style::Bold => "1",
                Style::Dim => "2",
            };
            if colour { write!(f, "\x1b[{code}m{text}\x1b[0m") } else { text.fmt(f) }
        })
    }
}
