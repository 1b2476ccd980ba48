//! Tests: the generated pages and texts match the definition of the command line.
//!
//! `UPDATE_EXPECT=1 cargo nextest run --release command::reference` regenerates them.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};
use expect_test::expect_file;

use super::cli::Cli;

const INTRODUCTION: &str = "# Configuration

<!-- Generated from src/command/cli.rs and flags.rs: see CONTRIBUTING.md. -->

Most flags can also be set by an environment variable. A flag overrides its variable. An empty variable counts as not set.
Times are in seconds, or have a unit: `90`, `90s`, `10m`, `2h`, `1d`, with an optional fraction. Sizes are in bytes, or have a unit: `K`, `M`, `G` or `T`, powers of 1,024.

On a node, systemd reads the variables from `/etc/lighthpc/lighthpc.env`. The user data of the stack's launch template writes
that file. In your shell, `eval \"$(scripts/deploy --stack NAME --exports)\"` sets the variables of a deployment.

With `--local`, variables that describe an AWS account or a node are ignored.

The image and the stack set some variables themselves: `LIGHTHPC_WORK_DIR=/var/lib/lighthpc`, `LIGHTHPC_ISOLATION=unit`,
`LIGHTHPC_TERMINATE=1`, and `LIGHTHPC_MAX_LIFETIME=86400` (the stack's parameter `MaxLifetimeSeconds`). See [the image](image.md).

Variables that no flag has:

| variable | default | meaning |
|---|---|---|
| `LIGHTHPC_LOG_FORMAT` | `text` | form of log lines: `text` or `json`; also the flag `--log-format` of each command |
| `LIGHTHPC_LOG` | `info` for a node and the function, else `warn` | log level (`error`, `warn`, `info`, `debug`, `trace`), or a list such as `lighthpc=debug,aws=warn` |
| `LIGHTHPC_MAX_BOOT` | 900 | on the image: seconds from boot until the node must be at work, or the machine powers off |
| `LIGHTHPC_MAX_DRAIN` | 600 | on the image: seconds after `LIGHTHPC_MAX_LIFETIME` until the machine powers off |
";

/// Returns the content of docs/configuration.md.
fn configuration() -> String {
    let mut page = INTRODUCTION.to_owned();
    for command in Cli::definition().get_subcommands() {
        let arguments: Vec<&Arg> = command.get_arguments().filter(|arg| is_shown(arg)).collect();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        write!(page, "\n## lighthpc {}\n\n{about}.\n\n", command.get_name()).unwrap();
        page.push_str("| argument | variable | default | meaning |\n|---|---|---|---|\n");
        for arg in arguments {
            page.push_str(&row(arg));
        }
    }
    page
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
}

fn row(arg: &Arg) -> String {
    let values =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let takes_value = arg.get_action().takes_values();
    let argument = match arg.get_long() {
        Some(long) if takes_value => format!("--{long} {values}"),
        Some(long) => format!("--{long}"),
        None if arg.is_last_set() => format!("-- {values}"),
        None => values,
    };
    let variable = arg.get_env().map(|name| format!("`{}`", name.display())).unwrap_or_default();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    // Defaults that the program computes are in the text.
    let (meaning, said) = match help.rfind(" (default: ") {
        Some(at) => (format!("{}{}", &help[..at], help[at..].split_once(')').map_or("", |(_, rest)| rest)), {
            let rest = &help[at + " (default: ".len()..];
            rest.split_once(')').map_or(rest, |(default, _)| default).to_owned()
        }),
        None => (help, String::new()),
    };
    let default = match arg.get_default_values().first() {
        Some(value) if takes_value && !arg.is_hide_default_value_set() => format!("`{}`", value.display()),
        _ => said,
    };
    let cell = |text: &str| text.replace('|', "\\|");
    format!("| `{}` | {variable} | {} | {} |\n", cell(&argument), cell(&default), cell(&meaning))
}

#[test]
fn the_configuration_page_is_up_to_date() {
    expect_file!["../../docs/configuration.md"].assert_eq(&configuration());
}

#[test]
fn the_help_of_each_command_is_reviewed() {
    let mut program = Cli::definition().term_width(100);
    program.build();
    let mut text = program.render_help().to_string();
    for command in program.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.clone().term_width(100).render_long_help();
        write!(text, "\n{}\n\n{help}", "=".repeat(100)).unwrap();
    }
    // Clap leaves spaces at the end of some lines.
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    expect_file!["snapshots/help.txt"].assert_eq(&text);
}

fn every_argument(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_subcommands().flat_map(Command::get_arguments).filter(|arg| is_shown(arg))
}

#[test]
fn every_argument_has_one_sentence_that_begins_with_a_capital_and_has_no_full_stop() {
    let program = Cli::definition();
    for arg in every_argument(&program) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with(char::is_uppercase) && !help.ends_with('.'), "{}: {help}", arg.get_id());
    }
}

/// Returns the command lines of lighthpc in a text: lines of code blocks, and code in the text.
fn command_lines(text: &str) -> Vec<String> {
    let blocks = text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned);
    let inline = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let is_one = |line: &String| line.trim_start().starts_with("lighthpc ");
    blocks.chain(inline).filter(is_one).map(|line| line.trim().to_owned()).collect()
}

/// Returns the words of lighthpc itself in a command line of a shell: up to a comment, a pipe, or the next command.
fn words_of(line: &str) -> Vec<String> {
    let line = line.split(" # ").next().unwrap_or(line).replace('\n', " ");
    // What stands for any words.
    let line = line.replace(['…', '[', ']'], " ").replace("...", " ");
    let words = shell_words::split(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    words.into_iter().take_while(|word| !matches!(word.as_str(), "|" | "&&" | ">" | ";" | "&")).collect()
}

#[test]
fn each_command_line_of_the_documents_is_one_that_the_program_understands() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("examples/README.md")];
    pages.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut lines: Vec<(String, String)> = Vec::new();
    for page in pages.iter().filter(|page| page.extension().is_some_and(|ext| ext == "md")) {
        let text = std::fs::read_to_string(page).unwrap();
        lines.extend(command_lines(&text).into_iter().map(|line| (page.display().to_string(), line)));
    }
    let program = Cli::definition();
    for command in program.get_subcommands() {
        let examples = command.get_before_help().map(ToString::to_string).unwrap_or_default();
        let examples =
            examples.lines().map(|line| line.split("  ").find(|part| !part.is_empty()).unwrap_or("").to_owned());
        let examples = examples.filter(|line| line.starts_with("lighthpc "));
        lines.extend(examples.map(|line| (format!("help of {}", command.get_name()), line)));
    }
    assert!(lines.len() > 50, "{}", lines.len());
    for (page, line) in lines {
        let words = words_of(&line);
        // The name of a command alone is no command line.
        if words.len() == 2 && words[1] != "run" {
            assert!(program.find_subcommand(&words[1]).is_some() || words[1].starts_with('-'), "{page}: {line}");
            continue;
        }
        if let Err(error) = program.clone().try_get_matches_from(&words) {
            let is_help = !error.use_stderr();
            assert!(is_help, "{page}: {line}\n{error}");
        }
    }
}
