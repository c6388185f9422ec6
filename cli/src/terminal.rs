//! The terminal, as far as a refreshed screen needs it.

use std::io::{IsTerminal as _, Write as _};

use indicatif::ProgressDrawTarget;

/// Where progress of long work is drawn: nowhere unless a person looks on.
pub fn progress_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// A screen that is redrawn in place; the cursor comes back when it is dropped.
#[derive(Debug)]
pub struct Terminal {
    _private: (),
}

impl Terminal {
    /// Takes the alternate screen and hides the cursor.
    pub fn enter() -> Self {
        print!("\x1b[?1049h\x1b[?25l");
        let _ = std::io::stdout().flush();
        Self { _private: () }
    }

    /// Columns, from `$COLUMNS` or as clap finds them; 120 if unknown.
    pub fn width(&self) -> usize {
        terminal_width().unwrap_or(120)
    }

    /// Draws lines from the top, clearing what was there.
    pub fn draw(&self, lines: &[String]) {
        let mut out = String::from("\x1b[H");
        for line in lines {
            out.push_str(line);
            out.push_str("\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        print!("{out}");
        let _ = std::io::stdout().flush();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = std::io::stdout().flush();
    }
}

fn terminal_width() -> Option<usize> {
    if let Some(columns) = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()) {
        return Some(columns);
    }
    let (_, columns) = console::Term::stdout().size_checked()?;
    Some(usize::from(columns))
}
