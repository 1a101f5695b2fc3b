//! What people see: a live line per model on a terminal, lines on changes elsewhere.

use std::{fmt::Display, io::IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Standard error, shared by everything that has something to say. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Console {
    lines: Option<MultiProgress>,
}

impl Console {
    /// The console of this process.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lines: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// Says one thing, above the live lines.
    pub fn say(&self, line: impl Display) {
        match &self.lines {
            Some(lines) => lines.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Prints what a program may want to read to standard output.
    pub fn print(&self, text: impl Display) {
        match &self.lines {
            Some(lines) => lines.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// A live line, where there is a terminal to show it.
    #[must_use]
    pub fn live(&self) -> Option<ProgressBar> {
        let line = ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        self.lines.as_ref().map(|lines| lines.add(line))
    }
}
