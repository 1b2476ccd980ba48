//! Progress lines: what a workload may say about how far it is.

use std::fmt;

/// The longest line that is read, in bytes; a longer one is malformed.
pub const LINE_BYTES_MAX: usize = 4096;

/// How far a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    pct: u8,
}

impl Progress {
    /// Makes a progress of `pct` percent; more than 99 is 99, for only a commit is 100.
    #[must_use]
    pub fn running(pct: u8) -> Self {
        Self { pct: pct.min(99) }
    }

    /// Returns the percentage, 0 to 99.
    #[must_use]
    pub const fn pct(self) -> u8 {
        self.pct
    }

    /// Reads one line: a number from 0 to 100, optionally with `%`, optionally followed by a message.
    /// A fraction is rounded down. `None` if the line is anything else.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        if line.len() > LINE_BYTES_MAX {
            return None;
        }
        let word = line.split_whitespace().next()?;
        let number = word.strip_suffix('%').unwrap_or(word);
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let value: f64 = if plain { number.parse().ok()? } else { return None };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in 0..=100")]
        (0.0..=100.0).contains(&value).then(|| Self::running(value as u8))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.pct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_percentage_and_perhaps_a_message() {
        for (line, pct) in [
            ("42", 42),
            ("42%", 42),
            ("  7 %", 7),
            ("6.9 step one", 6),
            ("0", 0),
            ("100", 99),
            ("100% done", 99),
            ("33%\r", 33),
        ] {
            assert_eq!(Progress::parse(line), Some(Progress { pct }), "{line:?}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        let long = format!("1 {}", "x".repeat(LINE_BYTES_MAX));
        for line in ["", " ", "half", "-1", "101", "1e1", "NaN", "inf", "+5", "%", ".", "1.2.3", "42%%", long.as_str()]
        {
            assert_eq!(Progress::parse(line), None, "{line:?}");
        }
    }
}
