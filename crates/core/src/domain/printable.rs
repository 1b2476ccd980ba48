//! Text for people: what others wrote (names, errors, a workload's output) must not act on the reader's screen, mail
//! program, shell, browser, or spreadsheet.
//!
//! Escaped are control characters (C0, DEL, C1), the formatting characters that change the direction of a line, line
//! and paragraph separators, and characters that are never seen. All else stays as it is, so that names can be read
//! and copied. The places where text leaves the program do this (the log's writer, `command/screen.rs`, the notifier, the
//! answers of the HTTP interface), so that no caller can forget it; a caller's part is [`one_line`] for a value inside text
//! of several lines, and [`shell`] for a value inside a command.

use std::borrow::Cow;

/// Returns whether a character could move the cursor, change a terminal's state, reorder a line, or hide.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides, and isolates of direction. Source: Unicode Standard Annex #9, section 2.
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // The separators of lines and of paragraphs: some terminals and viewers begin a line there.
            | '\u{2028}' | '\u{2029}'
            // Never seen: the soft hyphen, fillers, spaces and operators without width, the byte order mark, annotations,
            // and tags. Source: Unicode character database, `Default_Ignorable_Code_Point`, and U+FFF9 to U+FFFB.
            | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Returns whether a character is not seen itself, but changes its neighbours: joiners and variation selectors. Words of some
/// languages, and emoji, are others without them, so they stay between such characters, and are escaped anywhere else.
#[must_use]
pub const fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}')
}

/// Returns text as one line: line breaks are escaped too. For a name, or a message, inside a line.
#[must_use]
pub fn one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// Returns text of several lines: line breaks stay. For all that is written to a terminal.
#[must_use]
pub fn lines(text: &str) -> String {
    escaped(text, |c| c == '\n')
}

/// Returns JSON that a terminal can show and that means the same: `\u` escapes in place of unsafe characters, which
/// stand only inside strings there.
#[must_use]
pub fn json(text: &str) -> String {
    if !text.contains(|c: char| is_unsafe(c) && c != '\n') {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c == '\n' || !is_unsafe(c) {
            escaped.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    escaped_after(&mut None, text, stays)
}

/// As [`escaped`], for text that follows a character, which then is the last of this text.
fn escaped_after(before: &mut Option<char>, text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        // After an ASCII character a joiner has nothing to join.
        let is_lost = is_joiner(c) && before.is_none_or(|before: char| before.is_ascii() || is_unsafe(before));
        *before = Some(c);
        if !is_lost && (stays(c) || !is_unsafe(c)) {
            escaped.push(c);
        } else if c.is_ascii() {
            escaped.extend(c.escape_default());
        } else {
            escaped.extend(c.escape_unicode());
        }
    }
    escaped
}

/// Returns a value as one word of a command that is printed for people to run: quoted where a shell would take it for something
/// else, and without a character that acts on a terminal. What must be escaped is in `$'…'`, which `bash` and `zsh` read.
/// Put behind `=` (`--key='a b'`), or after `--`, no value is taken for an option.
#[must_use]
pub fn shell(value: &str) -> Cow<'_, str> {
    if one_line(value) == value {
        return shell_words::quote(value);
    }
    let mut word = String::from("$'");
    let mut utf8 = [0; 4];
    for c in value.chars() {
        if is_unsafe(c) || is_joiner(c) {
            for byte in c.encode_utf8(&mut utf8).bytes() {
                word.push_str(&format!("\\{byte:03o}"));
            }
        } else {
            if matches!(c, '\'' | '\\') {
                word.push('\\');
            }
            word.push(c);
        }
    }
    word.push('\'');
    Cow::Owned(word)
}

/// Escapes bytes that come in pieces, such as a workload's output: line breaks and tabs stay, and a character that is
/// cut by the end of a piece is put together again.
#[derive(Debug, Default)]
pub struct Stream {
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    begun: Vec<u8>,
    /// The last character so far.
    before: Option<char>,
}

impl Stream {
    /// Returns the text of the next piece.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(&escaped_after(&mut self.before, chunk.valid(), |c| c == '\n' || c == '\t'));
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_begun(invalid) {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

/// Returns whether bytes are the beginning of a character, and not yet the whole.
fn is_begun(bytes: &[u8]) -> bool {
    let len = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return false,
    };
    bytes.len() < len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_out() {
        for (text, shown) in [
            ("\u{1b}[2Jx", "\\u{1b}[2Jx"),
            ("a\r\tb\u{7}\u{8}\u{7f}", "a\\r\\tb\\u{7}\\u{8}\\u{7f}"),
            ("\u{9b}31m\u{85}", "\\u{9b}31m\\u{85}"),
            ("gpj.\u{202e}exe\u{2066}", "gpj.\\u{202e}exe\\u{2066}"),
            ("a\u{2028}b\u{feff}", "a\\u{2028}b\\u{feff}"),
            ("ünï 文件 🧬 a\\b \"c\" 👩\u{200d}🔬 ❤\u{fe0f}", "ünï 文件 🧬 a\\b \"c\" 👩\u{200d}🔬 ❤\u{fe0f}"),
            ("re\u{200d}port\u{fe0f}", "re\\u{200d}port\\u{fe0f}"),
            ("\u{200d}x\u{3164}\u{e0100}", "\\u{200d}x\\u{3164}\\u{e0100}"),
        ] {
            assert_eq!(one_line(text), shown);
            assert_eq!(lines(text), shown);
        }
        assert_eq!((one_line("a\nb"), lines("a\nb")), ("a\\nb".to_owned(), "a\nb".to_owned()));
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let value = serde_json::json!({ "name\u{9b}": "a\u{1b}\n\u{85}\u{202e}\u{e0041}\u{7f}ü" });
        let text = json(&value.to_string());
        assert!(!text.contains(is_unsafe), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_word_of_a_command_is_one_word_and_the_same() {
        for (value, word) in [
            ("M001", "M001"),
            ("a b'c", "'a b'\\''c'"),
            ("$(reboot); rm -rf ~", "'$(reboot); rm -rf ~'"),
            ("", "''"),
            ("a\u{1b}'\\\n", "$'a\\033\\'\\\\\\012'"),
            ("x\u{202e}y", "$'x\\342\\200\\256y'"),
        ] {
            assert_eq!(shell(value), word);
        }
    }

    proptest! {
        #[test]
        fn a_shell_reads_back_what_was_quoted(value in "[\\x01-\\x7f]{0,12}|\\PC{0,8}|[\u{80}-\u{ff}\u{200b}-\u{202e}'$\\\\ ]{0,8}") {
            let word = shell(&value);
            prop_assert!(!word.contains(is_unsafe));
            let said = std::process::Command::new("bash").arg("-c").arg(format!("printf %s {word}")).output().unwrap();
            prop_assert_eq!(String::from_utf8(said.stdout).unwrap(), value);
        }

        #[test]
        fn nothing_unsafe_is_left_and_the_rest_stays(text in "\\PC{0,20}|.{0,40}|[\\x00-\\u{ff}]{0,40}") {
            prop_assert!(!one_line(&text).contains(is_unsafe));
            prop_assert!(!lines(&text).contains(|c| is_unsafe(c) && c != '\n'));
            // A joiner stays only between what it joins.
            if !text.contains(|c| is_unsafe(c) || is_joiner(c)) {
                prop_assert_eq!(one_line(&text), text);
            }
        }

        #[test]
        fn a_stream_in_pieces_is_the_stream_as_a_whole(text in ".{0,40}", size in 1_usize..5) {
            let mut stream = Stream::default();
            let pieces: String = text.as_bytes().chunks(size).map(|piece| stream.push(piece)).collect();
            prop_assert_eq!(&pieces, &Stream::default().push(text.as_bytes()));
            prop_assert!(!pieces.contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
        }

        #[test]
        fn a_stream_of_any_bytes_is_safe(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let text = Stream::default().push(&bytes);
            prop_assert!(!text.contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
        }
    }
}
