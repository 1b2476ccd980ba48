//! The filters of EC2's Describe calls: names with values, in which `*` and `?` are wildcards.

use super::query::Form;

/// The filters of one call; all must match, each by any of its values.
#[derive(Debug)]
pub(super) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    pub(super) fn parse(form: &Form) -> Self {
        let filter = |prefix: String| {
            let name = form.get(&format!("{prefix}.Name")).unwrap_or_default().to_owned();
            (name, form.list(&format!("{prefix}.Value")))
        };
        Self(form.indexes("Filter").into_iter().map(filter).collect())
    }

    /// Returns the first filter with an unknown name.
    pub(super) fn first_unknown(&self, is_known: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| !is_known(name))
    }

    /// Returns whether a resource with these fields passes all filters.
    pub(super) fn all_match(&self, field: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, patterns)| {
            field(name).iter().any(|value| patterns.iter().any(|pattern| matches(pattern, value)))
        })
    }
}

/// Matches as EC2 does: `*` is any run, `?` any one character, and a backslash escapes the next character.
fn matches(pattern: &str, value: &str) -> bool {
    let mut pattern = pattern.chars();
    match pattern.next() {
        None => value.is_empty(),
        Some('*') => {
            let rest = pattern.as_str();
            value.char_indices().map(|(at, _)| at).chain([value.len()]).any(|at| matches(rest, &value[at..]))
        }
        Some(c) => {
            let mut value = value.chars();
            let is_same = match (c, value.next()) {
                (_, None) => false,
                ('?', Some(_)) => true,
                ('\\', Some(v)) => pattern.next().unwrap_or('\\') == v,
                (c, Some(v)) => c == v,
            };
            is_same && matches(pattern.as_str(), value.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_documented() {
        for (pattern, value, is_match) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*.sdf", "x/y.sdf", true),
            ("*.sdf", "x/y.sdfx", false),
            ("?b", "äb", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("", "", true),
            ("**", "anything", true),
        ] {
            assert_eq!(matches(pattern, value), is_match, "{pattern} on {value}");
        }
    }
}
