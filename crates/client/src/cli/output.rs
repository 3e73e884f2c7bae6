//! Output of a command: results on standard output, everything else on standard error, progress on a
//! terminal only, and an exit code.

use std::{
    error::Error,
    fmt::Display,
    io::{IsTerminal as _, Write},
    iter,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Outcome;

/// How a command ended, for scripts. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Everything was done.
    Done = 0,
    /// It failed. Running it again does not help until somebody has fixed what the message names.
    Failed = 1,
    /// The arguments are wrong; clap ends the program with it.
    Usage = 2,
    /// Verification failed. The data was quarantined or rejected; none of it was released.
    Unverified = 3,
    /// It was done, except for single keys or files, which are reported.
    Partly = 4,
    /// Temporary failure: the gateway cannot be reached or is busy, or another `efgs` uses the state folder.
    /// Nothing is lost; run it again.
    Later = 5,
}

impl Exit {
    /// The exit codes, as the help and the manual page list them.
    pub(super) fn explained() -> &'static str {
        "Exit codes:\n  \
         0  everything was done\n  \
         1  it failed; the message says what to fix\n  \
         2  the arguments are wrong\n  \
         3  data did not verify; it was quarantined or rejected, and none of it was released\n  \
         4  done, except for single keys or files, which are reported\n  \
         5  temporary failure: the gateway cannot be reached or is busy, or another efgs uses the state folder; \
         nothing is lost, run it again"
    }

    /// The code for an error: that of a [`ExitError`], [`Exit::Later`] for a temporary one, else
    /// [`Exit::Failed`].
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let of_cause = |error: &(dyn Error + 'static)| match error.downcast_ref::<ExitError>() {
            Some(error) => Some(error.exit),
            None => error.downcast_ref().is_some_and(crate::Error::is_temporary).then_some(Self::Later),
        };
        iter::successors(Some(error), |&error| error.source()).find_map(of_cause).unwrap_or(Self::Failed)
    }
}

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ExitError {
    exit: Exit,
    message: String,
}

impl ExitError {
    pub(super) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// Where a command prints.
#[derive(Clone, Copy)]
pub(super) struct Console {
    json: bool,
    quiet: bool,
    terminal: bool,
}

impl Console {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: std::io::stderr().is_terminal() }
    }

    /// Whether the result is wanted as JSON.
    pub(super) fn wants_json(&self) -> bool {
        self.json
    }

    /// The result: as JSON if requested, otherwise these lines.
    pub(super) fn result(&self, json: &impl Serialize, text: impl Display) -> Outcome {
        if self.json { self.json(json) } else { self.say(text) }
    }

    /// A line of the result.
    pub(super) fn say(&self, line: impl Display) -> Outcome {
        self.print(format!("{line}\n"))
    }

    /// The result, or one of several, as JSON on one line.
    pub(super) fn json(&self, value: &impl Serialize) -> Outcome {
        self.say(serde_json::to_string(value)?)
    }

    /// Writes bytes to standard output. A closed pipe (`| head`) is not an error.
    pub(super) fn print(&self, bytes: impl AsRef<[u8]>) -> Outcome {
        let mut out = std::io::stdout().lock();
        match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(Exit::Done),
        }
    }

    /// A progress message for people.
    pub(super) fn note(&self, line: impl Display) {
        if !self.quiet {
            to_stderr(line);
        }
    }

    /// A warning that stops nothing.
    pub(super) fn warn(&self, line: impl Display) {
        self.note(format_args!("warning: {line}"));
    }

    /// Why the command failed; on standard error also as JSON, so that a result is never mistaken for it.
    pub(super) fn fail(&self, error: &dyn Error) {
        if self.json {
            to_stderr(serde_json::json!({ "error": clean(&error.to_string()) }));
        } else {
            to_stderr(format_args!("efgs: {error}"));
        }
    }

    /// A progress bar that counts `unit` (such as `keys`) up to `total`, or without a total. It is drawn on a
    /// terminal only, and disappears at its end.
    pub(super) fn progress(&self, total: Option<u64>, unit: &str) -> ProgressBar {
        if self.quiet || !self.terminal {
            return ProgressBar::hidden();
        }
        let template = match total {
            Some(_) => {
                format!("{{msg}} {{bar:30}} {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left")
            }
            None => format!("{{msg}} {{spinner}} {{human_pos}} {unit}, {{per_sec}}, {{elapsed}}"),
        };
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        // The template is one of two; a mistake in it shows as the default style.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

fn to_stderr(line: impl Display) {
    // Nothing is left to do when standard error is closed.
    drop(writeln!(std::io::stderr(), "{}", clean(&line.to_string())));
}

/// Replaces control characters in a text, so that it is safe to print on a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
