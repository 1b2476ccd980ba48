//! The forms of a mission's tasks beside one task for each file: lines, rows of a table, numbers, and groups of files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use regex_lite::Regex;
use wildmatch::WildMatch;

use super::failure::Failure;
use super::screen;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::keys::task_name;
use crate::domain::work::{Inputs, ObjectName, Work, check_param_name, check_param_value, param_variable};
use crate::workload::{self, PlaceholderError};

/// The maximum number of tasks of an array: a mistyped number must not fill the memory.
const ARRAY_MAX: i64 = 1_000_000;

/// The flags that say what a task is, if not one file.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct FormArgs {
    /// Only inputs whose names match, such as '*.fastq'; may be given several times. The name is the path below a folder,
    /// the key below an s3:// prefix, or the path as it is given; * also matches /
    #[arg(long, value_name = "PATTERN", help_heading = "What a task is")]
    pub(super) include: Vec<String>,
    /// No inputs whose names match; may be given several times
    #[arg(long, value_name = "PATTERN", help_heading = "What a task is")]
    pub(super) exclude: Vec<String>,
    /// One task per line of FILE that is not empty, or of standard input (-): {param.line} is the line
    #[arg(long, value_name = "FILE", group = "form", conflicts_with_all = ["csv", "tsv", "array", "group_by"], help_heading = "What a task is")]
    pub(super) each_line: Option<PathBuf>,
    /// One task per row of FILE, or of standard input (-): the columns are parameters, such as {param.alpha}. A column
    /// `name` names the tasks. If FILE ends in .tsv, tabs separate the columns
    #[arg(long, value_name = "FILE", group = "form", conflicts_with_all = ["tsv", "array", "group_by"], help_heading = "What a task is")]
    pub(super) csv: Option<PathBuf>,
    /// Like --csv; tabs separate the columns
    #[arg(long, value_name = "FILE", group = "form", conflicts_with_all = ["array", "group_by"], help_heading = "What a task is")]
    pub(super) tsv: Option<PathBuf>,
    /// One task per number, such as 1-1000, or 0-90:10 for every tenth: {index} is the number
    #[arg(long, value_name = "FIRST-LAST", group = "form", conflicts_with = "group_by", value_parser = Array::parse, help_heading = "What a task is")]
    pub(super) array: Option<Array>,
    /// One task per group of inputs for which the first group (…) of REGEX matches the same text of their names, such as
    /// '(.*)_R[12]\.fastq'. The inputs of a task are in $LIGHTHPC_INPUT_DIR
    #[arg(long, value_name = "REGEX", value_parser = group_regex, help_heading = "What a task is")]
    pub(super) group_by: Option<Regex>,
    /// With --group-by: number of inputs that each group must have (default: any)
    #[arg(long, value_name = "N", requires = "group_by", value_parser = clap::value_parser!(u16).range(1..), help_heading = "What a task is")]
    pub(super) group_size: Option<u16>,
}

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Array {
    first: i64,
    last: i64,
    step: i64,
}

impl Array {
    /// Parses `FIRST-LAST` or `FIRST-LAST:STEP`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let form = "two numbers are needed, such as 1-1000 or 0-90:10".to_owned();
        let (range, step) = text.split_once(':').unwrap_or((text, "1"));
        let (first, last) = range.split_once('-').ok_or_else(|| form.clone())?;
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_plain.then(|| text.parse::<i64>().ok()).flatten().ok_or_else(|| form.clone())
        };
        let array = Self { first: number(first)?, last: number(last)?, step: number(step)? };
        if array.step == 0 || array.first > array.last {
            return Err("the first number must not be above the last, and the step must not be 0".to_owned());
        }
        let count = (array.last - array.first) / array.step;
        if count >= ARRAY_MAX {
            return Err(format!("it has more than {ARRAY_MAX} numbers"));
        }
        Ok(array)
    }

    fn numbers(self) -> impl Iterator<Item = i64> {
        (0..=(self.last - self.first) / self.step).map(move |n| self.first + n * self.step)
    }
}

fn group_regex(text: &str) -> Result<Regex, String> {
    let regex = Regex::new(text).map_err(|error| error.to_string())?;
    if regex.captures_len() < 2 {
        return Err(
            "it has no group in parentheses, whose text names the task; write (?:…) for other groups".to_owned()
        );
    }
    Ok(regex)
}

/// A task that has no file of its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FormTask {
    pub(super) src: SrcId,
    pub(super) work: Work,
}

impl FormArgs {
    /// Returns whether tasks are made without input files.
    pub(super) const fn has_tasks(&self) -> bool {
        self.each_line.is_some() || self.csv.is_some() || self.tsv.is_some() || self.array.is_some()
    }

    /// Returns whether a flag says what a task is.
    pub(super) const fn is_given(&self) -> bool {
        self.has_tasks() || self.group_by.is_some() || !self.include.is_empty() || !self.exclude.is_empty()
    }

    /// Returns whether an input of this name is wanted.
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        let matches = |pattern: &String| WildMatch::new(pattern).matches(name);
        (self.include.is_empty() || self.include.iter().any(matches)) && !self.exclude.iter().any(matches)
    }

    /// Refuses input files beside tasks without files, and the flags of groups without files.
    pub(super) fn check(&self, has_inputs: bool) -> Result<(), Failure> {
        if self.has_tasks() && has_inputs {
            let message = "--each-line, --csv, --tsv and --array make tasks without input files";
            return Err(Failure::usage(message, "remove the input files, or name a file in a column of the table"));
        }
        let selects = !self.include.is_empty() || !self.exclude.is_empty();
        if selects && !has_inputs {
            return Err(Failure::usage("--include and --exclude have no inputs to select", "name the inputs"));
        }
        if self.group_by.is_some() && !has_inputs {
            return Err(Failure::usage("--group-by has no inputs to group", "name the input files"));
        }
        Ok(())
    }

    /// Reads the tasks that have no input files; `None` if no flag asks for any. `mission` is the beginning of their
    /// names.
    ///
    /// # Errors
    /// What is wrong, with the file and the line; nothing was written.
    pub(super) fn tasks(&self, mission: Option<&MissionId>) -> Result<Option<Vec<FormTask>>, Failure> {
        let tasks = if let Some(file) = &self.each_line {
            lines(file, mission)?
        } else if let Some(file) = &self.csv {
            let is_tsv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
            table(file, if is_tsv { b'\t' } else { b',' }, mission)?
        } else if let Some(file) = &self.tsv {
            table(file, b'\t', mission)?
        } else if let Some(array) = self.array {
            let task = |index: i64| {
                let src = named(mission, &index.to_string())?;
                Ok(FormTask { src, work: Work::of_params(index, BTreeMap::new()) })
            };
            array.numbers().map(task).collect::<Result<Vec<_>, Failure>>()?
        } else {
            return Ok(None);
        };
        Ok(Some(tasks))
    }

    /// Groups objects by the names of their inputs; `None` if no flag asks for it.
    ///
    /// # Errors
    /// An input that is in no group, or a group with another number of inputs than asked for.
    pub(super) fn groups(
        &self,
        mission: Option<&MissionId>,
        inputs: impl Iterator<Item = (String, ObjectName)>,
    ) -> Result<Option<Vec<FormTask>>, Failure> {
        let Some(regex) = &self.group_by else { return Ok(None) };
        let mut groups: BTreeMap<String, Vec<ObjectName>> = BTreeMap::new();
        for (name, object) in inputs {
            let capture = regex.captures(&name).and_then(|captures| captures.get(1));
            let Some(capture) = capture.map(|capture| capture.as_str()).filter(|capture| !capture.is_empty()) else {
                let message = format!("--group-by '{regex}' does not match the input {}", screen::plain(&name));
                return Err(Failure::usage(message, "correct the expression, or give only the files of the groups"));
            };
            groups.entry(capture.to_owned()).or_default().push(object);
        }
        self.check_sizes(&groups)?;
        let task = |(index, (name, mut objects)): (i64, (String, Vec<ObjectName>))| {
            objects.sort();
            objects.dedup();
            let work = Work { inputs: Inputs::Several(objects), params: BTreeMap::new(), index: Some(index) };
            let what =
                |what| Failure::usage(format!("the group {}: {what}", screen::plain(&name)), "correct --group-by");
            work.check().map_err(what)?;
            Ok(FormTask { src: named(mission, &name)?, work })
        };
        (1..).zip(groups).map(task).collect::<Result<Vec<_>, Failure>>().map(Some)
    }

    /// Refuses a group of another size than asked for, and warns of one that differs from most.
    fn check_sizes(&self, groups: &BTreeMap<String, Vec<ObjectName>>) -> Result<(), Failure> {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for group in groups.values() {
            *counts.entry(group.len()).or_default() += 1;
        }
        let usual = counts.iter().max_by_key(|(_, groups)| **groups).map_or(0, |(size, _)| *size);
        let wanted = self.group_size.map_or(usual, usize::from);
        let Some((name, group)) = groups.iter().find(|(_, group)| group.len() != wanted) else { return Ok(()) };
        let (name, size) = (screen::plain(name), group.len());
        let members: Vec<&str> = group.iter().map(|object| object.key.as_str()).take(5).collect();
        let members = screen::plain(&members.join(", "));
        if self.group_size.is_some() {
            let message =
                format!("the group {name} has {}, not {wanted}: {members}", screen::count(size as u64, "input"));
            return Err(Failure::usage(message, "add the missing files, remove the group's, or correct --group-by"));
        }
        screen::to_stderr(&format!(
            "warning: the group {name} has {}, and most groups have {wanted}: {members}\n\
             hint: --group-size {wanted} refuses such groups\n",
            screen::count(size as u64, "input")
        ));
        Ok(())
    }
}

/// Returns the workload as a line for a shell, from a program and its arguments, or from `--exec`.
pub(super) fn command_line(program: &[String], exec: Option<&str>) -> Result<Option<String>, Failure> {
    if program.is_empty() {
        return Ok(exec.map(ToOwned::to_owned).filter(|exec| !exec.trim().is_empty()));
    }
    workload::join(program).map(Some).map_err(misplaced)
}

fn misplaced(error: PlaceholderError) -> Failure {
    Failure::usage(error, "see \"Placeholders\" in docs/workloads.md")
}

/// Checks that the placeholders of a workload have a value for this task, and are in places where they can be replaced.
pub(super) fn check_workload(exec: &str, src: &SrcId, work: &Work) -> Result<(), Failure> {
    let has = |variable: &str| match variable {
        "LIGHTHPC_INPUT" => work.objects(src, "").len() == 1,
        "LIGHTHPC_INDEX" => work.index.is_some(),
        variable if variable.starts_with("LIGHTHPC_PARAM_") => {
            work.params.keys().any(|name| param_variable(name) == variable)
        }
        _ => true,
    };
    workload::check_line(exec, has).map_err(|error| match error {
        PlaceholderError::NoValue { .. } => Failure::usage(
            format!("task {}: {error}", screen::plain(src.as_str())),
            "compare the placeholder with the columns of the file; several inputs are in $LIGHTHPC_INPUT_DIR",
        ),
        error @ PlaceholderError::Unsafe { .. } => misplaced(error),
    })
}

/// Returns the name of a task.
fn named(mission: Option<&MissionId>, name: &str) -> Result<SrcId, Failure> {
    task_name(mission, name).map_err(|error| Failure::usage(error, "give another name"))
}

/// Opens a file, or standard input for `-`.
fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = File::open(file).and_then(|opened| {
        let is_folder = opened.metadata()?.is_dir();
        if is_folder { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(opened) }
    });
    match opened {
        Ok(opened) => Ok(Box::new(opened)),
        Err(error) => Err(unreadable(file, &error)),
    }
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{} cannot be read: {error}", shown(file)), "check its path and its permissions")
}

fn of_line(file: &Path, line: u64, what: &str, hint: &str) -> Failure {
    Failure::usage(format!("{}, line {line}: {what}", shown(file)), hint)
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

fn no_tasks(file: &Path, what: &str) -> Failure {
    Failure::usage(format!("{} {what}", shown(file)), "a mission needs at least one task")
}

/// Reads one task per line that is not empty.
fn lines(file: &Path, mission: Option<&MissionId>) -> Result<Vec<FormTask>, Failure> {
    let mut reader = io::BufReader::new(open(file)?);
    let mut tasks = Vec::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        if reader.read_until(b'\n', &mut bytes).map_err(|error| unreadable(file, &error))? == 0 {
            break;
        }
        let text =
            String::from_utf8(bytes).map_err(|_| of_line(file, number, "it is not UTF-8", "save it as UTF-8"))?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { &text };
        let text = text.strip_suffix('\n').unwrap_or(text);
        let line = text.strip_suffix('\r').unwrap_or(text);
        if line.is_empty() {
            continue;
        }
        check_param_value(line).map_err(|what| of_line(file, number, &format!("it {what}"), "remove the character"))?;
        let index = i64::try_from(tasks.len()).unwrap_or(i64::MAX).saturating_add(1);
        let work = Work::of_params(index, BTreeMap::from([("line".to_owned(), line.to_owned())]));
        work.check().map_err(|what| of_line(file, number, &what, "put long values into a file"))?;
        tasks.push(FormTask { src: named(mission, &index.to_string())?, work });
    }
    if tasks.is_empty() { Err(no_tasks(file, "has no line that is not empty")) } else { Ok(tasks) }
}

/// Reads one task per row of a table with a header.
fn table(file: &Path, separator: u8, mission: Option<&MissionId>) -> Result<Vec<FormTask>, Failure> {
    // In memory, to know the line of each row, and whether the last one ends inside quotes.
    let mut bytes = Vec::new();
    open(file)?.read_to_end(&mut bytes).map_err(|error| unreadable(file, &error))?;
    let mut lines = Lines { bytes: &bytes, at: 0, line: 1 };
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(bytes.as_slice());
    let columns: Vec<String> =
        reader.headers().map_err(|error| invalid(file, &error, &mut lines))?.iter().map(ToOwned::to_owned).collect();
    if columns.is_empty() {
        return Err(no_tasks(file, "is empty"));
    }
    check_columns(file, &columns)?;
    let name_column = columns.iter().position(|column| column.eq_ignore_ascii_case("name"));
    let (mut tasks, mut named_in) = (Vec::new(), HashMap::new());
    let (mut row, mut last) = (csv::StringRecord::new(), (0, 1));
    while reader.read_record(&mut row).map_err(|error| invalid(file, &error, &mut lines))? {
        let start = row.position().map_or(0, csv::Position::byte);
        let line = lines.of(start);
        last = (start, line);
        let index = i64::try_from(tasks.len()).unwrap_or(i64::MAX).saturating_add(1);
        let name = name_column.map_or_else(|| index.to_string(), |column| row[column].to_owned());
        check_name(&name).map_err(|what| of_line(file, line, &what, "correct the name, or rename the column"))?;
        let params = columns.iter().cloned().zip(row.iter().map(ToOwned::to_owned)).collect();
        let work = Work::of_params(index, params);
        work.check().map_err(|what| of_line(file, line, &what, "correct the row; put long values into a file"))?;
        let src = named(mission, &name)?;
        if let Some(before) = named_in.insert(src.clone(), line) {
            let what = format!("the name {} is also that of line {before}", screen::plain(&name));
            return Err(of_line(file, line, &what, "give each row a name of its own"));
        }
        tasks.push(FormTask { src, work });
    }
    if ends_in_quotes(&bytes[usize::try_from(last.0).unwrap_or(0)..], separator) {
        let what = "a quote that begins in this row is not closed";
        return Err(of_line(file, last.1, what, "close it; write two quotes for one inside quotes"));
    }
    check_folders(file, &named_in)?;
    if tasks.is_empty() { Err(no_tasks(file, "has no row after the header")) } else { Ok(tasks) }
}

/// Counts the lines of a text, from its beginning to its end.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// Returns the line of a row that begins at a byte, or after the empty lines there. No row before the last one can be
    /// asked for.
    fn of(&mut self, start: u64) -> u64 {
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(self.bytes.len());
        let empty = self.bytes[start..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let passed = self.bytes.get(self.at..start + empty).unwrap_or_default();
        self.line += passed.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        self.at = self.at.max(start + empty);
        self.line
    }
}

/// Returns whether the last row of a table ends inside quotes: the rest of the file has become one value.
fn ends_in_quotes(row: &[u8], separator: u8) -> bool {
    let (mut is_quoted, mut is_start) = (false, true);
    for &byte in row {
        // Two quotes end and begin, so they are inside.
        if byte == b'"' && (is_quoted || is_start) {
            is_quoted = !is_quoted;
            is_start = !is_quoted;
            continue;
        }
        is_start = !is_quoted && (byte == separator || matches!(byte, b'\r' | b'\n'));
    }
    is_quoted
}

/// Checks that a name is one that people can see, and a file or a folder can have.
fn check_name(name: &str) -> Result<(), String> {
    match name {
        _ if name.trim().is_empty() => Err("the name is empty".to_owned()),
        _ if name.ends_with('/') => Err(format!("the name {} ends with /", screen::plain(name))),
        _ => Ok(()),
    }
}

/// Refuses a name that is a folder in another name: the results of both could not be stored.
fn check_folders(file: &Path, lines: &HashMap<SrcId, u64>) -> Result<(), Failure> {
    for (src, line) in lines {
        for (slash, _) in src.as_str().match_indices('/') {
            let above = SrcId::new(&src.as_str()[..slash]).ok();
            if let Some(before) = above.and_then(|above| lines.get(&above)) {
                let name = screen::plain(src.as_str());
                let what = format!("the name {name} would be in the result folder of line {before}");
                return Err(of_line(file, *line, &what, "give one of them another name"));
            }
        }
    }
    Ok(())
}

/// Checks that each column can be a variable of its own.
fn check_columns(file: &Path, columns: &[String]) -> Result<(), Failure> {
    let mut variables = HashMap::new();
    for (column, number) in columns.iter().zip(1..) {
        let in_header = |what: String, hint: &str| of_line(file, 1, &format!("column {number}: {what}"), hint);
        check_param_name(column).map_err(|what| in_header(what, "rename the column in the first line of the file"))?;
        if let Some(before) = variables.insert(param_variable(column), number) {
            let what = format!("{column} would be the same variable as column {before}, {}", param_variable(column));
            return Err(in_header(what, "rename one of them; upper and lower case do not differ"));
        }
    }
    Ok(())
}

/// Explains what is wrong with a table, and where.
fn invalid(file: &Path, error: &csv::Error, lines: &mut Lines<'_>) -> Failure {
    let line = lines.of(error.position().map_or(0, csv::Position::byte));
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => of_line(
            file,
            line,
            &format!("it has {}, and the header has {expected_len}", screen::count(*len, "column")),
            "correct the row; put values with separators or line ends in quotes",
        ),
        csv::ErrorKind::Utf8 { .. } => of_line(file, line, "it is not UTF-8", "save the file as UTF-8"),
        csv::ErrorKind::Io(error) => unreadable(file, error),
        _ => of_line(file, line, &error.to_string(), "correct the file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mission() -> MissionId {
        MissionId::new("M").unwrap()
    }

    /// Writes a file, and returns the tasks of it, or the error.
    fn read(name: &str, content: &str, args: impl Fn(PathBuf) -> FormArgs) -> Result<Vec<FormTask>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, content).unwrap();
        let tasks = args(file).tasks(Some(&mission()));
        tasks.map(Option::unwrap).map_err(|failure| failure.error.to_string())
    }

    fn csv(content: &str) -> Result<Vec<FormTask>, String> {
        read("t.csv", content, |file| FormArgs { csv: Some(file), ..FormArgs::default() })
    }

    fn each_line(content: &str) -> Result<Vec<FormTask>, String> {
        read("t.txt", content, |file| FormArgs { each_line: Some(file), ..FormArgs::default() })
    }

    fn shown(tasks: &[FormTask]) -> Vec<String> {
        let task = |task: &FormTask| {
            let params = task.work.params.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>();
            format!("{} {}{params}", task.src, task.work.index.unwrap())
        };
        tasks.iter().map(task).collect()
    }

    #[test]
    fn a_row_is_a_task_and_its_columns_are_parameters() {
        let rows = csv("alpha,b_2\r\n0.5,x\r\n\r\n1,\"two\nlines, and a \"\"quote\"\"\"\n").unwrap();
        assert_eq!(shown(&csv("a,b\n5\" disk,\"x\"\n").unwrap()), ["M/1 1 a=5\" disk b=x"]);
        assert_eq!(shown(&rows), ["M/1 1 alpha=0.5 b_2=x", "M/2 2 alpha=1 b_2=two\nlines, and a \"quote\""]);
        let named = csv("\u{feff}x,name\n1,first one\n2,b/c\n").unwrap();
        assert_eq!(shown(&named), ["M/first one 1 name=first one x=1", "M/b/c 2 name=b/c x=2"]);
        let tsv = |name: &str| read(name, "a\tb\n1,5\t2\n", |file| FormArgs { csv: Some(file), ..FormArgs::default() });
        assert_eq!(shown(&tsv("t.TSV").unwrap()), ["M/1 1 a=1,5 b=2"]);
        assert!(tsv("t.csv").unwrap_err().contains("cannot be the name of a variable"));
        let tsv = read("t", "a\tb\n1\t2\n", |file| FormArgs { tsv: Some(file), ..FormArgs::default() });
        assert_eq!(shown(&tsv.unwrap()), ["M/1 1 a=1 b=2"]);
    }

    #[test]
    fn a_table_that_is_wrong_is_refused_with_file_and_line() {
        for (content, words) in [
            ("", "t.csv is empty"),
            ("a,b\n", "t.csv has no row"),
            ("a,b\n1,2\n3\n", "t.csv, line 3: it has 1 column, and the header has 2"),
            ("a,b\n1,2\n3,4,5\n", "t.csv, line 3: it has 3 columns"),
            ("a,b\n\"1\n\",2\n3\n", "t.csv, line 4"),
            ("a b,c\n1,2\n", "t.csv, line 1: column 1: \"a b\" cannot be the name"),
            ("a,\n1,2\n", "t.csv, line 1: column 2: \"\" cannot be the name"),
            ("a, b\n1,2\n", "column 2: \" b\""),
            ("1,2\n3,4\n", "column 1: \"1\""),
            ("a,b,A\n1,2,3\n", "column 3: A would be the same variable as column 1, LIGHTHPC_PARAM_A"),
            ("a,a\n1,2\n", "column 2: a would be the same"),
            ("name,a\nx,1\ny,2\nx,3\n", "t.csv, line 4: the name x is also that of line 2"),
            ("name,a\nx,1\n,2\n", "t.csv, line 3: the name is empty"),
            ("Name,a\nx,1\n  ,2\n", "t.csv, line 3: the name is empty"),
            ("name,a\nx/,1\n", "t.csv, line 2: the name x/ ends with /"),
            ("name,a\nx/y,1\nx,2\n", "line 2: the name M/x/y would be in the result folder of line 3"),
            ("a,b\n1,2\n\n\r\n3\n", "t.csv, line 5: it has 1 column"),
            ("name,v\na,\"5 inch\nb,6\nc,7\n", "t.csv, line 2: a quote that begins in this row is not closed"),
            ("a,b\n1,2\n3,\"x\"\"", "t.csv, line 3: a quote"),
            ("a\nx\u{1b}[0m\n", "t.csv, line 2: the value of a has the control character"),
        ] {
            let error = csv(content).unwrap_err();
            assert!(error.contains(words), "{content:?}: {error}");
        }
        let long = "x".repeat(crate::domain::work::PARAMS_BYTES_MAX);
        assert!(csv(&format!("a\n{long}\n")).unwrap_err().contains("line 2: its parameters have 32769 bytes"));
        let failure = table(Path::new("/nowhere.csv"), b',', None).unwrap_err();
        assert!(failure.error.to_string().starts_with("/nowhere.csv cannot be read"));
        assert!(table(Path::new("/"), b',', None).unwrap_err().error.to_string().contains("is a directory"));
    }

    #[test]
    fn a_table_that_is_not_utf_8_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, b"a,b\n1,2\n\xff,3\n").unwrap();
        let args = FormArgs { csv: Some(file.clone()), ..FormArgs::default() };
        assert!(args.tasks(None).unwrap_err().error.to_string().ends_with("t, line 3: it is not UTF-8"));
        let args = FormArgs { each_line: Some(file), ..FormArgs::default() };
        assert!(args.tasks(None).unwrap_err().error.to_string().ends_with("t, line 3: it is not UTF-8"));
    }

    #[test]
    fn a_line_that_is_not_empty_is_a_task() {
        let lines = each_line("\u{feff}a b\r\n\n ; rm -rf $HOME\nlast").unwrap();
        assert_eq!(shown(&lines), ["M/1 1 line=a b", "M/2 2 line= ; rm -rf $HOME", "M/3 3 line=last"]);
        assert!(each_line("").unwrap_err().contains("no line that is not empty"));
        assert!(each_line("\n\r\n\n").unwrap_err().contains("no line that is not empty"));
        assert!(each_line("a\nb\0\n").unwrap_err().contains("line 2: it has the control character"));
    }

    #[test]
    fn an_array_is_a_task_for_each_number() {
        let numbers = |text: &str| Array::parse(text).map(|array| array.numbers().collect::<Vec<_>>());
        assert_eq!(numbers("1-3").unwrap(), [1, 2, 3]);
        assert_eq!(numbers("0-95:10").unwrap(), [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
        assert_eq!((numbers("7-7").unwrap(), numbers("007-7:99").unwrap()), (vec![7], vec![7]));
        for bad in ["", "5", "3-1", "1-", "-3", "1-3:0", "1-3:", "a-b", "1--3", "+1-3", "1-3:-1", "1 - 3", "1-1000001"]
        {
            assert!(numbers(bad).is_err(), "{bad}");
        }
        assert!(numbers("0-9223372036854775807").is_err() && numbers("1-1000000").is_ok());
        let args = FormArgs { array: Some(Array::parse("8-10").unwrap()), ..FormArgs::default() };
        let tasks = args.tasks(None).unwrap().unwrap();
        assert_eq!(shown(&tasks), ["8 8", "9 9", "10 10"]);
        assert!(tasks.iter().all(|task| task.work.inputs == Inputs::None));
    }

    fn groups(regex: &str, size: Option<u16>, names: &[&str]) -> Result<Vec<String>, String> {
        let args = FormArgs { group_by: Some(group_regex(regex).unwrap()), group_size: size, ..FormArgs::default() };
        let inputs = names.iter().map(|name| {
            let name = (*name).to_owned();
            (name.clone(), ObjectName { bucket: "b".to_owned(), key: format!("M/{name}") })
        });
        let tasks = args.groups(Some(&mission()), inputs).map_err(|failure| failure.error.to_string())?.unwrap();
        let task = |task: &FormTask| {
            let objects = task.work.objects(&task.src, "own").iter().map(ObjectName::uri).collect::<Vec<_>>();
            format!("{} {}: {}", task.src, task.work.index.unwrap(), objects.join(" "))
        };
        Ok(tasks.iter().map(task).collect())
    }

    #[test]
    fn a_group_is_a_task() {
        let pairs = ["s2_R1.fq", "s1_R2.fq", "s1_R1.fq", "s2_R2.fq", "s1_R1.fq"];
        let expected = ["M/s1 1: s3://b/M/s1_R1.fq s3://b/M/s1_R2.fq", "M/s2 2: s3://b/M/s2_R1.fq s3://b/M/s2_R2.fq"];
        assert_eq!(groups(r"(.*)_R[12]\.fq$", None, &pairs).unwrap(), expected);
        let alone = groups(r"(.*)_R[12]", Some(2), &["s1_R1.fq", "s1_R2.fq", "s2_R1.fq"]).unwrap_err();
        assert!(alone.contains("the group s2 has 1 input, not 2: M/s2_R1.fq"), "{alone}");
        assert_eq!(groups(r"(.*)_R[12]", None, &["s1_R1.fq", "s1_R2.fq", "s2_R1.fq"]).unwrap().len(), 2);
        let odd = groups(r"(.*)_R[12]", None, &["s1_R1.fq", "notes.txt"]).unwrap_err();
        assert!(odd.contains("does not match the input notes.txt"), "{odd}");
        let nothing = groups(r"(x*)_R[12]", None, &["s1_R1.fq"]).unwrap_err();
        assert!(nothing.contains("does not match the input s1_R1.fq"), "{nothing}");
        let same = groups("^(.)", None, &["a/1.fq", "a/x/1.fq"]).unwrap_err();
        assert!(same.contains("would be the same file, 1.fq"), "{same}");
        for bad in ["s1", "(?:a)", "(", "*"] {
            assert!(group_regex(bad).is_err(), "{bad}");
        }
    }
}
