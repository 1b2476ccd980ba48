//! What a task works on: objects of S3, and named values.

use std::collections::BTreeMap;

use super::ids::{KEY_BYTES_MAX, SrcId};
use super::keys::file_name;

/// The maximum size of a task's parameters, names and values together, in bytes. A row has at most 400 kB, and its
/// history needs some. Linux limits one variable to 128 KiB.
pub const PARAMS_BYTES_MAX: usize = 32 * 1024;
/// The maximum number of objects of a task.
pub const SOURCES_MAX: usize = 1_000;
/// The maximum size of the list of a task's objects, in bytes: a row has at most 400 kB.
pub const SOURCES_BYTES_MAX: usize = 200 * 1024;
/// The maximum length of a parameter's name, in bytes.
const PARAM_NAME_BYTES_MAX: usize = 100;

/// An object in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

impl ObjectName {
    /// Parses `s3://BUCKET/KEY`.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let (bucket, key) = uri.strip_prefix("s3://")?.split_once('/')?;
        let is_valid = !bucket.is_empty() && !key.is_empty() && key.len() <= KEY_BYTES_MAX;
        is_valid.then(|| Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// Returns `s3://BUCKET/KEY`.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }
}

/// The objects of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Inputs {
    /// The object in the row's bucket whose key is the task's name.
    #[default]
    Named,
    /// Another object in the row's bucket, by its key.
    Key(String),
    /// Several objects.
    Several(Vec<ObjectName>),
    /// No object.
    None,
}

/// What a task works on. The default is the object whose key is the task's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The objects.
    pub inputs: Inputs,
    /// The parameters.
    pub params: BTreeMap<String, String>,
    /// The task's number in its list, from 1, or in its array.
    pub index: Option<i64>,
}

impl Work {
    /// Makes the work of a task without objects.
    #[must_use]
    pub const fn of_params(index: i64, params: BTreeMap<String, String>) -> Self {
        Self { inputs: Inputs::None, params, index: Some(index) }
    }

    /// Returns whether one of its objects is in the bucket of the row.
    #[must_use]
    pub const fn needs_bucket(&self) -> bool {
        matches!(self.inputs, Inputs::Named | Inputs::Key(_))
    }

    /// Returns the task's objects. `bucket` is the bucket of the row.
    #[must_use]
    pub fn objects(&self, src: &SrcId, bucket: &str) -> Vec<ObjectName> {
        let of_bucket = |key: &str| vec![ObjectName { bucket: bucket.to_owned(), key: key.to_owned() }];
        match &self.inputs {
            Inputs::Named => of_bucket(src.as_str()),
            Inputs::Key(key) => of_bucket(key),
            Inputs::Several(objects) => objects.clone(),
            Inputs::None => Vec::new(),
        }
    }

    /// Returns how the work of a row differs from this one, after "it has"; `None` if objects and parameters are the same.
    /// The number may differ: a line may have moved in its file.
    #[must_use]
    pub fn difference(&self, row: &Self) -> Option<String> {
        if self.inputs != row.inputs {
            return Some("other inputs".to_owned());
        }
        let mut names = row.params.keys().chain(self.params.keys());
        names
            .find(|name| self.params.get(*name) != row.params.get(*name))
            .map(|name| format!("another value of {name}"))
    }

    /// Checks the limits of one task.
    ///
    /// # Errors
    /// The limit that is exceeded, or the parameter that is not valid, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if let Inputs::Several(sources) = &self.inputs {
            check_sources(sources)?;
        }
        let bytes: usize = self.params.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > PARAMS_BYTES_MAX {
            return Err(format!("its parameters have {bytes} bytes, more than {PARAMS_BYTES_MAX}"));
        }
        for (name, value) in &self.params {
            check_param_name(name)?;
            check_param_value(value).map_err(|what| format!("the value of {name} {what}"))?;
        }
        let mut variables: Vec<String> = self.params.keys().map(|name| param_variable(name)).collect();
        variables.sort();
        match variables.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("two of its parameters would be the variable {}", pair[0])),
            None => Ok(()),
        }
    }
}

/// Checks the objects of one task. Each is a file of its own name in one folder.
fn check_sources(sources: &[ObjectName]) -> Result<(), String> {
    if sources.len() > SOURCES_MAX {
        return Err(format!("it has {} objects, more than {SOURCES_MAX}", sources.len()));
    }
    let bytes: usize = sources.iter().map(|source| source.uri().len()).sum();
    if bytes > SOURCES_BYTES_MAX {
        return Err(format!("the names of its objects have {bytes} bytes, more than {SOURCES_BYTES_MAX}"));
    }
    let mut files: Vec<(String, &ObjectName)> = sources.iter().map(|source| (file_name(&source.key), source)).collect();
    files.sort();
    match files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("{} and {} would be the same file, {}", pair[0].1.uri(), pair[1].1.uri(), pair[0].0)),
        None => Ok(()),
    }
}

/// Checks the name of a parameter: a letter or `_`, then letters, digits, and `_`.
///
/// # Errors
/// The rule, as a sentence.
pub fn check_param_name(name: &str) -> Result<(), String> {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_valid = name.starts_with(is_start) && name.chars().all(|c| is_start(c) || c.is_ascii_digit());
    if is_valid && name.len() <= PARAM_NAME_BYTES_MAX {
        return Ok(());
    }
    Err(format!(
        "{name:?} cannot be the name of a variable: it must be a letter or _, then letters, digits, and _, at most \
         {PARAM_NAME_BYTES_MAX} in all"
    ))
}

/// Checks the value of a parameter. systemd refuses the control characters that are refused here.
/// Source: systemd, `env_value_is_valid`.
///
/// # Errors
/// The rule, as the end of a sentence.
pub fn check_param_value(value: &str) -> Result<(), String> {
    match value.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n')) {
        Some(c) => Err(format!("has the control character {c:?}, which a variable cannot have")),
        None => Ok(()),
    }
}

/// Returns the variable of a parameter: `LIGHTHPC_PARAM_<NAME>`.
#[must_use]
pub fn param_variable(name: &str) -> String {
    format!("LIGHTHPC_PARAM_{}", name.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Work {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Work::of_params(1, pairs.collect())
    }

    #[test]
    fn a_task_works_on_the_object_of_its_name_unless_its_row_says_otherwise() {
        let src = SrcId::new("M/a").unwrap();
        let uris = |work: &Work| work.objects(&src, "b").iter().map(ObjectName::uri).collect::<Vec<_>>();
        assert_eq!(uris(&Work::default()), ["s3://b/M/a"]);
        assert_eq!(uris(&Work { inputs: Inputs::Key("x y".to_owned()), ..Work::default() }), ["s3://b/x y"]);
        let sources = ["s3://c/1", "s3://d/2/"].map(|uri| ObjectName::parse(uri).unwrap()).to_vec();
        let several = Work { inputs: Inputs::Several(sources), ..params(&[("p", "1")]) };
        assert_eq!(uris(&several), ["s3://c/1", "s3://d/2/"]);
        assert!(!several.needs_bucket() && Work::default().needs_bucket());
        assert!(uris(&params(&[("p", "1")])).is_empty() && uris(&params(&[])).is_empty());
        for bad in ["s3://", "s3://b", "s3://b/", "s3:///k", "b/k", "S3://b/k"] {
            assert_eq!(ObjectName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_parameters_with_another_number_are_the_same_work() {
        let one = params(&[("p", "1")]);
        assert_eq!(one.difference(&Work { index: Some(7), ..one.clone() }), None);
        assert_eq!(one.difference(&params(&[("p", "2")])).unwrap(), "another value of p");
        assert_eq!(one.difference(&params(&[])).unwrap(), "another value of p");
        assert_eq!(params(&[]).difference(&Work::default()).unwrap(), "other inputs", "an array's task has no object");
    }

    #[test]
    fn what_a_variable_cannot_hold_is_refused() {
        for name in ["a", "_", "A1_b", "index", "line"] {
            assert_eq!(params(&[(name, "a b\n\t'\"$;")]).check(), Ok(()), "{name}");
        }
        for name in ["", "1a", "a-b", "a b", "ü", "a=b", &"a".repeat(101)] {
            assert!(params(&[(name, "")]).check().unwrap_err().contains("cannot be the name"), "{name}");
        }
        for value in ["\0", "a\r", "\u{1b}[0m", "\u{85}"] {
            assert!(params(&[("p", value)]).check().unwrap_err().contains("control character"), "{value:?}");
        }
        assert!(params(&[("p", "1"), ("P", "2")]).check().unwrap_err().contains("LIGHTHPC_PARAM_P"));
        assert!(params(&[("p", &"x".repeat(PARAMS_BYTES_MAX))]).check().unwrap_err().contains("32769"));
        let several = |uris: Vec<String>| {
            let sources = uris.iter().map(|uri| ObjectName::parse(uri).unwrap()).collect();
            Work { inputs: Inputs::Several(sources), ..Work::default() }.check()
        };
        assert!(
            several((0..=SOURCES_MAX).map(|n| format!("s3://b/{n}")).collect()).unwrap_err().contains("1001 objects")
        );
        let one_name = several(vec!["s3://b/x/1.fq".to_owned(), "s3://b/2.fq".to_owned(), "s3://b/y/1.fq".to_owned()]);
        assert!(one_name.unwrap_err().contains("s3://b/x/1.fq and s3://b/y/1.fq would be the same file, 1.fq"));
    }
}
