//! Values of rows that another program, an earlier version, or a person may have written.
//!
//! A value is read leniently ([`integer`]), and remembered in the form in which it was seen ([`Form`]), so that a condition
//! on it compares with what stands in the row. A condition on our own form of the same number would never hold.

/// How an attribute stands in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The row does not have it.
    #[default]
    Absent,
    /// A number, as the service writes it.
    Number(String),
    /// A text.
    Text(String),
    /// Another type, by its `DynamoDB` type code: `L`, `M`, `BOOL`, and so on.
    Other(&'static str),
}

impl Form {
    /// Returns the value as a word for people.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Absent => "missing".to_owned(),
            Self::Number(value) => value.clone(),
            Self::Text(value) => format!("{value:?}"),
            Self::Other(code) => format!("a value of type {code}"),
        }
    }
}

/// Reads an integer as a person or a program may have written it: `12`, ` 12 `, `+12`, `12.0`, `1.2e1`, `1,200`, `1_200`.
/// A fraction is rounded to the nearest integer. `None` if the text is no number, or is beyond 2^53, up to which floating
/// numbers are exact.
#[must_use]
pub fn integer(text: &str) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let text = text.trim();
    if let Ok(value) = text.parse::<i64>() {
        return Some(value);
    }
    let plain = without_groups(text)?;
    let is_number = plain.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'+' | b'-' | b'e' | b'E'));
    let value: f64 = if is_number { plain.parse().ok()? } else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "checked to be within 2^53")]
    (value.abs() <= EXACT_MAX).then(|| value.round() as i64)
}

/// Removes the marks between groups of three digits: `1,200,000`, `1_200`, `1 200`, `1'200`. `None` if the marks stand elsewhere.
fn without_groups(text: &str) -> Option<String> {
    let is_mark = |c: char| matches!(c, ',' | '_' | '\'' | ' ' | '\u{a0}' | '\u{202f}');
    if !text.contains(is_mark) {
        return Some(text.to_owned());
    }
    let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = match whole.strip_prefix(['+', '-']) {
        Some(digits) => (&whole[..1], digits),
        None => ("", whole),
    };
    let mut groups = digits.split(is_mark);
    let first = groups.next().filter(|first| (1..=3).contains(&first.len()))?;
    let mut plain = format!("{sign}{first}");
    for group in groups {
        if group.len() != 3 || !group.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        plain.push_str(group);
    }
    if let Some(rest) = rest {
        plain.push('.');
        plain.push_str(rest);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, value) in [
            ("12", 12),
            (" 12\n", 12),
            ("+12", 12),
            ("-3", -3),
            ("0012", 12),
            ("12.0", 12),
            ("12.", 12),
            ("12.000", 12),
            ("1e3", 1000),
            ("1.5E2", 150),
            ("1,200", 1200),
            ("1,200,000", 1_200_000),
            ("1_200", 1200),
            ("1 200", 1200),
            ("-1'200.0", -1200),
            ("2.5", 3),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(integer(text), Some(value), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_none() {
        for text in [
            "",
            " ",
            "twelve",
            "1,2",
            "12,",
            ",200",
            "1,2000",
            "1..2",
            "0x10",
            "NaN",
            "inf",
            "-",
            "1e400",
            "1e38",
            "12 apples",
        ] {
            assert_eq!(integer(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_integer_reads_back_and_no_text_panics(value in any::<i64>(), text in "\\PC{0,30}") {
            prop_assert_eq!(integer(&value.to_string()), Some(value));
            prop_assert!(integer(&text).is_none() || text.contains(|c: char| c.is_ascii_digit()));
        }
    }
}
