//! The output that people read: a live line per model on a terminal, lines on changes elsewhere.

use std::{fmt::Display, io::IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Standard error and standard output, shared by all models of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Console {
    lines: Option<MultiProgress>,
}

impl Console {
    /// Returns a console that draws live lines where standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lines: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// Prints a line to standard error, above the live lines.
    pub fn say(&self, line: impl Display) {
        match &self.lines {
            Some(lines) => lines.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Prints text that a program may want to read to standard output.
    pub fn print(&self, text: impl Display) {
        match &self.lines {
            Some(lines) => lines.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// Adds a live line, where there is a terminal to show it.
    #[must_use]
    pub fn live(&self) -> Option<ProgressBar> {
        let line = ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        self.lines.as_ref().map(|lines| lines.add(line))
    }
}
