//! Placeholders in the arguments of a workload: `{input}`, `{output}`, `{name}`, `{index}`, `{scratch}`, and
//! `{param.NAME}`. `${name}`, `%{name}`, `{{name}}`, and other braces stay as they are; `\{name}` stands for `{name}`.
//!
//! Each stands for a variable of the workload. In an argument, the value replaces it. In a line for a shell, a reference to
//! the variable does, so the shell never parses a value. What is not certainly one argument is refused: code for another
//! program, and lines that this module cannot read.

use std::ffi::OsString;
use std::fmt;
use std::io;

use crate::domain::work::{check_param_name, param_variable};

/// A placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// The text between the braces.
    name: String,
}

impl Placeholder {
    /// Returns the variable that it stands for.
    #[must_use]
    pub fn variable(&self) -> String {
        match self.name.as_str() {
            "input" => "LIGHTHPC_INPUT".to_owned(),
            "output" => "LIGHTHPC_OUTPUT".to_owned(),
            "name" => "LIGHTHPC_SRC_ID".to_owned(),
            "index" => "LIGHTHPC_INDEX".to_owned(),
            "scratch" => "LIGHTHPC_SCRATCH".to_owned(),
            name => param_variable(name.strip_prefix("param.").unwrap_or(name)),
        }
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.name)
    }
}

/// Why a placeholder cannot be replaced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceholderError {
    /// It might not be one argument there.
    #[error("the placeholder {placeholder} cannot be used here, because {why}: write \"${}\" instead", placeholder.variable())]
    Unsafe {
        /// The placeholder.
        placeholder: Placeholder,
        /// The reason.
        why: String,
    },
    /// The task has no such value.
    #[error("{what} has no value: the task has no {variable}")]
    NoValue {
        /// The placeholder or the reference.
        what: String,
        /// The variable.
        variable: String,
    },
}

impl From<PlaceholderError> for io::Error {
    fn from(error: PlaceholderError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A part of a text.
#[derive(Debug)]
enum Part<'a> {
    Text(&'a str),
    Placeholder(Placeholder),
    /// `\{name}`, without the backslash.
    Escaped(&'a str),
}

/// Returns the placeholder at the start of `text`, and its length.
fn at_start(text: &str) -> Option<(Placeholder, usize)> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_param = name.strip_prefix("param.").is_some_and(|param| check_param_name(param).is_ok());
    let is_known = is_param || matches!(name, "input" | "output" | "name" | "index" | "scratch");
    is_known.then(|| (Placeholder { name: name.to_owned() }, name.len() + 2))
}

/// Splits a text into its placeholders and what is between them.
fn parts(text: &str) -> Vec<Part<'_>> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(brace) = text[at..].find('{') {
        let here = at + brace;
        let before = text[..here].chars().next_back();
        match at_start(&text[here..]).filter(|_| !matches!(before, Some('$' | '%' | '{'))) {
            Some((placeholder, length)) => {
                let is_escaped = before == Some('\\');
                let end = here - usize::from(is_escaped);
                parts.extend((start < end).then(|| Part::Text(&text[start..end])));
                at = here + length;
                start = at;
                parts.push(if is_escaped { Part::Escaped(&text[here..at]) } else { Part::Placeholder(placeholder) });
            }
            None => at = here + 1,
        }
    }
    parts.extend((start < text.len()).then(|| Part::Text(&text[start..])));
    parts
}

/// Returns whether a text is none that another program reads as code: it has no blank, no quote, and no bracket.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || "_./:=,@%+-~^".contains(c))
}

fn unsafe_here(placeholder: Placeholder, why: impl Into<String>) -> PlaceholderError {
    PlaceholderError::Unsafe { placeholder, why: why.into() }
}

/// Refuses a placeholder in a word of which other text may be code.
fn check_word(word: &[Part<'_>]) -> Result<(), PlaceholderError> {
    let odd = word.iter().any(|part| matches!(part, Part::Text(text) | Part::Escaped(text) if !is_plain(text)));
    let placeholder = word.iter().find_map(|part| match part {
        Part::Placeholder(placeholder) => Some(placeholder.clone()),
        _ => None,
    });
    match placeholder.filter(|_| odd) {
        Some(placeholder) => {
            Err(unsafe_here(placeholder, "the rest of its word has blanks, quotes, or brackets, as code has"))
        }
        None => Ok(()),
    }
}

/// Returns whether a word is a shell, which takes code as the value of `-c`.
fn is_shell(word: &str) -> bool {
    let name = word.rsplit('/').next().unwrap_or(word);
    matches!(name, "sh" | "ash" | "bash" | "dash" | "ksh" | "mksh" | "zsh")
}

/// Returns whether a word is an option such as `-c` and `-euc`.
fn is_code_option(word: &str) -> bool {
    word.strip_prefix('-')
        .is_some_and(|letters| letters.contains('c') && letters.bytes().all(|b| b.is_ascii_alphabetic()))
}

/// Returns the place of the code in `sh -c CODE`, if these words are that.
fn place_of_code(words: &[String]) -> Option<usize> {
    is_shell(words.first()?).then_some(())?;
    let option = words.iter().position(|word| is_code_option(word))?;
    let are_options = (1..option).all(|at| words[at].starts_with(['-', '+']) || words[at - 1].ends_with('o'));
    let code = words.get(option + 1)?;
    // Code that is nothing but a value would run the value.
    let is_value = placeholders(code).len() == 1 && code.starts_with('{') && code.ends_with('}') && !code.contains(' ');
    (are_options && !code.starts_with('-') && !is_value).then_some(option + 1)
}

/// Refuses a value that a shell would run as code: `sh -c {name}`.
fn refuse_value_as_code(words: &[String], placeholder: &Placeholder) -> Result<(), PlaceholderError> {
    let is_code = words.last().is_some_and(|option| is_code_option(option)) && words.iter().any(|word| is_shell(word));
    let runs_code = |word: &&String| matches!(word.as_str(), "eval" | "trap" | "ssh" | "let" | "declare" | "typeset");
    match words.iter().find(runs_code) {
        Some(word) => Err(unsafe_here(placeholder.clone(), format!("{word} may run its arguments as code"))),
        None if is_code => Err(unsafe_here(placeholder.clone(), "a shell would run the value as code")),
        None => Ok(()),
    }
}

/// Returns the placeholders of a text.
#[must_use]
pub(super) fn placeholders(text: &str) -> Vec<Placeholder> {
    let placeholder = |part| match part {
        Part::Placeholder(placeholder) => Some(placeholder),
        Part::Text(_) | Part::Escaped(_) => None,
    };
    parts(text).into_iter().filter_map(placeholder).collect()
}

/// Replaces the placeholders of a program's arguments by the values of the workload's variables. In the code of `sh -c`,
/// a reference to the variable replaces each.
///
/// # Errors
/// [`PlaceholderError`].
pub(super) fn in_arguments(
    argv: &[String],
    variables: &[(String, OsString)],
) -> Result<Vec<OsString>, PlaceholderError> {
    let value = |placeholder: &Placeholder| {
        let variable = placeholder.variable();
        let found = variables.iter().find(|(name, _)| *name == variable);
        found
            .map(|(_, value)| value)
            .ok_or_else(|| PlaceholderError::NoValue { what: placeholder.to_string(), variable })
    };
    let code = place_of_code(argv);
    let replaced = |(at, word): (usize, &String)| {
        if code == Some(at) {
            return in_line(word, variables).map(OsString::from);
        }
        let parts = parts(word);
        check_word(&parts)?;
        let mut replaced = OsString::new();
        for part in &parts {
            match part {
                Part::Text(text) | Part::Escaped(text) => replaced.push(text),
                Part::Placeholder(placeholder) => {
                    refuse_value_as_code(&argv[..at], placeholder)?;
                    replaced.push(value(placeholder)?);
                }
            }
        }
        Ok(replaced)
    };
    argv.iter().enumerate().map(replaced).collect()
}

/// Replaces the placeholders of a line for a shell by references to the workload's variables.
///
/// # Errors
/// [`PlaceholderError`].
pub(super) fn in_line(line: &str, variables: &[(String, OsString)]) -> Result<String, PlaceholderError> {
    check_line(line, |variable| variables.iter().any(|(name, _)| name == variable))?;
    with_references(line)
}

/// Checks that the placeholders of a line for a shell can be replaced, and that the variables have values to which
/// earlier replacements refer. `has` says whether a variable has a value.
///
/// # Errors
/// [`PlaceholderError`].
pub fn check_line(line: &str, has: impl Fn(&str) -> bool) -> Result<(), PlaceholderError> {
    for placeholder in placeholders(line) {
        let variable = placeholder.variable();
        if !has(&variable) {
            return Err(PlaceholderError::NoValue { what: format!("the placeholder {placeholder}"), variable });
        }
    }
    // Those of the code of `sh -c`, which `join` has made.
    for reference in line.split("${").skip(1) {
        let variable = reference.split_once("?}").map(|(variable, _)| variable);
        let is_ours =
            |variable: &&str| variable.starts_with("LIGHTHPC_") && !variable.contains(|c: char| !is_of_name(c));
        if let Some(variable) = variable.filter(is_ours).filter(|variable| !has(variable)) {
            let what = format!("the placeholder of {variable}");
            return Err(PlaceholderError::NoValue { what, variable: variable.to_owned() });
        }
    }
    with_references(line).map(drop)
}

const fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Joins a program and its arguments to a line for a shell, in which the placeholders are outside quotes.
///
/// # Errors
/// [`PlaceholderError::Unsafe`].
pub fn join(argv: &[String]) -> Result<String, PlaceholderError> {
    let code = place_of_code(argv);
    let word = |(at, word): (usize, &String)| {
        if code == Some(at) {
            return with_references(word).map(|code| shell_words::quote(&code).into_owned());
        }
        if word.is_empty() {
            return Ok("''".to_owned());
        }
        let parts = parts(word);
        check_word(&parts)?;
        let mut joined = String::new();
        for part in &parts {
            match part {
                Part::Text(text) => joined.push_str(&shell_words::quote(text)),
                Part::Escaped(text) => joined.push_str(&format!("\\{text}")),
                Part::Placeholder(placeholder) => {
                    refuse_value_as_code(&argv[..at], placeholder)?;
                    joined.push_str(&placeholder.to_string());
                }
            }
        }
        Ok(joined)
    };
    let words: Result<Vec<String>, _> = argv.iter().enumerate().map(word).collect();
    words.map(|words| words.join(" "))
}

/// Replaces the placeholders of a line for a shell by references to variables. A reference fails if the variable is not
/// set. Reads a part of the shell's language only: words, quotes, variables, redirections, and separators of commands. A
/// line with a placeholder and anything else is refused. Source: POSIX, "Shell Command Language".
fn with_references(line: &str) -> Result<String, PlaceholderError> {
    let Some(first) = placeholders(line).into_iter().next() else {
        let has_escapes = parts(line).iter().any(|part| matches!(part, Part::Escaped(_)));
        return if has_escapes { Scan::new(line).run() } else { Ok(line.to_owned()) };
    };
    Scan::new(line).run().map_err(|error| match error {
        // Named in the message is a placeholder of this line.
        PlaceholderError::Unsafe { placeholder, why } if placeholder.name.is_empty() => unsafe_here(first, why),
        error => error,
    })
}

/// What a character is inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quotes {
    None,
    Double,
    Single,
}

/// A scan of a line for a shell.
struct Scan<'a> {
    rest: &'a str,
    replaced: String,
    quotes: Quotes,
    /// The words of the current command that are complete.
    words: Vec<String>,
    /// The text of the current word, without placeholders.
    word: String,
    /// The placeholders of the current word.
    placeholders: Vec<Placeholder>,
}

impl<'a> Scan<'a> {
    const fn new(line: &'a str) -> Self {
        Self {
            rest: line,
            replaced: String::new(),
            quotes: Quotes::None,
            words: Vec::new(),
            word: String::new(),
            placeholders: Vec::new(),
        }
    }

    fn run(mut self) -> Result<String, PlaceholderError> {
        while let Some(c) = self.rest.chars().next() {
            self.step(c)?;
        }
        self.end_word()?;
        Ok(self.replaced)
    }

    /// Copies the next `length` bytes, as text of the word.
    fn copy(&mut self, length: usize) {
        let (text, rest) = self.rest.split_at(length);
        self.replaced.push_str(text);
        self.word.push_str(text);
        self.rest = rest;
    }

    fn step(&mut self, c: char) -> Result<(), PlaceholderError> {
        let length = c.len_utf8();
        let next = self.rest[length..].chars().next();
        match (self.quotes, c) {
            (quotes, '\\') => self.backslash(quotes, next),
            (_, '{') => self.brace()?,
            (Quotes::Single, '\'') | (Quotes::Double, '"') => self.quote(Quotes::None),
            (Quotes::None, '\'') => self.quote(Quotes::Single),
            (Quotes::None, '"') => self.quote(Quotes::Double),
            (Quotes::Single, _) => self.copy(length),
            (_, '`') => return Err(not_read("a backquote")),
            (_, '$') => self.variable(next)?,
            (Quotes::None, '(' | ')') => return Err(not_read("a parenthesis")),
            (Quotes::None, '#') if self.word.is_empty() => return Err(not_read("a comment")),
            (Quotes::None, '<') if next == Some('<') => return Err(not_read("<<")),
            (Quotes::None, ' ' | '\t' | '<' | '>' | '\n' | ';' | '&' | '|') => {
                self.end_word()?;
                if matches!(c, '\n' | ';' | '&' | '|') {
                    self.words.clear();
                }
                self.replaced.push(c);
                self.rest = &self.rest[length..];
            }
            _ => self.copy(length),
        }
        Ok(())
    }

    fn quote(&mut self, quotes: Quotes) {
        self.quotes = quotes;
        self.replaced.push_str(&self.rest[..1]);
        self.rest = &self.rest[1..];
    }

    /// A backslash and the character after it.
    fn backslash(&mut self, quotes: Quotes, next: Option<char>) {
        let is_escape = at_start(&self.rest[1..]).is_some();
        match (quotes, next) {
            // The shell removes the backslash only outside quotes.
            (Quotes::Single | Quotes::Double, _) if is_escape => {
                self.rest = &self.rest[1..];
                self.copy(1);
            }
            (Quotes::Single, _) | (_, None) => self.copy(1),
            (_, Some(next)) => self.copy(1 + next.len_utf8()),
        }
    }

    /// A placeholder, or another brace.
    fn brace(&mut self) -> Result<(), PlaceholderError> {
        let is_free = !self.word.ends_with(['{', '%']);
        let Some((placeholder, length)) = at_start(self.rest).filter(|_| is_free) else {
            self.copy(1);
            return Ok(());
        };
        let reference = format!("${{{}?}}", placeholder.variable());
        match self.quotes {
            Quotes::Single => return Err(unsafe_here(placeholder, "it is inside single quotes")),
            Quotes::Double => self.replaced.push_str(&reference),
            Quotes::None => self.replaced.push_str(&format!("\"{reference}\"")),
        }
        refuse_value_as_code(&self.words, &placeholder)?;
        self.placeholders.push(placeholder);
        self.rest = &self.rest[length..];
        Ok(())
    }

    /// `$name`, `${name}`, or a parameter such as `$?`.
    fn variable(&mut self, next: Option<char>) -> Result<(), PlaceholderError> {
        let length = match next {
            Some('{') => match self.rest.split_once('}') {
                Some((inside, _)) if !inside[2..].contains(['{', '`', '(']) => inside.len() + 1,
                _ => return Err(not_read("${…} with more than a name")),
            },
            Some(c) if is_of_name(c) => 1 + self.rest[1..].find(|c| !is_of_name(c)).unwrap_or(self.rest.len() - 1),
            Some('?' | '#' | '@' | '*' | '!') => 2,
            None | Some(' ' | '\t' | '\n' | '"' | '/' | ';') => 1,
            Some(_) => return Err(not_read("a $ that is before no name")),
        };
        // A value is no code in this line.
        let text = &self.rest[..length];
        self.replaced.push_str(text);
        self.rest = &self.rest[length..];
        Ok(())
    }

    /// Checks the word that ends here.
    fn end_word(&mut self) -> Result<(), PlaceholderError> {
        let word = std::mem::take(&mut self.word);
        let placeholders = std::mem::take(&mut self.placeholders);
        if let Some(placeholder) = placeholders.first()
            && !is_plain(&word)
        {
            let why = "the rest of its word has blanks, quotes, or brackets, as code has";
            return Err(unsafe_here(placeholder.clone(), why));
        }
        if word == "[[" {
            return Err(not_read("[["));
        }
        self.words.extend((!word.is_empty() || !placeholders.is_empty()).then_some(word));
        Ok(())
    }
}

/// A line that cannot be read; the caller knows the placeholder.
fn not_read(what: &str) -> PlaceholderError {
    unsafe_here(Placeholder { name: String::new() }, format!("the line has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
    }

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Names that would do harm if a shell parsed them.
    const ODD: [&str; 8] = [
        "a b",
        "'; echo harm; '",
        "\"$(echo harm)\"",
        "x\ny",
        "`echo harm`\\",
        "*{input}$HOME",
        "",
        "-n a[$(echo harm)]",
    ];

    /// Runs a line with a shell, and returns what it prints.
    fn printed(shell: &str, line: &str, variables: &[(String, OsString)]) -> String {
        let mut command = std::process::Command::new(shell);
        command.arg("-c").arg(line).env_clear().env("PATH", "/usr/bin:/bin");
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn each_name_is_one_argument_of_a_line() {
        for odd in ODD {
            let variables = variables(&[("LIGHTHPC_INPUT", odd), ("LIGHTHPC_PARAM_X", odd)]);
            for (line, prints) in [
                ("/usr/bin/printf '<%s>' {input} {param.x}", format!("<{odd}><{odd}>")),
                ("/usr/bin/printf '<%s>' --in={input}.gz", format!("<--in={odd}.gz>")),
                ("/usr/bin/printf '<%s>' \"{input}\" \"in-{input}/{param.X}\"", format!("<{odd}><in-{odd}/{odd}>")),
                ("x='it''s {' ; /usr/bin/printf '%s<%s>' \"$x\" {input}", format!("its {{<{odd}>")),
                ("if true; then /usr/bin/printf '<%s>' {input} 2>/dev/null; fi", format!("<{odd}>")),
                ("x={input} && /usr/bin/printf '<%s>' \"$x\" | cat", format!("<{odd}>")),
                ("/usr/bin/printf '<%s>' ${x}{input}\\ x 2>&1", String::new()),
            ] {
                if prints.is_empty() {
                    assert!(in_line(line, &variables).is_err(), "{line}");
                    continue;
                }
                for shell in ["/bin/sh", "/bin/bash"] {
                    assert_eq!(printed(shell, &in_line(line, &variables).unwrap(), &variables), prints, "{line}");
                }
            }
        }
    }

    #[test]
    fn each_name_is_one_argument_of_a_program() {
        for odd in ODD {
            let variables = variables(&[("LIGHTHPC_INPUT", odd), ("LIGHTHPC_SRC_ID", odd)]);
            for words in [
                &["/usr/bin/printf", "<%s>", "{input}"][..],
                &["/bin/sh", "-c", "/usr/bin/printf '<%s>' {input}"],
                &["sh", "-euc", "/usr/bin/printf '<%s>' {name}"],
                &["bash", "-o", "pipefail", "-ce", "/usr/bin/printf '<%s>' {name}"],
                &["sh", "-e", "-c", "/usr/bin/printf '<%s>' \"$1\"", "x", "{input}"],
                &["sh", "-c", "/usr/bin/printf '<%s>' \"$1\" | sed 's/\\(.\\)/\\1/'", "x y", "{input}"],
            ] {
                let words = argv(words);
                let replaced = in_arguments(&words, &variables).unwrap();
                let mut command = std::process::Command::new(&replaced[0]);
                let output = command.args(&replaced[1..]).envs(variables.clone()).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), format!("<{odd}>"), "{words:?}");
                // And the same as one line of a mission.
                let line = in_line(&join(&words).unwrap(), &variables).unwrap();
                assert_eq!(printed("/bin/sh", &line, &variables), format!("<{odd}>"), "{line}");
            }
        }
    }

    /// Everything here ran the value as code, or split it, or could.
    #[test]
    fn what_may_not_be_one_argument_is_refused() {
        for line in [
            "awk '{print \"{input}\"}'",
            "sh -c 'wc {input}'",
            "sh -c \"wc {input}\"",
            "x=1; nice bash -ec \"wc {input}\"",
            "sh -c {input}",
            "sh -ce \"{input}\"",
            "sh 2>/dev/null -c \"wc {input}\"",
            "sh -c \"x=$(date); echo {input}\"",
            "eval wc {input}",
            "for i in 1; do eval echo {input}; done",
            "X=1 command eval echo {input}",
            "timeout 5 ssh host cat {input}",
            "trap \"rm {input}\" EXIT",
            "echo $(/bin/sh -c \"echo {name}\")",
            "echo \"sample {name} of many\"",
            "python3 -c \"print(1, '{name}')\"",
            "echo $(( {index} + 1 ))",
            "echo $[ {index} + 1 ]",
            "[[ {index} -gt 3 ]]",
            "a[{index}]=1",
            "let x={index}",
            "cat <<EOF\n{input}\nEOF",
            "cat <<'EOF'\n{input}\nEOF",
            "x=`printf {input}`",
            "x=\"`printf {input}`\"",
            "x=\"$(case a in a) echo {input} ;; esac)\"",
            "echo $'a' {input}",
            "echo x # it's\necho {input}",
            "echo ${x:-{input}}",
        ] {
            let error = with_references(line).unwrap_err();
            assert!(matches!(&error, PlaceholderError::Unsafe { .. }), "{line}: {error}");
            assert!(error.to_string().contains("write \"$LIGHTHPC_"), "{error}");
        }
        let variables = variables(&[("LIGHTHPC_INPUT", "i"), ("LIGHTHPC_SRC_ID", "n")]);
        for words in [
            &["sh", "-c", "awk '{input}'"][..],
            &["sh", "-c", "{input}"],
            &["sh", "-c", "-x", "wc {input}"],
            &["sh", "-c", "--", "wc {input}"],
            &["bash", "--rcfile", "/dev/null", "-c", "wc {input}"],
            &["timeout", "5", "bash", "-c", "wc {input}"],
            &["timeout", "5", "bash", "-c", "{input}"],
            &["python3", "-c", "print('{name}')"],
            &["python3", "-cx=('{name}')"],
            &["perl", "-e", "1;", "-e", "print '{name}'"],
            &["awk", "BEGIN{print \"{name}\"}"],
            &["ssh", "host", "cat", "{input}"],
            &["eval", "{input}"],
        ] {
            assert!(matches!(join(&argv(words)), Err(PlaceholderError::Unsafe { .. })), "{words:?}");
            assert!(
                matches!(in_arguments(&argv(words), &variables), Err(PlaceholderError::Unsafe { .. })),
                "{words:?}"
            );
        }
    }

    #[test]
    fn an_option_of_another_program_is_no_code() {
        let variables = variables(&[("LIGHTHPC_INPUT", "x y")]);
        for words in [
            &["sh", "script.sh", "--count", "{input}"][..],
            &["python3", "tool.py", "-c", "{input}"],
            &["gzip", "-c", "{input}"],
            &["rsync", "-e", "rsh", "{input}"],
            &["./model", "--lang", "python", "-c", "{input}"],
        ] {
            assert_eq!(in_arguments(&argv(words), &variables).unwrap().last().unwrap(), "x y", "{words:?}");
            assert!(join(&argv(words)).unwrap().ends_with(" {input}"), "{words:?}");
            assert!(with_references(&words.join(" ")).unwrap().ends_with(" \"${LIGHTHPC_INPUT?}\""), "{words:?}");
        }
    }

    #[test]
    fn a_placeholder_without_a_value_is_refused() {
        let variables = variables(&[("LIGHTHPC_OUTPUT", "o")]);
        for text in ["{input}", "{index}", "--x={param.x}"] {
            let error = in_line(&format!("p {text} {{output}}"), &variables).unwrap_err();
            assert!(matches!(error, PlaceholderError::NoValue { .. }), "{text}: {error}");
            assert!(matches!(in_arguments(&argv(&["p", text]), &variables), Err(PlaceholderError::NoValue { .. })));
            // Also after it became a reference.
            let joined = join(&argv(&["sh", "-c", &format!("p {text}")])).unwrap();
            let error = in_line(&joined, &variables).unwrap_err();
            assert!(error.to_string().contains("has no value"), "{joined}: {error}");
            let failed = std::process::Command::new("/bin/sh").arg("-c").arg(&joined).env_clear().output().unwrap();
            assert!(!failed.status.success(), "{joined}");
        }
    }

    #[test]
    fn other_braces_stay() {
        for text in [
            "echo ${name} ${input%.fa}",
            "awk '{print $1}'",
            "{ echo {a,b}; }",
            "{inputs} {Input} {} {param.} {param.1a} {param.a-b} {",
            "echo '{ref}' \"{x\" $(date) `date` # {",
            "rpm --qf '%{name}' {{name}}",
        ] {
            assert_eq!(in_line(text, &[]).unwrap(), text);
            assert_eq!(in_arguments(&argv(&[text]), &[]).unwrap(), [OsString::from(text)]);
        }
        assert_eq!(join(&argv(&["a b", "", "${name}", "it's"])).unwrap(), "'a b' '' '${name}' 'it'\\''s'");
    }

    #[test]
    fn an_escaped_placeholder_is_its_text() {
        let words = argv(&["printf", "<%s>", "\\{name}"]);
        assert_eq!(in_arguments(&words, &[]).unwrap()[2], "{name}");
        assert_eq!(printed("/bin/sh", &in_line(&join(&words).unwrap(), &[]).unwrap(), &[]), "<{name}>");
        for line in ["printf '<%s>' \\{name}", "printf '<%s>' '\\{name}'", "printf '<%s>' \"\\{name}\""] {
            assert_eq!(printed("/bin/sh", &in_line(line, &[]).unwrap(), &[]), "<{name}>", "{line}");
        }
    }

    proptest! {
        /// Without placeholders the line is the same, and no text panics.
        #[test]
        fn no_text_panics(text in "[ -~\\n{}$'\"#()`\\\\é]{0,60}", words in proptest::collection::vec("\\PC{0,20}", 0..5)) {
            if placeholders(&text).is_empty() && !text.contains("\\{") {
                prop_assert_eq!(with_references(&text).unwrap(), text);
            } else {
                drop(with_references(&text));
            }
            if let Ok(line) = join(&words) {
                let has_none = words.iter().all(|word| !word.contains('{'));
                prop_assert!(!has_none || shell_words::split(&line).unwrap() == words);
            }
        }
    }
}
