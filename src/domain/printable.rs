//! Text for a terminal: what others wrote (names, errors, a workload's output) must not act on the reader's screen.
//!
//! Escaped are control characters (C0, DEL, C1), the formatting characters that change the direction of a line, line
//! and paragraph separators, and characters that are never seen. All else stays as it is, so that names can be read
//! and copied.

/// Returns whether a character could move the cursor, change a terminal's state, reorder a line, or hide.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides, and isolates of direction. Source: Unicode Standard Annex #9, section 2.
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // The separators of lines and of paragraphs: some terminals and viewers begin a line there.
            | '\u{2028}' | '\u{2029}'
            // Invisible: the soft hyphen, spaces and operators without width, the byte order mark, annotations, and tags. Not
            // the joiners (U+200C, U+200D), without which words of some languages, and emoji, are others.
            | '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if stays(c) || !is_unsafe(c) {
            escaped.push(c);
        } else if c.is_ascii() {
            escaped.extend(c.escape_default());
        } else {
            escaped.extend(c.escape_unicode());
        }
    }
    escaped
}

/// Escapes bytes that come in pieces, such as a workload's output: line breaks and tabs stay, and a character that is
/// cut by the end of a piece is put together again.
#[derive(Debug, Default)]
pub struct Stream {
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    begun: Vec<u8>,
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
            text.push_str(&escaped(chunk.valid(), |c| c == '\n' || c == '\t'));
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
            ("ünï 文件 🧬 a\\b \"c\" 👩\u{200d}🔬", "ünï 文件 🧬 a\\b \"c\" 👩\u{200d}🔬"),
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

    proptest! {
        #[test]
        fn nothing_unsafe_is_left_and_the_rest_stays(text in "\\PC{0,20}|.{0,40}|[\\x00-\\u{ff}]{0,40}") {
            prop_assert!(!one_line(&text).contains(is_unsafe));
            prop_assert!(!lines(&text).contains(|c| is_unsafe(c) && c != '\n'));
            if !text.contains(is_unsafe) {
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
