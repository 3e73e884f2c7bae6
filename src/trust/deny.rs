//! `trust.deny_file`: certificates that the operator refuses at once, without the database.

use std::{collections::HashSet, fs, io, path::PathBuf, sync::Arc, time::Duration};

use efgs_protocol::certificate::Thumbprint;

use super::Trust;
use crate::{
    health::{Health, Trouble},
    jobs::Shutdown,
};

/// How often the file is looked at.
const PACE: Duration = Duration::from_secs(1);

/// The file, and what was last read of it.
#[derive(Debug)]
pub struct DenyFile {
    path: PathBuf,
    trust: Arc<Trust>,
    health: Arc<Health>,
    content: Vec<u8>,
}

impl DenyFile {
    /// Reads the file and denies its certificates.
    pub fn load(path: PathBuf, trust: Arc<Trust>, health: Arc<Health>) -> io::Result<Self> {
        let content = fs::read(&path)?;
        let mut file = Self { path, trust, health, content: Vec::new() };
        file.take(content);
        Ok(file)
    }

    fn take(&mut self, content: Vec<u8>) {
        let (denied, malformed) = parse(&String::from_utf8_lossy(&content));
        tracing::info!(certificates = denied.len(), "`trust.deny_file` has changed and was loaded");
        self.trust.deny(denied);
        self.content = content;
        let lines: Vec<String> = malformed.iter().map(ToString::to_string).collect();
        self.note(
            (!lines.is_empty())
                .then(|| format!("{}: no thumbprint in line {}", self.path.display(), lines.join(", "))),
        );
    }

    /// Sets or clears the warning.
    fn note(&self, trouble: Option<String>) {
        let reason = trouble.clone();
        if self.health.set_trouble(Trouble::DenyFile, trouble)
            && let Some(reason) = reason
        {
            tracing::error!(reason, "{}", Trouble::DenyFile.text());
        }
    }

    /// Looks at the file; if it cannot be read, its last content stays in force.
    pub fn look(&mut self) {
        match fs::read(&self.path) {
            Ok(content) if content == self.content => {
                // The file may have been unreadable in between.
                let unread = |why: &String| !why.contains(": no thumbprint in line ");
                if self.health.troubles().get(&Trouble::DenyFile).is_some_and(unread) {
                    self.take(content);
                }
            }
            Ok(content) => self.take(content),
            Err(error) => self.note(Some(format!(
                "{} cannot be read, its last content stays in force: {error}",
                self.path.display()
            ))),
        }
    }

    /// Looks at the file every second until the gateway stops.
    pub async fn watch(mut self, mut shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                _ = ticks.tick() => {}
            }
            let looking = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looking.await {
                Ok(file) => self = file,
                Err(_) => return,
            }
        }
    }
}

/// The thumbprints of a file, one a line in hexadecimal digits, also with colons, and the numbers of lines that are none.
fn parse(text: &str) -> (HashSet<Thumbprint>, Vec<usize>) {
    let (mut denied, mut malformed) = (HashSet::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let digits = line.split('#').next().unwrap_or_default().trim().replace(':', "").to_ascii_lowercase();
        match digits.parse() {
            _ if digits.is_empty() => {}
            Ok(thumbprint) => drop(denied.insert(thumbprint)),
            Err(_) => malformed.push(number),
        }
    }
    (denied, malformed)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_malformed_line_does_not_disable_the_others() {
        let [one, other] = [7, 8].map(|byte| Thumbprint::from_bytes([byte; 32]));
        let colons: Vec<String> = other
            .to_string()
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap().to_uppercase())
            .collect();
        let text = format!(
            "# stolen\r\n\n  {one} # on Monday\nnonsense\n{}\n{}",
            colons.join(":"),
            &one.to_string()[1..]
        );
        assert_eq!(parse(&text), (HashSet::from([one, other]), vec![4, 6]));
        assert_eq!(parse(""), (HashSet::new(), vec![]));
    }
}
